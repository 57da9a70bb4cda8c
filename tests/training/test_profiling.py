"""Where a step's time goes: phases that exclude one another and a trace."""

import json
from pathlib import Path

import pytest
import torch

from gwsss_fast.training.profiling import WARM_UP, Profile, table
from tests.command_line import run_train


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_inner_phases_are_taken_from_outer_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    profile = Profile(1, None, torch.device("cpu"), tmp_path, "x")
    with profile.phase("loss"):
        clock.now += 1
        with profile.phase("graph"):
            clock.now += 10
        clock.now += 3
    assert dict(profile.seconds) == {"loss": 4, "graph": 10}
    assert table({"loss": 4.0, "graph": 10.0}, 2) == [
        "time of a step, mean of 2:",
        "  graph         5000.0 ms  71.4 %",
        "  loss          2000.0 ms  28.6 %",
        "  all           7000.0 ms",
    ]


def test_a_training_tells_its_phases_once(shared_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = str(WARM_UP + 1 + 2)
    options = ("--profile", "2", "--max-steps", steps, "--stage", "classifier", "--classifier.plain-epochs", "0")
    assert run_train(shared_voc, tmp_path / "run", *options) == 0
    lines = capsys.readouterr().err.splitlines()
    start = lines.index("time of a step, mean of 2:")
    names = [line.split()[0] for line in lines[start + 1 : start + 8]]
    assert names == ["data", "backbone", "graph", "loss", "backward", "optimiser", "all"]
    numbers = [float(line.split()[1]) for line in lines[start + 1 : start + 8]]
    assert all(number > 0 for number in numbers)
    assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.4)  # each is rounded to 0.1
    stored = json.loads((tmp_path / "run/logs/classifier.profile.json").read_text())
    assert [1000 * seconds for seconds in stored.values()] == pytest.approx(numbers[:-1], abs=0.06)
    trace = json.loads((tmp_path / "run/logs/classifier.trace.json").read_text())
    assert any("gwsss_fast::" in str(event.get("name")) for event in trace["traceEvents"])
