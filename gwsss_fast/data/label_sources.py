"""Where image-level labels can come from: a list, cls_labels.npy, masks, XML annotations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from gwsss_fast.data.images import IGNORE, read_mask
from gwsss_fast.data.label_files import read_cls_labels
from gwsss_fast.data.lists import ListEntry
from gwsss_fast.data.records import OnFault, Record, raise_fault
from gwsss_fast.errors import GwsssError


@dataclass(frozen=True)
class LabelSource:
    """Labels of one origin. `lookup` gives None for an image it knows nothing of."""

    kind: str  # list, cls_labels, masks or xml
    where: str  # file or folder, for messages
    lookup: Callable[[Record], tuple[int, ...] | None]


def from_list(path: Path, entries: Sequence[ListEntry], classes: tuple[str, ...]) -> LabelSource | None:
    """The labels in a list, or None when it gives none. Raises GwsssError for a label beyond the classes."""
    if all(entry.labels is None for entry in entries):
        return None
    for entry in entries:
        if entry.labels and entry.labels[-1] >= len(classes):
            raise GwsssError(
                f"{path}, line {entry.line}: label {entry.labels[-1]} of image {entry.id} is too large for "
                f"{len(classes)} classes (0 to {len(classes) - 1}); name all classes in classes.txt"
            )
    labels = {entry.id: entry.labels or () for entry in entries}
    return LabelSource("list", str(path), lambda record: labels.get(record.id))


def from_cls_labels(path: Path, classes: tuple[str, ...]) -> LabelSource:
    """The labels in a `cls_labels.npy`. Raises GwsssError when its vectors are not one entry a class."""
    vectors = read_cls_labels(path)
    length = len(next(iter(vectors.values())))
    if length != len(classes):
        raise GwsssError(
            f"{path} has label vectors of {length} classes, but {len(classes)} are named; put the right names in "
            f"classes.txt"
        )

    def lookup(record: Record) -> tuple[int, ...] | None:
        vector = vectors.get(record.id)
        return None if vector is None else tuple(np.flatnonzero(vector).tolist())

    return LabelSource("cls_labels", str(path), lookup)


def from_masks(where: Path, classes: tuple[str, ...]) -> LabelSource:
    """The classes that occur in an image's mask."""
    known: dict[Path, tuple[int, ...]] = {}  # splits overlap, and decoding is slow

    def lookup(record: Record) -> tuple[int, ...] | None:
        if record.mask is None:
            return None
        if record.mask not in known:
            known[record.mask] = mask_labels(read_mask(record.mask, len(classes)))
        return known[record.mask]

    return LabelSource("masks", f"the masks in {where}", lookup)


def mask_labels(mask: np.ndarray) -> tuple[int, ...]:
    """The 0-based classes that occur in a mask."""
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=1))
    return tuple((present[(present > 0) & (present != IGNORE)] - 1).tolist())


def from_xml(folder: Path, classes: tuple[str, ...]) -> LabelSource:
    """The objects in VOC's `Annotations/ID.xml`. Raises GwsssError naming the file when it cannot be understood."""
    number = {name: index for index, name in enumerate(classes)}

    def lookup(record: Record) -> tuple[int, ...] | None:
        path = folder / f"{record.id}.xml"
        if not path.is_file():
            return None
        try:
            names = {node.findtext("name", "").strip() for node in ElementTree.parse(path).iter("object")}
        except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two for odd encodings
            raise GwsssError(f"annotation {path} is not valid XML: {error}") from error
        unknown = sorted(names - number.keys())
        if unknown:
            raise GwsssError(f"annotation {path} holds an object {unknown[0]!r} that is none of the named classes")
        return tuple(sorted(number[name] for name in names))

    return LabelSource("xml", str(folder), lookup)


def label_records(
    records: Sequence[Record],
    sources: Iterable[LabelSource],
    *,
    list_path: Path,
    required: bool,
    on_fault: OnFault = raise_fault,
) -> tuple[Record, ...]:
    """The records with the labels of the first source that knows them all.

    When `required`, it is a fault if there is no such source or an image has no label at all; such images keep an
    empty tuple. So do those whose labels cannot be read, always a fault.
    """
    failures = []
    for source in sources:
        labels = look_up(source, records, on_fault)
        missing = [record.id for record in records if labels.get(record.id, ()) is None]
        if missing:
            failures.append(f"{source.where} lacks {missing[0]}" + _more(missing))
            continue
        empty = [record.id for record in records if labels.get(record.id) == ()]
        if empty and required:
            on_fault(
                GwsssError(
                    f"image {empty[0]}{_more(empty)} of {list_path} has no label in {source.where}; "
                    f"add its labels or take it off the list"
                )
            )
        return tuple(replace(record, labels=labels.get(record.id) or ()) for record in records)
    if required:
        reasons = "; ".join(failures) or "nothing gives any, neither lists nor cls_labels.npy, masks or annotations"
        on_fault(GwsssError(f"no image-level labels for {list_path}: {reasons}; put them in the list: id c1 c2 ..."))
    return tuple(records)


def look_up(
    source: LabelSource, records: Iterable[Record], on_fault: OnFault = raise_fault
) -> dict[str, tuple[int, ...] | None]:
    """What a source gives each image, by id; images whose labels cannot be read are faults and left out."""
    labels = {}
    for record in records:
        try:
            with record.located():
                labels[record.id] = source.lookup(record)
        except GwsssError as error:
            on_fault(error)
    return labels


def _more(items: Sequence[str]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
