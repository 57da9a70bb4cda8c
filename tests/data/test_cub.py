"""CUB-200-2011 in its published layout."""

import pytest

from gwsss_fast.data.dataset import open_dataset
from gwsss_fast.errors import GwsssError
from tests.published_trees import make_cub


@pytest.fixture
def cub(tmp_path):
    return make_cub(tmp_path) / "CUB_200_2011"


def test_splits_classes_and_boxes(cub):
    for root in (cub, cub.parent):
        data = open_dataset(root)
        assert (data.layout, data.classes) == ("cub", ("001.Black_footed_Albatross", "200.Common_Yellowthroat"))
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 10, "val": 6}
        first = data.validation.records[0]
        assert first.id == "001.Black_footed_Albatross__Black_footed_Albatross_0005_6"
        assert first.image == cub / "images/001.Black_footed_Albatross/Black_footed_Albatross_0005_6.jpg"
        assert first.labels == (0,)
        assert first.boxes == ((26.0, 3.0, 26.0 + 19, 3.0 + 19),)  # x y width height are 26 3 19 19
        assert data.scoring is None
        assert data.training.labels.sum(0).tolist() == [5, 5]


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("bounding_boxes.txt", "3 4.0 25.0 19.0 19.0\n", "", "bounding_boxes.txt has no line for image 3"),
        ("bounding_boxes.txt", "3 4.0 25.0 19.0", "3 4.0 25.0 wide", "bounding_boxes.txt, line 3: .* is no box"),
        ("bounding_boxes.txt", "3 4.0 25.0 19.0", "3 4.0 25.0 0.0", "line 3: .* is no box"),
        ("image_class_labels.txt", "2 1", "2 3", "line 2: class 3"),
        ("train_test_split.txt", "2 1", "2 yes", "line 2: yes is neither"),
        ("images.txt", "2 001", "1 001", "line 2: number 1 is already on line 1"),
        ("images.txt", "_0001_2.jpg", "_0001_2.jpg extra", "images.txt, line 2: expected 2 fields, got 3"),
        ("images.txt", "_0001_2.jpg", "_0001_x.jpg", r"images.txt, line 2: .*_0001_x.jpg does not exist"),
    ],
)
def test_damage_is_named_by_file_and_line(cub, file, old, new, message):
    change(cub / file, old, new)
    with pytest.raises(GwsssError, match=message):
        open_dataset(cub)


def test_options_of_other_layouts_are_refused(cub):
    with pytest.raises(GwsssError, match="val_list"):
        open_dataset(cub, val_list="x")
    (cub / "classes.txt").unlink()
    with pytest.raises(GwsssError, match=r"classes\.txt does not exist"):
        open_dataset(cub)
