"""The command `localize`: scores from its own files, groups by predicted class, box files, interruption, bad input."""

import csv
import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gwsss_fast import localize
from gwsss_fast.data.boxes import mask_boxes, read_box_file, true_boxes
from gwsss_fast.data.dataset import open_dataset
from gwsss_fast.data.images import read_mask
from gwsss_fast.data.records import Record, Split
from gwsss_fast.errors import GwsssError
from gwsss_fast.evaluation import max_box_acc
from gwsss_fast.labels.localization import MapOptions, localization_maps
from gwsss_fast.report.localization import Target, score_targets
from tests.command_line import fails, run_train
from tests.published_trees import make_cub


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Ctrl-C reaches Python even where the tests were started in the background, whose shell makes them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stored(folder: Path, name: str = "metrics.json") -> dict:
    return json.loads((folder / name).read_text())


def test_scores_boxes_and_overlays_of_the_embedded_set(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = finished
    assert localize.main(["--run", str(run), "--output", str(tmp_path / "out"), "--split", "train"]) == 0
    metrics, boxes = stored(tmp_path / "out"), stored(tmp_path / "out", "boxes.json")
    opened = open_dataset(data)
    records = {record.id: record for record in opened.splits["train"].records}
    assert [entry["id"] for entry in boxes["images"]] == list(records)
    maps, sizes, truth, hits, known = [], [], [], [], []
    for entry in boxes["images"]:
        record = records[entry["id"]]
        expected = mask_boxes(read_mask(record.mask, len(opened.classes)))
        assert {item["class"]: item["true"] for item in entry["objects"]} == {
            opened.classes[label]: rows.tolist() for label, rows in expected.items()
        }
        known.append(entry["predicted"] in entry["classes"])
        hits.append(any(item["iou"] > 0.5 for item in entry["objects"] if item["class"] == entry["predicted"]))
        for label, rows in expected.items():
            maps.append(np.asarray(Image.open(tmp_path / "out" / "maps" / f"{record.id}_{label}.png")) / 255 + 1e-6)
            sizes.append(entry["size"])
            truth.append(rows)
    maps = [np.minimum(levels, 1) for levels in maps]
    assert metrics["objects"] == len(maps) > metrics["images"] == len(records)
    assert metrics["max_box_acc"]["score"] == float(max_box_acc(maps, sizes, truth, 1))
    assert metrics["max_box_acc_v2"]["score"] == float(max_box_acc(maps, sizes, truth, 2))
    assert metrics["top1_classification"] == pytest.approx(100 * np.mean(known))
    assert metrics["top1_localization"] == pytest.approx(100 * np.mean(hits))
    assert metrics["tau_chosen_on"] == "these images of train"
    out = capsys.readouterr().out
    assert f"{metrics['max_box_acc']['score']:.2f}" in out
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == len(records)
    with (tmp_path / "out" / "boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["class"]) for row in rows] == [(e["id"], e["predicted"]) for e in boxes["images"]]
    # What was found is a box file; against itself every image of a right class hits.
    again = ["--run", str(run), "--output", str(tmp_path / "out"), "--split", "train", "--tau", str(metrics["tau"])]
    assert localize.main([*again, "--boxes", str(tmp_path / "out" / "boxes.csv"), "--output", str(tmp_path / "b")]) == 0
    if any(known):
        found = stored(tmp_path / "b")
        assert found["gt_known_localization"] == 100
        assert "given with --tau" in found["tau_chosen_on"]


def test_top_1_by_hand(tmp_path: Path) -> None:
    """Squares of known size: image 0 right and hit, 1 right and missed, 2 of two classes, 3 of a wrong class."""
    small, large = np.zeros((2, 224, 224), np.uint8)
    small[20:60, 20:60] = large[20:200, 20:200] = 255
    targets, maps, box = [], [], np.array([[20, 20, 60, 60]])
    for number, (labels, planes) in enumerate(
        [((0,), {0: small}), ((0,), {0: large}), ((0, 1), {0: large, 1: small}), ((1,), {0: small, 1: small})]
    ):
        record = Record(str(number), tmp_path / f"{number}.png", labels=labels)
        targets.append(Target(record, (224, 224), {label: box for label in labels}))
        files = {label: tmp_path / f"{number}_{label}.png" for label in planes}
        for label, plane in planes.items():
            Image.fromarray(plane).save(files[label])
        maps.append(files)
    scores = score_targets(targets, [0, 0, 1, 0], maps)
    assert scores.top1 == (75, 50, 60, 0)  # of four images; GT-known of five pairs
    assert (float(scores.max_box_acc), float(scores.max_box_acc_v2)) == (60, 60)
    assert scores.class_right.tolist() == [True, True, False, True, False]
    scores = score_targets(targets, [1, 1, 0, 1], maps, tau=0.5)
    assert scores.top1 == (50, 25, 60, 0.5)  # image 2 is right by a class that is missed
    both = [replace(target, record=replace(target.record, labels=(0, 1))) for target in targets[:2]]
    assert score_targets(both, [1, 0], maps[:2], tau=0.5).top1 == (100, 0, 50, 0.5)  # class 1 has no box of its own


class Marked(torch.nn.Module):
    """Maps that show which images were in a group together: each image's number is its brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[list[int]] = []

    def forward(self, images: torch.Tensor) -> object:
        brightness = (images[:, :, 0].mean((-2, -1)) * 0.229 + 0.485) * 255
        self.groups += (brightness / 10).round().int().tolist()
        maps = torch.linspace(-1, 1, 64).reshape(1, 1, 1, 8, 8).expand(*images.shape[:2], 3, 8, 8)
        zeros = torch.zeros(*images.shape[:2], 3)

        class Out:
            initial_maps = maps
            initial_logits = logits = zeros

        Out.maps = maps
        return Out()


def test_the_group_of_an_image_has_its_predicted_class_whatever_its_labels(tmp_path: Path) -> None:
    predicted = [number % 2 for number in range(12)]
    records = []
    for number in range(12):
        Image.new("RGB", (30, 20), (10 * number,) * 3).save(tmp_path / f"{number}.png")
        records.append(Record(str(number), tmp_path / f"{number}.png", labels=(number % 3,)))
    split = Split("val", ("a", "b", "c"), tuple(records))
    model = Marked()
    options = MapOptions(size=16, flip=False, group_size=3)
    found = dict(
        (record.id, maps) for record, maps in localization_maps(model, split, predicted, options, torch.device("cpu"))
    )
    assert sorted(image for group in model.groups for image in group) == list(range(12))
    for group in model.groups:
        assert len({predicted[image] for image in group}) == 1
    for number in range(12):
        assert set(found[str(number)]) == {number % 3, number % 2}  # maps of the true and the predicted class
        for levels in found[str(number)].values():
            assert (levels.shape, levels.dtype, levels.min(), levels.max()) == ((224, 224), np.uint8, 0, 255)


def test_a_stand_alone_classifier_chooses_the_partners(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = finished
    assert run_train(data, tmp_path / "plain", "--stage", "classifier", "--steps", "0", "--max-steps", "1") == 0
    alone = ["--classifier", str(tmp_path / "plain"), "--overlays", "0"]
    assert localize.main(["--run", str(run), *alone, "--output", str(tmp_path / "out")]) == 0
    metrics = stored(tmp_path / "out")
    assert metrics["partners_by"] == str(tmp_path / "plain" / "classifier" / "last.pt")
    file = str(tmp_path / "plain" / "classifier" / "last.pt")
    single = ["--checkpoint", file, "--output", str(tmp_path / "single"), "--overlays", "0"]
    assert localize.main(single) == 0
    assert stored(tmp_path / "single", "classes.json") == stored(tmp_path / "out", "classes.json")
    assert not (tmp_path / "out" / "overlays").exists()
    classes = stored(tmp_path / "out", "classes.json")
    lines = "".join(f"{name}.jpg,{label}\n" for name, label in classes.items())
    (tmp_path / "classes.csv").write_text(f"id,class\n{lines}")
    given = ["--run", str(run), "--predictions", str(tmp_path / "classes.csv"), "--overlays", "0"]
    assert localize.main([*given, "--output", str(tmp_path / "given")]) == 0
    assert (tmp_path / "given" / "boxes.json").read_bytes() == (tmp_path / "out" / "boxes.json").read_bytes()
    (tmp_path / "classes.csv").write_text(lines.replace(",", ",no "))
    fails(capsys, localize.main([*given, "--output", str(tmp_path / "x")]), "line 1: expected `id,class`")
    (tmp_path / "classes.csv").write_text("")
    fails(
        capsys, localize.main([*given, "--output", str(tmp_path / "x")]), "gives no class of val_00001 (3 of 3 images)"
    )
    fails(capsys, localize.main([*given, *alone, "--output", str(tmp_path / "x")]), "--classifier and --predictions")


def test_an_interrupted_localisation_goes_on(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = finished
    options = ["--run", str(run), "--split", "train", "--overlays", "1"]
    assert localize.main([*options, "--output", str(tmp_path / "whole")]) == 0
    broken = ["--output", str(tmp_path / "broken")]
    calls = []

    def after_three(*args: object, **more: object) -> Iterator[object]:
        for item in localization_maps(*args, **more):  # type: ignore[arg-type]
            calls.append(item[0].id)
            if len(calls) == 3:
                signal.raise_signal(signal.SIGINT)
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(localize, "localization_maps", after_three)
        assert localize.main([*options, *broken]) == 130
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "broken" / "metrics.json").exists()
    fails(capsys, localize.main([*options, *broken]), "not empty", "--resume")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "broken" / "maps").iterdir()}
    assert localize.main([*options, *broken, "--resume"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for name in ("boxes.csv", "boxes.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    first, second = stored(tmp_path / "whole"), stored(tmp_path / "broken")
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    for changed in (["--readout", "graph"], ["--rounds", "2"]):
        fails(capsys, localize.main([*options, *broken, "--resume", *changed]), "another setting of maps", "--output")


def test_cub_gives_its_own_boxes_and_any_folder_a_file_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_cub(tmp_path / "data")
    run = tmp_path / "run"
    assert run_train(data, run, "--stage", "classifier", "--max-steps", "1", "--group-size", "2") == 0
    assert localize.main(["--run", str(run)]) == 0
    entry = stored(run / "localization", "boxes.json")["images"][0]
    assert entry["objects"][0]["true"] == [[26, 3, 45, 22]]
    assert len(entry["objects"]) == 1
    # Its images alone are a folder of classes, for which a box file is needed.
    folder, boxes = data / "CUB_200_2011" / "images", tmp_path / "boxes.csv"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    boxes.write_text("".join(f"{file},5,6,30,31\n" for file in files[:-1]))
    options = ["--run", str(run), "--data", str(folder), "--split", "train_aug", "--boxes", str(boxes)]
    assert localize.main([*options, "--output", str(tmp_path / "out"), "--overlays", "2"]) == 0
    assert "15 of the 16 images" in capsys.readouterr().err
    metrics = stored(tmp_path / "out")
    assert (metrics["images"], metrics["objects"]) == (15, 15)
    boxes.write_text(f"{files[0]},48,6,60,31\n")  # the images are 48 pixels wide
    fails(capsys, localize.main([*options, "--output", str(tmp_path / "x")]), Path(files[0]).name, "beside its image")
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 2


# box files


@pytest.fixture
def boxed(tmp_path: Path) -> tuple[Path, list[Record]]:
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    return tmp_path, list(open_dataset(tmp_path).training.records)


def test_a_box_file_names_images_by_id_name_or_path(boxed: tuple[Path, list[Record]]) -> None:
    root, records = boxed
    text = "id,x0,y0,x1,y1,class\ncat__1,1,2,3,4,cat\n2.jpg,5,6,7.5,8\n\n./dog/1.jpg, 9,10,11,12 ,dog\n"
    text += "cat/1.jpg,20,20,30,30\n1.jpg,0,0,1,1\nelsewhere.jpg,0,0,1,1\n"  # 1.jpg is ambiguous
    (root / "boxes.csv").write_text(text)
    data = open_dataset(root, layout="folder")
    listed = read_box_file(root / "boxes.csv", data, records)
    found = {record.id: true_boxes(record, 2, listed[record.id]) for record in records}
    assert {name: {label: rows.tolist() for label, rows in boxes.items()} for name, boxes in found.items()} == {
        "cat__1": {0: [[1, 2, 3, 4], [20, 20, 30, 30]]},
        "cat__2": {0: [[5, 6, 7.5, 8]]},
        "dog__1": {1: [[9, 10, 11, 12]]},
    }
    assert true_boxes(records[0], 2, [(1, (1.0, 1.0, 2.0, 2.0))]) == {}  # a dog in an image of a cat


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat__1,1,2,3\n", "line 1: expected `id,x0,y0,x1,y1,class`, got 4 columns"),
        ("id,x0,y0,x1,y1\ncat__1,1,2,x,4\n", "line 2: 1,2,x,4 are not four numbers"),
        ("cat__1,5,2,3,4\n", "line 1: 5,2,3,4 is no box"),
        ("cat__1,1,2,inf,4\n", "is no box"),
        ("cat__1,1,2,3,4,bird\n", "line 1: class 'bird' is none of the 2 classes"),
        ("nobody,1,2,3,4\n", "names none of the images"),
        ("", "names none of the images"),
    ],
)
def test_damaged_box_files(boxed: tuple[Path, list[Record]], text: str, message: str) -> None:
    root, records = boxed
    (root / "boxes.csv").write_text(text)
    with pytest.raises(GwsssError, match=message):
        read_box_file(root / "boxes.csv", open_dataset(root, layout="folder"), records)


def test_boxes_around_the_regions_of_a_mask() -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[1:3, 2:5] = 1
    mask[3, 5] = 1  # joined by a corner
    mask[7:9, 8:12] = 1
    mask[5, 0] = 2
    mask[0, 0] = 255
    found = {label: rows.tolist() for label, rows in mask_boxes(mask).items()}
    assert found == {0: [[2, 1, 5, 3], [8, 7, 11, 8]], 1: [[0, 5, 0, 5]]}


def test_bad_input_is_one_line_and_leaves_nothing(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = finished
    out = ["--output", str(tmp_path / "out")]
    given = ["--run", str(run), *out]
    fails(capsys, localize.main(out), "--run DIR", "train --stage classifier")
    fails(capsys, localize.main(["--run", str(tmp_path)]), "is not the folder of a run")
    fails(capsys, localize.main(["--checkpoint", str(run / "classifier" / "last.pt")]), "needs --output")
    fails(capsys, localize.main(["--checkpoint", str(tmp_path / "x.pt"), *out]), "x.pt does not exist")
    fails(capsys, localize.main([*given, "--split", "train_aug", "--data", str(tmp_path / "no")]), "does not exist")
    fails(capsys, localize.main([*given, "--boxes", str(tmp_path / "b.csv")]), "b.csv does not exist")
    fails(capsys, localize.main([*given, "--tau", "1.5"]), "--tau 1.5")
    fails(capsys, localize.main([*given, "--scales", "0"]), "--scales")
    fails(capsys, localize.main([*given, "--classifier", str(tmp_path)]), "is not the folder of a run")
    fails(capsys, localize.main([*given, "--readuot", "graph"]), "did you mean", "--readout")
    fails(capsys, localize.main([*given, "--data", str(make_cub(tmp_path / "cub"))]), "classes")
    bare = shutil.copytree(data, tmp_path / "bare")
    for path in bare.glob("SegmentationClass*/*.png"):
        path.unlink()
    fails(capsys, localize.main([*given, "--data", str(bare)]), "both labels and true boxes", "--boxes")
    assert not (tmp_path / "out").exists()
