"""`python -m benchmarks.on_gpu`: everything that needs a GPU, in one command of at most eight minutes.

First whether the operations are right there, then what the card can do at most, then every operation and a whole
training step of GroupGNN against their peers. A time is reported only after its result was checked. Lines of JSON are
appended to a file of the device's name as they come, and the table is printed last. What no time was left for is
named. Exit status 1 when a check failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import (
    RESULTS,
    ceilings,
    compile_ahead,
    crf_on_gpu,
    gpu_checks,
    group_step,
    launches,
    measuring,
    records,
)
from benchmarks.cases import TIMED, Operation
from benchmarks.ceilings import Ceilings
from benchmarks.records import Record
from benchmarks.sizes import DTYPES, LARGE, ODD, PAPER, PAPER_8, Size
from benchmarks.timing import EventTimer, Timer, interleave, peak_bytes
from benchmarks.work import FORMULAS, Work
from gwsss_fast.native import library

BUDGET_S = 450.0
RESERVE_S = 15.0
"""Kept for the table."""
PEER_LIMIT_S = 45.0
"""What one peer may take until it has been compiled and checked."""


class Clock:
    """How much of the budget is left; `now` can be replaced in tests."""

    def __init__(self, budget: float, now: Callable[[], float] = time.monotonic) -> None:
        self.now, self.end = now, now() + budget

    def left(self) -> float:
        """Seconds."""
        return self.end - self.now()

    def allows(self, seconds: float) -> bool:
        """Whether something of this length may begin."""
        return self.left() > seconds + RESERVE_S


@dataclass(frozen=True)
class Job:
    """One measurement: an operation (None: the training step), a size and a dtype. seconds: what it may take."""

    operation: Operation | None
    size: Size
    dtype: torch.dtype
    compiled: bool
    seconds: float

    @property
    def label(self) -> str:
        name = self.operation.label if self.operation is not None else "group_step"
        return f"{name}, {self.size.name}, {str(self.dtype).removeprefix('torch.')}"


def plan() -> list[Job]:
    """What is measured, the most wanted first."""
    half, single = torch.bfloat16, torch.float32
    jobs = [Job(row, PAPER_8, half, True, 30) for row in TIMED]
    jobs.insert(2, Job(None, PAPER_8, half, True, 90))
    jobs += [Job(row, PAPER, half, False, 8) for row in TIMED]
    jobs += [Job(row, LARGE, half, False, 12) for row in TIMED]
    jobs += [Job(None, LARGE, half, False, 20), Job(None, PAPER, half, False, 15)]
    jobs += [Job(row, PAPER_8, single, False, 12) for row in TIMED]
    jobs += [Job(row, PAPER_8, torch.float16, False, 10) for row in TIMED]
    return [*jobs, Job(None, PAPER_8, single, False, 20)]


@dataclass
class Run:
    """What is common to the stages: the device, the clock, where lines go, and what has been found."""

    device: str
    clock: Clock
    path: Path | None
    console: Console
    timer: Timer
    step_timer: Timer
    rounds: int = 30
    found: list[Record] = field(default_factory=list)
    failed: int = 0
    skipped: list[str] = field(default_factory=list)

    def keep(self, lines: Sequence[Record]) -> None:
        """Remember lines, and append them to the file at once."""
        common = records.environment(self.device)
        whole = [{**common, **line} for line in lines]
        self.found += whole
        if self.path is not None:
            records.append(self.path, whole)

    def say(self, text: str) -> None:
        """A line of progress."""
        self.console.print(f"[{self.clock.left():5.0f} s left] {text}", markup=False, highlight=False)


CRF_S = 20.0
"""What timing the dense CRF may take; half of it is the CPU's peers'."""


def build_library(run: Run) -> bool:
    """Build the native library's kernels, if they are not there. Whether they can run here."""
    reason = library.prepare_on_gpu()
    run.say(f"native library: {reason or 'ready'}")
    run.failed += reason is not None
    return reason is None


def measure_crf(run: Run) -> None:
    """The dense CRF, whose sizes and peers are its own."""
    if not run.clock.allows(CRF_S):
        run.skipped.append("dense_crf")
        return
    lines = crf_on_gpu.measure(run.device, run.step_timer, run.rounds)
    run.keep(lines)
    run.say(f"dense_crf: {crf_on_gpu.ratio(lines)}")


def compile_all(run: Run, workers: int) -> None:
    """Fill Triton's cache in several processes; compiling one kernel after the other would take most of the time."""
    major, minor = torch.cuda.get_device_capability(run.device)
    wanted = launches.jobs((PAPER, PAPER_8, *ODD), list(DTYPES), [f"sm_{major}{minor}"])
    wanted |= launches.jobs((LARGE,), ["bfloat16"], [f"sm_{major}{minor}"])
    errors = {job.kernel: error for job, error in compile_ahead.warm_cache(wanted, workers).items() if error}
    run.say(f"{len(wanted)} kernels compiled by {workers} processes, {len(errors)} refused")
    for kernel, error in errors.items():
        run.say(f"  {kernel}: {error}")


def check_all(run: Run, checks: Sequence[gpu_checks.Check], until: float) -> None:
    """Stage 1. until: seconds that must be left for the times."""
    tally: dict[str, list[int]] = {}
    for outcome in gpu_checks.carry_out(checks, lambda: run.clock.allows(until)):
        count = tally.setdefault(outcome.check.group, [0, 0, 0])
        count[0 if outcome.skipped else 2 if outcome.failures else 1] += 1
        for failure in outcome.failures[:3]:
            run.say(f"WRONG {outcome.check.group}, {outcome.check.name}: {failure}")
    for group, (skipped, passed, failed) in tally.items():
        run.say(
            f"{group}: {passed} right, {failed} wrong" + (f", {skipped} skipped for lack of time" if skipped else "")
        )
        run.keep([{"check": group, "passed": passed, "failed": failed, "skipped": skipped}])
        run.failed += failed


def measure_ceilings(run: Run, **options: Any) -> Ceilings:
    """Stage 2."""
    found = ceilings.measure(run.device, run.timer, **options)
    run.keep([{"ceiling": "gemm", "flops": found.flops}, {"ceiling": "copy", "bytes_per_s": found.bandwidth}])
    rates = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in found.flops.items())
    run.say(f"ceilings: {rates}, copy {found.bandwidth / 1e9:.0f} GB/s")
    return found


def measure_all(run: Run, jobs: Sequence[Job], limits: Ceilings | None) -> None:
    """Stage 3: one job after the other while there is time."""
    for job in jobs:
        if not run.clock.allows(job.seconds):
            run.skipped.append(job.label)
            continue
        begin = run.clock.left()
        try:
            lines = measure_step(run, job, limits) if job.operation is None else measure_one(run, job, limits)
        except Exception as error:  # one broken case must not cost the others
            run.say(f"{job.label}: {measuring.first_line(error)}")
            run.failed += 1
            measuring.release(run.device)
            continue
        run.keep(lines)
        wrong = [line for line in lines if line["ours"] and str(line.get("reason", "")).startswith("wrong")]
        run.failed += len(wrong)
        run.say(f"{job.label}: {begin - run.clock.left():.0f} s")


def measure_one(run: Run, job: Job, limits: Ceilings | None) -> list[Record]:
    """An operation, its launches hidden; a peer that takes long to compile is given up."""
    assert job.operation is not None
    return measuring.measure(
        *(job.operation, job.size, job.dtype, run.device, run.timer),
        ceilings=limits,
        rounds=run.rounds,
        compiled=job.compiled,
        go_on=lambda: run.clock.allows(0),
        limit=lambda: min(PEER_LIMIT_S, run.clock.left() - RESERVE_S),
    )


def measure_step(run: Run, job: Job, limits: Ceilings | None) -> list[Record]:
    """A training step as a user runs it: launches are not hidden."""
    size, dtype, device = job.size, job.dtype, run.device
    wanted = group_step.expected(size, dtype, device)
    if job.compiled:
        torch._dynamo.reset()
    calls, peaks, lines = {}, {}, []
    found = group_step.step_peers(device, job.compiled, unrolled=job.compiled and run.clock.allows(150))
    base = {"operation": "group_step", "pass": "step", **records.describe(size, dtype)}
    missing = {}
    for peer in found:
        function: group_step.Function | None = None
        reason: str | None = "no time was left"
        if run.clock.allows(2):
            limit = min(2 * PEER_LIMIT_S, run.clock.left() - RESERVE_S)
            function, reason = group_step.ready(peer, size, dtype, device, wanted, limit)
        if function is None:
            missing[peer.name] = reason
            measuring.release(device)
            continue
        peaks[peer.name] = peak_bytes(function, device)
        calls[peer.name] = [function]
    times = interleave(calls, run.step_timer, run.rounds, lambda: run.clock.allows(0))
    work = Work(0, 0)
    for backward in (False, True):
        work = work + FORMULAS["group_step"](size, dtype.itemsize, backward)
    for peer in found:
        line = {**base, "peer": peer.name, "ours": peer.ours}
        if peer.name in times:
            line |= records.measured(times[peer.name], work, dtype, limits, peaks[peer.name])
        else:
            line["reason"] = missing.get(peer.name, "no time was left")
        lines.append(line)
    del calls
    measuring.release(device)
    return lines


def last_words(run: Run) -> None:
    """Reasons, what was left out, and the table."""
    for (operation, peer), reason in records.reasons(run.found).items():
        run.console.print(f"not timed: {operation}, {peer}: {reason}", markup=False, highlight=False)
    run.console.print(
        "not timed: any other operation than dense_crf, pydensecrf2: it is a dense CRF on the CPU and nothing else"
    )
    if run.skipped:
        run.console.print(f"NO TIME WAS LEFT for: {'; '.join(run.skipped)}", markup=False, highlight=False)
    where = f"; lines appended to {run.path}" if run.path is not None else ""
    run.console.print(f"{run.failed} checks failed{where}", highlight=False)
    run.console.print(records.table(run.found, records.device_name(run.device)))


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_gpu", description=__doc__.split("\n\n")[1])
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for everything")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON lines")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="compiling processes")
    parser.add_argument("--rounds", type=int, default=30, help="times each call is timed")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = arguments(words)
    if not torch.cuda.is_available():
        print("benchmarks.on_gpu: no CUDA GPU is visible to PyTorch; nothing was run", file=sys.stderr)
        return 2
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        print("benchmarks.on_gpu: TRITON_INTERPRET is set, which interprets kernels; unset it", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = "cuda:0"
    console = Console(width=170)
    path = records.path_of(options.output, device)
    timers = EventTimer(), EventTimer(hide_launches=False)
    run = Run(device, Clock(options.budget), path, console, *timers, rounds=options.rounds)
    run.say(f"{records.device_name(device)}, torch {torch.__version__}, budget {options.budget:.0f} s")
    native = build_library(run)
    compile_all(run, options.workers)
    crf = crf_on_gpu.checks(device) if native else []
    check_all(run, [*crf, *gpu_checks.all_checks(device)], until=0.6 * options.budget)
    limits = measure_ceilings(run)
    if native and not any(line.get("check") == "dense CRF" and line["failed"] for line in run.found):
        measure_crf(run)
    measure_all(run, plan(), limits)
    last_words(run)
    return int(run.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
