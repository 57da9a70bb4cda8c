"""`python -m benchmarks.on_gpu`: everything that needs a GPU, in one command of at most eight minutes.

First whether the operations are right there, then what the card can do at most, then every operation and a whole
training step of GroupGNN against their peers. A time is reported only after its result was checked. Lines of JSON are
appended to a file of the device's name as they come, and the table is printed last. What no time was left for is
named. Exit status 1 when a check failed or was not reached, or a backend of ours did not run; 2 without a GPU. After
an error that stays with the process, such as an illegal access, another process goes on without what caused it.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import RESULTS
from benchmarks.gpu import checks as gpu_checks
from benchmarks.gpu import crf as crf_on_gpu
from benchmarks.gpu import preparing
from benchmarks.harness import ceilings, group_step, measuring, records, restarts
from benchmarks.harness.cases import TIMED, Operation
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.records import Record
from benchmarks.harness.restarts import BrokenGpuError, State
from benchmarks.harness.sizes import LARGE, PAPER, PAPER_8, Size
from benchmarks.harness.timing import NO_TIME, EventTimer, Timer, for_lack_of_time, interleave, peak_bytes
from benchmarks.harness.work import FORMULAS, Work

BUDGET_S = 450.0
RESERVE_S = 15.0
"""Kept for the table."""
LATE_S = 45.0
"""Beyond the budget: then the process ends wherever it is, and says where."""
PEER_LIMIT_S = 45.0
"""What one peer may take until it has been compiled and checked."""
CHECK_LIMIT_S = 120.0
"""What one check may take."""
PREPARING = 0.3
"""Part of the budget that building and compiling, side by side, may take at most; the rest is left to the checks."""


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
        words = f"{name}, {self.size.name}, {str(self.dtype).removeprefix('torch.')}"
        return f"{words}, with torch.compile" if self.compiled else words


def plan() -> list[Job]:
    """What is measured, the most wanted first: all in the size and dtype of the targets, then again with the peers that
    have to be compiled, one of which may take longer than all others together."""
    half, single = torch.bfloat16, torch.float32
    jobs = [Job(row, PAPER_8, half, False, 8) for row in TIMED]
    jobs.append(Job(None, PAPER_8, half, False, 20))
    compiled = [Job(row, PAPER_8, half, True, 30) for row in TIMED]
    jobs += [compiled[0], Job(None, PAPER_8, half, True, 60), *compiled[1:]]
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
    failed_besides: int = 0
    unchecked: int = 0
    skipped: list[str] = field(default_factory=list)
    checked: dict[str, bool] = field(default_factory=dict)
    measured: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    def keep(self, lines: Sequence[Record]) -> None:
        """Remember lines, and append them to the file at once."""
        common = records.environment(self.device)
        whole = [{**common, **line} for line in lines]
        self.found += whole
        if self.path is not None:
            records.append(self.path, whole)

    def judge(self, lines: Sequence[Record], label: str) -> None:
        """Count what speaks against our backends; that no time was left does not."""
        for line in lines:
            reason = str(line.get("reason") or "")
            if line["ours"] and reason and not for_lack_of_time(reason):
                self.failed_besides += 1
                self.say(f"FAILED {label}, {line['pass']}, {line['peer']}: {reason}")

    @property
    def failed(self) -> int:
        """Checks that were wrong, what broke the GPU, and whatever of ours did not run."""
        return sum(not right for right in self.checked.values()) + len(self.without) + self.failed_besides

    def state(self, broken: str) -> State:
        """For a process that goes on without what has broken the GPU."""
        return State(self.checked, self.measured, self.found, self.failed_besides, [*self.without, broken])

    @property
    def status(self) -> int:
        """Of the command: 0 only where every check was reached and nothing failed."""
        return int(self.failed > 0 or self.unchecked > 0)

    def say(self, text: str) -> None:
        """A line of progress."""
        self.console.print(f"[{self.clock.left():5.0f} s left] {text}", markup=False, highlight=False)


CRF_S = 20.0
"""What timing the dense CRF may take; half of it is the CPU's peers'."""


def build_library(run: Run, seconds: float) -> bool:
    """Build the native library's kernels, if they are not there. Whether they can run here; no nvcc is no failure."""
    reason = preparing.native_library(seconds)
    run.say(f"native library: {reason or 'ready'}")
    run.failed_besides += reason is not None and not preparing.lacks_nvcc()
    return reason is None


def measure_crf(run: Run) -> None:
    """The dense CRF, whose sizes and peers are its own."""
    if not run.clock.allows(CRF_S):
        run.skipped.append("dense_crf")
        return
    lines = crf_on_gpu.measure(run.device, run.step_timer, run.rounds)
    run.measured.append("dense_crf")
    run.keep(lines)
    run.judge(lines, "dense_crf")
    run.say(f"dense_crf: {crf_on_gpu.ratio(lines)}")


def compile_all(run: Run, workers: int, seconds: float) -> None:
    """Fill Triton's cache in several processes; compiling one kernel after the other would take most of the time."""
    try:
        wanted, done = preparing.kernels(preparing.card_of(run.device), workers, seconds)
    except Exception as error:  # each kernel is compiled on its first start too
        run.say(f"kernels were not compiled ahead: {measuring.first_line(error)}")
        return
    errors = {job.kernel: error for job, error in done.items() if error}
    late = f", {wanted - len(done)} left for want of time" if wanted > len(done) else ""
    run.say(f"{len(done)} kernels compiled by {workers} processes, {len(errors)} refused{late}")
    for kernel, error in errors.items():
        run.say(f"  {kernel}: {error}")


def check_all(run: Run, checks: Sequence[gpu_checks.Check], until: float = 0.0) -> None:
    """Stage 1. until: seconds that must be left. Raises BrokenGpuError when a check has broken the GPU."""
    tally: dict[str, list[int]] = {}

    def left() -> float:
        return run.clock.left() - RESERVE_S - until

    def limit() -> float:
        return min(CHECK_LIMIT_S, left())

    for check in checks:
        if check.label in run.checked:  # by the process before this one
            tally.setdefault(check.group, [0, 0, 0])[1 if run.checked[check.label] else 2] += 1
    others = [check for check in checks if check.label not in run.checked]
    for outcome in gpu_checks.carry_out(others, lambda: left() > 0, limit):
        count = tally.setdefault(outcome.check.group, [0, 0, 0])
        count[0 if outcome.skipped else 2 if outcome.failures else 1] += 1
        for failure in outcome.failures[:3]:
            run.say(f"WRONG {outcome.check.group}, {outcome.check.name}: {failure}")
        if outcome.broken is not None:
            raise outcome.broken
        if not outcome.skipped:
            run.checked[outcome.check.label] = not outcome.failures
    for group, (skipped, passed, failed) in tally.items():
        late = f", {skipped} skipped for lack of time" if skipped else ""
        run.say(f"{group}: {passed} right, {failed} wrong{late}")
        run.keep([{"check": group, "passed": passed, "failed": failed, "skipped": skipped}])
        run.unchecked += skipped


def measure_ceilings(run: Run, **options: Any) -> Ceilings:
    """Stage 2."""
    found = ceilings.measure(run.device, run.timer, **options)
    run.keep([{"ceiling": "gemm", "flops": found.flops}, {"ceiling": "copy", "bytes_per_s": found.bandwidth}])
    rates = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in found.flops.items())
    run.say(f"ceilings: {rates}, copy {found.bandwidth / 1e9:.0f} GB/s")
    return found


def measure_all(run: Run, jobs: Sequence[Job], limits: Ceilings | None) -> None:
    """Stage 3: one job after the other while there is time. Raises BrokenGpuError when one has broken the GPU."""
    for job in jobs:
        if job.label in run.measured:
            continue
        if not run.clock.allows(job.seconds):
            run.skipped.append(job.label)
            continue
        begin, one = run.clock.left(), measure_step if job.operation is None else measure_one
        try:
            lines = one(run, job, limits)
        except BrokenGpuError:
            raise
        except Exception as error:  # one broken case must not cost the others
            run.say(f"{job.label}: {measuring.first_line(error)}")
            run.failed_besides += 1
            run.measured.append(job.label)
            if restarts.broken():
                raise BrokenGpuError(job.label, measuring.first_line(error)) from error
            measuring.release(run.device)
            continue
        run.measured.append(job.label)
        run.keep(lines)
        run.judge(lines, job.label)
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
    found = [peer for peer in found if f"group_step: {peer.name}" not in restarts.left_out]
    base = {"operation": "group_step", "pass": "step", **records.describe(size, dtype)}
    missing = {}
    for peer in found:
        function, reason = None, NO_TIME
        if run.clock.allows(2):
            limit = min(2 * PEER_LIMIT_S, run.clock.left() - RESERVE_S)
            function, reason = group_step.ready(peer, size, dtype, device, wanted, limit)
        if function is None:
            missing[peer.name] = reason
            if restarts.broken():
                raise BrokenGpuError(f"group_step: {peer.name}", str(reason))
            measuring.release(device)
            continue
        peaks[peer.name] = None if peer.replayed else peak_bytes(function, device)
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
            line["reason"] = missing.get(peer.name, NO_TIME)
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
    late = f", {run.unchecked} were not reached" if run.unchecked else ""
    run.console.print(f"{run.failed} checks failed{late}; lines appended to {run.path}", highlight=False)
    run.console.print(records.table(run.found, records.device_name(run.device)))


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_gpu", description=__doc__.split("\n\n")[1])
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for everything")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON lines")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="compiling processes")
    parser.add_argument("--rounds", type=int, default=30, help="times each call is timed")
    parser.add_argument("--state", type=Path, help=argparse.SUPPRESS)
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
    state = restarts.read(options.state)
    faulthandler.dump_traceback_later(options.budget + LATE_S, exit=True)  # a call that never returns is named
    try:
        everything(run, options.workers, options.budget, state)
    except BrokenGpuError as error:
        run.say(f"{error}; going on without it in a new process")
        options.budget = run.clock.left()
        again = [f"--{name}={value}" for name, value in vars(options).items() if name != "state"]
        restarts.replace_process(run.state(error.name), "benchmarks.on_gpu", again)
    finally:
        faulthandler.cancel_dump_traceback_later()
    return run.status


def everything(run: Run, workers: int, budget: float, state: State | None = None) -> None:
    """All stages. The checks have all the time that is left to them, for times without them are worth nothing.

    state: what a process before this one has found, and prepared. Raises BrokenGpuError.
    """
    if state is None or not state.without:
        preparing.keep_one_cache()
        preparing.build_for(preparing.card_of(run.device))
        with ThreadPoolExecutor(1) as aside:
            building = aside.submit(build_library, run, PREPARING * budget)
            compile_all(run, workers, PREPARING * budget)
            native = building.result()
    else:
        restarts.leave_out(state.without)
        run.checked, run.measured, run.found = state.checks, state.jobs, state.found
        run.failed_besides, run.without = state.failed, state.without
        native = preparing.native_library_is_ready()
    native = native and "dense_crf: cuda" not in restarts.left_out
    crf = crf_on_gpu.checks(run.device) if native else []
    check_all(run, [*crf, *gpu_checks.all_checks(run.device)])
    limits = measure_ceilings(run)
    wrong_crf = any(line.get("check") == "dense CRF" and line["failed"] for line in run.found)
    if native and not wrong_crf and "dense_crf" not in run.measured:
        measure_crf(run)
    measure_all(run, plan(), limits)
    last_words(run)


if __name__ == "__main__":
    sys.exit(main())
