"""True boxes of the things in an image: from a box file, from the data set itself, or around the regions of its mask.

A box file is CSV, one box a line, any number of lines an image:

    id,x0,y0,x1,y1,class
    cat__1,12,30,199,170,cat

`id` is an image's id, its file name, or its path below the data folder. Corners are pixels of the image, x to the right
and y down, (x1, y1) the last one within. `class` may be left out: the box is then one of each class of its image. Lines
of images that are not looked at, and boxes of classes that an image is not labelled with, count nowhere.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from gwsss_fast.data.class_names import read_lines
from gwsss_fast.data.images import IGNORE, read_mask
from gwsss_fast.data.records import Box, DataSet, Record
from gwsss_fast.errors import GwsssError

COLUMNS = ("id", "x0", "y0", "x1", "y1", "class")
Boxes = dict[int, NDArray[np.float64]]  # 0-based class -> boxes (m, 4), x0 y0 x1 y1
Listed = list[tuple[int | None, Box]]


def read_box_file(path: str | Path, data: DataSet, records: Iterable[Record]) -> dict[str, Listed]:
    """Classes (None = any) and boxes by id of those `records` that a box file names.

    Raises GwsssError naming file and line for a malformed line or an unknown class, and when no image is among them.
    """
    path, number = Path(path), {name: index for index, name in enumerate(data.classes)}
    ids = _names(data.root, records)
    found: dict[str, Listed] = {}
    reader, read_header = csv.reader(read_lines(path, "box file"), skipinitialspace=True), False
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            header, read_header = not read_header, True
            if header and [field.strip().lower() for field in fields] in (list(COLUMNS), list(COLUMNS[:5])):
                continue
            where = f"{path}, line {reader.line_num}"
            label, box = _parse(fields, where, number)
            name = ids.get(fields[0].strip().removeprefix("./"))
            if name is not None:
                found.setdefault(name, []).append((label, box))
    except csv.Error as error:
        raise GwsssError(f"{path}, line {reader.line_num}: {error}") from error
    if not found:
        raise GwsssError(f"box file {path} names none of the images; its first column is an id, a file name or a path")
    return found


def read_class_file(path: str | Path, data: DataSet, records: Sequence[Record]) -> list[int]:
    """The 0-based class that a CSV file of `id,class` lines gives each of `records`; further columns are left alone.

    Raises GwsssError naming file and line for an unknown class, and when an image is missing.
    """
    path, number = Path(path), {name: index for index, name in enumerate(data.classes)}
    ids, found = _names(data.root, records), dict[str, int]()
    for line, fields in enumerate(csv.reader(read_lines(path, "class file"), skipinitialspace=True), start=1):
        name = ids.get(fields[0].strip().removeprefix("./")) if fields else None
        if name is None:
            continue
        if len(fields) < 2 or fields[1].strip() not in number:
            raise GwsssError(f"{path}, line {line}: expected `id,class` with one of the {len(number)} classes")
        found[name] = number[fields[1].strip()]
    missing = [record.id for record in records if record.id not in found]
    if missing:
        raise GwsssError(f"{path} gives no class of {missing[0]} ({len(missing)} of {len(records)} images)")
    return [found[record.id] for record in records]


def true_boxes(record: Record, classes: int, listed: Listed | None = None) -> Boxes:
    """The boxes of each of the image's classes that has any: those `listed`, else the data set's own, else its mask's.

    classes: number of foreground classes. Raises GwsssError when the mask cannot be read.
    """
    if listed is None and record.boxes:
        listed = [(None, box) for box in record.boxes]
    if listed is not None:
        chosen = {label: [box for own, box in listed if own in (None, label)] for label in record.labels}
        return {label: np.array(boxes, np.float64) for label, boxes in chosen.items() if boxes}
    if record.mask is None:
        return {}
    with record.located():
        found = mask_boxes(read_mask(record.mask, classes))
    return {label: boxes for label, boxes in found.items() if label in record.labels}


def mask_boxes(mask: NDArray[np.uint8]) -> Boxes:
    """A box around every 8-connected region of each class of a mask (H, W)."""
    boxes: Boxes = {}
    for value in np.unique(mask[(mask != 0) & (mask != IGNORE)]).tolist():
        regions, _ = ndimage.label(mask == value, np.ones((3, 3), bool))
        places = ndimage.find_objects(regions)
        boxes[value - 1] = np.array([[x.start, y.start, x.stop - 1, y.stop - 1] for y, x in places], np.float64)
    return boxes


def clipped(boxes: NDArray[np.float64], size: tuple[int, int], image: Path) -> NDArray[np.float64]:
    """Boxes (m, 4) with their corners within an image of (width, height), as published metadata have them.

    Raises GwsssError naming the image for a box that lies beside it.
    """
    beside = (boxes[:, :2] >= size).any(1)
    if beside.any():
        raise GwsssError(f"box {boxes[beside][0].tolist()} lies beside its image {image} of {size[0]}x{size[1]} pixels")
    most = np.array([size[0] - 1, size[1] - 1] * 2, np.float64)
    return np.clip(boxes, 0, most)


def _names(root: Path, records: Iterable[Record]) -> dict[str, str]:
    """Whatever a box file may call an image -> its id; a file name that several images have means none of them."""
    by_name: dict[str, str] = {}
    twice = set()
    names: dict[str, str] = {}
    for record in records:
        path = record.image
        names[path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()] = record.id
        names[record.id] = record.id
        if by_name.setdefault(path.name, record.id) != record.id:
            twice.add(path.name)
    return {**{name: key for name, key in by_name.items() if name not in twice}, **names}


def _parse(fields: list[str], where: str, number: dict[str, int]) -> tuple[int | None, Box]:
    if len(fields) not in (5, 6):
        raise GwsssError(f"{where}: expected `{','.join(COLUMNS)}`, got {len(fields)} columns")
    try:
        x0, y0, x1, y1 = (float(field) for field in fields[1:5])
    except ValueError:
        raise GwsssError(f"{where}: {','.join(fields[1:5])} are not four numbers x0,y0,x1,y1") from None
    if not (0 <= x0 <= x1 < float("inf") and 0 <= y0 <= y1 < float("inf")):
        raise GwsssError(f"{where}: {','.join(fields[1:5])} is no box; write 0 <= x0 <= x1 and 0 <= y0 <= y1")
    name = fields[5].strip() if len(fields) == 6 else ""
    if name and name not in number:
        raise GwsssError(f"{where}: class {name!r} is none of the {len(number)} classes")
    return (number[name] if name else None), (x0, y0, x1, y1)
