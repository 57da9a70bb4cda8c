"""What a refused command leaves: everything as it was; and options of later stages are refused before the first."""

import shutil
from pathlib import Path

import pytest

from gwsss_fast import cam, evaluate, pseudo, train
from tests.command_line import fails, run_train


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def without_saliency(copied: tuple[Path, Path], tmp_path: Path) -> Path:
    """A finished run whose data set lies in `data` and has lost its saliency maps."""
    data, run = copied
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("Saliency"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(data), str(tmp_path / "data")))
    return run


def test_a_refused_stage_leaves_the_run_as_it_was(without_saliency: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = without_saliency
    before = files(run)
    fails(capsys, pseudo.main(["--run", str(run), "--pseudo.background", "saliency"]), "no saliency map", "(10 of 10")
    assert files(run) == before
    for name in ("classifier", "segmenter"):
        (run / name / "last.pt").rename(run / name / "kept.pt")
    before = files(run)
    fails(capsys, cam.main(["--run", str(run), "--cam.flip", "false"]), "classifier/last.pt")
    fails(capsys, evaluate.main(["--run", str(run), "--evaluate.flip", "true"]), "segmenter/last.pt")
    assert files(run) == before
    next((run / "cams").iterdir()).unlink()
    before = files(run)
    fails(capsys, pseudo.main(["--run", str(run), "--pseudo.alpha", "2"]), "do not exist (1 of 10)")
    assert files(run) == before


def test_a_refused_stage_makes_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], shared_voc: Path) -> None:
    new = tmp_path / "new"
    fails(capsys, run_train(shared_voc, new, "--stage", "report"), "nothing to report", "stage classifier")
    assert not new.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--segmenter.body", "nosuch"], ["unknown backbone nosuch"]),
        (["--segmenter.body", "here.py:build"], ["here.py", "does not exist"]),
        (["--segmenter.body", "resnet38"], ["resnet38 has no weights", "--segmenter.weights"]),
        (["--segmenter.init", "source", "--segmenter.weights", "no.pth"], ["--segmenter.weights", "no.pth"]),
        (["--segmenter.init", "classifier", "--segmenter.body", "vgg16"], ["segmenter.init", "tiny", "vgg16"]),
        (["--model.weights", "no.pth"], ["--model.weights", "no.pth"]),
    ],
)
def test_options_of_later_stages_are_refused_before_the_first(
    options: list[str], words: list[str], shared_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, run_train(shared_voc, tmp_path / "run", *options), *words)
    assert not (tmp_path / "run").exists()


def test_saliency_that_is_missing_is_found_before_training(
    small_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_voc / "Saliency" / "image_003.png").unlink()
    options = ["--pseudo.background", "saliency"]
    fails(capsys, run_train(small_voc, tmp_path / "run", *options), "image_003", "(1 of 12 images)")
    assert not (tmp_path / "run").exists()
    assert run_train(small_voc, tmp_path / "run", *options, "--stage", "classifier") == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--classifier.nesterov", "true", "--classifier.momentum", "0"], ["classifier.nesterov"]),
        (["--seed", "99999999999999999999999"], ["seed", "at most"]),
        (["--cam.scales", "nan"], ["cam.scales", "finite"]),
        (["--evaluate.scales", "1", "inf"], ["evaluate.scales", "finite"]),
        (["--classifier.clip-norm", "0"], ["classifier.clip_norm", "above 0"]),
    ],
)
def test_numbers_without_sense_are_refused(
    options: list[str], words: list[str], shared_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, run_train(shared_voc, tmp_path / "run", *options), *words)
    assert not (tmp_path / "run").exists()


def test_a_run_is_the_same_from_another_folder(
    small_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_voc.parent)
    assert run_train("small_voc", Path("run"), "--stage", "classifier") == 0
    assert run_train("small_voc", Path("run"), "--resume", "--stage", "classifier") == 0
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(tmp_path / "far")
    assert cam.main(["--run", str(tmp_path / "run")]) == 0
    again = ["--preset", str(tmp_path / "run" / "config.yaml"), "--output", "again", "--stage", "classifier"]
    assert train.main(again) == 0


def test_a_run_of_relative_paths_goes_on_where_it_was_started(small_voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As config.yaml was written before paths were made absolute."""
    monkeypatch.chdir(small_voc.parent)
    assert run_train("small_voc", Path("run"), "--stage", "classifier") == 0
    stored = Path("run/config.yaml")
    stored.write_text(stored.read_text().replace(f"root: {small_voc}", "root: small_voc"))
    assert run_train("small_voc", Path("run"), "--resume", "--stage", "classifier") == 0
    assert f"root: {small_voc}" not in stored.read_text()
