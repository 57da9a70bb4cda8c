"""Results as lines of JSON that are only ever appended, and as a table."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.harness.cases import dtype_name
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.sizes import Size
from benchmarks.harness.timing import Times, for_lack_of_time
from benchmarks.harness.work import Work

Record = dict[str, Any]
OWN_ORDER = ("cuda", "triton", "cpp", "aten", "reference")


def device_name(device: str) -> str:
    """The GPU's name, or the processor's kind and threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def environment(device: str) -> Record:
    """What every line says of its run."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton_version,
    }


def describe(size: Size, dtype: torch.dtype) -> Record:
    """Shape and dtype."""
    shape = {
        "B": size.groups,
        "K": size.nodes,
        "N": size.positions,
        "C": size.channels,
        "D": size.rank,
        "T": size.steps,
    }
    return {"size": size.name, **shape, "dtype": dtype_name(dtype)}


def spread(times: Times) -> Record:
    """Quantiles and their count."""
    return {"p20_ms": times.p20, "p50_ms": times.p50, "p80_ms": times.p80, "count": times.count}


def measured(times: Times, work: Work, dtype: torch.dtype, ceilings: Ceilings | None, peak: int | None) -> Record:
    """The numbers of one line: times, rates, and parts of the ceilings."""
    seconds = 1e-3 * times.p50
    record: Record = {
        **spread(times),
        **{"host_ms": times.host, "peak_bytes": peak},
        **{"tflops": work.flops / seconds / 1e12, "gb_per_s": work.bytes / seconds / 1e9},
    }
    if ceilings is not None:
        name = dtype_name(dtype)
        record["of_gemm"] = ceilings.of_gemm(work, name, times.p50)
        record["of_copy"] = ceilings.of_copy(work, times.p50)
        record["of_floor"] = ceilings.floor_ms(work, name) / times.p50
    return record


def path_of(folder: Path, device: str) -> Path:
    """One file a device."""
    return folder / (re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-") + ".jsonl")


def append(path: Path, lines: Iterable[Record]) -> None:
    """Add lines at the end of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[Record]:
    """All lines of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def groups(records: Sequence[Record]) -> dict[tuple[str, ...], list[Record]]:
    """Records that were measured against each other: same operation, pass, size and dtype. Of a peer that was measured
    again the last line, unless no time was left for it."""
    found: dict[tuple[str, ...], dict[str, Record]] = {}
    for record in records:
        if "peer" in record:
            members = found.setdefault(tuple(str(record[name]) for name in ("operation", "pass", "size", "dtype")), {})
            if record["peer"] not in members or not for_lack_of_time(str(record.get("reason"))):
                members[record["peer"]] = record
    return {key: list(members.values()) for key, members in found.items()}


def ours(members: Sequence[Record]) -> Record | None:
    """The backend that "auto" would take, of those that were timed."""
    timed = [record for record in members if record.get("ours") and "p50_ms" in record]
    rank = {name: number for number, name in enumerate(OWN_ORDER)}
    return min(timed, key=lambda record: rank.get(record["peer"], -1), default=None)


def best_peer(members: Sequence[Record]) -> Record | None:
    """The fastest of the others."""
    timed = [record for record in members if not record.get("ours") and "p50_ms" in record]
    return min(timed, key=lambda record: record["p50_ms"], default=None)


COLUMNS = (
    "operation",
    "pass",
    "size",
    "dtype",
    "ours",
    "ms",
    "host",
    "% gemm",
    "% copy",
    "eager x",
    "batched x",
    "compile x",
    "best",
)


def line(key: tuple[str, ...], members: Sequence[Record]) -> tuple[str, ...]:
    """One line of the last table: our backend, and how many times faster it is than each kind of peer."""
    own, best = ours(members), best_peer(members)
    if own is None:
        reasons = [record["reason"] for record in members if record.get("ours") and record.get("reason")]
        return (*key, "-", "-", "-", "-", "-", "-", "-", "-", (reasons or ["not run"])[0][:60])
    named = {record["peer"]: record for record in members if "p50_ms" in record}
    compiled = [named[name]["p50_ms"] for name in named if name.startswith("compiled")]
    best_text = f"{best['p50_ms'] / own['p50_ms']:.2f} {best['peer']}" if best else "-"
    return (
        *(*key, own["peer"], f"{own['p50_ms']:.3f}", f"{own['host_ms']:.3f}", _percent(own.get("of_gemm"))),
        _percent(own.get("of_copy")),
        *(_ratio(named.get(name, {}).get("p50_ms"), own["p50_ms"]) for name in ("eager", "batched")),
        *(_ratio(min(compiled, default=None), own["p50_ms"]), best_text),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}"


def _ratio(theirs: float | None, own: float) -> str:
    return "-" if theirs is None else f"{theirs / own:.2f}"


def table(records: Sequence[Record], title: str) -> Table:
    """One line for each case."""
    result = Table(*COLUMNS, title=title)
    for key, members in groups(records).items():
        result.add_row(*line(key, members))
    return result


def reasons(records: Sequence[Record]) -> Mapping[tuple[str, str], str]:
    """(operation, peer) to why it was not timed, the first reason of each."""
    found: dict[tuple[str, str], str] = {}
    for record in records:
        if record.get("reason"):
            found.setdefault((record["operation"], record["peer"]), record["reason"])
    return found
