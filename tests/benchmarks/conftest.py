"""A run of the command for a GPU on a CPU, with a timer that is not real."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.harness.timing import Call, Reading
from benchmarks.on_gpu import Clock, Run


def fake_timer(call: Call) -> Reading:
    call()
    return Reading(2.0, 0.5)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    console = Console(width=170, file=io.StringIO())
    return Run("cpu", Clock(1e6), tmp_path / "cpu.jsonl", console, fake_timer, fake_timer, rounds=2)
