"""Maps and pseudo labels of other projects, scored and used for stage 2 as they lie in their folders; VOC's server."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gwsss_fast import cam, check_data, evaluate
from gwsss_fast.data.dataset import open_dataset
from gwsss_fast.data.palette import voc_palette
from gwsss_fast.data.voc_results import RESULTS
from gwsss_fast.labels.interchange import load_maps, open_maps
from tests.command_line import fails, metrics, run_train
from tests.published_trees import make_voc2012

SHORT = ["--max-steps", "1", "--segmenter.batch", "2", "--segmenter.iterations", "1"]


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc2012(tmp_path_factory.mktemp("voc"), "labels")


def true_maps(data: Path) -> dict[str, tuple[list[int], np.ndarray]]:
    """Per training image its classes and maps that are 0.9 on the truth and 0.05 elsewhere."""
    found = {}
    for record in open_dataset(data).training.records:
        mask = np.asarray(Image.open(record.mask))
        maps = [np.where(mask == label + 1, 0.9, 0.05).astype(np.float32) for label in record.labels]
        found[record.id] = list(record.labels), np.stack(maps)
    return found


def write_irn(folder: Path, data: Path) -> None:
    """As IRN's make_cam does: tensors of the classes and of the maps at stride 4, the full maps as an array."""
    for name, (keys, maps) in true_maps(data).items():
        content = {"keys": torch.tensor(keys), "cam": torch.tensor(maps[:, ::4, ::4]), "high_res": maps}
        np.save(folder / f"{name}.npy", content)  # type: ignore[arg-type]


def write_seam(folder: Path, data: Path) -> None:
    """As SEAM's inference does: a dictionary from class to map."""
    for name, (keys, maps) in true_maps(data).items():
        np.save(folder / f"{name}.npy", dict(zip(keys, maps, strict=True)))  # type: ignore[arg-type]


def write_oaa(folder: Path, data: Path) -> None:
    """As OAA (and the method's authors) do: a grey picture for each class that was found; one image has none."""
    for number, (name, (keys, maps)) in enumerate(true_maps(data).items()):
        for key, plane in zip(keys, maps, strict=True):
            if number:
                Image.fromarray((plane * 255).astype(np.uint8)).save(folder / f"{name}_{key}.png")


WRITERS = {"irn": write_irn, "seam": write_seam, "oaa": write_oaa}


@pytest.mark.parametrize("project", WRITERS)
def test_a_folder_of_maps_is_scored(
    project: str, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    WRITERS[project](tmp_path, voc)
    file = tmp_path / "scores.json"
    assert evaluate.main(["--data", str(voc), "--cams", str(tmp_path), "--scores", str(file)]) == 0
    found = json.loads(file.read_text())["ensemble"]
    assert (found["miou"] == 100) == (project != "oaa")  # the image without pictures is background
    assert (found["curve"][0] < 20, max(found["curve"])) == (True, pytest.approx(found["miou"], abs=1e-4))
    assert len(found["curve"]) == 60
    out = capsys.readouterr().out
    for name, value in found["iou"].items():
        assert (f"{value:.2f}" if value is not None else "-") in next(x for x in out.splitlines() if f"  {name} " in x)
    records = open_dataset(voc).training.records
    read = open_maps(tmp_path, records)
    for number, record in enumerate(records):
        cams = read(record)
        assert cams.keys.tolist() == ([] if project == "oaa" and number == 0 else list(record.labels))
        assert cams.ensemble.shape == (len(cams.keys), 48, 48)
    if project == "oaa":
        Image.new("L", (12, 6), 200).save(tmp_path / f"{records[1].id}_{records[1].labels[0]}.png")
        assert open_maps(tmp_path, records)(records[1]).ensemble.shape == (1, 48, 48)  # brought to the image's size
    else:
        (tmp_path / f"{records[0].id}.npy").unlink()
        fails(capsys, evaluate.main(["--data", str(voc), "--cams", str(tmp_path)]), records[0].id, "1 of 4 images")


def test_oaas_maps_before_its_last_step_are_named_by_lines_of_its_list(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """INDEX_CLASS.png at the network's size; its list has an order of its own, and images that are not scored."""
    folder, listed, maps = tmp_path / "accu_att", tmp_path / "train_cls.txt", true_maps(voc)
    names = sorted(maps, reverse=True)
    folder.mkdir()
    for number, name in enumerate(names):
        for key, plane in zip(*maps[name], strict=True):
            small = Image.fromarray((plane * 255).astype(np.uint8)).resize((24, 24), Image.Resampling.BOX)
            small.save(folder / f"{number}_{key}.png")
    listed.write_text("".join(f"{name} {' '.join(map(str, maps[name][0]))} \n" for name in names))
    records = open_dataset(voc).splits["train"].records
    read = open_maps(folder, records, listed)
    for record in records:
        cams = read(record)
        assert cams.keys.tolist() == maps[record.id][0]
        found = np.asarray(cams.ensemble[0] > 0.5) == (maps[record.id][1][0] > 0.5)
        assert found.mean() > 0.95
    options = ["--data", str(voc), "--cams", str(folder)]
    assert evaluate.main([*options, "--cams-list", str(listed)]) == 0
    fails(capsys, evaluate.main(options), "INDEX_CLASS.png", "--cams-list")
    fails(capsys, evaluate.main(["--data", str(voc), "--masks", "x", "--cams-list", "y"]), "--cams DIR")
    status = run_train(voc, tmp_path / "run", "--stage", "pseudo", "--pseudo.maps", str(folder))
    fails(capsys, status, "--pseudo.maps-list")
    fails(capsys, run_train(voc, tmp_path / "run", "--pseudo.maps-list", str(listed)), "give pseudo.maps too")
    listed.write_text("".join(f"{name}\n" for name in names[1:] + names[:1]))  # every map is another image's
    fails(capsys, evaluate.main([*options, "--cams-list", str(listed)]), "has no class", "in its order")
    listed.write_text("".join(f"{name}\n" for name in names[:3]))
    fails(capsys, evaluate.main([*options, "--cams-list", str(listed)]), "is of no line of")


def test_stage_2_from_maps_of_another_project(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    write_oaa(tmp_path / "maps", voc)
    options = ["--pseudo.maps", str(tmp_path / "maps"), "--pseudo.background", "threshold", "--pseudo.threshold", "0.3"]
    assert run_train(voc, tmp_path / "run", *SHORT, *options) == 0
    found = metrics(tmp_path / "run")
    assert list(found["seconds"]) == ["pseudo", "segmenter", "evaluate", "report"]
    assert found["initialised_from"] == {"segmenter": "random"}
    names = sorted(true_maps(voc))  # the first has no picture
    truth = np.asarray(Image.open(voc / "VOCdevkit/VOC2012/SegmentationClassAug" / f"{names[1]}.png"))
    label = np.asarray(Image.open(tmp_path / "run" / "pseudo" / f"{names[1]}.png"))
    np.testing.assert_array_equal(label, np.where(truth == 255, 0, truth))
    assert not np.asarray(Image.open(tmp_path / "run" / "pseudo" / f"{names[0]}.png")).any()


def test_stage_2_from_pseudo_labels_of_another_project(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "proxy_label"
    shutil.copytree(voc / "VOCdevkit/VOC2012/SegmentationClassAug", labels)  # grey, as OAA's; a palette is as good
    assert evaluate.main(["--data", str(voc), "--masks", str(labels)]) == 0
    assert "100.00" in capsys.readouterr().out
    assert run_train(voc, tmp_path / "run", *SHORT, "--pseudo-labels", str(labels)) == 0
    assert list(metrics(tmp_path / "run")["seconds"]) == ["segmenter", "evaluate", "report"]
    assert not (tmp_path / "run" / "pseudo").exists()
    one = next(iter(true_maps(voc)))
    (labels / f"{one}.png").unlink()
    status = run_train(voc, tmp_path / "broken", *SHORT, "--pseudo-labels", str(labels))
    fails(capsys, status, f"{one}.png does not exist (1 of 9)", "--pseudo-labels")
    assert not (tmp_path / "broken").exists()


def test_maps_are_written_as_irn_writes_them(copied: tuple[Path, Path]) -> None:
    """Its next programs pad `keys` with NumPy, call `.cuda()` on `cam` and pad `high_res`."""
    _, run = copied
    assert cam.main(["--run", str(run), "--format", "irn"]) == 0
    for path in (run / "cams").glob("*.npy"):
        content = np.load(run / "cams-irn" / path.name, allow_pickle=True).item()
        assert set(content) == {"keys", "cam", "high_res"}
        assert (content["keys"].dtype, content["cam"].dtype) == (torch.int64, torch.float32)
        assert content["high_res"].dtype == np.float32
        n, height, width = content["high_res"].shape
        assert content["cam"].shape == (n, -(-height // 4), -(-width // 4))
        assert np.pad(content["keys"] + 1, (1, 0), mode="constant").tolist()[0] == 0
        np.testing.assert_array_equal(load_maps(run / "cams-irn" / path.name).ensemble, load_maps(path).ensemble)


# the VOC server


@pytest.fixture(scope="module")
def submission(finished: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of unlabelled test images, submission made from them)."""
    data, run = finished
    root = tmp_path_factory.mktemp("submission")
    (root / "VOC2012" / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "VOC2012" / "JPEGImages").mkdir()
    names = []
    for number, path in enumerate(sorted((data / "JPEGImages").glob("val_*.jpg"))):
        names.append(f"2008_{number:06d}")
        shutil.copy(path, root / "VOC2012" / "JPEGImages" / f"{names[-1]}.jpg")
    lists = root / "VOC2012" / "ImageSets/Segmentation"
    (lists / "test.txt").write_text("\n".join(names) + "\n")
    shutil.copy(data / "classes.txt", root / "VOC2012" / "classes.txt")
    out = root / "out"
    assert evaluate.main(["--run", str(run), "--test-list", str(lists / "test.txt"), "--voc-results", str(out)]) == 0
    return root / "VOC2012", out


def test_a_submission_to_the_voc_server(
    submission: tuple[Path, Path], finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    voc, out = submission
    assert check_data.main([str(voc), "--voc-results", str(out)]) == 0
    assert "3 masks" in capsys.readouterr().out
    for number, path in enumerate(sorted((out / RESULTS).iterdir())):
        assert path.name == f"2008_{number:06d}.png"
        image = Image.open(path)
        assert (image.format, image.mode) == ("PNG", "P")
        assert image.getpalette()[: 3 * 21] == voc_palette()[:21].ravel().tolist()
        own = finished[1] / "predictions" / f"val_{number + 1:05d}.png"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(own)))
    again = ["--run", str(finished[1]), "--voc-results", str(out)]
    fails(capsys, evaluate.main(again), "not empty")
    fails(capsys, evaluate.main([*again[:2], "--voc-results", str(out / "new")]), "test list test does not exist")


def damage(path: Path, kind: str) -> str:
    image = Image.open(path)
    if kind == "missing":
        path.unlink()
        return "is missing"
    if kind == "grey":
        image.convert("L").save(path)
        return "mode L"
    if kind == "size":
        image.resize((5, 5)).save(path)
        return "has 5x5 pixels"
    if kind == "value":
        values = np.array(image)
        values[0, 0] = 255
        wrong = Image.fromarray(values).convert("P")
        wrong.putpalette(image.getpalette())
        wrong.save(path)
        return "holds the value 255"
    if kind == "palette":
        image.putpalette([255, 255, 255] * 256)
        image.save(path)
        return "other colours"
    if kind == "extra":
        shutil.copy(path, path.with_name("2009_000001.png"))
        return "not on the list"
    path.write_bytes(path.read_bytes()[:40])
    return "cannot be decoded"


@pytest.mark.parametrize("kind", ["missing", "grey", "size", "value", "palette", "extra", "broken"])
def test_the_validator_finds(
    kind: str, submission: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc, out = submission
    shutil.copytree(out, tmp_path / "out")
    words = damage(sorted((tmp_path / "out" / RESULTS).iterdir())[1], kind)
    fails(capsys, check_data.main([str(voc), "--voc-results", str(tmp_path / "out")]), words)


def test_what_is_not_there(submission: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc, _ = submission
    fails(capsys, check_data.main([str(voc), "--voc-results", str(tmp_path)]), str(RESULTS), "does not exist")
    listed = tmp_path / "more.txt"
    listed.write_text("2008_000000\n2008_777777\n")
    fails(
        capsys,
        check_data.main([str(voc), "--voc-results", str(tmp_path), "--test-list", str(listed)]),
        "line 2",
        "2008_777777.jpg does not exist",
    )
    fails(capsys, evaluate.main(["--voc-results", "x", "--masks", "y"]), "--run DIR")
