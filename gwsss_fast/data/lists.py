"""Image lists in the three dialects of the field, told apart line by line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gwsss_fast.data.class_names import read_lines
from gwsss_fast.data.images import IMAGE_EXTENSIONS
from gwsss_fast.errors import GwsssError


@dataclass(frozen=True)
class ListEntry:
    """One line of a list. Paths are relative to the data folder; `labels` is None when the line gives none."""

    line: int
    id: str
    image: PurePosixPath | None = None
    mask: PurePosixPath | None = None
    labels: tuple[int, ...] | None = None


def read_list(path: str | Path) -> list[ListEntry]:
    """The entries of an image list: `id`, `x.jpg`, `id c1 c2 ...` (0-based labels) or `/JPEGImages/x.jpg /Masks/x.png`.

    Raises GwsssError naming file and line when the list is missing, empty, malformed or names an image twice.
    """
    path = Path(path)
    entries: list[ListEntry] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, "image list"), start=1):
        fields = line.split()
        if not fields:
            continue
        entry = _parse(fields, path, number)
        if entry.id in seen:
            raise GwsssError(f"{path}, line {number}: image {entry.id} is already on line {seen[entry.id]}")
        seen[entry.id] = number
        entries.append(entry)
    if not entries:
        raise GwsssError(f"image list {path} is empty")
    return entries


def _parse(fields: list[str], path: Path, number: int) -> ListEntry:
    first = PurePosixPath(fields[0].lstrip("/"))
    if "/" in fields[0] or first.suffix.lower() in IMAGE_EXTENSIONS:
        if len(fields) > 2:
            raise GwsssError(f"{path}, line {number}: an image path is followed by one mask path at most")
        mask = PurePosixPath(fields[1].lstrip("/")) if len(fields) == 2 else None
        return ListEntry(number, first.stem, first, mask)
    if len(fields) == 1:
        return ListEntry(number, fields[0])
    if not all(field.isdecimal() for field in fields[1:]):
        raise GwsssError(
            f"{path}, line {number}: {' '.join(fields[1:])!r} are no labels; write class numbers from 0 up"
        )
    return ListEntry(number, fields[0], labels=tuple(sorted({int(field) for field in fields[1:]})))
