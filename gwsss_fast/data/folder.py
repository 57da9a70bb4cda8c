"""A folder of one's own: class sub-folders, or a CSV file of `file,class1|class2` lines; any file names."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from gwsss_fast.data.class_names import find_classes, read_lines
from gwsss_fast.data.images import IMAGE_EXTENSIONS, ImageFolder, images_below, is_file, open_saliency
from gwsss_fast.data.records import DataSet, MissingFilesError, OnFault, Record, Split, raise_fault
from gwsss_fast.errors import GwsssError

EXPECTED = "one sub-folder a class, or a train.csv of `file,class1|class2` lines"

_MARKS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False, "": False}

_NO_CLASSES = ("masks", "saliency")  # sub-folders that hold no images to learn from


@dataclass(frozen=True)
class _Item:
    """An image before ids are made and classes numbered."""

    image: Path
    classes: tuple[str, ...]
    where: str = ""  # line of the CSV file
    exists: bool = True


def looks_like_folder(root: Path) -> bool:
    """Whether `root` has a sub-folder that holds images, at any depth."""
    return any(True for folder in _class_folders(root) for _ in images_below(folder))


def find_csv(root: Path) -> Path | None:
    """The CSV file of the training images in `root`: train.csv, labels.csv or the only one not called val.csv."""
    found = sorted(path for path in root.glob("*.csv") if path.stem.lower() != "val")
    named = [path for path in found if path.stem.lower() in ("train", "labels")]
    if named:
        return named[-1]
    return found[0] if len(found) == 1 else None


def open_folder(
    root: Path,
    *,
    classes_file: str | Path | None = None,
    val_list: str | Path | None = None,
    saliency: str | Path | None = None,
) -> DataSet:
    """Open class sub-folders, or `train/` and `val/` that hold them.

    Without `val/` the images named by `val_list`, `val.csv` or `val.txt` (one a line, first column) are validated on.
    Raises GwsssError for images outside of class folders, empty class folders and unknown names.
    """
    apart = (root / "train").is_dir() and looks_like_folder(root / "train")
    training = _items_in_folders(root / "train" if apart else root, saliency)
    validation: list[_Item] = []
    if apart and (root / "val").is_dir():
        validation = _items_in_folders(root / "val", saliency)
    elif (path := _find_val(root, val_list)) is not None:
        training, validation = _set_apart(training, path, root)
    return _assemble(root, "folder", training, validation, classes_file, saliency)


def open_csv(
    path: Path,
    *,
    classes_file: str | Path | None = None,
    val_list: str | Path | None = None,
    saliency: str | Path | None = None,
    on_fault: OnFault = raise_fault,
) -> DataSet:
    """Open the images that a CSV file names, relative to its folder.

    A `val.csv` beside it has lines of the same kind; a `val.txt` names images of the first file to set apart.
    Raises GwsssError for a file that cannot be read or names no image; `on_fault` is told of malformed lines, images
    named twice, missing images, and those without a label.
    """
    root = path.parent
    training = _items_in_csv(path, on_fault)
    validation: list[_Item] = []
    val = _find_val(root, val_list)
    if val is not None and val.suffix.lower() == ".csv":
        validation = _items_in_csv(val, on_fault)
        known = {item.image: item.where for item in training}
        for item in validation:
            if item.image in known:
                raise GwsssError(f"{item.where}: {item.image.name} is an image to learn from too ({known[item.image]})")
    elif val is not None:
        training, validation = _set_apart(training, val, root)
    return _assemble(root, "csv", training, validation, classes_file, saliency)


def _class_folders(root: Path) -> list[Path]:
    return sorted(
        path
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name.lower() not in _NO_CLASSES
    )


def _items_in_folders(root: Path, saliency: str | Path | None) -> list[_Item]:
    stray = sorted(path for path in root.iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS)
    if stray:
        raise GwsssError(f"image {stray[0]} has no label, for it lies in no class folder; expected {EXPECTED}")
    items = []
    for folder in _class_folders(root):
        if saliency is not None and folder in (Path(saliency), root / saliency):
            continue
        images = sorted(images_below(folder))
        if not images:
            raise GwsssError(f"class folder {folder} holds no image ({', '.join(IMAGE_EXTENSIONS)})")
        items += [_Item(image, (folder.name,)) for image in images]
    if not items:
        raise GwsssError(f"{root} holds no class folder; expected {EXPECTED}")
    return items


def _items_in_csv(path: Path, on_fault: OnFault) -> list[_Item]:
    reader = csv.reader(read_lines(path, "CSV file"), skipinitialspace=True)
    items: list[_Item] = []
    seen: dict[Path, str] = {}
    first, columns = True, tuple[str, ...]()
    try:
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(fields):
                continue
            _check_separator(fields[0], path.parent, where)
            header = first and _is_header(fields, path.parent)
            first = False
            if header:
                columns = tuple(name.strip() for name in fields[1:])
                continue
            names = _classes_in_line(fields, columns)
            if isinstance(names, str):
                on_fault(GwsssError(f"{where}: {names}"))
                continue
            if not PurePath(fields[0].strip()).name:
                on_fault(GwsssError(f"{where}: the first column names no file"))
                continue
            image = path.parent / fields[0].strip()
            if image in seen:
                words = f"image {image} is named twice, first in {seen[image]}; write all its classes in one line"
                on_fault(GwsssError(f"{where}: {words}"))
                continue
            if not names:
                on_fault(GwsssError(f"{where}: image {image} has no label; add a class or take the line out"))
            seen[image] = where
            items.append(_Item(image, names, where, is_file(image)))
    except csv.Error as error:
        raise GwsssError(f"{path}, line {reader.line_num}: {error}") from error
    missing = [f"{item.where}: {item.image}" for item in items if not item.exists]
    if missing:
        on_fault(MissingFilesError(missing))
    if not items:
        raise GwsssError(f"CSV file {path} names no image")
    return items


def _classes_in_line(fields: Sequence[str], columns: Sequence[str]) -> tuple[str, ...] | str:
    """The classes of an image, or what is wrong with its line: `class1|class2`, or a 0 or 1 in each of `columns`."""
    if len(columns) < 2 and len(fields) == 2:
        return tuple(dict.fromkeys(name.strip() for name in fields[1].split("|") if name.strip()))
    if len(columns) < 2 or len(fields) != 1 + len(columns):
        expected = "`file,class1|class2`" if len(columns) < 2 else f"{1 + len(columns)} columns as in the first line"
        return f"expected {expected}, got {len(fields)} columns"
    marks = [_MARKS.get(field.strip().lower()) for field in fields[1:]]
    if None in marks:
        at = marks.index(None)
        return (
            f"column {columns[at]} holds {fields[1 + at]!r}; write `file,class1|class2`, or 0 and 1 in a column a class"
        )
    return tuple(name for name, mark in zip(columns, marks, strict=True) if mark)


def _is_header(fields: Sequence[str], folder: Path) -> bool:
    """Whether the first line of a file names no image: nothing with an image's suffix, and no file that exists."""
    suffixes = {PurePath(field.strip()).suffix.lower() for field in fields}
    return suffixes.isdisjoint(IMAGE_EXTENSIONS) and not is_file(folder / fields[0].strip())


def _check_separator(field: str, folder: Path, where: str) -> None:
    """Raise GwsssError when the first field of a line holds another separator, unless a file is named so."""
    found = [name for separator, name in ((";", "';'"), ("\t", "a tab")) if separator in field.strip()]
    if found and not is_file(folder / field.strip()):
        raise GwsssError(f"{where}: columns are separated by {found[0]}; save the file with commas between them")


def _find_val(root: Path, given: str | Path | None) -> Path | None:
    if given is not None:
        found = next((path for path in (Path(given), root / given) if path.is_file()), None)
        if found is None:
            raise GwsssError(f"validation list {given} does not exist, neither as a path nor in {root}")
        return found
    return next((root / name for name in ("val.csv", "val.txt") if (root / name).is_file()), None)


def _set_apart(items: Sequence[_Item], path: Path, root: Path) -> tuple[list[_Item], list[_Item]]:
    """Split `items` into those the list at `path` does not name and those it names."""
    by_path = {_below(item.image, root).as_posix(): item for item in items}
    names = Counter(item.image.name for item in items)
    by_name = {item.image.name: item for item in items if names[item.image.name] == 1}
    chosen: dict[Path, _Item] = {}
    for number, line in enumerate(read_lines(path, "validation list"), start=1):
        name = next(csv.reader([line]), [""])[0].strip() if line.strip() else ""
        item = by_path.get(name.removeprefix("./")) or by_name.get(name)
        if item is not None:
            chosen[item.image] = item
            continue
        _check_separator(name, root, f"{path}, line {number}")
        if name and not (number == 1 and _is_header([name], root)):
            raise GwsssError(f"{path}, line {number}: {name} is none of the images in {root}")
    if not chosen:
        raise GwsssError(f"validation list {path} is empty")
    rest = [item for item in items if item.image not in chosen]
    if not rest:
        raise GwsssError(f"validation list {path} names every image; none is left to learn from")
    return rest, list(chosen.values())


def _assemble(
    root: Path,
    layout: str,
    training: Sequence[_Item],
    validation: Sequence[_Item],
    classes_file: str | Path | None,
    saliency: str | Path | None,
) -> DataSet:
    """Number the classes, name the records, find masks and saliency maps."""
    items = [*training, *validation]
    classes = find_classes(root, classes_file)
    if classes is None:
        classes = tuple(sorted({name for item in items for name in item.classes}))
    number = {name: index for index, name in enumerate(classes)}
    ids = _make_ids([_below(item.image, root) for item in items])
    stems = Counter(item.image.stem for item in items)
    masks, maps = _Companions(root, ImageFolder(root / "masks", (".png",)), stems), open_saliency(root, saliency)
    saliencies = _Companions(root, maps, stems)
    records = []
    for item, name in zip(items, ids, strict=True):
        unknown = [label for label in item.classes if label not in number]
        if unknown:
            raise GwsssError(
                f"{item.where or item.image}: class {unknown[0]!r} is none of the {len(classes)} named classes"
            )
        labels = tuple(sorted(number[label] for label in item.classes))
        records.append(
            Record(
                name, item.image, masks.find(item.image, name), saliencies.find(item.image, name), labels, item.where
            )
        )
    existing = [(record, item.exists) for record, item in zip(records, items, strict=True)]
    learned, validated = (
        [record for record, exists in part if exists] for part in (existing[: len(training)], existing[len(training) :])
    )
    with_masks = [record for record in learned if record.mask is not None]
    splits = {"train": with_masks, "train_aug": learned, "val": validated}
    return DataSet(
        root, layout, classes, {name: Split(name, classes, tuple(chosen)) for name, chosen in splits.items() if chosen}
    )


def _below(image: Path, root: Path) -> PurePath:
    """The path of an image below `root`; one from elsewhere, which only a CSV can name, keeps its whole path."""
    path = image.relative_to(root) if image.is_relative_to(root) else image
    return PurePath(*(part for part in path.parts if part not in (path.anchor, "..")))


def _make_ids(paths: Sequence[PurePath]) -> list[str]:
    """Unique names fit for files: cat/1.jpg becomes cat__1, or cat__1.jpg where cat/1.png is there too."""
    short = ["__".join(path.with_suffix("").parts) for path in paths]
    count = Counter(short)
    ids = [name if count[name] == 1 else "__".join(path.parts) for name, path in zip(short, paths, strict=True)]
    taken: set[str] = set()
    for index in range(len(ids)):
        while ids[index] in taken:
            ids[index] += "_"
        taken.add(ids[index])
    return ids


class _Companions:
    """Masks or saliency maps under the path, the id or, where it is unique, the name of their image."""

    def __init__(self, root: Path, folder: ImageFolder, stems: Counter[str]) -> None:
        self._root, self._folder, self._stems = root, folder, stems

    def find(self, image: Path, name: str) -> Path | None:
        found = self._folder.find(name)
        if found is None and self._stems[image.stem] == 1:
            found = self._folder.find(image.stem)
        if found is None:
            path = self._folder.path / _below(image, self._root).with_suffix(".png")
            found = path if is_file(path) else None
        return found
