"""A training that is killed, terminated or robbed of its disk goes on to the very same weights."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from gwsss_fast import cli
from gwsss_fast.training.checkpoints import load_checkpoint
from tests.processes import start, start_function

LONG = [
    *("--workers", "0", "--threads", "1", "--classifier.size", "32", "--epochs", "6", "--groups", "2", "--group-size"),
    *("3", "--classifier.plain-epochs", "2", "--classifier.checkpoint-every", "4", "--cam.scales", "1", "--cam.flip"),
    *("false", "--segmenter.iterations", "30", "--segmenter.crop", "33", "--segmenter.batch", "4"),
    *("--segmenter.checkpoint-every", "4", "--evaluate.val-maps", "false"),
]
PATIENCE = 90  # seconds


def run(data: Path, output: Path, *more: str) -> list[str]:
    return ["train", "--data", str(data), "--output", str(output), *LONG, *more]


def rows(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.is_file() else 0


def weights(output: Path, stage: str) -> dict[str, torch.Tensor]:
    content = load_checkpoint(output / stage / "last.pt")
    assert content["complete"]
    return content["model"]


def assert_same(first: Path, second: Path) -> None:
    for stage in ("classifier", "segmenter"):
        a, b = weights(first, stage), weights(second, stage)
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert torch.equal(value, b[name]), (stage, name)
        logs = [(folder / "logs" / f"{stage}.csv").read_text() for folder in (first, second)]
        assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def undisturbed(shared_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(run(shared_voc, output), output.parent / "log")
    process.join(PATIENCE)
    assert process.exitcode == 0, (output.parent / "log").read_text()
    return output


def wait_for(log: Path, row: int, process: object) -> None:
    """Until the log of a training has so many rows; a little longer, so that any moment of a step may be hit."""
    end = time.monotonic() + PATIENCE
    while rows(log) < row and time.monotonic() < end and process.is_alive():  # type: ignore[attr-defined]
        time.sleep(0.002)


def test_killed_six_times_at_random_moments(undisturbed: Path, shared_voc: Path, tmp_path: Path) -> None:
    output, draw = tmp_path / "run", random.Random()  # any moments will do
    moments = [("classifier", row) for row in sorted(draw.sample(range(2, 36), 3))]
    moments += [("segmenter", row) for row in sorted(draw.sample(range(2, 30), 3))]
    killed = 0
    for number, (stage, row) in enumerate(moments):
        resume = ["--resume"] if (output / "config.yaml").is_file() else []
        process = start(run(shared_voc, output, *resume), tmp_path / "log")
        wait_for(output / "logs" / f"{stage}.csv", row, process)
        time.sleep(draw.random() * 0.03)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL), (number, moments, (tmp_path / "log").read_text())
    assert killed >= 5, moments
    process = start(run(shared_voc, output, "--resume"), tmp_path / "log")
    process.join(PATIENCE)
    assert process.exitcode == 0, (moments, (tmp_path / "log").read_text())
    assert_same(undisturbed, output)


def test_terminated_then_resumed(undisturbed: Path, shared_voc: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    for stage in ("classifier", "segmenter"):
        resume = ["--resume"] if (output / "config.yaml").is_file() else []
        process = start(run(shared_voc, output, *resume), tmp_path / "log")
        wait_for(output / "logs" / f"{stage}.csv", 9, process)
        os.kill(process.pid, signal.SIGTERM)  # type: ignore[arg-type]
        process.join(PATIENCE)
        text = (tmp_path / "log").read_text()
        assert process.exitcode == 143, text
        assert "stopped; continue with --resume" in text
    process = start(run(shared_voc, output, "--resume"), tmp_path / "log")
    process.join(PATIENCE)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert_same(undisturbed, output)


def leading(arguments: list[str]) -> None:
    """The command at the head of a process group of its own, as torchrun starts one."""
    os.setsid()
    sys.exit(cli.main(arguments))


def test_sigterm_to_a_process_and_its_workers_is_one_to_the_training(shared_voc: Path, tmp_path: Path) -> None:
    """As torchrun sends it; twice, where the batch system has told all processes already."""
    output = tmp_path / "run"
    options = run(shared_voc, output, "--stage", "classifier", "--workers", "2")
    process = start_function(leading, (options,), tmp_path / "log")
    wait_for(output / "logs" / "classifier.csv", 5, process)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)  # type: ignore[arg-type]
        time.sleep(0.01)
    process.join(PATIENCE)
    assert process.exitcode == 143, (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().count("stopped; continue with --resume") == 1
    assert load_checkpoint(output / "classifier" / "last.pt")["step"] >= 4
