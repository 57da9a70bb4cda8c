"""Image lists in the three dialects of the field, told apart line by line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from gwsss_fast.data.class_names import read_lines
from gwsss_fast.data.images import IMAGE_EXTENSIONS
from gwsss_fast.data.records import OnFault, raise_fault
from gwsss_fast.errors import GwsssError

_MOST_DIGITS = 9  # of a class number
_SHOWN = 100  # characters of a bad line, in its message


@dataclass(frozen=True)
class ListEntry:
    """One line of a list. Paths are relative to the data folder; `labels` is None when the line gives none."""

    line: int
    id: str
    image: PurePosixPath | None = None
    mask: PurePosixPath | None = None
    labels: tuple[int, ...] | None = None


def read_list(path: str | Path, on_fault: OnFault = raise_fault) -> list[ListEntry]:
    """The entries of an image list: `id`, `x.jpg`, `id c1 c2 ...` (0-based labels) or `/JPEGImages/x.jpg /Masks/x.png`.

    Raises GwsssError naming the file when it is missing or empty. `on_fault` is told of lines that are malformed or
    name an image again; where it does not raise, they are left out.
    """
    path = Path(path)
    entries: list[ListEntry] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, "image list"), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            entry = _parse(fields)
        except GwsssError as error:
            on_fault(GwsssError(f"{path}, line {number}: {error}"))
            continue
        if entry.id in seen:
            on_fault(GwsssError(f"{path}, line {number}: image {entry.id} is already on line {seen[entry.id]}"))
            continue
        seen[entry.id] = number
        entries.append(replace(entry, line=number))
    if not entries:
        raise GwsssError(f"image list {path} is empty")
    return entries


def _parse(fields: list[str]) -> ListEntry:
    first = PurePosixPath(fields[0].lstrip("/"))
    if "/" in fields[0] or first.suffix.lower() in IMAGE_EXTENSIONS:
        if len(fields) > 2:
            raise GwsssError("an image path is followed by one mask path at most")
        mask = PurePosixPath(fields[1].lstrip("/")) if len(fields) == 2 else None
        return ListEntry(0, first.stem, first, mask)
    if len(fields) == 1:
        return ListEntry(0, fields[0])
    if not all(field.isdecimal() and len(field) <= _MOST_DIGITS for field in fields[1:]):
        raise GwsssError(f"{' '.join(fields[1:])[:_SHOWN]!r} are no labels; write class numbers from 0 up")
    return ListEntry(0, fields[0], labels=tuple(sorted({int(field) for field in fields[1:]})))
