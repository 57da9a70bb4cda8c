"""`python -m benchmarks.tune`: fills the table of kernel tiles of a card.

On a GPU every kernel that has candidates is timed with them at the paper's and the large sizes, and the winners go to
the user's own table, with --ship also to the table that is installed with the package. They are compiled by several
processes first, which takes most of the time: minutes on 16 cores for one dtype, see --sizes and --dtypes. With
--from-resources no GPU is needed and nothing is measured: each row names the heuristic's tiles, or where those have a
problem on a card (spilled registers, too much shared memory, no tensor-core instruction, or not the card's fast one),
the first candidate that has none; the file says so.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import compile_ahead, launches, preparing
from benchmarks.gpu.compile_ahead import Report
from benchmarks.gpu.launches import Job
from benchmarks.harness import checking, records
from benchmarks.harness.cases import OPERATIONS
from benchmarks.harness.sizes import DTYPES, LARGE, PAPER, PAPER_8, Size
from gwsss_fast import files, ops
from gwsss_fast.launch import launcher, tuning
from gwsss_fast.launch.launcher import Tiles
from gwsss_fast.launch.tuning import Request

FAST = {"sm_90": ("HGMMA", "QGMMA", "IGMMA"), "sm_100": ("UTCHMMA", "UTCQMMA", "UTCIMMA")}
"""A product of matrices that shows none of these runs at half the rate or less of what the card can do."""
FROM_RESOURCES = (
    "Not measured. Written by `python -m benchmarks.tune --from-resources`: the heuristic's tiles at the paper's and "
    "the large sizes, or the first candidate instead, whichever has no problem when compiled for this card."
)
SIZES = (PAPER, PAPER_8, LARGE)


def problems(report: Report, card: str) -> list[str]:
    """Those that forbid shipping, and a product on the slow path."""
    found = report.problems(card)
    fast = FAST.get(card)
    if fast is not None and report.tensor_core and not set(fast) & set(report.tensor_core):
        found.append(f"its products run on {' '.join(report.tensor_core)}, not on {fast[0]}")
    return found


def asked(sizes: Iterable[Size], dtypes: Iterable[str], card: str) -> dict[str, dict[str, Request]]:
    """By kernel and key, what the launchers ask when these sizes are recorded for `card`.

    Raises ValueError for a key that does not say what its heuristic hangs on.
    """
    found: dict[str, dict[str, Request]] = {}
    dtypes = list(dtypes)
    with tuning.requests() as requests:
        for operation in OPERATIONS:
            for size in sizes:
                for name in dtypes:
                    if launches.refusal(operation, size, DTYPES[name]) is None:
                        launches.recorded(operation, size, DTYPES[name], card)
    for request in requests:
        if request.run is not None and request.candidates:
            same = found.setdefault(request.name, {}).setdefault(repr(sorted(request.key.items())), request)
            if same.heuristic != request.heuristic:
                raise ValueError(f"{request.name} {request.key}: {same.heuristic} and {request.heuristic} for one key")
    return found


def jobs_of(request: Request, tiles: Tiles, card: str) -> list[Job]:
    """What a request starts with given tiles."""
    assert request.run is not None
    with launcher.record(card) as started:
        request.run(tiles)
    return [launches.job(launch, card) for launch in started]


def chosen_rows(
    requests: Iterable[Request], card: str, workers: int, folder: Path | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one kernel, and one line for each request where neither heuristic nor candidate is without a problem."""
    rows, unhelped = [], []
    for request in requests:
        options = tuning.distinct([request.heuristic, *request.candidates])
        for tiles in options:
            found = compile_ahead.reports(dict.fromkeys(jobs_of(request, tiles, card)), workers, folder)
            if not any(problems(report, card) for _, report in found):
                rows.append(tuning.to_row(request.key, tiles))
                break
        else:
            unhelped.append(f"{request.name} {request.key} on {card}: no candidate is without a problem")
    return rows, unhelped


def from_resources(cards: Sequence[str], workers: int, output: Path) -> int:
    """Write `<card>.json` for each card; returns the number of requests that stay with a problem."""
    left = 0
    for card in cards:
        kernels = {}
        for name, requests in asked(SIZES, DTYPES, card).items():
            rows, unhelped = chosen_rows(requests.values(), card, workers, compile_ahead.cache_folder())
            left += len(unhelped)
            kernels[name] = rows
            for line in unhelped:
                print(line)
        files.write_json(output / f"{card}.json", {"about": FROM_RESOURCES, "kernels": kernels})
        print(f"{card}: {sum(len(rows) for rows in kernels.values())} rows")
    return left


def compile_candidates(sizes: Iterable[Size], dtypes: Iterable[str], card: str, workers: int) -> tuple[int, int]:
    """Fill Triton's cache with all that `measure` times; how many kernels were compiled, and how many refused."""
    preparing.keep_one_cache()
    wanted: dict[Job, None] = {}
    for requests in asked(sizes, dtypes, card).values():
        for request in requests.values():
            for tiles in tuning.distinct([request.heuristic, *request.candidates]):
                wanted |= dict.fromkeys(jobs_of(request, tiles, card))
    refused = 0
    for number, (_, error) in enumerate(compile_ahead.in_processes(preparing.make_ready, wanted, workers), 1):
        refused += error is not None
        if number % 100 == 0:
            print(f"{number} of {len(wanted)} kernels compiled", flush=True)
    return len(wanted) - refused, refused


def measure(sizes: Iterable[Size], dtypes: Iterable[str], device: str) -> None:
    """Run every operation once forward and backward with tuning on."""
    os.environ["GWSSS_AUTOTUNE"] = "1"
    for operation in OPERATIONS:
        for size in sizes:
            for name in dtypes:
                tensors = operation.inputs(size, DTYPES[name], device, 0)
                if "triton" in operation.backends(tensors):
                    with ops.backend("triton"):
                        checking.run(operation.call, tensors, operation.differentiable)
                    print(f"{operation.label}, {size.name}, {name}", flush=True)


def ship(card: str, device: str, output: Path) -> Path:
    """Put the user's rows for `card` into the table that is installed, saying where they were measured; it keeps its
    rows for other keys, and their order."""
    rows, path = tuning.read_table(tuning.own_folder() / f"{card}.json"), output / f"{card}.json"
    shipped = tuning.read_table(path)
    kernels, left = {}, 0
    for name in {**shipped, **rows}:
        own, before = rows.get(name, []), shipped.get(name, [])
        measured = {repr(sorted(key.items())): tiles for key, tiles in own}
        order = [*before, *(row for row in own if row[0] not in [key for key, _ in before])]
        left += sum(repr(sorted(key.items())) not in measured for key, _ in order)
        kernels[name] = [tuning.to_row(key, measured.get(repr(sorted(key.items())), tiles)) for key, tiles in order]
    about = f"Measured by `python -m benchmarks.tune` on {records.device_name(device)}, torch {torch.__version__}"
    about += f"; {left} rows as they were before, see the file's history." if left else "."
    files.write_json(path, {"about": about, "kernels": kernels})
    tuning.read_again()
    return path


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.split("\n\n")[1])
    parser.add_argument("--from-resources", action="store_true", help="without a GPU, from compiled kernels alone")
    parser.add_argument("--cards", nargs="+", default=["sm_80", "sm_90"], help="with --from-resources")
    parser.add_argument("--ship", action="store_true", help="write the table that is installed with the package")
    parser.add_argument("--sizes", nargs="+", choices=[size.name for size in SIZES], help="what is timed; all of them")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES), help="what is timed")
    parser.add_argument("--workers", type=int, default=max(2, (os.cpu_count() or 2) - 2), help="compiling processes")
    options = parser.parse_args(words)
    if options.from_resources:
        return int(from_resources(options.cards, options.workers, tuning.SHIPPED) > 0)
    if not torch.cuda.is_available():
        print("benchmarks.tune: no CUDA GPU is visible to PyTorch; --from-resources needs none", file=sys.stderr)
        return 2
    device = "cuda:0"
    sizes = [size for size in SIZES if options.sizes is None or size.name in options.sizes]
    card = preparing.card_of(device)
    compiled, refused = compile_candidates(sizes, options.dtypes, card, options.workers)
    print(f"{compiled} kernels compiled, {refused} refused", flush=True)
    measure(sizes, options.dtypes, device)
    if options.ship:
        print(f"written: {ship(card, device, tuning.SHIPPED)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
