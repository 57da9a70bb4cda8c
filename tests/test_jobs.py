"""Maps, pseudo labels, scores and predictions by several processes: the files and scores of one, whatever happens."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwsss_fast import cam, cli, distributed, pseudo
from gwsss_fast.evaluate import predict_split
from gwsss_fast.inference import written
from tests.ranks import launch, launch_function, output, start_ranks, statuses, together

OPTIONS = {
    # An image takes part in several passes, which several processes run.
    "cam": ["--cam.groups", "1", "--cam.rounds", "2", "--cam.scales", "0.5", "1"],
    "pseudo": ["--pseudo.background", "threshold", "--pseudo.threshold", "0.4", "--pseudo.crf", "psa"],
    "evaluate": ["--evaluate.crf", "deeplab", "--evaluate.flip", "true"],
}
FOLDERS = {"cam": "cams", "pseudo": "pseudo", "evaluate": "predictions"}
TIMES = ("seconds", "environment", "outdated", "interrupted")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def scores(run: Path) -> dict[str, Any]:
    metrics = json.loads((run / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if name not in TIMES}


def again(count: int, source: Path, target: Path) -> dict[str, Any]:
    """The three stages of a copy of the run again; what they wrote."""
    shutil.copytree(source, target)
    for stage, options in OPTIONS.items():
        together(count, [stage, "--run", str(target), *options], target.parent / "logs")
    return {stage: contents(target / folder) for stage, folder in FOLDERS.items()}


@pytest.fixture(scope="module")
def by_one(finished: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("one") / "run"
    return again(1, finished[1], folder), folder


def test_three_processes_write_the_files_and_scores_of_one(
    by_one: tuple[dict[str, Any], Path], finished: tuple[Path, Path], tmp_path: Path
) -> None:
    files = again(3, finished[1], tmp_path / "run")
    for stage in FOLDERS:
        assert files[stage] == by_one[0][stage], stage
    assert scores(tmp_path / "run") == scores(by_one[1])
    assert "cam_val" in scores(by_one[1])
    shown = output(tmp_path / "logs")
    assert shown.count("results") == 1, "process 0 alone prints"


def matrices(run: Path, target: Path) -> None:
    """Write the confusion matrices of the run's predictions, as this process has them."""
    config = cli.stored_config(run)
    opened = cli.open_run(run, config)
    assert opened.data.validation is not None
    found = predict_split(opened, opened.data.validation)
    assert found is not None
    np.save(target / f"{distributed.size()}-{distributed.rank()}.npy", np.stack(found))


def test_the_confusion_matrix_of_three_processes_is_that_of_one(copied: tuple[Path, Path], tmp_path: Path) -> None:
    for count in (1, 3):
        launch_function(count, matrices, (copied[1], tmp_path), tmp_path)
    whole = np.load(tmp_path / "1-0.npy")
    assert whole.dtype == np.int64
    assert whole.sum() > 3 * 64 * 64  # pixels of the three images, counted in two matrices
    for rank in range(3):
        assert np.array_equal(np.load(tmp_path / f"3-{rank}.npy"), whole)


def test_folders_are_scored_alike(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = finished
    given = ["evaluate", "--data", str(data), "--crf", "toco"]
    for more in (["--cams", str(run / "cams")], ["--masks", str(run / "predictions"), "--split", "val"]):
        assert together(1, [*given, *more], tmp_path / "one") == together(3, [*given, *more], tmp_path / "three")


class Disturbed:
    """`function`, with a signal to this process of the job before call number `at`."""

    def __init__(self, function: Callable[..., Any], at: int, number: signal.Signals) -> None:
        self.function, self.at, self.number, self.calls = function, at, number, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            signal.raise_signal(self.number)
        return self.function(*args, **options)


def stopped_command(stage: str, arguments: list[str], at: int, who: int) -> None:
    """A command whose process `who` gets SIGTERM before it writes its file number `at`."""
    if int(os.environ["RANK"]) == who:
        module, name = {
            "cam": (cam, "save_maps"),
            "pseudo": (pseudo, "save_mask"),
            "predict": (written, "save_mask"),
        }[stage]
        setattr(module, name, Disturbed(getattr(module, name), at, signal.SIGTERM))
    sys.exit(cli.main(arguments))


def test_maps_after_sigterm_to_one_of_three_are_gone_on_with_by_two(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    for folder in (whole, run):
        shutil.copytree(finished[1], folder)
    options = ["--cam.groups", "1", "--cam.flip", "false"]
    together(1, ["cam", "--run", str(whole), *options], tmp_path / "logs")
    arguments = ["cam", "--run", str(run), *options]
    found = statuses(start_ranks(3, stopped_command, ("cam", arguments, 1, 1), tmp_path / "logs"))
    assert found == [143] * 3, output(tmp_path / "logs")
    assert output(tmp_path / "logs").count("stopped; continue with --resume") == 1
    assert (run / "cams" / "progress-1.npz").is_file()
    assert "cam" not in json.loads((run / "metrics.json").read_text())["seconds"]
    together(2, ["train", "--output", str(run), "--resume", "--stage", "cam"], tmp_path / "logs")
    assert contents(run / "cams") == contents(whole / "cams")
    assert scores(run)["cam"] == scores(whole)["cam"]


def test_pseudo_labels_after_sigterm_to_one_of_three_are_gone_on_with_by_two(
    by_one: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(by_one[1], run)
    arguments = ["pseudo", "--run", str(run)]
    found = statuses(start_ranks(3, stopped_command, ("pseudo", arguments, 2, 2), tmp_path / "logs"))
    assert found == [143] * 3, output(tmp_path / "logs")
    assert 1 <= len(contents(run / "pseudo")) < len(by_one[0]["pseudo"])
    together(2, ["train", "--output", str(run), "--resume", "--stage", "pseudo"], tmp_path / "logs")
    assert contents(run / "pseudo") == by_one[0]["pseudo"]
    assert scores(run)["pseudo"] == scores(by_one[1])["pseudo"]


def test_predictions_of_three_processes_are_those_of_one(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """By three at once, and by two after SIGTERM to one of three."""
    data, run = finished
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(sorted((data / "JPEGImages").iterdir())[:7]):
        shutil.copy(path, tmp_path / "photos" / f"{9 - number}.jpg")
    (tmp_path / "photos" / "5.jpg").write_bytes(b"no image")
    arguments = ["predict", str(tmp_path / "photos"), "--model", str(run / "segmenter/last.pt"), "--precision", "fp32"]
    arguments += ["--coco", "--overlay", "--output"]
    for count in (1, 3):
        found = statuses(launch(count, [*arguments, str(tmp_path / str(count))], tmp_path / "logs"))
        assert found == [2] * count, output(tmp_path / "logs")
        assert output(tmp_path / "logs").count("error: image") == 1
        assert output(tmp_path / "logs").count(f"6 masks in {tmp_path / str(count)}\n") == 1
    assert contents(tmp_path / "3") == contents(tmp_path / "1")
    assert len(contents(tmp_path / "1")) == 14
    again = [*arguments, str(tmp_path / "again")]
    assert statuses(start_ranks(3, stopped_command, ("predict", again, 2, 1), tmp_path / "logs")) == [143] * 3
    assert (tmp_path / "again" / "predictions-1.json").is_file()
    statuses(launch(2, [*again, "--resume"], tmp_path / "logs"))
    summaries = [json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("1", "again")]
    assert summaries[0] == summaries[1]
    for name, content in contents(tmp_path / "1").items():
        if name.endswith((".png", ".jpg")):
            assert (tmp_path / "again" / name).read_bytes() == content
    assert not [*(tmp_path / "again").glob("predictions-*")]


def test_a_file_that_one_process_cannot_read_ends_all(copied: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = copied
    damaged = sorted((run / "cams").glob("*.npy"))[4]
    damaged.write_bytes(b"no maps")
    found = statuses(start_ranks(3, stopped_command, ("pseudo", ["pseudo", "--run", str(run)], 0, 0), tmp_path))
    assert found == [2] * 3, output(tmp_path)
    errors = [line for line in output(tmp_path).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output(tmp_path)
    assert damaged.name in errors[0]
    assert "Traceback" not in output(tmp_path)


def test_progress_that_was_joined_counts_once(tmp_path: Path) -> None:
    """A crash after the files of all processes were joined, but before they were removed."""
    rng = np.random.default_rng(0)
    sweeps = {name: cam.Sweeps(2) for name in ("progress", "progress-1", "progress-2")}
    for one in sweeps.values():
        for sweep in one.sweeps.values():
            sweep.histogram += rng.integers(0, 9, sweep.histogram.shape)
    sweeps["progress"].save(tmp_path / "progress.npz", ["a", "b"])
    sweeps["progress-1"].save(tmp_path / "progress-1.npz", ["b"])
    sweeps["progress-2"].save(tmp_path / "progress-2.npz", ["c"])
    joined = cam.Sweeps(2)
    assert joined.load([tmp_path / f"{name}.npz" for name in sweeps]) == ["a", "b", "c"]
    for name, sweep in joined.sweeps.items():
        both = sweeps["progress"].sweeps[name].histogram + sweeps["progress-2"].sweeps[name].histogram
        assert np.array_equal(sweep.histogram, both)
