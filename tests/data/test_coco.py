"""COCO 2014 in its published layout: labels, masks against pycocotools, and the cached index."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pycocotools.coco import COCO

from gwsss_fast.data import coco, coco_masks
from gwsss_fast.data.check import check_dataset
from gwsss_fast.data.dataset import open_dataset
from gwsss_fast.data.images import read_mask
from gwsss_fast.errors import GwsssError
from tests.published_trees import COCO_IDS, make_coco2014


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("GWSSS_CACHE", str(tmp_path / "cache"))
    coco_masks.stored_index.cache_clear()
    return make_coco2014(tmp_path / "coco")


def expected_mask(api, key):
    """With pycocotools alone: a pixel has the class of the smallest object that covers it, else 255 under a crowd."""
    image = api.loadImgs(key)[0]
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    objects = [(a, api.annToMask(a)) for a in api.loadAnns(api.getAnnIds(imgIds=key))]
    for y, x in np.ndindex(mask.shape):
        over = [a for a, plane in objects if plane[y, x]]
        things = [a for a in over if not a["iscrowd"]]
        if things:
            mask[y, x] = COCO_IDS.index(min(things, key=lambda a: a["area"])["category_id"]) + 1
        elif over:
            mask[y, x] = 255
    return mask


def test_labels_classes_and_masks(root):
    data = open_dataset(root)
    assert data.layout == "coco"
    assert data.classes == tuple(f"class {i}" for i in COCO_IDS)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 7, "val": 3}  # one has no object
    for name, split in data.splits.items():
        api = COCO(str(root / "annotations" / f"instances_{name}2014.json"))
        for record in split.records:
            key = int(record.id[-12:])
            assert record.image == root / f"{name}2014" / f"COCO_{name}2014_{key:012d}.jpg"
            objects = [a for a in api.loadAnns(api.getAnnIds(imgIds=key)) if not a["iscrowd"]]
            assert record.labels == tuple(sorted({COCO_IDS.index(a["category_id"]) for a in objects}))
            mask = read_mask(record.mask, 80)
            np.testing.assert_array_equal(mask, expected_mask(api, key))
            assert set(np.unique(mask)) >= {0, 255}
    assert data.scoring is not None
    assert not check_dataset(root).differences


def test_every_kind_of_outline_is_what_pycocotools_draws():
    """Polygons with fractions and several parts, run lengths plain and packed, each by itself."""
    rng = np.random.default_rng(0)
    blob = (rng.random((37, 53)) > 0.6).astype(np.uint8)
    tool = coco_masks.pycocotools_mask()
    packed = tool.encode(np.asfortranarray(blob))
    outlines = [
        [[3.2, 4.7, 30.1, 6.4, 22.9, 31.5, 1.5, 20.25]],
        [[3, 3, 9, 3, 9, 9], [20.5, 20.5, 40.1, 22, 33, 36.9, 18, 30]],
        {"size": [37, 53], "counts": packed["counts"].decode()},
        {"size": [37, 53], "counts": [5, 40, 300, 37, 37 * 53 - 382]},
    ]
    api = COCO()
    api.imgs = {1: {"height": 37, "width": 53}}
    for outline in outlines:
        found = coco_masks.paint([[7, 0, None, outline]], 37, 53)
        np.testing.assert_array_equal(found, 7 * api.annToMask({"image_id": 1, "segmentation": outline}))
    np.testing.assert_array_equal(coco_masks.paint([[7, 1, 3.0, outlines[2]]], 37, 53), 255 * blob)


def test_of_equal_objects_the_first_is_on_top():
    box = [[2, 2, 8, 2, 8, 8, 2, 8]]
    assert coco_masks.paint([[3, 0, 36.0, box], [5, 0, 36.0, box]], 10, 10)[4, 4] == 3


def test_the_annotations_are_read_once_and_again_when_they_change(root, monkeypatch, capsys):
    open_dataset(root)
    assert "this is done once" in capsys.readouterr().err
    coco_masks.stored_index.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(coco, "_read", None)  # nothing is read
        first = open_dataset(root).training.records[0]
        assert read_mask(first.mask, 80).any()
    path = root / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 90
    path.write_text(json.dumps(content))
    os.utime(path, ns=(1, 1))
    changed = open_dataset(root)
    assert set(np.unique(read_mask(changed.training.records[0].mask, 80))) == {0, 80, 255}
    left = [entry.name for entry in os.scandir(coco.cache_folder() / "coco") if not entry.name.endswith(".lock")]
    assert len(left) == 2  # the old index is gone, and nothing temporary is left
    coco_masks.stored_index.cache_clear()
    with pytest.raises(GwsssError, match="no complete index"):
        read_mask(first.mask, 80)


def test_of_several_at_once_one_reads_the_annotations(root, capsys):
    """Locks of files hold between threads too, where each opens the file for itself."""
    with ThreadPoolExecutor(3) as pool:
        counts = list(pool.map(lambda _: len(coco.open_coco(root).training), range(3)))
    assert counts == [7, 7, 7]
    assert capsys.readouterr().err.count("done once") == 2  # train and val


def test_a_failure_leaves_no_index(root, monkeypatch):
    monkeypatch.setattr(coco.np, "savez", lambda *a, **b: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(GwsssError, match="No space left"):
        open_dataset(root)
    assert [path.suffix for path in (coco.cache_folder() / "coco").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("categories"), "lacks images, annotations or categories"),
        (lambda content: content["annotations"][0].pop("category_id"), "not in COCO's format: KeyError"),
        (lambda content: content["annotations"][0].update(category_id=12), "not in COCO's format: KeyError"),
        (lambda content: content.update(annotations=[]), "no annotated image"),
        (lambda content: content["images"][0].update(file_name="x.jpg"), r"train2014/x.jpg does not exist"),
        (lambda content: content["images"][0].update(file_name="../x.jpg"), "sub-folder"),
    ],
)
def test_damaged_annotations(root, change, message):
    path = root / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(GwsssError, match=message):
        open_dataset(root)
    path.write_text('{"images": [')
    with pytest.raises(GwsssError, match="JSON"):
        open_dataset(root)


def test_a_broken_outline_names_the_image(root):
    path = root / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [["a"]]
    path.write_text(json.dumps(content))
    with pytest.raises(GwsssError, match="000000000009 cannot be drawn"):
        read_mask(open_dataset(root).training.records[0].mask, 80)


def test_without_pycocotools_one_message_says_what_to_install(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(GwsssError, match=r"pip install 'gwsss-fast\[coco\]'"):
        open_dataset(root)
