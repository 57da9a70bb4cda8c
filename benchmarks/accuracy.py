"""`python -m benchmarks.accuracy`: how far the Triton kernels are from float64, beside plain PyTorch in the same dtype.

Attention and co-attention at the paper's size, results and gradients. On a GPU its kernels run; elsewhere Triton
interprets them on the CPU, with the tiles that a large card gets for many groups in 16 bits, which takes ten minutes of
one core. Prints a table; exit status 1 where an error is more than the tolerance rule allows. A whole run goes to
accuracy.json and accuracy.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS, ROOT
from benchmarks.gpu import interpreter
from benchmarks.harness import checking
from benchmarks.harness.cases import Operation, operation
from benchmarks.harness.sizes import DTYPES, SIZES, Size
from benchmarks.resources import sources, versions
from gwsss_fast import files, ops
from gwsss_fast.launch import edges

LABELS = ("co_attention transpose", "attention", "co_attention directed")
KERNELS = ("attention", "co_attention", "online_softmax", "softmax_gradient")
NAMES = ("result", "gradient of p", "gradient of q", "gradient of g")
HEADER = ("operation", "size", "dtype", "tensor", "error", "plain", "ratio", "mean error", "plain mean", "mean ratio")


@dataclass(frozen=True)
class Row:
    """Errors of one tensor as parts of its largest exact value: the largest, and the root of the mean square."""

    operation: str
    size: str
    dtype: str
    tensor: str
    largest: float
    plain_largest: float
    mean: float
    plain_mean: float
    passed: bool

    def cells(self) -> tuple[str, ...]:
        """A line of the table."""
        pairs = ((self.largest, self.plain_largest), (self.mean, self.plain_mean))
        numbers = [text for ours, plain in pairs for text in (f"{ours:.2e}", f"{plain:.2e}", _ratio(ours, plain))]
        return (self.operation, self.size, self.dtype, self.tensor, *numbers)


def _ratio(ours: float, plain: float) -> str:
    return f"{ours / plain:.2f}" if plain else "-"


def rows(row: Operation, size: Size, dtype: str, device: str) -> list[Row]:
    """Compare one operation: the Triton backend and plain PyTorch, both with float64."""
    tensors = row.inputs(size, DTYPES[dtype], device, 0)
    expected = checking.expected(row, tensors)
    with ops.backend("triton"), _large_tiles(device):
        values = checking.run(row.call, tensors, row.differentiable)
    scale = max(float(x.abs().max()) for x in expected.exact)
    found = []
    for number, (value, truth, plain) in enumerate(zip(values, expected.exact, expected.plain, strict=True)):
        largest, mean = checking.judge(NAMES[number], value, truth, plain, 1.0, scale)
        factor = checking.GRADIENT_FACTOR if number else checking.VALUE_FACTOR
        room = checking.tiny(DTYPES[dtype])
        passed = all(x.error <= factor * x.allowed + room for x in (largest, mean))
        errors = (largest.error, largest.allowed, mean.error, mean.allowed)
        found.append(Row(row.label, size.name, dtype, NAMES[number], *errors, passed))
    return found


@contextmanager
def _large_tiles(device: str) -> Iterator[None]:
    """Interpreted, float32 takes the tiles of 16 bits, as its own would take ten times as long, and a program walks
    over all columns, as where there are programs enough."""
    if device != "cpu":
        yield
        return

    def choice(self: edges.Edges) -> tuple[int, int, str, str]:
        return self.rank, self.channels, "16-bit", "sm_90"

    with mock.patch.object(edges, "_MULTIPROCESSORS", 1), mock.patch.object(edges.Edges, "_choice", choice):
        yield


def kernel_sources() -> dict[str, str]:
    """Hashes of the kernels that are compared, see `resources.sources`."""
    return {name: value for name, value in sources().items() if name in KERNELS}


def write(found: Sequence[Row], device: str, folder: Path) -> None:
    """accuracy.json with every number and accuracy.md with the table."""
    where = torch.cuda.get_device_name() if device == "cuda" else "Triton's interpreter on a CPU"
    used = {**versions(), "device": where}
    content = {"versions": used, "sources": kernel_sources(), "rows": [asdict(row) for row in found]}
    files.write_text(folder / "accuracy.json", json.dumps(content, indent=1) + "\n")
    lines = [" | ".join(cells) for cells in (HEADER, ("---",) * len(HEADER), *(row.cells() for row in found))]
    text = (
        "# How far the Triton kernels are from float64\n\n"
        "`python -m benchmarks.accuracy` writes this file; README.md beside it explains the columns.\n"
        f"Run on: {where}. Triton {used['triton']}, PyTorch {used['torch']}, {len(found)} comparisons, "
        f"{sum(not row.passed for row in found)} beyond the tolerance rule.\n\n"
    )
    files.write_text(folder / "accuracy.md", text + "".join(f"| {line} |\n" for line in lines))


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.split("\n\n")[1])
    parser.add_argument("--size", choices=sorted(SIZES), default="paper")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--operations", nargs="+", choices=LABELS, default=list(LABELS[:2]))
    parser.add_argument("--output", type=Path, help="folder of the two files; benchmarks/results for a whole run")
    options = parser.parse_args(words)
    if options == parser.parse_args([]):
        options.output = RESULTS
    return options


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    words = list(sys.argv[1:] if words is None else words)
    options = arguments(words)
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":  # decided when Triton is imported
        command = [sys.executable, "-m", "benchmarks.accuracy", *words]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, check=False).returncode
    if not torch.cuda.is_available():
        interpreter.search_less()
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Compare, print, write; 1 when an error is too large."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: list[Row] = []
    for label in options.operations:
        for dtype in options.dtypes:
            start = time.perf_counter()
            found += rows(operation(label), SIZES[options.size], dtype, device)
            print(f"{label}, {dtype}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    result = Table(*HEADER, title="errors against float64, as parts of the largest value")
    for row in found:
        result.add_row(*row.cells(), style=None if row.passed else "red")
    Console(width=None if sys.stdout.isatty() else 160).print(result)
    if options.output is not None:
        write(found, device, options.output)
    return int(not all(row.passed for row in found))


if __name__ == "__main__":
    sys.exit(main())
