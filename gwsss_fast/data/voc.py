"""PASCAL VOC 2012, with or without SBD, and any folder of the same layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

from gwsss_fast.data import label_sources
from gwsss_fast.data.class_names import VOC_CLASSES, find_classes, looks_like_voc
from gwsss_fast.data.images import ImageFolder, is_file, open_saliency
from gwsss_fast.data.label_sources import LabelSource, label_records
from gwsss_fast.data.lists import ListEntry, read_list
from gwsss_fast.data.records import DataSet, MissingFilesError, OnFault, Record, Split, raise_fault
from gwsss_fast.errors import GwsssError

LABEL_KINDS = ("auto", "list", "cls_labels", "masks", "xml")
EXPECTED = "JPEGImages/, SegmentationClass/ or SegmentationClassAug/, and ImageSets/Segmentation/ with train.txt"

_LISTS = Path("ImageSets/Segmentation")
_LIST_NAMES = {  # spellings of the field, the usual one first
    "train": ("train", "train_id"),
    "train_aug": ("train_aug", "trainaug", "train_aug_id", "train_cls"),
    "val": ("val", "val_id", "val_cls"),
}
_SBD_FOLDERS = ("cls", "SBD/cls", "SBD/dataset/cls", "sbd/cls", "benchmark_RELEASE/dataset/cls", "dataset/cls")


class VocFolder:
    """A folder of VOC layout, its files listed once.

    Raises GwsssError when the folder lacks images or lists, or when nothing names the classes. `on_fault` is told of
    missing files, of lists and lines that are malformed, and of labels that lack or cannot be read; where it does not
    raise, they are left out.
    """

    def __init__(
        self,
        root: Path,
        *,
        classes_file: str | Path | None = None,
        train_list: str | Path | None = None,
        train_aug_list: str | Path | None = None,
        val_list: str | Path | None = None,
        labels: str | Path = "auto",
        saliency: str | Path | None = None,
        on_fault: OnFault = raise_fault,
    ) -> None:
        self.root, self._on_fault = root, on_fault
        self._images = ImageFolder(root / "JPEGImages")
        if not len(self._images):
            raise GwsssError(f"{root / 'JPEGImages'} holds no image; expected {EXPECTED}")
        masks = [ImageFolder(root / name, (".png",)) for name in ("SegmentationClassAug", "SegmentationClass")]
        self._masks = [*masks, *(ImageFolder(root / name, (".mat",)) for name in _SBD_FOLDERS)]
        self._saliency = open_saliency(root, saliency)
        self.lists = self._find_lists({"train": train_list, "train_aug": train_aug_list, "val": val_list})
        self._listed: dict[Path, str] = {}  # where each image is named first
        self._entries = self._read_lists()
        self.labels, self._labels_file = _label_kind(labels)
        classes = find_classes(root, classes_file)
        if classes is None:
            ids = (entry.id for entries in self._entries.values() for entry in entries)
            if not looks_like_voc(ids):
                raise GwsssError(f"{root / 'classes.txt'} does not exist; write the class names there, one a line")
            classes = VOC_CLASSES
        self.classes = classes

    def dataset(self, layout: str = "voc") -> DataSet:
        """All splits that have a list."""
        return DataSet(self.root, layout, self.classes, {name: self.split(name) for name in self.lists})

    def split(self, name: str) -> Split:
        """The labelled records of the split `name`. Missing files, masks and labels are faults."""
        path, entries = self.lists[name], self._entries[name]
        records = self._records(path, entries)
        lacking = {record.id for record in records if record.mask is None}
        if name != "train_aug" and 0 < len(lacking) < len(records):
            first = next(entry for entry in entries if entry.id in lacking)
            self._on_fault(
                GwsssError(
                    f"{path}, line {first.line}: image {first.id} has no mask in "
                    f"{' or '.join(str(folder.path) for folder in self._masks[:2])} while others on the list have one "
                    f"({len(lacking)} without); add it or take the image off the list"
                )
            )
        wanted, required = self.sources(name, self.labels, self._on_fault), name != "val"
        labelled = label_records(records, wanted, list_path=path, required=required, on_fault=self._on_fault)
        return Split(name, self.classes, labelled)

    def sources(self, name: str, kind: str = "auto", on_fault: OnFault = raise_fault) -> Iterator[LabelSource]:
        """What gives labels for the split `name`, the most trusted first; opened one by one, and of one kind if asked.

        A source that cannot be read is a fault.
        """
        for found, open_source in self._candidates(name):
            try:
                source = open_source() if kind in ("auto", found) else None
            except GwsssError as error:
                on_fault(self._with_hint(error, found))
                continue
            if source is not None:
                yield source

    def _with_hint(self, error: GwsssError, kind: str) -> GwsssError:
        """A file of labels that nobody asked for need not be mended: another source may do."""
        if kind != "cls_labels" or self.labels != "auto":
            return error
        return GwsssError(f"{error}; mend or remove it, or choose other labels: --data.labels list, masks or xml")

    def _candidates(self, name: str) -> Iterator[tuple[str, Callable[[], LabelSource | None]]]:
        """Kinds of sources, and functions that open them."""
        own = self.lists[name]
        yield "list", lambda: label_sources.from_list(own, self._entries[name], self.classes)
        yield "cls_labels", lambda: self._cls_labels
        for path in sorted((self.root / _LISTS).glob("*_cls.txt")):  # labelled lists beside the split's own
            if path != own:
                yield "list", partial(self._other_list, path)
        yield "masks", lambda: self._mask_labels
        yield "xml", lambda: self._annotations

    def _other_list(self, path: Path) -> LabelSource | None:
        return label_sources.from_list(path, read_list(path), self.classes)

    @cached_property
    def _cls_labels(self) -> LabelSource | None:
        folders = [self.root, self.root / _LISTS, *(path.parent for path in self.lists.values())]
        found = (folder / "cls_labels.npy" for folder in folders if (folder / "cls_labels.npy").is_file())
        path = self._labels_file or next(found, None)
        return label_sources.from_cls_labels(path, self.classes) if path else None

    @cached_property
    def _mask_labels(self) -> LabelSource | None:
        found = any(len(folder) for folder in self._masks)
        return label_sources.from_masks(self.root, self.classes) if found else None

    @cached_property
    def _annotations(self) -> LabelSource | None:
        folder = self.root / "Annotations"
        return label_sources.from_xml(folder, self.classes) if folder.is_dir() else None

    def _find_lists(self, given: dict[str, str | Path | None]) -> dict[str, Path]:
        lists = {}
        for name, spellings in _LIST_NAMES.items():
            paths = [self.root / _LISTS / f"{spelling}.txt" for spelling in spellings]
            found = next((path for path in paths if path.is_file()), None)
            if given[name] is not None:
                found = self._given_list(str(given[name]))
            if found is not None:
                lists[name] = found
        if "train" not in lists and "train_aug" not in lists:
            raise GwsssError(f"{self.root / _LISTS} holds neither train.txt nor train_aug.txt; expected {EXPECTED}")
        return lists

    def _read_lists(self) -> dict[str, list[ListEntry]]:
        """The entries of each list; one that cannot be read is a fault, and left out while another is there to learn
        from."""
        entries: dict[str, list[ListEntry]] = {}
        for name, path in list(self.lists.items()):
            try:
                entries[name] = read_list(path, self._on_fault)
            except GwsssError as error:
                self._on_fault(error)
                del self.lists[name]
                if self.lists.keys().isdisjoint(("train", "train_aug")):
                    raise
        return entries

    def _given_list(self, name: str) -> Path:
        for path in (Path(name), self.root / name, self.root / _LISTS / name, self.root / _LISTS / f"{name}.txt"):
            if path.is_file():
                return path
        raise GwsssError(f"image list {name} does not exist, neither as a path nor in {self.root / _LISTS}")

    def _records(self, path: Path, entries: Sequence[ListEntry]) -> list[Record]:
        records, missing = [], []
        for entry in entries:
            image = self._image(entry)
            if not (image in self._images or is_file(image)):
                missing.append(f"{path}, line {entry.line}: {image}")
                continue
            where = self._listed.setdefault(image, f"{path}, line {entry.line}")
            records.append(Record(entry.id, image, self._mask(entry), self._saliency.find(entry.id), where=where))
        if missing:
            self._on_fault(MissingFilesError(missing))
        return records

    def _image(self, entry: ListEntry) -> Path:
        """Where the image of an entry is, or would be."""
        if entry.image is None:
            return self._images.find(entry.id) or self._images.path / f"{entry.id}.jpg"
        path = self.root / entry.image
        inside = self._images.path / entry.image  # a bare file name is one of JPEGImages first
        return path if len(entry.image.parts) > 1 or (is_file(path) and not is_file(inside)) else inside

    def _mask(self, entry: ListEntry) -> Path | None:
        if entry.mask is not None and is_file(self.root / entry.mask):
            return self.root / entry.mask
        return next((mask for folder in self._masks if (mask := folder.find(entry.id)) is not None), None)


def _label_kind(labels: str | Path) -> tuple[str, Path | None]:
    """The kind of labels asked for, and the file where one is named."""
    text = str(labels)
    if text in LABEL_KINDS:
        return text, None
    if text.endswith(".npy"):
        return "cls_labels", Path(text)
    raise GwsssError(f"unknown source of labels {text!r}; choose one of {', '.join(LABEL_KINDS)} or a .npy file")
