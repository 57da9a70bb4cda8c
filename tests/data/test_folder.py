import numpy as np
import pytest
from PIL import Image

from gwsss_fast.data.check import verify_files
from gwsss_fast.data.dataset import MissingFilesError, open_dataset
from gwsss_fast.errors import GwsssError


def add(root, *names, size=(4, 3)):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(root / name)


def labels_of(split):
    return {record.id: record.labels for record in split.records}


def classes_of(split):
    return {record.id: [split.classes[label] for label in record.labels] for record in split.records}


# class sub-folders


def test_class_folders(tmp_path):
    add(tmp_path, "dog/1.jpg", "cat/1.jpg", "cat/a b ü.WEBP", "cat/deep/2.png", "dog/3.jpeg", "dog/4.bmp")
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / "dog" / "._1.jpg").write_text("nor this")
    (tmp_path / ".cache").mkdir()
    data = open_dataset(tmp_path)
    assert (data.layout, data.classes) == ("folder", ("cat", "dog"))
    assert labels_of(data.training) == {
        "cat__1": (0,),
        "cat__a b ü": (0,),
        "cat__deep__2": (0,),
        "dog__1": (1,),
        "dog__3": (1,),
        "dog__4": (1,),
    }
    assert data.training.records[0].image == tmp_path / "cat" / "1.jpg"
    assert data.scoring is None
    assert data.validation is None


def test_ids_stay_apart(tmp_path):
    add(tmp_path, "a/x.jpg", "a/x.png", "a/b/y.jpg", "a/b__y.jpg", "a__b/y.jpg")
    ids = [record.id for record in open_dataset(tmp_path).training.records]
    assert len(ids) == len(set(ids)) == 5
    assert {"a__x.jpg", "a__x.png"} < set(ids)


def test_order_of_classes(tmp_path):
    add(tmp_path, "b/1.jpg", "a/1.jpg")
    (tmp_path / "classes.txt").write_text("b\na\nunused\n")
    data = open_dataset(tmp_path)
    assert data.classes == ("b", "a", "unused")
    np.testing.assert_array_equal(data.training.labels, [[0, 1, 0], [1, 0, 0]])
    (tmp_path / "classes.txt").write_text("b\n")
    with pytest.raises(GwsssError, match=r"a/1\.jpg: class 'a' is none of the 1 named classes"):
        open_dataset(tmp_path)


def test_masks_and_saliency(tmp_path):
    add(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.jpg", "b/3.jpg")
    add(tmp_path, "masks/a/1.png", "masks/b__1.png", "masks/2.png", "masks/1.png", "Saliency/3.png")
    data = open_dataset(tmp_path)
    assert data.classes == ("a", "b")
    masks = {record.id: record.mask for record in data.training.records}
    assert masks == {
        "a__1": tmp_path / "masks" / "a" / "1.png",
        "b__1": tmp_path / "masks" / "b__1.png",
        "b__2": tmp_path / "masks" / "2.png",
        "b__3": None,
    }
    assert list(labels_of(data.scoring)) == ["a__1", "b__1", "b__2"]
    assert [record.saliency is not None for record in data.training.records] == [False, False, False, True]


def test_saliency_of_ones_own_is_no_class(tmp_path):
    add(tmp_path, "a/1.jpg", "poolnet/1.png")
    data = open_dataset(tmp_path, saliency="poolnet")
    assert data.classes == ("a",)
    assert data.training.records[0].saliency == tmp_path / "poolnet" / "1.png"


@pytest.mark.parametrize("name", ["val.csv", "val.txt", "other.lst"])
def test_validation_by_list(tmp_path, name):
    add(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.jpg")
    (tmp_path / name).write_text("file,classes\nb/1.jpg,b\n" if name == "val.csv" else "b/1.jpg\n\n")
    data = open_dataset(tmp_path, val_list=name if name == "other.lst" else None, layout="folder")
    assert list(labels_of(data.validation)) == ["b__1"]
    assert list(labels_of(data.training)) == ["a__1", "b__2"]
    assert open_dataset(tmp_path).layout == "folder"


def test_validation_lists_that_make_no_sense(tmp_path):
    add(tmp_path, "a/1.jpg", "a/2.jpg")
    val = tmp_path / "val.txt"
    val.write_text("2.jpg\na/9.jpg\n")
    with pytest.raises(GwsssError, match=r"val\.txt, line 2: a/9\.jpg is none of the images"):
        open_dataset(tmp_path)
    val.write_text("\n")
    with pytest.raises(GwsssError, match=r"val\.txt is empty"):
        open_dataset(tmp_path)
    val.write_text("1.jpg\n2.jpg\n")
    with pytest.raises(GwsssError, match="names every image"):
        open_dataset(tmp_path)
    with pytest.raises(GwsssError, match="validation list gone does not exist"):
        open_dataset(tmp_path, val_list="gone")


def test_train_and_val_folders(tmp_path):
    add(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg")
    data = open_dataset(tmp_path)
    assert data.classes == ("a", "b")
    assert classes_of(data.training) == {"train__a__1": ["a"], "train__b__1": ["b"]}
    assert classes_of(data.validation) == {"val__a__1": ["a"]}


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(GwsssError, match=r"has no known layout; expected either JPEGImages/"):
        open_dataset(tmp_path)
    with pytest.raises(GwsssError, match="holds no class folder"):
        open_dataset(tmp_path, layout="folder")
    with pytest.raises(GwsssError, match=r"holds no train\.csv"):
        open_dataset(tmp_path, layout="csv")
    add(tmp_path, "a/1.jpg")
    (tmp_path / "b").mkdir()
    with pytest.raises(GwsssError, match=r"class folder .*b holds no image \(\.jpg"):
        open_dataset(tmp_path)
    add(tmp_path, "b/1.jpg", "loose.jpg")
    with pytest.raises(GwsssError, match=r"loose\.jpg has no label"):
        open_dataset(tmp_path)
    with pytest.raises(GwsssError, match="are for VOC layout"):
        open_dataset(tmp_path, train_list="x.txt")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(GwsssError, match=r"file\.txt is a file"):
        open_dataset(tmp_path / "file.txt")


# CSV


@pytest.mark.parametrize("header", ["", "file,classes\n"])
def test_csv(tmp_path, header):
    add(tmp_path, "images/x 1.jpg", "y.png")
    (tmp_path / "labels.csv").write_text(header + 'images/x 1.jpg,dog|cat\n\n"y.png", dog \n', encoding="utf-8-sig")
    for root in (tmp_path, tmp_path / "labels.csv"):
        data = open_dataset(root)
        assert (data.layout, data.root, data.classes) == ("csv", tmp_path, ("cat", "dog"))
        assert labels_of(data.training) == {"images__x 1": (0, 1), "y": (1,)}
        assert data.validation is None


def test_csv_with_one_column_a_class(tmp_path):
    add(tmp_path, "x.jpg", "y.jpg")
    (tmp_path / "train.csv").write_text("image, dog ,cat,bird\nx.jpg,1,0,\ny.jpg,1.0,True,0\n")
    assert classes_of(open_dataset(tmp_path).training) == {"x": ["dog"], "y": ["cat", "dog"]}


def test_only_a_first_line_that_names_no_image_is_a_header(tmp_path):
    add(tmp_path, "x.jpg", "y.png")
    (tmp_path / "scan").write_bytes((tmp_path / "y.png").read_bytes())
    path = tmp_path / "train.csv"
    path.write_text("scan,a\nx.jpg,b\n")
    assert classes_of(open_dataset(tmp_path).training) == {"scan": ["a"], "x": ["b"]}
    for text, line in [
        ("file,classes\nphoto.tif,a\nx.jpg,b\n", 2),
        ("file,classes\n\nx,a\nx.jpg,b\n", 3),
        ("x.jpg,b\nfile,classes\n", 2),
        ("a,x.jpg\nb,y.png\n", 1),
    ]:
        path.write_text(text)
        with pytest.raises(MissingFilesError, match=rf"train\.csv, line {line}: .* does not exist"):
            open_dataset(tmp_path)


@pytest.mark.parametrize(("separator", "name"), [(";", "';'"), ("\t", "a tab")])
@pytest.mark.parametrize(
    "lines", [["file,classes", "x.jpg,a"], ["x.jpg,a"], ["x.jpg,a", "y.jpg,a"], ["x.jpg,a", "y.jpg,a|b,c"]]
)
def test_other_separators_are_named(tmp_path, separator, name, lines):
    add(tmp_path, "x.jpg", "y.jpg")
    text = "\n".join(line.replace(",", separator, 1) for line in lines)
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(GwsssError, match=rf"train\.csv, line 1: columns are separated by {name}; .* commas"):
        open_dataset(tmp_path)
    (tmp_path / "train.csv").write_text("x.jpg,a\ny.jpg,a\n")
    (tmp_path / "val.txt").write_text(text)
    with pytest.raises(GwsssError, match=rf"val\.txt, line 1: columns are separated by {name}; .* commas"):
        open_dataset(tmp_path)


def test_csv_with_validation(tmp_path):
    add(tmp_path, "x.jpg", "y.jpg", "z.jpg")
    (tmp_path / "train.csv").write_text("x.jpg,a\ny.jpg,b\n")
    (tmp_path / "val.csv").write_text("z.jpg,a|b\n")
    data = open_dataset(tmp_path)
    assert classes_of(data.training) == {"x": ["a"], "y": ["b"]}
    assert classes_of(data.validation) == {"z": ["a", "b"]}
    (tmp_path / "val.csv").write_text("z.jpg,a\nx.jpg,a\n")
    with pytest.raises(
        GwsssError, match=r"val\.csv, line 2: x\.jpg is an image to learn from too .*train\.csv, line 1"
    ):
        open_dataset(tmp_path)
    (tmp_path / "val.csv").unlink()
    (tmp_path / "val.txt").write_text("y.jpg\n")
    assert classes_of(open_dataset(tmp_path).training) == {"x": ["a"]}


def test_csv_that_names_images_elsewhere(tmp_path):
    add(tmp_path, "images/x.jpg", "images/y.jpg")
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "train.csv"
    path.write_text(f"../images/x.jpg,a\n{tmp_path}/images/y.jpg,a\n")
    ids = [record.id for record in open_dataset(path).training.records]
    assert ids[0] == "images__x"
    assert ids[1].endswith("__images__y")
    assert not any("/" in name or ".." in name for name in ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"train\.csv names no image"),
        ("file,classes\n", r"train\.csv names no image"),
        ("x.jpg,a\nx.jpg,a\n", r"train\.csv, line 2: image .*x\.jpg is named twice, first in .*line 1"),
        ("x.jpg,a\ny.jpg, | \n", r"train\.csv, line 2: image .*y\.jpg has no label"),
        ("x.jpg\n", r"train\.csv, line 1: expected `file,class1\|class2`, got 1 columns"),
        ("x.jpg,a,b\n", r"train\.csv, line 1: .* got 3 columns"),
        ("file,a,b\nx.jpg,0,2\n", r"train\.csv, line 2: column b holds '2'; write `file,class1.*or 0 and 1"),
        ("file,a,b\nx.jpg,1\n", r"train\.csv, line 2: expected 3 columns as in the first line, got 2 columns"),
    ],
)
def test_malformed_csv(tmp_path, text, message):
    add(tmp_path, "x.jpg", "y.jpg")
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(GwsssError, match=message):
        open_dataset(tmp_path)


def test_missing_images_of_a_csv(tmp_path):
    add(tmp_path, "x.jpg")
    (tmp_path / "train.csv").write_text("file,class\nx.jpg,a\ny.jpg,a\nz.jpg,b\n")
    with pytest.raises(
        MissingFilesError, match=r"train\.csv, line 3: .*/y\.jpg does not exist \(and 1 more\)"
    ) as error:
        open_dataset(tmp_path)
    assert len(error.value.missing) == 2


def test_bad_images_of_a_csv_are_named_with_their_line(tmp_path):
    add(tmp_path, "x.jpg", "y.jpg")
    (tmp_path / "y.jpg").write_bytes(b"")
    (tmp_path / "train.csv").write_text("file,class\nx.jpg,a\ny.jpg,a\n")
    with pytest.raises(GwsssError, match=rf"^{tmp_path}/train\.csv, line 3: image .*y\.jpg cannot be decoded"):
        verify_files(open_dataset(tmp_path))


def test_classes_of_a_csv(tmp_path):
    add(tmp_path, "x.jpg")
    (tmp_path / "train.csv").write_text("x.jpg,zebra\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(GwsssError, match=r"train\.csv, line 1: class 'zebra' is none of the 1 named classes"):
        open_dataset(tmp_path)
