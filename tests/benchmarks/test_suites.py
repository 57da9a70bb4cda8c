"""`pytest benchmarks`: what it runs here, and that a wrong result has no time."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import suites
from benchmarks.cases import TIMED
from benchmarks.timing import Reading

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


def test_a_wrong_result_fails_and_an_impossible_one_is_skipped() -> None:
    suites.verdict(None)
    with pytest.raises(pytest.fail.Exception, match="wrong"):
        suites.verdict("wrong: output 0")
    with pytest.raises(pytest.skip.Exception, match="no kernel"):
        suites.verdict("no kernel")


@pytest.mark.parametrize("label", [row.label for row in TIMED if row.label != "conv_gru kernel 3"])
def test_every_operation_has_a_benchmark(label: str) -> None:
    folder = ROOT / "benchmarks"
    assert suites.cases(label)
    assert f'benchmarked("{label}"' in (folder / f"bench_{label.split()[0]}.py").read_text()


def test_pytest_alone_runs_the_tests_only(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("testpaths") == ["tests"]
    assert "bench_*.py" in pytestconfig.getini("python_files")
    assert (ROOT / "benchmarks" / "bench_group_step.py").is_file()
