import os

import numpy as np
import pytest
import scipy.io
from voc_builder import add_image, add_mask, make_voc, write_list

from gwsss_fast.data.dataset import MissingFilesError, open_dataset
from gwsss_fast.errors import GwsssError

SETS = "ImageSets/Segmentation"
ROOT = os.environ.get("GWSSS_TEST_DATA")


def labels_of(split):
    return {record.id: record.labels for record in split.records}


# the three dialects


def test_ids_with_labels(tmp_path):
    make_voc(tmp_path, "x", "y")
    write_list(tmp_path, "train", "x 2 0 ", "", "y 1 1")
    data = open_dataset(tmp_path)
    assert (data.layout, data.classes) == ("voc", ("a", "b", "c"))
    assert labels_of(data.training) == {"x": (0, 2), "y": (1,)}
    np.testing.assert_array_equal(data.training.labels, [[1, 0, 1], [0, 1, 0]])
    assert data.training.records[0].image == tmp_path / "JPEGImages" / "x.jpg"
    assert data.scoring is None
    assert data.validation is None
    assert labels_of(data.training.subset([1])) == {"y": (1,)}


def test_paths(tmp_path):
    make_voc(tmp_path, "x", "y")
    add_mask(tmp_path, "x", [[0, 1]], "SegmentationClassAug")
    add_mask(tmp_path, "y", [[3, 255]], "Elsewhere")
    write_list(
        tmp_path,
        "train_aug",
        "/JPEGImages/x.jpg /SegmentationClassAug/x.png",
        "JPEGImages/y.jpg Elsewhere/y.png",
    )
    records = open_dataset(tmp_path).training.records
    assert [record.id for record in records] == ["x", "y"]
    assert records[1].mask == tmp_path / "Elsewhere" / "y.png"
    assert [record.labels for record in records] == [(0,), (2,)]


def test_bare_file_names(tmp_path):
    make_voc(tmp_path, "x", "y")
    (tmp_path / "JPEGImages" / "y.jpg").rename(tmp_path / "y.jpg")
    (tmp_path / "x.jpg").write_text("another")
    add_mask(tmp_path, "x", [[1]])
    add_mask(tmp_path, "y", [[2]])
    write_list(tmp_path, "train", "x.jpg", "y.jpg y.png")
    records = open_dataset(tmp_path).training.records
    assert [record.image for record in records] == [tmp_path / "JPEGImages" / "x.jpg", tmp_path / "y.jpg"]
    assert [record.labels for record in records] == [(0,), (1,)]
    write_list(tmp_path, "train", "z.jpg")
    with pytest.raises(MissingFilesError, match=r"line 1: .*/JPEGImages/z\.jpg does not exist"):
        open_dataset(tmp_path)


def test_bare_ids_with_labels_from_a_labelled_list(tmp_path):
    make_voc(tmp_path, "x", "y")
    write_list(tmp_path, "train", "x")
    write_list(tmp_path, "train_aug", "x", "y")
    write_list(tmp_path, "train_cls", "y 0", "x 1")
    data = open_dataset(tmp_path)
    assert labels_of(data.training) == {"x": (1,), "y": (0,)}
    assert labels_of(data.splits["train"]) == {"x": (1,)}


# where labels come from


@pytest.mark.parametrize("keys", [["2007_000001", "2007_000002"], [2007000001, 2007000002]])
def test_cls_labels(tmp_path, keys):
    make_voc(tmp_path, "2007_000001", "2007_000002")
    write_list(tmp_path, "train_aug", "2007_000001", "2007_000002")
    np.save(tmp_path / "cls_labels.npy", {keys[0]: np.array([1.0, 0, 1]), keys[1]: np.array([0, 1, 0])})
    assert labels_of(open_dataset(tmp_path).training) == {"2007_000001": (0, 2), "2007_000002": (1,)}


def test_order_of_sources(tmp_path):
    make_voc(tmp_path, "x")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "x.xml").write_text(
        "<annotation><object><name>c</name></object><object><name>a</name></object></annotation>"
    )
    write_list(tmp_path, "train", "x")
    assert labels_of(open_dataset(tmp_path).training) == {"x": (0, 2)}
    add_mask(tmp_path, "x", [[0, 2, 255]])
    assert labels_of(open_dataset(tmp_path).training) == {"x": (1,)}
    write_list(tmp_path, "train_cls", "x 2")
    assert labels_of(open_dataset(tmp_path, train_aug_list="train").training) == {"x": (2,)}
    np.save(tmp_path / "cls_labels.npy", {"x": np.array([1, 1, 0])})
    assert labels_of(open_dataset(tmp_path, train_aug_list="train").training) == {"x": (0, 1)}
    write_list(tmp_path, "train", "x 0")
    assert labels_of(open_dataset(tmp_path, train_aug_list="train").training) == {"x": (0,)}
    asked = {"list": (0,), "cls_labels": (0, 1), "masks": (1,), "xml": (0, 2)}
    for kind, expected in asked.items():
        assert labels_of(open_dataset(tmp_path, labels=kind, train_aug_list="train").training) == {"x": expected}
    np.save(tmp_path / "mine.npy", {"x": np.array([0, 0, 1])})
    assert labels_of(open_dataset(tmp_path, labels=f"{tmp_path}//mine.npy").training) == {"x": (2,)}


@pytest.mark.parametrize("kind", ["list", "masks", "xml", "mine.npy"])
def test_only_the_source_asked_for_is_opened(tmp_path, kind):
    make_voc(tmp_path, "x")
    add_mask(tmp_path, "x", [[2]])
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "x.xml").write_text("<annotation><object><name>b</name></object></annotation>")
    write_list(tmp_path, "train", "x")
    write_list(tmp_path, "other_cls", "x 1")
    np.save(tmp_path / "mine.npy", {"x": np.array([0, 1, 0])})
    (tmp_path / "cls_labels.npy").write_text("rubbish")
    labels = str(tmp_path / kind) if kind.endswith(".npy") else kind
    assert labels_of(open_dataset(tmp_path, labels=labels).training) == {"x": (1,)}
    if kind != "list":
        write_list(tmp_path, "other_cls", "x 7")
        assert labels_of(open_dataset(tmp_path, labels=labels).training) == {"x": (1,)}
        write_list(tmp_path, "train", "x 7")
        assert labels_of(open_dataset(tmp_path, labels=labels).training) == {"x": (1,)}
    with pytest.raises(GwsssError, match=r"cls_labels\.npy is not a dictionary|label 7 of image x is too large"):
        open_dataset(tmp_path)


def test_a_source_must_know_every_image(tmp_path):
    make_voc(tmp_path, "x", "y")
    write_list(tmp_path, "train", "x", "y")
    np.save(tmp_path / "cls_labels.npy", {"x": np.array([1, 1, 0])})
    with pytest.raises(GwsssError, match=r"no image-level labels for .*train\.txt: .*cls_labels\.npy lacks y"):
        open_dataset(tmp_path)
    for name in "xy":
        add_mask(tmp_path, name, [[3]])
    assert labels_of(open_dataset(tmp_path).training) == {"x": (2,), "y": (2,)}


def test_images_without_a_label(tmp_path):
    make_voc(tmp_path, "x", "y")
    write_list(tmp_path, "train", "x 1", "y")
    with pytest.raises(GwsssError, match=r"image y of .*train\.txt has no label"):
        open_dataset(tmp_path)
    write_list(tmp_path, "train", "x", "y")
    with pytest.raises(GwsssError, match=r"no image-level labels for .*train\.txt: nothing gives any"):
        open_dataset(tmp_path)
    with pytest.raises(GwsssError, match="unknown source of labels 'mask'"):
        open_dataset(tmp_path, labels="mask")
    write_list(tmp_path, "train", "x 1")
    write_list(tmp_path, "val", "y")  # fine: validation does without
    assert labels_of(open_dataset(tmp_path).validation) == {"y": ()}


def test_labels_beyond_the_classes(tmp_path):
    make_voc(tmp_path, "x", "y")
    write_list(tmp_path, "train", "x 2", "y 3")
    with pytest.raises(GwsssError, match=r"train\.txt, line 2: label 3 of image y is too large for 3 classes"):
        open_dataset(tmp_path)
    write_list(tmp_path, "train", "x", "y")
    np.save(tmp_path / "cls_labels.npy", {"x": np.ones(4), "y": np.ones(4)})
    with pytest.raises(GwsssError, match=r"cls_labels\.npy has label vectors of 4 classes, but 3 are named"):
        open_dataset(tmp_path)


def test_annotations_that_make_no_sense(tmp_path):
    make_voc(tmp_path, "x")
    write_list(tmp_path, "train", "x")
    (tmp_path / "Annotations").mkdir()
    xml = tmp_path / "Annotations" / "x.xml"
    xml.write_text("<annotation><object><name>zebra</name></object></annotation>")
    with pytest.raises(GwsssError, match=r"x\.xml holds an object 'zebra'"):
        open_dataset(tmp_path)
    xml.write_text("<annotation>")
    with pytest.raises(GwsssError, match=r"x\.xml is not valid XML"):
        open_dataset(tmp_path)


# splits


@pytest.mark.parametrize("name", ["train_aug", "trainaug", "train_aug_id", "train_cls"])
def test_spellings_of_train_aug(tmp_path, name):
    make_voc(tmp_path, "x", "y")
    write_list(tmp_path, "train", "x 0")
    write_list(tmp_path, name, "x 0", "y 1")
    assert labels_of(open_dataset(tmp_path).training) == {"x": (0,), "y": (1,)}


def test_lists_of_ones_own(tmp_path):
    make_voc(tmp_path, "x", "y")
    write_list(tmp_path, "train", "x 0")
    write_list(tmp_path, "few", "y 1")
    own = tmp_path / "own.txt"
    own.write_text("y 2\n")
    assert labels_of(open_dataset(tmp_path, train_aug_list="few").training) == {"y": (1,)}
    assert labels_of(open_dataset(tmp_path, val_list=own).validation) == {"y": (2,)}
    with pytest.raises(GwsssError, match="image list nowhere does not exist"):
        open_dataset(tmp_path, train_list="nowhere")


def test_missing_images_name_list_line_and_path(tmp_path):
    make_voc(tmp_path, "x")
    path = write_list(tmp_path, "train", "x 0", "y 1", "z 1")
    with pytest.raises(MissingFilesError) as error:
        open_dataset(tmp_path)
    assert str(error.value).startswith(f"{path}, line 2: {tmp_path}/JPEGImages/y.jpg does not exist (and 1 more)")
    assert len(error.value.missing) == 2
    write_list(tmp_path, "train", "/JPEGImages/x.jpg", "/Other/y.png")
    with pytest.raises(MissingFilesError, match=r"line 2: .*/Other/y\.png does not exist"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"image list .*train\.txt is empty"),
        (["  "], r"image list .*train\.txt is empty"),
        (["x 0", "x 1"], r"train\.txt, line 2: image x is already on line 1"),
        (["x cat"], r"train\.txt, line 1: 'cat' are no labels"),
        (["x -1"], r"train\.txt, line 1: '-1' are no labels"),
        (["/JPEGImages/x.jpg m.png 3"], r"train\.txt, line 1: an image path is followed by one mask path"),
    ],
)
def test_malformed_lists(tmp_path, lines, message):
    make_voc(tmp_path, "x")
    write_list(tmp_path, "train", *lines)
    with pytest.raises(GwsssError, match=message):
        open_dataset(tmp_path)


def test_a_list_that_is_no_text(tmp_path):
    make_voc(tmp_path, "x")
    write_list(tmp_path, "train").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(GwsssError, match=r"train\.txt cannot be read as UTF-8"):
        open_dataset(tmp_path)


def test_missing_folders(tmp_path):
    with pytest.raises(GwsssError, match="nowhere does not exist"):
        open_dataset(tmp_path / "nowhere")
    write_list(tmp_path, "train", "x 0")
    with pytest.raises(GwsssError, match=r"JPEGImages holds no image; expected JPEGImages/"):
        open_dataset(tmp_path)
    add_image(tmp_path, "x")
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").unlink()
    with pytest.raises(GwsssError, match=r"holds neither train\.txt nor train_aug\.txt"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("nested", ["VOC2012", "VOCdevkit/VOC2012"])
def test_the_folder_above_is_good_enough(tmp_path, nested):
    write_list(make_voc(tmp_path / nested, "x"), "train", "x 0")
    assert open_dataset(tmp_path).root == tmp_path / nested


def test_bad_files_are_named_with_list_and_line(tmp_path):
    make_voc(tmp_path, "x", "y")
    train = write_list(tmp_path, "train", "x")
    write_list(tmp_path, "train_aug", "y", "x")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "x.xml").write_text("<annotation>")
    with pytest.raises(GwsssError, match=rf"^{train}, line 1: annotation .*x\.xml is not valid XML"):
        open_dataset(tmp_path)
    add_mask(tmp_path, "x", [[9]])
    with pytest.raises(GwsssError, match=rf"^{train}, line 1: mask .*x\.png holds the value 9"):
        open_dataset(tmp_path)
    add_mask(tmp_path, "x", [[1]])
    add_mask(tmp_path, "y", [[9]])
    with pytest.raises(GwsssError, match=r"^.*train_aug\.txt, line 1: mask .*y\.png holds the value 9"):
        open_dataset(tmp_path)
    add_mask(tmp_path, "y", [[2]])
    training = open_dataset(tmp_path).training
    assert [record.where for record in training.records] == [
        f"{tmp_path}/{SETS}/train_aug.txt, line 1",
        f"{train}, line 1",
    ]


# masks, saliency, classes


def test_masks_prefer_the_augmented_ones_then_sbd(tmp_path):
    make_voc(tmp_path, "x", "y", "z")
    write_list(tmp_path, "train", "x 0", "y 0", "z 0")
    augmented = add_mask(tmp_path, "x", [[1]], "SegmentationClassAug")
    add_mask(tmp_path, "x", [[1]])
    plain = add_mask(tmp_path, "y", [[1]])
    (tmp_path / "cls").mkdir()
    scipy.io.savemat(tmp_path / "cls" / "z.mat", {"GTcls": {"Segmentation": np.array([[1, 3]], np.uint8)}})
    data = open_dataset(tmp_path)
    assert [record.mask for record in data.training.records] == [augmented, plain, tmp_path / "cls" / "z.mat"]
    assert data.scoring is data.splits["train"]
    assert labels_of(open_dataset(tmp_path, labels="masks").training)["z"] == (0, 2)


def test_a_lacking_mask_is_named(tmp_path):
    make_voc(tmp_path, "x", "y")
    write_list(tmp_path, "train", "x 0", "y 0")
    add_mask(tmp_path, "x", [[1]])
    with pytest.raises(GwsssError, match=r"train\.txt, line 2: image y has no mask in .*SegmentationClassAug"):
        open_dataset(tmp_path)


def test_saliency(tmp_path):
    make_voc(tmp_path, "x")
    write_list(tmp_path, "train", "x 0")
    assert open_dataset(tmp_path).training.records[0].saliency is None
    found = add_mask(tmp_path, "x", [[9]], "Saliency")
    assert open_dataset(tmp_path).training.records[0].saliency == found
    given = add_mask(tmp_path, "x", [[9]], "PoolNet")
    for folder in ("PoolNet", tmp_path / "PoolNet"):
        assert open_dataset(tmp_path, saliency=folder).training.records[0].saliency == given
    with pytest.raises(GwsssError, match="saliency folder gone does not exist"):
        open_dataset(tmp_path, saliency="gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GwsssError, match="empty holds no image"):
        open_dataset(tmp_path, saliency="empty")


def test_vocs_own_names(tmp_path):
    write_list(tmp_path, "train", "2007_000032 19")
    add_image(tmp_path, "2007_000032")
    classes = open_dataset(tmp_path).classes
    assert (len(classes), classes[0], classes[14], classes[19]) == (20, "aeroplane", "person", "tvmonitor")
    write_list(tmp_path, "train", "2007_000032 20")
    with pytest.raises(GwsssError, match="label 20 of image 2007_000032 is too large for 20 classes"):
        open_dataset(tmp_path)
    add_image(tmp_path, "beach")
    write_list(tmp_path, "train", "beach 0")
    with pytest.raises(GwsssError, match=r"classes\.txt does not exist; write the class names"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("background\n", "names no class"), ("a\nb\na\n", "names 'a' twice"), (None, "does not exist")],
)
def test_class_files(tmp_path, text, message):
    make_voc(tmp_path, "x")
    write_list(tmp_path, "train", "x 0")
    own = tmp_path / "own.txt"
    if text is not None:
        own.write_text(text)
    with pytest.raises(GwsssError, match=message):
        open_dataset(tmp_path, classes_file=own)
    own.write_text("first\n\nsecond\n")
    assert open_dataset(tmp_path, classes_file=own).classes == ("first", "second")


@pytest.mark.skipif(ROOT is None, reason="GWSSS_TEST_DATA does not name a folder of VOC layout")
def test_real_data():
    data = open_dataset(ROOT)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 120, "train_aug": 480, "val": 160}
    assert data.scoring is not None
    labels = np.load(f"{ROOT}/cls_labels.npy", allow_pickle=True).item()  # written by ourselves
    for split in data.splits.values():
        np.testing.assert_array_equal(split.labels, [labels[record.id] for record in split.records])
        assert all(record.mask and record.saliency for record in split.records)
