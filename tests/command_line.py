"""Running commands in tests: a fast `train`, and what a command that fails must look like."""

import json
from pathlib import Path

import pytest

from gwsss_fast import train

FAST = [
    *("--workers", "0", "--max-steps", "3", "--classifier.size", "32", "--epochs", "2", "--groups", "2"),
    *("--group-size", "3", "--cam.scales", "1", "--segmenter.crop", "33", "--segmenter.batch", "4"),
]
STAGES = ("classifier", "cam", "pseudo", "segmenter", "evaluate", "report")


def run_train(data: Path | str, output: Path, *more: str) -> int:
    return train.main(["--data", str(data), "--output", str(output), *FAST, *more])


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def fails(capsys: pytest.CaptureFixture[str], status: int, *words: str) -> None:
    """The command ended with status 2 and one line that holds all `words`."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert status == 2
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]
