"""`python -m benchmarks.resources`: what every shipped kernel needs of a card, known without one.

Every kernel that the operations start, forward and backward, for the paper's, large and odd sizes, three dtypes and
float32 with tf32 allowed, is compiled ahead of time for three generations of cards. Prints a table; exit status 1 when
a kernel spills registers, exceeds a card's shared memory, or has a product of matrices without tensor-core
instructions. The whole table, every kernel by itself, goes to resources.json and resources.md, with what shows whether
they are of the present kernels.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS, ROOT
from benchmarks.gpu.compile_ahead import CARDS, SHARED_LIMIT, Report, cache_folder, reports
from benchmarks.gpu.launches import Job, Pointer, Use, jobs
from benchmarks.harness.cases import OPERATIONS, has_kernel
from benchmarks.harness.sizes import ARITHMETICS, DTYPES, LARGE, ODD, PAPER, PAPER_8, SIZES
from gwsss_fast import files

SHIPPED = (PAPER, PAPER_8, LARGE, *ODD)
HEADER = (
    *("operation", "pass", "kernel", "dtype", "card", "variants", "tiles", "warps", "stages", "registers", "spills"),
    *("shared KiB", "limit KiB", "tensor cores", "problems"),
)


@dataclass(frozen=True)
class Row:
    """A compiled kernel, who starts it and what it needs."""

    job: Job
    uses: list[Use]
    report: Report

    @property
    def problems(self) -> list[str]:
        return self.report.problems(self.job.card)

    def describe(self) -> str:
        """One line for messages."""
        constants = ", ".join(f"{name}={value}" for name, value in self.job.constants)
        return f"{self.job.kernel} for {self.job.card} ({constants}; first used by {self.uses[0]})"


Jobs = dict[Job, list[Use]]


def configurations(found: Jobs) -> Jobs:
    """One job of every shipped configuration: of each kernel function for each card each set of tiles, warps, stages
    and registers, with each width of elements and way to multiply. The first size's job, so the paper's where it has
    one; what is left out differs in the divisibility of sizes, in float16 or bfloat16, or in what it adds."""
    chosen: dict[tuple[Any, ...], Job] = {}
    for job in found:
        constants = dict(job.constants)
        tiles = tuple(item for item in job.constants if item[0].startswith("BLOCK"))
        first = next((x for x in job.arguments if isinstance(x, Pointer)), None)
        width = DTYPES[first.dtype].itemsize if first is not None else 0
        launch = (job.card, tiles, job.num_warps, job.num_stages, job.registers)
        chosen.setdefault((job.module, job.kernel, *launch, width, constants.get("PRECISION")), job)
    return {job: found[job] for job in chosen.values()}


def collect(found: Jobs, workers: int, folder: Path | None) -> list[Row]:
    """Rows of all jobs, compiled or from `folder`."""
    done: dict[Job, Report] = {}
    for job, report in reports(found, workers, folder):
        done[job] = report
        if len(done) % 50 == 0:
            print(f"{len(done)} of {len(found)} kernels", file=sys.stderr)
    return [Row(job, uses, done[job]) for job, uses in found.items()]


def grouped(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Lines of the table: the variants of a kernel that differ in sizes alone are one line with their worst numbers."""
    groups: dict[tuple[str, str, str, str, str], list[Row]] = {}
    for row in rows:
        for use in dict.fromkeys((u.operation, u.backward, u.dtype) for u in row.uses):
            name = (use[0], "backward" if use[1] else "forward", row.job.kernel, use[2], row.job.card)
            groups.setdefault(name, []).append(row)
    return [_line(name, members) for name, members in groups.items()]


def _line(name: tuple[str, ...], rows: list[Row]) -> tuple[str, ...]:
    found = [row.report for row in rows]
    blocks = sorted({_tiles(row.job) for row in rows})
    instructions = sorted({key for report in found for key in report.tensor_core})
    problems = sorted({problem for row in rows for problem in row.problems})
    cells = (
        *(len(rows), "; ".join(blocks), _numbers(row.job.num_warps for row in rows)),
        *(_numbers(row.job.num_stages for row in rows), max(report.registers for report in found)),
        max(report.spill_stores + report.spill_loads for report in found),
        f"{max(report.shared for report in found) / 1024:.1f}",
        *(SHARED_LIMIT[name[-1]] // 1024, " ".join(instructions) or "-", _first(problems)),
    )
    return (*name, *map(str, cells))


def _tiles(job: Job) -> str:
    sizes = [str(value) for name, value in job.constants if name.startswith("BLOCK")]
    return "x".join(sizes) or "-"


def _first(problems: list[str]) -> str:
    if not problems:
        return "none"
    return problems[0] if len(problems) == 1 else f"{problems[0]}, and {len(problems) - 1} more"


def _numbers(values: Any) -> str:
    return ", ".join(map(str, sorted(set(values))))


def table(rows: Sequence[Row]) -> Table:
    """For the terminal: the columns that matter most."""
    shown = [number for number, name in enumerate(HEADER) if name not in ("stages", "limit KiB", "tiles")]
    result = Table(*(HEADER[number] for number in shown), title="what the kernels need, worst of each group's variants")
    for line in grouped(rows):
        result.add_row(*(line[number] for number in shown), style="red" if line[-1] != "none" else None)
    return result


def versions() -> dict[str, str]:
    """What the numbers hang on."""
    import torch
    import triton

    return {"triton": triton.__version__, "torch": torch.__version__}


def sources() -> dict[str, str]:
    """A hash of each file of kernels/, which comments, docstrings and line breaks do not change."""
    found = {}
    for path in sorted((ROOT / "kernels").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(node, ast.Module | ast.FunctionDef) and body and ast.get_docstring(node) is not None:
                node.body = [*body[1:], ast.Pass()]
        found[path.stem] = hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]
    return found


def entry(job: Job) -> dict[str, Any]:
    """A job as resources.json has it."""
    return {
        "kernel": f"{job.module.rpartition('.')[2]}.{job.kernel}",
        "card": job.card,
        "arguments": " ".join(_argument(x) for x in job.arguments),
        "constants": dict(job.constants),
        **{"num_warps": job.num_warps, "num_stages": job.num_stages, "register_limit": job.registers},
    }


def _argument(kind: Any) -> str:
    if isinstance(kind, Pointer):
        return f"{kind.dtype}*{'' if kind.aligned else '(unaligned)'}"
    return str(kind)


def stale(content: dict[str, Any], found: Jobs) -> list[str]:
    """Why a resources.json is not of the present kernels or not of these starts; nothing where it is."""
    reasons = []
    if content["sources"] != (present := sources()):
        names = [name for name in {*present, *content["sources"]} if present.get(name) != content["sources"].get(name)]
        reasons.append(f"kernels have changed since: {', '.join(sorted(names))}")
    wanted = {json.dumps(entry(job)): uses for job, uses in found.items()}
    compiled = {json.dumps({name: kernel[name] for name in entry(next(iter(found)))}) for kernel in content["kernels"]}
    for missing in [key for key in wanted if key not in compiled][:1]:
        reasons.append(f"starts have other tiles or arguments since, such as {missing} of {wanted[missing][0]}")
    if len(compiled) != len(wanted):
        reasons.append(f"it has {len(compiled)} kernels, {len(wanted)} are started")
    return reasons


def write(rows: Sequence[Row], folder: Path) -> None:
    """resources.json with every kernel, one a line, and resources.md with the table."""
    found = versions()
    kernels = [
        {**entry(row.job), "uses": list(map(str, row.uses)), **asdict(row.report), "problems": row.problems}
        for row in rows
    ]
    head = json.dumps({"versions": found, "sources": sources()}, indent=1).removesuffix("\n}")
    body = ",\n".join(json.dumps(kernel) for kernel in kernels)
    files.write_text(folder / "resources.json", f'{head},\n "kernels": [\n{body}\n]}}\n')
    lines = [" | ".join(cells) for cells in (HEADER, ("---",) * len(HEADER), *grouped(rows))]
    text = (
        "# What the Triton kernels need of a card\n\n"
        "Compiled ahead of time, not run: `python -m benchmarks.resources` writes this file; README.md beside it\n"
        f"explains the columns. Triton {found['triton']}, PyTorch {found['torch']}, {len(rows)} kernels, "
        f"{sum(bool(row.problems) for row in rows)} with problems.\n\n"
    )
    files.write_text(folder / "resources.md", text + "".join(f"| {line} |\n" for line in lines))


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources", description=__doc__.split("\n\n")[1])
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=[size.name for size in SHIPPED])
    parser.add_argument("--dtypes", nargs="+", choices=list(ARITHMETICS), default=list(ARITHMETICS))
    parser.add_argument("--cards", nargs="+", choices=sorted(SHARED_LIMIT), default=list(CARDS))
    parser.add_argument("--operations", nargs="+", help="names, such as co_attention; all that have a Triton kernel")
    parser.add_argument("--configurations", action="store_true", help="of every shipped configuration one variant")
    parser.add_argument("--workers", type=int, default=2, help="compiling processes")
    parser.add_argument("--fresh", action="store_true", help="compile again what earlier runs have compiled")
    parser.add_argument("--output", type=Path, help="folder of the two files; benchmarks/results for a whole run")
    options = parser.parse_args(words)
    known = sorted({row.name for row in OPERATIONS if has_kernel(row, "triton")})
    for name in options.operations or ():
        if name not in known:
            parser.error(f"no operation {name} with a Triton kernel; choose from {', '.join(known)}")
    whole = options == parser.parse_args([f"--workers={options.workers}", *["--fresh"][: options.fresh]])
    options.output = options.output or (RESULTS if whole else None)
    return options


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    words = list(sys.argv[1:] if words is None else words)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":  # decided when Triton is imported
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "benchmarks.resources", *words]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    return run(arguments(words))


def run(options: argparse.Namespace) -> int:
    """Compile, print, write; 1 when a kernel must not be shipped."""
    start = time.perf_counter()
    operations = [row for row in OPERATIONS if options.operations is None or row.name in options.operations]
    sizes = [SIZES[name] for name in options.sizes]
    folder = None if options.fresh else cache_folder()
    found = jobs(sizes, options.dtypes, options.cards, operations=operations)
    rows = collect(configurations(found) if options.configurations else found, options.workers, folder)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(rows))
    if options.output is not None:
        write(rows, options.output)
        console.print(f"written: {options.output / 'resources.md'} and resources.json")
    bad = [row for row in rows if row.problems]
    for row in bad:
        console.print(f"{row.describe()}: {'; '.join(row.problems)}", style="red", markup=False)
    seconds = time.perf_counter() - start
    console.print(f"{len(rows)} kernels, {len(bad)} with problems, {seconds:.0f} s")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
