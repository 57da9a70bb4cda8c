"""Bad input, interruption and full disks: one clear line, status 2, nothing half-written."""

import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gwsss_fast import cam, doctor, evaluate, pseudo, report_run, train
from gwsss_fast.training import classifier, segmenter
from gwsss_fast.training.checkpoints import load_checkpoint
from tests.command_line import STAGES, fails, metrics, run_train


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_a_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, run_train(tmp_path / "nowhere", tmp_path / "run"), "nowhere", "does not exist")
    assert not (tmp_path / "run").exists()


def empty_list(data: Path) -> str:
    (data / "ImageSets/Segmentation/train_aug.txt").write_text("")
    return "train_aug.txt"


def missing_image(data: Path) -> str:
    (data / "JPEGImages/image_003.jpg").unlink()
    return "image_003"


def truncated_jpeg(data: Path) -> str:
    path = data / "JPEGImages/image_005.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    return "image_005.jpg"


def illegal_mask(data: Path) -> str:
    Image.fromarray(np.full((48, 48), 77, np.uint8)).save(data / "SegmentationClass/image_013.png")
    return "image_013.png holds the value 77"


def too_few_classes(data: Path) -> str:
    (data / "classes.txt").write_text("red\ngreen\n")
    return ".png holds the value 3"


def no_classes(data: Path) -> str:
    (data / "classes.txt").unlink()
    return "classes.txt"


def mask_of_another_size(data: Path) -> str:
    Image.fromarray(np.zeros((4, 48), np.uint8)).save(data / "SegmentationClass/image_014.png")
    return "image_014.png has 48x4 pixels"


@pytest.mark.parametrize(
    "damage",
    [empty_list, missing_image, truncated_jpeg, illegal_mask, too_few_classes, no_classes, mask_of_another_size],
)
def test_damaged_data_is_found_before_training_and_leaves_nothing(
    damage, small_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = damage(small_voc)
    fails(capsys, run_train(small_voc, tmp_path / "run"), words)
    assert not (tmp_path / "run").exists()


def test_an_image_that_breaks_while_training_is_one_line_from_a_worker_too(
    small_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = truncated_jpeg(small_voc)
    options = ["--data.verify", "false", "--data.cache-mb", "0", "--workers", "1", "--stage", "classifier"]
    status = run_train(small_voc, tmp_path / "run", *options, "--max-steps", "8")
    text = capsys.readouterr().err
    assert status == 2
    assert text.splitlines()[-1].startswith("error: ")
    assert re.search(r"\.txt, line \d+: image ", text.splitlines()[-1])
    assert words in text.splitlines()[-1]
    assert "worker" not in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "quik"], ["'quik'", "'quick'"]),
        (["--preset", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--epoch", "3"], ["--epoch", "'--epochs'"]),
        (["--classifier.lr", "3"], ["--classifier.lr"]),
        (["--epochs", "many"], ["--epochs", "many"]),
        (["--epochs", "0"], ["epochs", "at least 1"]),
        (["--device", "tpu"], ["tpu", "--device"]),
        (["--stage", "cams"], ["cams", "--stage"]),
        (["--cam.flip"], ["--cam.flip"]),
        (["--precision", "fp16"], ["fp16"]),
        (["--backend", "cuda"], ["cuda"]),
        (["--backbone", "vgg99"], ["vgg99"]),
        (["--group-size", "500"], ["500"]),
        (["--classifier.scale", "0.5", "3"], ["scale"]),
        (["--data.train-list", "nolist"], ["nolist"]),
        (["--data.saliency", "nomaps"], ["nomaps"]),
        (["--stage", "cam"], ["classifier/last.pt"]),
        (["--stage", "segmenter"], ["pseudo"]),
    ],
)
def test_a_bad_option_is_one_line_and_leaves_nothing(
    options: list[str], words: list[str], shared_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, train.main(["--data", str(shared_voc), "--output", str(tmp_path / "run"), *options]), *words)
    assert not (tmp_path / "run").exists()
    assert not Path("runs").exists()


def test_a_bad_preset_file_names_file_key_and_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.yaml").write_text("extends: quick\nclassifier:\n  epoch: 3\n")
    fails(capsys, train.main(["--preset", str(tmp_path / "own.yaml")]), "own.yaml", "classifier.epoch", "'epochs'")


def test_an_existing_folder_is_left_alone(shared_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    fails(capsys, run_train(shared_voc, tmp_path / "run"), "not empty", "--resume")
    fails(capsys, run_train(shared_voc, tmp_path / "run", "--resume"), "no config.yaml")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_resume_with_other_settings_is_refused(copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data, run = copied
    before = (run / "config.yaml").read_text()
    fails(capsys, run_train(data, run, "--resume", "--steps", "1"), "model.steps", "classifier")
    fails(capsys, run_train(data, run, "--resume", "--cam.rounds", "2"), "cam.rounds", f"gwsss-fast cam --run {run} ")
    fails(capsys, cam.main(["--run", str(run), "--pseudo.alpha", "2"]), "pseudo.alpha")
    assert (run / "config.yaml").read_text() == before
    assert run_train(data, run, "--resume", "--threads", "1", "--data.verify", "false") == 0


def test_a_checkpoint_of_another_shape(copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data, run = copied
    path = run / "classifier" / "last.pt"
    content = torch.load(path, weights_only=True)
    content["model"]["gnn.readout.weight"] = content["model"]["gnn.readout.weight"][:, :5].clone()
    torch.save(content, path)
    shutil.rmtree(run / "cams")
    fails(capsys, run_train(data, run, "--resume"), "last.pt", "gnn.readout.weight", "shape")
    assert not (run / "cams").exists()
    path.write_bytes(path.read_bytes()[:1000])
    fails(capsys, run_train(data, run, "--resume"), "last.pt", "damaged")


def test_commands_that_need_a_run_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, cam.main([]), "--run", "--checkpoint")
    fails(capsys, pseudo.main(["--run", str(tmp_path)]), "no config.yaml")
    fails(capsys, report_run.main(["--run", str(tmp_path / "no")]), "no config.yaml")
    fails(capsys, evaluate.main([]), "--cams", "--masks")
    fails(capsys, evaluate.main(["--masks", "x", "--data", str(tmp_path / "no")]), "does not exist")
    fails(capsys, doctor.main(["--all"]), "--all")
    fails(capsys, cam.main(["--checkpoint", str(tmp_path / "no.pt")]), "no.pt")


def test_a_folder_of_masks_that_lacks_one(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "masks").mkdir()
    fails(capsys, evaluate.main(["--data", str(finished[0]), "--masks", str(tmp_path / "masks")]), "does not exist")


class FullDisk:
    """`torch.save` and picture writing on a disk that is full after `calls` files."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, *args: object, **options: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        self.write(*args, **options)  # type: ignore[attr-defined]


def test_a_full_disk_while_training_keeps_the_last_checkpoint(
    shared_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = FullDisk(1)
    disk.write = torch.save  # type: ignore[attr-defined]
    options = ["--classifier.checkpoint-every", "2", "--stage", "classifier"]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", disk)
        fails(capsys, run_train(shared_voc, tmp_path / "run", *options), "last.pt", "No space left on device")
    assert load_checkpoint(tmp_path / "run/classifier/last.pt")["step"] == 2
    assert not [path for path in tmp_path.rglob(".last*")]
    assert run_train(shared_voc, tmp_path / "run", *options, "--resume") == 0
    assert load_checkpoint(tmp_path / "run/classifier/last.pt")["step"] == 3


def test_a_full_disk_while_writing_pictures(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = copied
    shutil.rmtree(run / "pseudo")

    def full(image: Image.Image, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        fails(capsys, run_train(data, run, "--resume"), "pseudo", "No space left on device")
    assert not list((run / "pseudo").iterdir())
    assert run_train(data, run, "--resume") == 0


@pytest.mark.parametrize(("module", "name"), [(classifier, "group_loss"), (segmenter, "segmentation_loss")])
def test_ctrl_c_then_resume(
    module, name: str, shared_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    function, calls = getattr(module, name), []

    def pressed(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return function(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, pressed)
        assert run_train(shared_voc, tmp_path / "run") == 130
    assert "stopped; continue with --resume" in capsys.readouterr().err
    stage = module.__name__.rpartition(".")[2]
    assert not load_checkpoint(tmp_path / "run" / stage / "last.pt")["complete"]
    assert run_train(shared_voc, tmp_path / "run", "--resume") == 0
    assert metrics(tmp_path / "run")["seconds"].keys() == set(STAGES)
    assert load_checkpoint(tmp_path / "run" / stage / "last.pt")["complete"]
