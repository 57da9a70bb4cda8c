"""The commands as a user meets them: one run from images to report, and every way to get it wrong."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gwsss_fast import cam, cli, doctor, evaluate, pseudo, report_run, train
from gwsss_fast.config import load_config
from gwsss_fast.data import embedded
from gwsss_fast.errors import GwsssError
from gwsss_fast.labels.interchange import load_maps
from gwsss_fast.training import classifier, segmenter
from gwsss_fast.training.checkpoints import load_checkpoint

FAST = [
    *("--workers", "0", "--max-steps", "3", "--classifier.size", "32", "--epochs", "2", "--groups", "2"),
    *("--group-size", "3", "--cam.scales", "1", "--segmenter.crop", "33", "--segmenter.batch", "4"),
]
STAGES = ("classifier", "cam", "pseudo", "segmenter", "evaluate", "report")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(data, run): a complete run on a small embedded data set. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    data = embedded.build_embedded(folder, train=10, val=3, size=64)
    assert run_train(data, folder / "run") == 0
    return data, folder / "run"


@pytest.fixture
def copied(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(finished[1], tmp_path / "run")
    return finished[0], tmp_path / "run"


def test_a_run_leaves_what_it_promises(finished: tuple[Path, Path]) -> None:
    data, run = finished
    ids = {name: (data / f"ImageSets/Segmentation/{name}.txt").read_text().split() for name in ("train_aug", "val")}
    for name in ("config.yaml", "metrics.json", "report.html", "classifier/last.pt", "segmenter/last.pt"):
        assert (run / name).stat().st_size > 100
    assert {path.stem for path in (run / "cams").iterdir()} == set(ids["train_aug"])
    assert {path.stem for path in (run / "pseudo").iterdir()} == set(ids["train_aug"])
    assert {path.stem for path in (run / "predictions").iterdir()} == set(ids["val"])
    assert {path.name for path in (run / "logs").iterdir()} == {"classifier.csv", "segmenter.csv", "tensorboard"}
    assert not [path for path in run.rglob(".*")]
    image = Image.open(run / "predictions" / f"{ids['val'][0]}.png")
    assert image.mode == "P"
    assert image.size == Image.open(data / "JPEGImages" / f"{ids['val'][0]}.jpg").size
    torch.load(run / "classifier/last.pt", weights_only=True)


def test_metrics_hold_what_the_contract_names_in_percent(finished: tuple[Path, Path]) -> None:
    data, run = finished
    found = metrics(run)
    classes = [name for name in (data / "classes.txt").read_text().split() if name != "background"]
    for name in ("initial", "graph", "ensemble"):
        scores = found["cam"][name]
        assert scores["miou"] == pytest.approx(max(scores["curve"]), abs=1e-3)
        assert scores["curve"][round(scores["best_threshold"] * 100)] == max(scores["curve"])
        assert len(scores["curve"]) == 60
    assert 1 < found["cam"]["ensemble"]["miou"] <= 100
    assert set(found["cam_val"]) == {"tags", "predicted"}
    assert 1 < found["pseudo"]["coverage"] <= 100
    assert list(found["segmentation"]["iou"]) == ["background", *classes]
    known = [value for value in found["segmentation"]["iou"].values() if value is not None]
    assert found["segmentation"]["miou"] == pytest.approx(sum(known) / len(known))
    assert list(found["seconds"]) == list(STAGES)
    assert found["initialised_from"]["classifier"] == "random"
    assert {"torch", "python", "device", "cpus"} <= set(found["environment"])


def test_the_stored_scores_are_those_of_the_stored_files(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = finished
    assert evaluate.main(["--data", str(data), "--cams", str(run / "cams")]) == 0
    assert f"{metrics(run)['cam']['ensemble']['miou']:.2f}" in capsys.readouterr().out
    assert evaluate.main(["--data", str(data), "--masks", str(run / "pseudo")]) == 0
    assert f"{metrics(run)['pseudo']['miou']:.2f}" in capsys.readouterr().out
    assert evaluate.main(["--data", str(data), "--masks", str(run / "predictions"), "--split", "val"]) == 0
    assert f"{metrics(run)['segmentation']['miou']:.2f}" in capsys.readouterr().out


def test_evaluate_refines_by_crf(finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data, run = finished
    options = ["--data", str(data), "--data.train-limit", "2", "--crf", "mcis"]
    assert evaluate.main([*options, "--cams", str(run / "cams")]) == 0
    assert "ensemble + CRF mcis" in capsys.readouterr().out
    assert evaluate.main([*options, "--masks", str(run / "pseudo")]) == 0


def test_the_last_thing_printed_is_one_table_and_the_report(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = copied
    assert run_train(data, run, "--resume") == 0
    out, err = capsys.readouterr()
    for words in ("initial", "graph", "ensemble", "pseudo labels", "coverage", "segmentation on val", "background"):
        assert words in out
    assert out.splitlines()[-1] == f"report: {run / 'report.html'}"
    assert [line for line in err.splitlines() if "skipped" in line] == [f"{s}: done before, skipped" for s in STAGES]


def test_a_config_file_repeats_the_run(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = finished
    again = tmp_path / "again"
    assert train.main(["--preset", str(run / "config.yaml"), "--output", str(again), "--stage", "classifier"]) == 0
    first, second = (load_checkpoint(folder / "classifier/last.pt")["model"] for folder in (run, again))
    for name, value in first.items():
        assert torch.equal(value, second[name])
    assert (again / "config.yaml").read_text() == (run / "config.yaml").read_text()


def test_resume_redoes_what_is_missing_and_what_depends_on_it(copied: tuple[Path, Path]) -> None:
    data, run = copied
    before = {path.name: path.read_bytes() for path in (run / "cams").iterdir()}
    lost = sorted((run / "cams").iterdir())[0]
    lost.unlink()
    (run / "report.html").unlink()
    assert run_train(data, run, "--resume") == 0
    assert {path.name for path in (run / "cams").iterdir()} == set(before)
    assert np.array_equal(load_maps(lost).ensemble, load_maps(run / "cams" / lost.name).ensemble)
    assert (run / "report.html").is_file()
    assert "outdated" not in metrics(run)


def test_without_output_a_run_has_a_folder_of_its_own_and_resume_finds_it(shared_voc: Path) -> None:
    options = ["--data", str(shared_voc), *FAST, "--stage", "classifier"]
    assert train.main(options) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("quick-small_voc-2")
    assert train.main([*options, "--resume"]) == 0
    assert list(Path("runs").iterdir()) == [folder]


def test_single_stages_from_a_run_folder(copied: tuple[Path, Path]) -> None:
    _, run = copied
    old = metrics(run)
    assert cam.main(["--run", str(run), "--cam.flip", "false", "--format", "seam"]) == 0
    assert set(load_maps(run / "cams-seam" / next((run / "cams").iterdir()).name).keys) <= set(range(20))
    assert metrics(run)["outdated"] == ["pseudo", "segmenter", "evaluate", "report"]
    assert pseudo.main(["--run", str(run), "--pseudo.background", "threshold", "--pseudo.threshold", "0.9"]) == 0
    assert metrics(run)["outdated"] == ["segmenter", "evaluate", "report"]
    assert metrics(run)["pseudo"]["coverage"] == 100 != old["pseudo"]["coverage"]
    assert evaluate.main(["--run", str(run), "--evaluate.flip", "true"]) == 0
    assert report_run.main([str(run)]) == 0
    stored = load_config(run / "config.yaml")
    assert (stored.cam.flip, stored.pseudo.threshold, stored.evaluate.flip) == (False, 0.9, True)
    segmenter_before = (run / "segmenter" / "last.pt").read_bytes()
    assert train.main(["--output", str(run), "--resume"]) == 0  # outdated: trained again, not taken for finished
    assert (run / "segmenter" / "last.pt").read_bytes() != segmenter_before


def test_maps_from_a_checkpoint_alone(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = finished
    checkpoint, output = run / "classifier" / "last.pt", tmp_path / "maps"
    assert cam.main(["--checkpoint", str(checkpoint), "--output", str(output)]) == 0
    name = next((run / "cams").iterdir()).name
    assert np.array_equal(load_maps(output / "cams" / name).ensemble, load_maps(run / "cams" / name).ensemble)


def test_a_set_without_masks_is_trained_and_not_scored(
    small_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = small_voc / "ImageSets/Segmentation"
    labelled = [f"{name} {number % 3}" for number, name in enumerate((lists / "train_aug.txt").read_text().split())]
    (lists / "train_aug.txt").write_text("\n".join(labelled))
    (lists / "train.txt").unlink()
    (lists / "val.txt").unlink()
    shutil.rmtree(small_voc / "SegmentationClass")
    assert run_train(small_voc, tmp_path / "run") == 0
    err = capsys.readouterr().err
    assert "cam: the training images have no masks" in err
    assert "no validation images" in err
    assert "cam" not in metrics(tmp_path / "run")
    assert list(metrics(tmp_path / "run")["pseudo"]) == ["coverage", "background"]
    assert run_train(small_voc, tmp_path / "run", "--resume") == 0
    assert "evaluate: done before" in capsys.readouterr().err


def test_accumulated_maps_go_through_the_pipeline(shared_voc: Path, tmp_path: Path) -> None:
    options = ["--classifier.mode", "squash", "--classifier.flip", "false", "--cam.oaa", "true", "--max-steps", "12"]
    assert run_train(shared_voc, tmp_path / "run", *options, "--stage", "classifier") == 0
    assert run_train(shared_voc, tmp_path / "run", *options, "--stage", "cam", "--resume") == 0
    assert metrics(tmp_path / "run")["cam"]["ensemble"]["miou"] > 1


# ---------------------------------------------------------------------------------------------- bad input


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
    return "image_014.png is 48x4, its image 48x48"


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
    fails(capsys, run_train(data, run, "--resume", "--cam.rounds", "2"), "cam.rounds", "cam")
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


# ---------------------------------------------------------------------------------------------- the console script


def test_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "check-data" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert cli.main(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "co_attention" in out
    assert torch.__version__ in out
    for verb in ("train", "cam", "pseudo", "evaluate", "report"):
        with pytest.raises(SystemExit) as end:
            cli.main([verb, "--help"])
        assert not end.value.code
        assert "--data" in capsys.readouterr().out


def test_an_unexpected_error_is_not_swallowed() -> None:
    def broken() -> None:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError):
        cli.run(broken)

    def user() -> None:
        raise GwsssError("yours")

    assert cli.run(user) == 2
