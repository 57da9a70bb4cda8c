"""`python -m benchmarks.on_cpu`: every operation and the GroupGNN step on the CPU against plain PyTorch, in one run.

At the paper's size, forward and backward: `cpp`, `aten`, the equations in plain PyTorch ("eager") and the same under
torch.compile, in float32 and bfloat16, one call of each in turn; each is timed after its results have passed the
tolerance rule, and compiled before. Ratios are against eager float32. Rows "... alone" are no version: the bytes or the
matrix products that every version has to move or to make, in the same turns. The last line says what the machine can do
at most. Lines are appended to results/cpu.jsonl. It takes some minutes on an idle machine, most of which torch.compile
needs (--no-compile leaves it out); the table says how busy the machine was.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch._dynamo
from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS
from benchmarks.harness import ceilings, checking, floors, group_step, measuring, records
from benchmarks.harness.cases import Operation, operation
from benchmarks.harness.measuring import Functions
from benchmarks.harness.peers import peers
from benchmarks.harness.records import Record
from benchmarks.harness.sizes import DTYPES, SIZES, Size
from benchmarks.harness.timing import Call, Times, interleave, rotations, wall_clock

TIMED = (
    "co_attention transpose",
    "attention",
    "graph_dropout",
    "conv_gru kernel 1",
    "conv_gru kernel 3",
    "edge_readout",
)
DTYPE_NAMES = ("float32", "bfloat16")
PEERS = ("cpp", "aten", "eager")
COMPILED = ("compiled eager", "compiled batched")
COMPILED_STEP = "compiled batched"
"""The eager step's loops would be unrolled, which takes the compiler longer than all the rest together."""
MOST_SECONDS = 300.0
"""That a version may take to be compiled and checked."""
SHORT_MS, OFTEN = 10.0, 10
"""Where no call is longer, each is timed so many times as often."""
FIRST = "eager float32"
"""What all others are compared with."""
COLUMNS = ("operation", "pass", "version", "ms", "faster than eager float32", "% of a matrix product")


def versions_of(operation: Operation, size: Size, compiled: bool) -> tuple[dict[str, Functions], list[Record]]:
    """By dtype, what has passed the tolerance rule; and lines with the reasons of what has not."""
    found, refused = {}, []
    if compiled:  # earlier operations count as recompilations, of which PyTorch allows a few
        torch._dynamo.reset()
    for name in DTYPE_NAMES:
        tensors = operation.inputs(size, DTYPES[name], "cpu", 0)
        some = [peer for peer in peers(operation, tensors, compiled) if peer.name in (*PEERS, *COMPILED)]
        wanted = checking.expected(operation, tensors)
        functions, reasons = measuring.accepted(some, operation, tensors, wanted, lambda: MOST_SECONDS)
        found[name] = functions
        for (peer, backward), reason in reasons.items():
            line = {"operation": operation.label, "pass": measuring.PASSES[backward], "version": f"{peer.name} {name}"}
            refused.append({**line, "ours": peer.ours, "reason": reason})
    return found, refused


def calls_of(
    operation: Operation, size: Size, backward: bool, functions: dict[str, Functions]
) -> dict[str, list[Call]]:
    """What is to be timed, by version, warmed up; and the floors."""
    calls: dict[str, list[Call]] = {}
    for name in DTYPE_NAMES:
        sets = 2
        if floors.moves_bytes(operation):
            # An odd number: every version comes to all, as the versions are even in number.
            sets = rotations(operation.work(size, DTYPES[name], backward).bytes, floors.last_cache()) | 1
        inputs = [operation.inputs(size, DTYPES[name], "cpu", 100 * number) for number in range(sets)]
        for peer, function in functions[name][backward].items():
            made = measuring.forward_calls(function, inputs)
            if backward:
                made = measuring.backward_calls(function, inputs, operation.differentiable)
            calls[f"{peer.name} {name}"] = made
        for floor, made in floors.calls(operation, inputs, backward).items():
            calls[f"{floor} {name}"] = made
    for made in calls.values():
        for call in made:
            call()
    return calls


def measure(
    operation: Operation, size: Size, rounds: int, limits: ceilings.Ceilings, compiled: bool = True
) -> list[Record]:
    """Lines of one operation, both passes."""
    functions, lines = versions_of(operation, size, compiled)
    for backward in (False, True):
        calls = calls_of(operation, size, backward, functions)
        longest = max(wall_clock(call).device_ms for made in calls.values() for call in made)
        times = interleave(calls, wall_clock, rounds * (OFTEN if longest < SHORT_MS else 1))
        for version, found in times.items():
            line = {"operation": operation.label, "pass": measuring.PASSES[backward], "version": version}
            if version.split(" alone ")[0] in floors.NAMES:
                rates = {**records.spread(found), "floor": True}
            else:
                work = operation.work(size, DTYPES[version.split()[-1]], backward)
                rates = records.measured(found, work, DTYPES[version.split()[-1]], limits, None)
            lines.append({**line, **rates, "faster": _faster(times, version)})
    return lines


def _faster(times: dict[str, Times], version: str) -> float | None:
    return times[FIRST].p50 / times[version].p50 if FIRST in times else None


def measure_step(size: Size, rounds: int, compiled: bool = True) -> list[Record]:
    """Lines of a whole training step of GroupGNN: as it runs by itself, and the equations in plain PyTorch."""
    if compiled:
        torch._dynamo.reset()
    calls: dict[str, list[Call]] = {}
    lines: list[Record] = []
    base = {"operation": "GroupGNN step", "pass": "both"}
    for name in DTYPE_NAMES:
        wanted = group_step.expected(size, DTYPES[name], "cpu")
        for peer in group_step.step_peers("cpu", compiled=compiled):
            if peer.name in ("auto", "eager", COMPILED_STEP):
                function, reason = group_step.ready(peer, size, DTYPES[name], "cpu", wanted, MOST_SECONDS)
                if function is None:
                    lines.append({**base, "version": f"{peer.name} {name}", "ours": peer.ours, "reason": reason})
                else:
                    calls[f"{peer.name} {name}"] = [function]
    return lines + timed_lines(base, interleave(calls, wall_clock, rounds))


def timed_lines(base: Record, times: dict[str, Times]) -> list[Record]:
    """A line for each version that was timed."""
    return [
        {**base, "version": version, **records.spread(found), "faster": _faster(times, version)}
        for version, found in times.items()
    ]


def machine(size: Size) -> tuple[ceilings.Ceilings, dict[str, float]]:
    """What it can do at most, in float32 by the faster of both libraries that PyTorch brings; and their rates."""
    side, values = (2048, 2**26) if size.name.startswith("paper") else (256, 2**16)
    limits = ceilings.measure("cpu", wall_clock, (torch.float32, torch.bfloat16), 2 * side, values, 5)
    rates = {**limits.flops, "float32 by oneDNN": floors.onednn_rate(side, 5)}
    best = max(rates["float32"], rates["float32 by oneDNN"])
    return dataclasses.replace(limits, flops={**limits.flops, "float32": best}), rates


def row(line: Record) -> list[str]:
    """A line of the table."""
    words = [line["operation"], line["pass"], line["version"]]
    if "reason" in line:
        return [*words, "-", "-", line["reason"][:40]]
    faster, share = line.get("faster"), line.get("of_gemm")
    return [
        *(*words, f"{line['p50_ms']:.2f}", "-" if faster is None else f"{faster:.2f}"),
        "-" if not share else f"{100 * share:.0f}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 1 where one of our versions is wrong or fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_cpu", description=__doc__)
    parser.add_argument("--size", default="paper", choices=[*SIZES])
    parser.add_argument("--operations", nargs="+", default=[*TIMED, "step"], choices=[*TIMED, "step"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to which cpu.jsonl is appended")
    options = parser.parse_args(arguments)
    size, console, compiled = SIZES[options.size], Console(), not options.no_compile
    limits, gemm = machine(size)
    environment = {**records.environment("cpu"), "size": size.name, "gemm": gemm, "copy": limits.bandwidth}
    lines: list[Record] = []
    for name in options.operations:
        found = (
            measure_step(size, options.rounds, compiled)
            if name == "step"
            else measure(operation(name), size, options.rounds, limits, compiled)
        )
        # At once, so that who breaks off has what was measured.
        about = {**environment, "load": os.getloadavg()[0]}
        records.append(options.output / "cpu.jsonl", [{**about, **line} for line in found])
        console.print(f"{name}: done", highlight=False)
        lines += found
    load = os.getloadavg()[0]
    table = Table(*COLUMNS, title=f"{size}, {torch.get_num_threads()} threads, load {load:.1f}")
    for line in lines:
        table.add_row(*row(line))
    console.print(table)
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in gemm.items())
    console.print(f"matrix product: {rates}; copy: {limits.bandwidth / 1e9:.1f} GB/s")
    return int(any(line.get("ours") and "reason" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
