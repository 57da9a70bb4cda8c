"""Run lengths against COCO's own library, objects of a mask, and the overlay."""

import numpy as np
import pytest
from PIL import Image

from gwsss_fast.data.palette import voc_palette
from gwsss_fast.errors import GwsssError
from gwsss_fast.inference.results import Object, Prediction, Tally
from gwsss_fast.inference.rle import decode, encode

MASKS = {
    "empty": np.zeros((5, 7), bool),
    "full": np.ones((5, 7), bool),
    "first": np.eye(4, dtype=bool),
    "one pixel": np.ones((1, 1), bool),
    "long runs": np.arange(300 * 200).reshape(300, 200) > 30000,
    "noise": np.random.default_rng(0).random((61, 43)) > 0.5,
    "rare": np.random.default_rng(1).random((200, 301)) > 0.99,
    "columns": np.tile(np.arange(40) % 3 == 0, (2000, 1)),
}


@pytest.mark.parametrize("name", MASKS)
def test_run_lengths_are_those_of_pycocotools(name: str) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    wanted = coco.encode(np.asfortranarray(MASKS[name].astype(np.uint8)))
    found = encode(MASKS[name])
    assert found["counts"] == wanted["counts"].decode()
    assert found["size"] == [*wanted["size"]]
    assert (coco.decode({**found, "counts": found["counts"].encode()}) == MASKS[name]).all()


@pytest.mark.parametrize("name", MASKS)
def test_run_lengths_can_be_read_back(name: str) -> None:
    assert (decode(encode(MASKS[name])) == MASKS[name]).all()


def test_run_lengths_of_another_size_are_refused() -> None:
    with pytest.raises(GwsssError, match="do not fill"):
        decode({**encode(MASKS["noise"]), "size": [61, 44]})


def test_objects_by_hand() -> None:
    tally = Tally(4, 6, 4)
    labels = np.array([[0, 1, 1], [3, 3, 1], [0, 0, 0], [0, 0, 3]], np.uint8)
    certainty = np.full((4, 3), 0.5, np.float32)
    certainty[0, 1] = 0.8
    tally.add(0, 0, labels, certainty)
    tally.add(0, 3, labels, certainty)
    assert tally.objects("abc", True) == (
        Object(1, "a", 6, (1, 0, 6, 2), 0.6),
        Object(3, "c", 6, (0, 1, 6, 4), 0.5),
    )
    assert tally.objects("abc", False)[0].score is None


def test_coco_annotations_and_overlay() -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:7] = 2
    found = Prediction(mask, ("a", "b"), (Object(2, "b", 10, (2, 1, 7, 3), 0.75),))
    (entry,) = found.coco(image_id=5, first_id=11)
    assert (decode(entry.pop("segmentation")) == (mask == 2)).all()
    assert entry == {
        **{"id": 11, "image_id": 5, "category_id": 2, "area": 10, "bbox": [2, 1, 5, 2], "iscrowd": 0, "score": 0.75}
    }
    image = np.full((6, 8, 3), 100, np.uint8)
    shown = np.asarray(found.overlay(Image.fromarray(image)))
    assert (shown[mask == 0] == 100).all()
    assert (shown[mask == 2] == (45 + 0.55 * voc_palette()[2].astype(float)).round()).all()
    assert (image == 100).all()
    with pytest.raises(GwsssError, match="does not fit"):
        found.overlay(image[1:])
