"""Statistics, turns and limits, with a timer that needs no device."""

import threading
import time

import numpy as np
import pytest
import torch

from benchmarks.harness import timing
from benchmarks.harness.timing import (
    EventTimer,
    Reading,
    interleave,
    quantile,
    rotations,
    summary,
    time_limit,
    wall_clock,
)


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_quantiles_are_numpys(count: int) -> None:
    values = list(np.random.default_rng(count).random(count))
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)))


def test_a_summary_orders_its_quantiles() -> None:
    found = summary([Reading(x, 10 * x) for x in (5.0, 1.0, 3.0, 2.0, 4.0)])
    assert (found.p20, found.p50, found.p80, found.host, found.count) == (1.8, 3.0, pytest.approx(4.2), 30.0, 5)


def test_calls_take_turns_and_so_do_their_inputs() -> None:
    """No name finds in the cache what the one before it has read, and none waits less than three calls for its own."""
    order: list[str] = []
    calls = {name: [lambda n=name, i=i: order.append(f"{n}{i}") for i in range(3)] for name in "ab"}

    def timer(call) -> Reading:  # type: ignore[no-untyped-def]
        call()
        return Reading(1.0 if order[-1][0] == "a" else 2.0, 0.5)

    times = interleave(calls, timer, rounds=3)
    assert order == ["a0", "b1", "a2", "b0", "a1", "b2"]
    assert (times["a"].p50, times["b"].p50, times["a"].count) == (1.0, 2.0, 3)


def test_the_first_round_always_runs_and_later_ones_ask() -> None:
    times = interleave({"a": [lambda: None]}, lambda call: Reading(1.0, 1.0), rounds=9, go_on=lambda: False)
    assert times["a"].count == 1


def test_inputs_rotate_past_three_times_the_cache() -> None:
    assert rotations(10e6, 50e6) * 10e6 > 3 * 50e6
    assert rotations(1e12, 50e6) == 2
    assert rotations(1.0, 50e6) == 48


def test_the_wall_clock_counts_what_it_runs() -> None:
    assert 5 <= wall_clock(lambda: time.sleep(0.005)).device_ms < 500


def test_a_limit_stops_what_takes_too_long() -> None:
    with pytest.raises(timing.TimeLimitError, match="given up after"), time_limit(0.05):
        time.sleep(5)
    with time_limit(5):
        pass
    time.sleep(0.01)
    with time_limit(None):
        pass


def test_a_limit_outlasts_whoever_goes_on_after_any_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "AGAIN_S", 0.05)
    begin = time.monotonic()

    def stubborn() -> None:
        try:
            time.sleep(10)
        except Exception:
            time.sleep(10)

    with pytest.raises(timing.TimeLimitError), time_limit(0.05):
        stubborn()
    assert time.monotonic() - begin < 5
    time.sleep(0.1)  # nothing comes after the block


def test_outside_the_main_thread_there_is_no_limit() -> None:
    done: list[bool] = []

    def work() -> None:
        with time_limit(0.001):
            time.sleep(0.02)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_memory_of_a_cpu_is_not_measured() -> None:
    ran: list[bool] = []
    assert timing.peak_bytes(lambda: ran.append(True), "cpu") is None
    assert ran


class Event:
    """A CUDA event that knows no time."""

    def __init__(self, enable_timing: bool) -> None:
        pass

    def record(self) -> None:
        pass

    def elapsed_time(self, other: object) -> float:
        return 1.0


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Milliseconds of the pauses that a GPU would have been given."""
    found: list[float] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda n: found.append(n / EventTimer.CYCLES_A_MILLISECOND))
    return found


def test_a_pause_decays_to_what_the_call_needs(pauses: list[float]) -> None:
    timer = EventTimer()
    for number in range(12):
        timer((lambda: time.sleep(0.005)) if number == 2 else (lambda: None))
    assert pauses[0] == EventTimer.LONGEST_PAUSE_MS
    assert pauses[3] >= 7.5  # half as long again as the slow call before it
    assert pauses[-1] < 1.0


def test_pauses_are_each_calls_own_and_begin_anew_with_each_case(pauses: list[float]) -> None:
    timer = EventTimer()
    for _ in range(2):
        pauses.clear()
        interleave({"slow": [lambda: time.sleep(0.005)], "fast": [lambda: None]}, timer, rounds=8)
        assert pauses[0] == pauses[1] == EventTimer.LONGEST_PAUSE_MS
        assert pauses[-2] >= 7.5
        assert pauses[-1] < 2.0


def test_a_timer_of_steps_stays_one(pauses: list[float]) -> None:
    interleave({"step": [lambda: None]}, EventTimer(hide_launches=False), rounds=2)
    assert not pauses


def test_a_limit_is_found_in_what_a_compiler_raises_in_its_place() -> None:
    limit = timing.TimeLimitError("given up after 1 s")

    def compiler() -> None:
        try:
            raise limit
        except Exception:
            raise RuntimeError("backend='inductor' raised") from None

    with pytest.raises(RuntimeError) as raised:
        compiler()
    assert timing.time_limit_in(raised.value) is limit
    assert timing.time_limit_in(ValueError("x")) is None
    assert timing.for_lack_of_time(timing.NO_TIME)
    assert not timing.for_lack_of_time("RuntimeError: capture failed")
