"""CUB-200-2011 as it is published: images/ and five text files whose lines begin with the number of an image."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from gwsss_fast.data.class_names import read_lines
from gwsss_fast.data.images import open_saliency
from gwsss_fast.data.records import Box, DataSet, MissingFilesError, OnFault, Record, Split, raise_fault
from gwsss_fast.errors import GwsssError

EXPECTED = (
    "images/, images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt and classes.txt "
    "(CUB-200-2011)"
)
_SPLITS = {"1": "train", "0": "val"}  # train_test_split.txt: 1 for the images to learn from


def looks_like_cub(root: Path) -> bool:
    """Whether `root` has the lists that no other layout has."""
    return all((root / name).is_file() for name in ("images.txt", "train_test_split.txt"))


def open_cub(root: Path, *, saliency: str | Path | None = None, on_fault: OnFault = raise_fault) -> DataSet:
    """Splits `train` and `val` (the published test images), one class an image, with boxes and without masks.

    A box of the files is x, y, width and height; here x1 = x + width, as in the published evaluation. Raises GwsssError
    naming file and line for whatever is missing or malformed; `on_fault` is told of images that do not exist.
    """
    images = _table(root / "images.txt", 1)
    labels, splits = _table(root / "image_class_labels.txt", 1), _table(root / "train_test_split.txt", 1)
    boxes, names = _table(root / "bounding_boxes.txt", 4), _table(root / "classes.txt", 1)
    number, maps = {key: index for index, key in enumerate(names)}, open_saliency(root, saliency)
    found: dict[str, list[Record]] = {name: [] for name in _SPLITS.values()}
    missing = []
    for key, (line, (file,)) in images.items():
        where = f"{root / 'images.txt'}, line {line}"
        for table, name in ((labels, "image_class_labels"), (splits, "train_test_split"), (boxes, "bounding_boxes")):
            if key not in table:
                raise GwsssError(f"{root / f'{name}.txt'} has no line for image {key} ({where})")
        label_line, (label,) = labels[key]
        if label not in number:
            raise GwsssError(
                f"{root / 'image_class_labels.txt'}, line {label_line}: class {label} is none of those in classes.txt"
            )
        split_line, (part,) = splits[key]
        if part not in _SPLITS:
            raise GwsssError(f"{root / 'train_test_split.txt'}, line {split_line}: {part} is neither 1 (train) nor 0")
        path = root / "images" / file
        if not path.is_file():
            missing.append(f"{where}: {path}")
            continue
        name = "__".join(PurePosixPath(file).with_suffix("").parts)
        box = _box(boxes[key], root / "bounding_boxes.txt")
        record = Record(name, path, None, maps.find(name), (number[label],), where, (box,))
        found[_SPLITS[part]].append(record)
    if missing:
        on_fault(MissingFilesError(missing))
    if not found["train"]:
        raise GwsssError(f"{root / 'train_test_split.txt'} names no image to learn from (1)")
    classes = tuple(fields[0] for _, fields in names.values())
    return DataSet(
        root, "cub", classes, {name: Split(name, classes, tuple(chosen)) for name, chosen in found.items() if chosen}
    )


def _table(path: Path, columns: int) -> dict[str, tuple[int, list[str]]]:
    """Number of an image (or a class) -> line and further fields. Raises GwsssError for a malformed file."""
    table: dict[str, tuple[int, list[str]]] = {}
    for line, text in enumerate(read_lines(path, "list"), start=1):
        fields = text.split()
        if not fields:
            continue
        if len(fields) != columns + 1:
            raise GwsssError(f"{path}, line {line}: expected {columns + 1} fields, got {len(fields)}")
        if fields[0] in table:
            raise GwsssError(f"{path}, line {line}: number {fields[0]} is already on line {table[fields[0]][0]}")
        table[fields[0]] = line, fields[1:]
    if not table:
        raise GwsssError(f"{path} is empty")
    return table


def _box(entry: tuple[int, list[str]], path: Path) -> Box:
    line, fields = entry
    try:
        x, y, width, height = map(float, fields)
    except ValueError:
        x = y = width = height = -1.0
    if not (x >= 0 and y >= 0 and 0 < width < float("inf") and 0 < height < float("inf")):
        raise GwsssError(f"{path}, line {line}: {' '.join(fields)} is no box x y width height in pixels")
    return (x, y, x + width, y + height)
