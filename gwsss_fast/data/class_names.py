"""Names of the foreground classes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from gwsss_fast.errors import GwsssError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_VOC_ID = re.compile(r"\d{4}_\d{6}")


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Foreground class names, one a line; a first line `background` is dropped.

    Raises GwsssError when the file is missing, names no class or names one twice.
    """
    path = Path(path)
    names = [name for line in read_lines(path, "class file") if (name := line.strip())]
    if names and names[0].strip("_").lower() == "background":
        del names[0]
    if not names:
        raise GwsssError(f"class file {path} names no class; write one name a line")
    for name in names:
        if names.count(name) > 1:
            raise GwsssError(f"class file {path} names {name!r} twice")
    return tuple(names)


def find_classes(root: Path, classes_file: str | Path | None) -> tuple[str, ...] | None:
    """The classes named by `classes_file`, else by `classes.txt` in `root`, else None."""
    if classes_file is not None:
        return read_classes(classes_file)
    default = root / "classes.txt"
    return read_classes(default) if default.is_file() else None


def looks_like_voc(ids: Iterable[str]) -> bool:
    """Whether all image ids have the form of PASCAL VOC's, 2007_000032."""
    return all(_VOC_ID.fullmatch(image) for image in ids)


def read_lines(path: Path, kind: str) -> list[str]:
    """The lines of a UTF-8 text file. Raises GwsssError, which calls the file a `kind`, when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise GwsssError(f"{kind} {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise GwsssError(f"{kind} {path} cannot be read as UTF-8 text: {error}") from error
