"""COCO 2014 (or 2017) as it is published: images, and annotations/instances_*.json.

An annotation file is read whole once; what is needed of it then lies in an index in the cache folder, which is made
again when the file's size or time of change is another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gwsss_fast.data.coco_masks import (
    INDEX,
    OBJECTS,
    StoredIndex,
    mask_path,
    pack,
    pycocotools_mask,
    stored_index,
)
from gwsss_fast.data.images import open_saliency
from gwsss_fast.data.records import DataSet, MissingFilesError, OnFault, Record, Split, raise_fault
from gwsss_fast.errors import GwsssError
from gwsss_fast.files import cache_folder

VERSION = 1
"""Part of the index's name: raise it whenever its content changes."""
YEARS = ("2014", "2017")
EXPECTED = "train2014/, val2014/ and annotations/ with instances_train2014.json and instances_val2014.json (COCO)"


def looks_like_coco(root: Path) -> bool:
    """Whether `root` has COCO's annotations of instances."""
    return _year(root) is not None


def open_coco(root: Path, *, saliency: str | Path | None = None, on_fault: OnFault = raise_fault) -> DataSet:
    """Splits `train` and `val`, each the images with at least one object that is no crowd, with masks and labels.

    Classes are the annotation file's categories in the order of their numbers: 80 of COCO, whose ids run to 90. Raises
    GwsssError for missing or malformed files; `on_fault` is told of images that do not exist.
    """
    pycocotools_mask()  # now, not when the first mask is read
    year = _year(root)
    if year is None:
        raise GwsssError(f"{root} lacks annotations/instances_train2014.json; expected {EXPECTED}")
    maps = open_saliency(root, saliency)
    splits: dict[str, Split] = {}
    classes: tuple[str, ...] = ()
    for name in ("train", "val"):
        annotations = root / "annotations" / f"instances_{name}{year}.json"
        if not annotations.is_file():
            continue
        index = open_index(annotations)
        if classes and index.classes != classes:
            raise GwsssError(f"{annotations} has other categories than that of the training images")
        classes = index.classes
        folder = next((path for path in (root, root / "images") if (path / f"{name}{year}").is_dir()), root)
        records = _records(folder / f"{name}{year}", annotations, index, on_fault)
        splits[name] = Split(name, classes, tuple(replace(r, saliency=maps.find(r.id)) for r in records))
    if "train" not in splits or not len(splits["train"]):
        raise GwsssError(f"{root} has no annotated image to learn from; expected {EXPECTED}")
    return DataSet(root, "coco", classes, splits)


def open_index(annotations: Path, cache: Path | None = None) -> StoredIndex:
    """The index of an annotation file, read from the cache where it is there.

    It is built in a temporary folder that is renamed at the end; other processes wait for it. Raises GwsssError when
    the file is malformed or the cache cannot be written.
    """
    path, facts = annotations.resolve(), annotations.stat()
    cache = (cache_folder() if cache is None else cache) / "coco"
    stem = f"{annotations.stem}-{_digest(str(path))}"
    folder = cache / f"{stem}-{_digest(f'{VERSION} {facts.st_size} {facts.st_mtime_ns}')}"
    if not (folder / INDEX).is_file():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with _alone(cache / f".{stem}.lock"):
                if not (folder / INDEX).is_file():
                    _build(annotations, folder, stem)
        except OSError as error:
            raise GwsssError(
                f"cannot write the index of {annotations} to {cache}: {error.strerror or error}; free space or set "
                "GWSSS_CACHE"
            ) from error
    return stored_index(folder)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time: a file of hundreds of megabytes takes gigabytes while it is read."""
    try:
        import fcntl
    except ImportError:  # not on this system; then two processes may do the same work
        yield
        return
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(annotations: Path, folder: Path, stem: str) -> None:
    """Make the index and remove older ones of the same file."""
    print(f"reading {annotations}; this is done once", file=sys.stderr)
    content = _read(annotations)
    with tempfile.TemporaryDirectory(prefix=f".{stem}.", dir=folder.parent) as temporary:
        built = Path(temporary) / "index"
        built.mkdir()
        _write(content, built, annotations)
        _publish(built, folder)
    for old in folder.parent.glob(f"{stem}-*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)


def _publish(built: Path, folder: Path) -> None:
    """Rename into place. Losing the race to another process is fine: it wrote the same."""
    try:
        os.rename(built, folder)
    except OSError:
        if not (folder / INDEX).is_file():
            raise


def _year(root: Path) -> str | None:
    return next((year for year in YEARS if (root / "annotations" / f"instances_train{year}.json").is_file()), None)


def _records(folder: Path, annotations: Path, index: StoredIndex, on_fault: OnFault) -> list[Record]:
    present = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    lacking = [f"{annotations}: {folder / file}" for file in index.files if file not in present]
    if lacking:
        on_fault(MissingFilesError(lacking))
    labels = [tuple(np.flatnonzero(row).tolist()) for row in index.labels]
    return [
        Record(Path(file).stem, folder / file, mask_path(index.folder, file), labels=own)
        for file, own in zip(index.files, labels, strict=True)
        if file in present
    ]


def _read(annotations: Path) -> dict[str, Any]:
    try:
        with annotations.open("rb") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise GwsssError(f"annotation file {annotations} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise GwsssError(f"annotation file {annotations} lacks images, annotations or categories")
    return content


def _write(content: dict[str, Any], folder: Path, annotations: Path) -> None:
    """Write the index of the images with an object that is no crowd, in the order of the file."""
    try:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        number = {category["id"]: place for place, category in enumerate(categories, 1)}
        objects: dict[Any, list[list[Any]]] = {}
        for item in content["annotations"]:
            own = [number[item["category_id"]], int(item.get("iscrowd", 0)), item.get("area"), item["segmentation"]]
            objects.setdefault(item["image_id"], []).append(own)
        labels = {key: {own[0] - 1 for own in found if not own[1]} for key, found in objects.items()}
        images = [image for image in content["images"] if labels.get(image["id"])]
        files = [str(image["file_name"]) for image in images]
        sizes = np.array([[image["height"], image["width"]] for image in images], np.int32).reshape(-1, 2)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GwsssError(f"annotation file {annotations} is not in COCO's format: {error!r}") from error
    if len(number) > 254:
        raise GwsssError(f"annotation file {annotations} has {len(number)} categories; masks hold 254 classes at most")
    if len({Path(file).stem for file in files}) < len(files) or any("/" in file for file in files):
        raise GwsssError(f"annotation file {annotations} names two images alike, or one in a sub-folder")
    offsets, marks = [0], np.zeros((len(files), len(number)), np.uint8)
    with (folder / OBJECTS).open("wb") as file:
        for row, image in enumerate(images):
            offsets.append(offsets[-1] + file.write(pack(objects[image["id"]])))
            marks[row, list(labels[image["id"]])] = 1
    np.savez(
        folder / INDEX,
        classes=np.array([str(category["name"]) for category in categories]),
        files=np.array(files, dtype=np.str_),
        sizes=sizes,
        labels=np.packbits(marks, axis=1),
        offsets=np.array(offsets, np.int64),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
