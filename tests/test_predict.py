"""Masks of one's own images: what is written, going on, and inputs that cannot be used."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gwsss_fast import predict
from gwsss_fast.data.images import read_image
from gwsss_fast.inference.rle import decode
from tests.command_line import fails


@pytest.fixture
def folder(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    """Two folders of three images of any sizes."""
    data, _ = finished
    for number, path in enumerate(sorted((data / "JPEGImages").iterdir())[:3]):
        target = tmp_path / "photos" / ("inside" if number else ".") / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        read_image(path).resize((64 - 9 * number, 50 + number)).save(target)
    return tmp_path / "photos"


def run(finished: tuple[Path, Path], *words: object) -> int:
    return predict.main([*map(str, words), "--model", str(finished[1] / "segmenter/last.pt")])


def test_masks_and_summary(finished: tuple[Path, Path], folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(finished, folder, "--output", output, "--overlay") == 0
    summary = json.loads((output / "predictions.json").read_text())
    images = [*folder.rglob("*.jpg")]
    assert len(images) == len(summary["images"]) == 3
    for path in images:
        name = path.relative_to(folder).with_suffix("").as_posix()
        mask, facts = Image.open(output / f"{name}.png"), summary["images"][name]
        assert mask.mode == "P"
        assert mask.size == Image.open(path).size == tuple(facts["size"])
        assert Image.open(output / f"{name}_overlay.jpg").size == mask.size
        labels = np.asarray(mask)
        assert [item["area"] for item in facts["objects"]] == [int((labels == x).sum()) for x in np.unique(labels) if x]
        for item in facts["objects"]:
            x0, y0, x1, y1 = item["box"]
            own = labels == summary["classes"].index(item["class"]) + 1
            assert own[y0:y1, x0:x1].sum() == own.sum() == item["area"]
            assert all(edge.any() for edge in (own[y0], own[y1 - 1], own[:, x0], own[:, x1 - 1]))
            assert 0 < item["score"] <= 1


def test_a_crf_changes_masks(finished: tuple[Path, Path], folder: Path, tmp_path: Path) -> None:
    for name, more in (("plain", []), ("refined", ["--crf", "deeplab"])):
        assert run(finished, folder, "--output", tmp_path / name, "--scales", "1", *more) == 0
    plain, refined = (
        [np.asarray(Image.open(x)) for x in sorted((tmp_path / n).rglob("*.png"))] for n in ("plain", "refined")
    )
    assert any((a != b).any() for a, b in zip(plain, refined, strict=True))


def test_a_broken_image_is_named_at_the_end_and_the_rest_is_done(
    finished: tuple[Path, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "inside" / "empty.png").touch()
    status, told = run(finished, folder, "--output", tmp_path / "out"), capsys.readouterr().err.splitlines()
    assert status == 2
    first, last = (line for line in told if line.startswith(("not done: ", "error: ")))
    assert "empty.png" in first
    assert re.search(r"broken\.jpg .*\(and 1 more, see above\); all other images are done$", last)
    assert len([*(tmp_path / "out").rglob("*.png")]) == 3


def test_going_on_leaves_what_is_done(finished: tuple[Path, Path], folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    pattern = str(folder / "inside" / "*.jpg")
    assert run(finished, pattern, "--output", output) == 0
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.png")}
    assert len(before) == 2
    assert run(finished, folder / "inside", *folder.glob("*.jpg"), "--output", output, "--resume") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(json.loads((output / "predictions.json").read_text())["images"]) == 3


def test_coco_output_holds_the_masks(finished: tuple[Path, Path], folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(finished, folder, "--output", output, "--coco", "--tile", "32", "--batch", "2") == 0
    summary = json.loads((output / "predictions.json").read_text())
    coco = json.loads((output / "coco.json").read_text())
    assert [entry["name"] for entry in coco["categories"]] == summary["classes"]
    assert len({entry["id"] for entry in coco["annotations"]}) == len(coco["annotations"])
    for image, (name, facts) in zip(coco["images"], summary["images"].items(), strict=True):
        assert (image["file_name"], image["width"], image["height"]) == (facts["image"], *facts["size"])
        labels = np.asarray(Image.open(output / f"{name}.png"))
        own = [entry for entry in coco["annotations"] if entry["image_id"] == image["id"]]
        assert [entry["category_id"] for entry in own] == [x for x in np.unique(labels) if x]
        for entry in own:
            assert (decode(entry["segmentation"]) == (labels == entry["category_id"])).all()


def test_a_photograph_is_seen_as_viewers_show_it(finished: tuple[Path, Path], folder: Path, tmp_path: Path) -> None:
    """A camera that was held upright writes lying pixels and a tag."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = read_image(next(folder.glob("*.jpg")))
    (tmp_path / "in").mkdir()
    upright.save(tmp_path / "in" / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "in" / "lying.png", exif=exif)
    assert run(finished, tmp_path / "in", "--output", tmp_path / "out", "--overlay") == 0
    masks = [np.asarray(Image.open(tmp_path / "out" / f"{name}.png")) for name in ("upright", "lying")]
    assert masks[0].shape == upright.size[::-1]
    assert (masks[0] == masks[1]).all()


def test_folders_of_a_pattern_and_masks_of_a_former_run_are_no_input(
    finished: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run(finished, "./*", "--output", "more/one") == 0  # beside the image a folder
    assert len([*Path("more/one").rglob("*.png")]) == 1
    for _ in range(2):
        assert run(finished, ".", "--output", "out", "--resume") == 0
        assert len([*Path("out").rglob("*.png")]) == 4  # with the mask in more/one
    assert run(finished, "inside", "--output", ".", "--resume") == 0


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Nine frames of 64x48 pixels, each of another grey."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for number in range(9):
        writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
    writer.release()
    return path


def test_frames_of_a_video(finished: tuple[Path, Path], video: Path, tmp_path: Path) -> None:
    output, options = tmp_path / "out", ("--every", "2", "--frames", "3")
    assert run(finished, video, "--output", output, "--overlay", *options) == 0
    assert sorted(path.name for path in (output / "clip").glob("*.png")) == ["000000.png", "000002.png", "000004.png"]
    summary = json.loads((output / "predictions.json").read_text())["images"]
    assert summary["clip/000002"]["frame"] == 2
    assert summary["clip/000002"]["size"] == [64, 48]
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}
    assert run(finished, video, "--output", output, "--resume", "--every", "2") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len([*output.rglob("*.png")]) == 5


def test_a_camera_is_read_until_there_are_enough_frames(
    finished: tuple[Path, Path], video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The camera is a stand-in: the file plays its part."""
    cv2 = pytest.importorskip("cv2")
    opened, capture = [], cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: opened.append(number) or capture(str(video)))
    assert run(finished, "camera:3", "--output", tmp_path / "out", "--frames", "2") == 0
    assert opened == [3]
    assert len([*(tmp_path / "out" / "camera_3").glob("*.png")]) == 2


def test_bad_videos(
    finished: tuple[Path, Path],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("cv2")
    broken, output, one = tmp_path / "broken.mp4", tmp_path / "out", next(folder.glob("*.jpg"))
    broken.write_bytes(b"no video" * 100)
    fails(capsys, run(finished, broken, one, "--output", output), "broken.mp4", "all other images are done")
    assert len([*output.rglob("*.png")]) == 1
    fails(capsys, run(finished, "camera:front", "--output", tmp_path / "more"), "camera:front", "number")
    fails(capsys, run(finished, one, "--output", tmp_path / "more", "--every", "0"), "--every 0")
    monkeypatch.setitem(sys.modules, "cv2", None)
    fails(capsys, run(finished, broken, "--output", tmp_path / "more"), "install", "opencv-python-headless")


def test_bad_input(
    finished: tuple[Path, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, one = tmp_path / "out", next(folder.glob("*.jpg"))
    fails(capsys, run(finished, tmp_path / "nothing", "--output", output), "nothing", "no image there")
    shutil.copy(one, folder / "inside" / one.name)
    fails(capsys, run(finished, one, folder / "inside", "--output", output), one.name, "would both become")
    fails(capsys, run(finished, one, "--output", output, "--scales", "0"), "--scales")
    classifier = str(finished[1] / "classifier/last.pt")
    fails(
        capsys, predict.main([str(one), "--model", classifier, "--output", str(output)]), "no checkpoint of a segmenter"
    )
    fails(capsys, predict.main([str(one), "--model", "none.pt", "--output", str(output)]), "none.pt")
    for name in ("gpu", "cuda:one", "meta"):
        fails(capsys, run(finished, one, "--output", output, "--device", name), name)
    assert not output.exists()
    output.mkdir()
    (output / "other").write_text("")
    fails(capsys, run(finished, one, "--output", output), "not empty")
    (output / "predictions.json").write_text('{"classes": ["cat"], "images": {}}')
    fails(capsys, run(finished, one, "--output", output, "--resume"), "other classes (cat")
    (output / "predictions.json").write_text("{")
    fails(capsys, run(finished, one, "--output", output, "--resume"), "predictions.json")
