"""The commands as a user meets them: one run from images to report, its stages again, and other ways to run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gwsss_fast import cam, cli, evaluate, pseudo, report_run, train
from gwsss_fast.config import load_config
from gwsss_fast.errors import GwsssError
from gwsss_fast.labels.interchange import load_maps
from gwsss_fast.training.checkpoints import load_checkpoint
from tests.command_line import FAST, STAGES, fails, metrics, run_train


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


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
    assert set(found["segmentation_tags"]) == set(found["segmentation_network"]) == set(found["segmentation"])
    assert list(found["seconds"]) == list(STAGES)
    assert found["initialised_from"]["classifier"] == "random"
    assert {"torch", "python", "device", "cpus"} <= set(found["environment"])


def test_the_stored_scores_are_those_of_the_stored_files(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = finished
    assert evaluate.main(["--data", str(data), "--cams", str(run / "cams")]) == 0
    assert f"{metrics(run)['cam']['ensemble']['miou']:.2f}" in capsys.readouterr().out
    assert evaluate.main(["--data", str(data), "--masks", str(run / "pseudo")]) == 0
    assert f"{metrics(run)['pseudo']['miou']:.2f}" in capsys.readouterr().out
    file = tmp_path / "scores.json"
    given = ["--masks", str(run / "predictions"), "--split", "val", "--scores", str(file)]
    assert evaluate.main(["--data", str(data), *given]) == 0
    stored = metrics(run)["segmentation"]
    out = capsys.readouterr().out
    for name in ("miou", "false_positives", "false_negatives"):
        assert f"{stored[name]:.2f}" in out
    assert json.loads(file.read_text()) == {**stored, "coverage": 100}


def test_segmentation_with_true_tags_chooses_among_them(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an absent class is always the likeliest and the true one the second, tags make all right."""
    _, folder = copied
    _, run = cli.open_stage(cli.StageArguments, "evaluate", ["--run", str(folder), "--evaluate.crf", "None"])
    split = run.data.validation
    assert split is not None
    records, classes = iter(split.records), len(split.classes) + 1

    def probabilities(*_: object) -> torch.Tensor:
        record = next(records)
        target = torch.from_numpy(np.array(Image.open(record.mask)))  # type: ignore[arg-type]
        target[target == 255] = 0
        absent = next(c for c in range(1, classes) if c - 1 not in record.labels)
        scores = torch.nn.functional.one_hot(target.long(), classes).movedim(-1, 0) * 0.4
        scores[absent] = 0.6
        return scores

    monkeypatch.setattr(evaluate, "predict_probabilities", probabilities)
    found = evaluate.predict_split(run, split)
    assert found is not None
    plain, told = (evaluate.mask_metrics(confusion, split.classes, "background") for confusion in found)
    assert (plain["accuracy"], told["accuracy"]) == (0, 100)


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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_resume_redoes_what_is_missing_and_what_depends_on_it(copied: tuple[Path, Path]) -> None:
    data, run = copied
    before = contents(run / "cams")
    sorted((run / "cams").iterdir())[0].unlink()
    (run / "report.html").unlink()
    assert run_train(data, run, "--resume") == 0
    assert contents(run / "cams") == before
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


def test_complete_maps_are_converted_and_not_made_again(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = copied
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(cam, "run_maps", None)
        assert cam.main(["--run", str(run), "--format", "oaa"]) == 0
        assert cam.main(["--run", str(run), "--format", "seam", "--threads", "1"]) == 0
    assert len(list((run / "cams-seam").iterdir())) == len(list((run / "cams").iterdir())) == 10
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    path = next((run / "cams").iterdir())
    path.unlink()
    assert cam.main(["--run", str(run), "--format", "seam"]) == 0
    assert path.is_file()


def test_images_without_masks_are_left_out_of_the_score(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, run = finished
    data = shutil.copytree(stored, tmp_path / "data")
    lists = data / "ImageSets/Segmentation"
    ids = (lists / "train_aug.txt").read_text().split()
    for path in data.glob("SegmentationClass*/*.png"):
        if path.stem not in ids[:3]:
            path.unlink()
    (lists / "train.txt").write_text("\n".join(ids[:3]))
    for kind in ("cams", "masks"):
        folder = str(run / {"cams": "cams", "masks": "pseudo"}[kind])
        assert evaluate.main(["--data", str(data), f"--{kind}", folder]) == 0
        whole = capsys.readouterr()
        assert evaluate.main(["--data", str(data), f"--{kind}", folder, "--split", "train_aug"]) == 0
        part = capsys.readouterr()
        assert "3 of the 10 images of split train_aug have masks" in part.err
        assert "have masks" not in whole.err
        rows, of_all = ([line for line in out.splitlines() if "│" in line] for out in (part.out, whole.out))
        assert rows == of_all
    (lists / "train.txt").unlink()
    for path in data.glob("SegmentationClass*/*.png"):
        path.unlink()
    fails(capsys, evaluate.main(["--data", str(data), "--masks", folder, "--split", "train_aug"]), "no image", "mask")


def test_maps_from_a_checkpoint_alone(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = finished
    checkpoint, output = run / "classifier" / "last.pt", tmp_path / "maps"
    assert cam.main(["--checkpoint", str(checkpoint), "--output", str(output)]) == 0
    name = next((run / "cams").iterdir()).name
    assert np.array_equal(load_maps(output / "cams" / name).ensemble, load_maps(run / "cams" / name).ensemble)


def test_validation_images_without_masks_are_predicted_and_not_scored(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished[1], tmp_path / "run")
    shutil.rmtree(folder / "predictions")
    run = cli.open_run(folder, cli.stored_config(folder))
    first, *others = run.data.validation.records
    split = replace(run.data.validation, records=(replace(first, mask=None), *others))
    confusion, *_ = evaluate.predict_split(run, split)
    assert f"{len(others)} of the {len(split)} validation images have masks" in capsys.readouterr().err
    assert len([*(folder / "predictions").iterdir()]) == len(split)
    assert confusion.sum() == sum(int((np.asarray(Image.open(x.mask)) != 255).sum()) for x in others)
    none = replace(split, records=(split.records[0],))
    assert evaluate.predict_split(run, none) is None


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


def test_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "check-data" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert cli.main(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["report_run", "--help"])
    assert cli.main(["export"]) == 2
    assert "did you mean 'export-model'" in capsys.readouterr().err
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "co_attention" in out
    assert torch.__version__ in out
    for verb in ("train", "cam", "pseudo", "evaluate", "report"):
        with pytest.raises(SystemExit) as end:
            cli.main([verb, "--help"])
        assert not end.value.code
        assert "--data" in capsys.readouterr().out


def test_ctrl_c_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", pressed)
    assert cli.main(["train"]) == 130


def test_an_unexpected_error_is_not_swallowed() -> None:
    def broken() -> None:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError):
        cli.run(broken)

    def user() -> None:
        raise GwsssError("yours")

    assert cli.run(user) == 2
