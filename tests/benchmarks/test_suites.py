"""`pytest benchmarks`: what it runs here, and that a wrong result has no time."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo

from benchmarks.harness import suites
from benchmarks.harness.cases import TIMED, operation
from benchmarks.harness.sizes import Size
from benchmarks.harness.timing import Reading

ROOT = Path(__file__).resolve().parents[2]


class Recorder:
    """pytest-benchmark's fixture as far as the suites use it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, function: Any, rounds: int, iterations: int) -> None:
        for _ in range(rounds):
            before = suites.CLOCK()
            function()
            self.seconds.append(suites.CLOCK() - before)


def test_the_times_are_those_of_the_timer_and_inputs_take_turns() -> None:
    recorder, order = Recorder(), []  # type: ignore[var-annotated]
    calls = [lambda i=i: order.append(i) for i in range(3)]

    def timer(call: Any) -> Reading:
        call()
        return Reading(7.0, 1.0)

    suites.time_calls(recorder, calls, 4, timer)
    assert recorder.seconds == pytest.approx([0.007] * 4)
    assert order == [0, 1, 2, 0, 1, 2, 0]  # each once to warm up


def test_a_wrong_result_and_a_broken_backend_fail_and_an_impossible_peer_is_skipped() -> None:
    suites.verdict(None, ours=True)
    with pytest.raises(pytest.fail.Exception, match="wrong"):
        suites.verdict("wrong: output 0", ours=False)
    with pytest.raises(pytest.skip.Exception, match="no kernel"):
        suites.verdict("no kernel", ours=False)
    with pytest.raises(pytest.fail.Exception, match="capture failed"):
        suites.verdict("RuntimeError: capture failed", ours=True)


def test_the_compiler_forgets_earlier_cases_but_not_the_other_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch compiles a function for a few shapes only, then runs it as it is."""
    resets: list[None] = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(None))
    suites._begin.cache_clear()
    suites._accepted.cache_clear()
    for number in (1, 2):
        size = Size("tiny", number, 2, 3, 2, 8, 4)
        for backward in (False, True):
            for name in ("eager", "batched"):
                suites.run(Recorder(), operation("attention"), size, torch.float32, backward, name)
        assert len(resets) == number


@pytest.mark.parametrize("label", [row.label for row in TIMED if row.label != "conv_gru kernel 3"])
def test_every_operation_has_a_benchmark(label: str) -> None:
    folder = ROOT / "benchmarks"
    assert suites.cases(label)
    assert f'benchmarked("{label}"' in (folder / f"bench_{label.split()[0]}.py").read_text()


def test_pytest_alone_runs_the_tests_only(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("testpaths") == ["tests"]
    assert "bench_*.py" in pytestconfig.getini("python_files")
    assert (ROOT / "benchmarks" / "bench_group_step.py").is_file()
