"""Looking at every file of a data set before anything is trained on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gwsss_fast.data import coco, cub, folder, voc
from gwsss_fast.data.dataset import Layout, find_root, open_dataset
from gwsss_fast.data.images import read_image, read_mask, read_saliency
from gwsss_fast.data.label_sources import LabelSource, look_up, mask_labels
from gwsss_fast.data.records import DataSet, MissingFilesError, OnFault, Record, Split
from gwsss_fast.errors import GwsssError

EXPECTED = {
    "voc": voc.EXPECTED,
    "embedded": voc.EXPECTED,
    "folder": folder.EXPECTED,
    "csv": folder.EXPECTED,
    "coco": coco.EXPECTED,
    "cub": cub.EXPECTED,
}


@dataclass(frozen=True)
class SplitCount:
    """What a split holds; `per_class` counts images by label (L,)."""

    name: str
    images: int
    masks: int
    saliency: int
    per_class: np.ndarray


@dataclass(frozen=True)
class LabelDifference:
    """Two sources of labels that disagree about `differing` of the `images` both know."""

    split: str
    first: str
    second: str
    images: int
    differing: int
    relation: Literal["subset", "superset", "mixed"]  # of the first to the second, strict wherever they differ
    example: str

    def __str__(self) -> str:
        relation = {
            "subset": f"always a strict subset: {self.first} omits labels and adds none",
            "superset": f"always a strict superset: {self.first} adds labels and omits none",
            "mixed": "neither always holds the other's labels",
        }[self.relation]
        return (
            f"{self.split}: {self.first} and {self.second} differ in {self.differing:,} of {self.images:,} images; "
            f"{relation} (e.g. {self.example})"
        )


@dataclass(frozen=True)
class CheckReport:
    """What was found. `missing` has list, line and path of each missing image, which the rest leaves out; `faults`
    are messages that name one unusable file, or lack of labels, each.

    `differences` between sources of labels, and `unread` sources that the data set does not need, are only warnings.
    """

    data: DataSet
    expected: str
    splits: tuple[SplitCount, ...]
    missing: tuple[str, ...]
    faults: tuple[str, ...]
    differences: tuple[LabelDifference, ...]
    unread: tuple[str, ...]


@dataclass(frozen=True)
class FileCheck:
    """One record's files: what is wrong with them, the labels in its mask when that can be read, and whether its image
    can be."""

    faults: tuple[str, ...]
    mask_labels: tuple[int, ...] | None
    readable: bool


def check_dataset(
    root: str | Path,
    *,
    layout: Layout = "auto",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> CheckReport:
    """Open a data set, decode all of its files once, and compare the sources of its labels.

    `options` are those of `open_dataset`; `progress` is called with the numbers of records done and in all.
    Raises GwsssError, as `open_dataset` does, when the data set cannot be opened at all.
    """
    path, layout = find_root(root, layout, seed=seed)
    met: list[GwsssError] = []
    sources: Callable[[str, OnFault], Iterable[LabelSource]]
    if layout in ("voc", "embedded"):
        given = {key: value for key, value in options.items() if value is not None}
        files = voc.VocFolder(path, on_fault=met.append, **given)
        data = files.dataset(layout)
        sources = lambda name, on_fault: files.sources(name, "auto", on_fault)  # noqa: E731
    else:
        data = open_dataset(path, layout=layout, on_fault=met.append, **options)
        # Labels and masks of COCO are made from the same annotations, and things may hide each other there.
        sources = lambda name, _: [] if layout == "coco" else [_own_labels(data.splits[name], layout)]  # noqa: E731
    records = _records(data)
    checks = list(check_files(records, len(data.classes), progress))
    in_masks = {record.mask: check.mask_labels for record, check in zip(records, checks, strict=True)}
    from_masks = LabelSource("masks", "masks", lambda record: in_masks.get(record.mask))
    differences: list[LabelDifference] = []
    unread: list[GwsssError] = []
    for split in data.splits.values():
        others = [source for source in sources(split.name, unread.append) if source.kind != "masks"]
        known = [*(_read(source, split, unread.append) for source in others), from_masks]
        pairs = [compare_labels(split, first, second) for first, second in combinations(known, 2)]
        differences += [difference for difference in pairs if difference is not None]
    missing = [line for error in met if isinstance(error, MissingFilesError) for line in error.missing]
    faults = [fault for check in checks for fault in check.faults]
    faults += [str(error) for error in met if not isinstance(error, MissingFilesError)]
    return CheckReport(
        data,
        EXPECTED[layout],
        tuple(_count(split) for split in data.splits.values()),
        tuple(missing),
        tuple(dict.fromkeys(faults)),  # a mask may have been read for its labels before
        tuple(differences),
        tuple(text for text in dict.fromkeys(map(str, unread)) if text not in faults),
    )


def verify_files(data: DataSet) -> None:
    """Decode every file once. Raises the GwsssError of the first bad one, in the order of the lists."""
    for check in check_files(_records(data), len(data.classes)):
        if check.faults:
            raise GwsssError(check.faults[0])


def unreadable_images(data: DataSet, limit: int) -> dict[Path, str]:
    """The training images that cannot be decoded, and why: for `without_images`. Every file is decoded once.

    Raises GwsssError when there are more than `limit`, and for whatever is wrong with any other file.
    """
    records, found = _records(data), {}
    validated = {record.image for name, split in data.splits.items() if name == "val" for record in split.records}
    for record, check in zip(records, check_files(records, len(data.classes)), strict=True):
        if not check.readable and record.image not in validated:
            found[record.image] = check.faults[0]
            if len(found) > limit:
                raise GwsssError(
                    f"more than data.bad_image_limit = {limit} images cannot be read: "
                    f"{', '.join(path.name for path in found)}; {check.faults[0]}"
                )
        elif check.faults:
            raise GwsssError(check.faults[0])
    return found


def without_images(data: DataSet, images: Collection[Path]) -> DataSet:
    """`data` less the records of some images. Raises GwsssError when none is left to learn from."""
    splits = {
        name: split.subset([number for number, record in enumerate(split.records) if record.image not in images])
        for name, split in data.splits.items()
    }
    learned = "train_aug" if "train_aug" in splits else "train"
    if not len(splits[learned]):
        raise GwsssError(f"no usable image: none of the {len(data.splits[learned])} to learn from can be read")
    kept = {name: split for name, split in splits.items() if len(split)}
    return DataSet(data.root, data.layout, data.classes, kept)


def check_files(
    records: Sequence[Record], num_classes: int, progress: Callable[[int, int], None] | None = None
) -> Iterator[FileCheck]:
    """Decode the files of each record, on all cores; results come in the order of `records`."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for done, check in enumerate(pool.map(lambda record: check_record(record, num_classes), records), 1):
                if progress is not None:
                    progress(done, len(records))
                yield check
        finally:
            pool.shutdown(cancel_futures=True)  # whoever has seen enough need not wait for the rest


def check_record(record: Record, num_classes: int) -> FileCheck:
    """Decode image, mask and saliency map; they must be of one size, and the mask hold legal values alone."""
    faults: list[str] = []
    sizes: dict[Path, tuple[int, int]] = {}
    labels = None
    try:
        sizes[record.image] = read_image(record.image).size
    except GwsssError as error:
        faults.append(str(error))
    if record.mask is not None:
        try:
            mask = read_mask(record.mask, num_classes)
            labels, sizes[record.mask] = mask_labels(mask), (mask.shape[1], mask.shape[0])
        except GwsssError as error:
            faults.append(str(error))
    if record.saliency is not None:
        try:
            height, width = read_saliency(record.saliency).shape
            sizes[record.saliency] = width, height
        except GwsssError as error:
            faults.append(str(error))
    readable = record.image in sizes
    if readable:
        wanted = sizes.pop(record.image)
        faults += [
            f"{path} has {size[0]}x{size[1]} pixels, but its image {record.image} has {wanted[0]}x{wanted[1]}"
            for path, size in sizes.items()
            if size != wanted
        ]
    faults = [f"{record.where}: {fault}" if record.where else fault for fault in faults]
    return FileCheck(tuple(faults), labels, readable)


def compare_labels(split: Split, first: LabelSource, second: LabelSource) -> LabelDifference | None:
    """How two sources disagree about the images both know, or None when they do not."""
    images, relations, example = 0, set(), ""
    differing = 0
    for record in split.records:
        one, other = first.lookup(record), second.lookup(record)
        if one is None or other is None:
            continue
        images += 1
        if set(one) == set(other):
            continue
        differing += 1
        relations.add("subset" if set(one) < set(other) else "superset" if set(one) > set(other) else "mixed")
        example = example or f"{record.id}: {_names(one, split)} and {_names(other, split)}"
    if not differing:
        return None
    relation: Any = relations.pop() if len(relations) == 1 else "mixed"
    return LabelDifference(
        split.name, Path(first.where).name, Path(second.where).name, images, differing, relation, example
    )


def _records(data: DataSet) -> list[Record]:
    """Every record once, though splits may share files."""
    files = {(r.image, r.mask, r.saliency): r for split in data.splits.values() for r in split.records}
    return list(files.values())


def _names(labels: Iterable[int], split: Split) -> str:
    return "+".join(split.classes[label] for label in labels) or "nothing"


def _read(source: LabelSource, split: Split, on_fault: OnFault) -> LabelSource:
    """A source that was asked about every record of `split`, and does not know those it failed at."""
    labels = look_up(source, split.records, on_fault)
    return replace(source, lookup=lambda record: labels.get(record.id))


def _own_labels(split: Split, layout: str) -> LabelSource:
    labels = {record.id: record.labels for record in split.records}
    where = {"folder": "class folders", "csv": "CSV file", "cub": "image_class_labels.txt"}[layout]
    return LabelSource("list", where, lambda record: labels[record.id])


def _count(split: Split) -> SplitCount:
    return SplitCount(
        split.name,
        len(split),
        sum(record.mask is not None for record in split.records),
        sum(record.saliency is not None for record in split.records),
        split.labels.sum(axis=0, dtype=np.int64),
    )
