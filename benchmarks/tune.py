"""`python -m benchmarks.tune`: fills the table of kernel tiles of a card.

On a GPU every kernel that has candidates is timed with them at the paper's and the large sizes, and the winners go to
the user's own table, or with --ship to the table that is installed with the package. With --from-resources no GPU is
needed and nothing is measured: each row names the heuristic's tiles, or where those have a problem on a card (spilled
registers, too much shared memory, no tensor-core instruction, or not the card's fast one), the first candidate that has
none; the file says so.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import checking, compile_ahead, launches, records
from benchmarks.cases import OPERATIONS
from benchmarks.compile_ahead import Report
from benchmarks.launches import Job
from benchmarks.sizes import DTYPES, LARGE, PAPER, PAPER_8, Size
from gwsss_fast import files
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


def measure(sizes: Iterable[Size], dtypes: Iterable[str], device: str) -> None:
    """Run every operation once forward and backward with tuning on."""
    os.environ["GWSSS_AUTOTUNE"] = "1"
    for operation in OPERATIONS:
        for size in sizes:
            for name in dtypes:
                tensors = operation.inputs(size, DTYPES[name], device, 0)
                if "triton" in operation.backends(tensors):
                    checking.run(operation.call, tensors, operation.differentiable)
                    print(f"{operation.label}, {size.name}, {name}")


def ship(card: str, device: str, output: Path) -> Path:
    """Copy the user's table of `card` to where tables are installed from, saying where it was measured."""
    rows = tuning.read_table(tuning.own_folder() / f"{card}.json")
    about = f"Measured by `python -m benchmarks.tune` on {records.device_name(device)}, torch {torch.__version__}."
    kernels = {name: [tuning.to_row(*row) for row in found] for name, found in rows.items()}
    files.write_json(output / f"{card}.json", {"about": about, "kernels": kernels})
    return output / f"{card}.json"


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.split("\n\n")[1])
    parser.add_argument("--from-resources", action="store_true", help="without a GPU, from compiled kernels alone")
    parser.add_argument("--cards", nargs="+", default=["sm_80", "sm_90"], help="with --from-resources")
    parser.add_argument("--ship", action="store_true", help="write the table that is installed with the package")
    parser.add_argument("--workers", type=int, default=2, help="compiling processes, with --from-resources")
    options = parser.parse_args(words)
    if options.from_resources:
        return int(from_resources(options.cards, options.workers, tuning.SHIPPED) > 0)
    if not torch.cuda.is_available():
        print("benchmarks.tune: no CUDA GPU is visible to PyTorch; --from-resources needs none", file=sys.stderr)
        return 2
    device = "cuda:0"
    measure(SIZES, DTYPES, device)
    if options.ship:
        print(f"written: {ship(tuning.card_of(torch.empty(1, device=device)), device, tuning.SHIPPED)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
