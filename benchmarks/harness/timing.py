"""Times that can be compared: interleaved, on inputs that are not in the cache, medians with their spread."""

from __future__ import annotations

import itertools
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Reading:
    """One timed call. device_ms: on the GPU, or the wall clock on a CPU; host_ms: until the host could go on."""

    device_ms: float
    host_ms: float


Timer = Callable[[Call], Reading]


@dataclass(frozen=True)
class Times:
    """Spread of a call's times in milliseconds. host: median until the host could go on."""

    p20: float
    p50: float
    p80: float
    host: float
    count: int


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between the sorted values, as numpy's default."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def summary(readings: Sequence[Reading]) -> Times:
    """Quantiles of readings, at least one."""
    device = [reading.device_ms for reading in readings]
    host = statistics.median(reading.host_ms for reading in readings)
    return Times(quantile(device, 0.2), quantile(device, 0.5), quantile(device, 0.8), host, len(device))


def interleave(
    calls: Mapping[str, Sequence[Call]], timer: Timer, rounds: int, go_on: Callable[[], bool] = lambda: True
) -> dict[str, Times]:
    """Times of each name, one call of each in turn, so that a drift of the clock meets all alike.

    calls: for each name the same work on several inputs, which take turns from call to call: a name that came after
    another with the same inputs would find them in the cache. go_on: asked before every round but the first.
    """
    readings: dict[str, list[Reading]] = {name: [] for name in calls}
    timers = {name: fresh(timer) for name in calls}
    turn = itertools.count()
    for number in range(rounds):
        if number and not go_on():
            break
        for name, versions in calls.items():
            readings[name].append(timers[name](versions[next(turn) % len(versions)]))
    return {name: summary(found) for name, found in readings.items() if found}


def wall_clock(call: Call) -> Reading:
    """For the CPU."""
    start = time.perf_counter()
    call()
    milliseconds = 1e3 * (time.perf_counter() - start)
    return Reading(milliseconds, milliseconds)


class EventTimer:
    """CUDA events around a call that was queued behind a pause, so that launches do not show in the GPU's time.

    hide_launches: False times as a loop of such calls would run, the host's work included where it is the longer.

    The pause begins with the longest, and halves until it is half as long again as the host needs: what was slow to
    launch once costs no more than a few calls. It is one call's own, see `fresh`.
    """

    CYCLES_A_MILLISECOND = 1_900_000
    LONGEST_PAUSE_MS = 20.0
    SHORTEST_PAUSE_MS = 0.2

    def __init__(self, hide_launches: bool = True) -> None:
        self.hide_launches = hide_launches
        self.pause_ms = self.LONGEST_PAUSE_MS

    def __call__(self, call: Call) -> Reading:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        if self.hide_launches:
            torch.cuda._sleep(int(self.pause_ms * self.CYCLES_A_MILLISECOND))
        begin.record()
        start = time.perf_counter()
        call()
        host = 1e3 * (time.perf_counter() - start)
        end.record()
        torch.cuda.synchronize()
        self.pause_ms = min(max(self.SHORTEST_PAUSE_MS, self.pause_ms / 2, 1.5 * host), self.LONGEST_PAUSE_MS)
        return Reading(begin.elapsed_time(end), host)


def fresh(timer: Timer) -> Timer:
    """The timer, knowing nothing of calls that it has timed before."""
    return EventTimer(timer.hide_launches) if isinstance(timer, EventTimer) else timer


NO_TIME = "no time was left"
"""The reason of what was not begun."""
AGAIN_S = 3.0
"""After which what has outlived its limit is stopped again."""


class TimeLimitError(Exception):
    """Something took longer than it was given."""


def time_limit_in(error: BaseException | None) -> TimeLimitError | None:
    """The limit that an exception stems from: compilers raise their own in its place."""
    while error is not None and not isinstance(error, TimeLimitError):
        error = error.__cause__ or error.__context__
    return error


def for_lack_of_time(reason: str) -> bool:
    """Whether a reason against a peer says nothing of the peer itself."""
    return reason == NO_TIME or reason.startswith(TimeLimitError.__name__)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeLimitError inside the block after so many seconds; only in a main thread, elsewhere and for None never.

    What is stopped is compilation for the most part, which has no limit of its own. Some of it goes on after any
    exception, so another one follows every few seconds until the block has ended.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeLimitError(f"given up after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def rotations(bytes_a_call: float, cache_bytes: float, most: int = 48) -> int:
    """How many input sets a call needs so that none is still cached when its turn comes: past three times the cache."""
    return max(2, min(most, 1 + int(3 * cache_bytes / max(bytes_a_call, 1.0))))


def cache_bytes(device: str) -> float:
    """Size of the GPU's L2; on a CPU 0, as the caches of a core are far smaller than the paper's inputs."""
    return float(torch.cuda.get_device_properties(device).L2_cache_size) if device.startswith("cuda") else 0.0


def peak_bytes(call: Call, device: str) -> int | None:
    """Device memory that a call needs above what was held before it; None on a CPU."""
    if not device.startswith("cuda"):
        call()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
