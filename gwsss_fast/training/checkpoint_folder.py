"""The checkpoints of a stage: last.pt, the newest; step-N.pt, those before it; best.pt, that of the best epoch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gwsss_fast import files
from gwsss_fast.errors import GwsssError
from gwsss_fast.training.checkpoints import load_checkpoint, save_checkpoint

_UNFINISHED = (".last.*.pt", ".best.*.pt", ".step-*.pt", ".weights.*.safetensors")


def replace_checkpoint(path: Path, content: dict[str, Any], keep: int, step_before: int | None) -> None:
    """Write the newest checkpoint at `path`; the one there, of `step_before`, becomes step-N.pt; in all `keep` stay.

    At no time is there none. Raises GwsssError when the disk refuses; the newest is then still the one before.
    """
    if step_before is not None and keep > 1 and path.is_file():
        link(path, path.with_name(f"step-{step_before:08d}.pt"))
    save_checkpoint(path, content)
    for old in earlier_checkpoints(path)[keep - 1 :]:
        old.unlink(missing_ok=True)


def earlier_checkpoints(path: Path) -> list[Path]:
    """The checkpoints before the newest at `path`, the latest first."""
    return sorted((x for x in path.parent.glob("step-*.pt") if x.stem[5:].isdigit()), reverse=True)


def link(path: Path, copy: Path) -> None:
    """The same content under a second name, where the file system can without writing it again."""
    if copy.exists() and copy.samefile(path):
        return  # a rename of one of its names to the other would do nothing
    with files.atomic_path(copy) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed had begun to write."""
    for pattern in _UNFINISHED:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def newest_readable(path: Path, tell: Callable[[str], None]) -> Path | None:
    """`path`, or the latest checkpoint before it that can be read where it cannot; None when there is none at all.

    What cannot be read is renamed to NAME.damaged, lest it takes a good one's place. tell: takes a line for each.
    Raises GwsssError when all are damaged, and leaves them.
    """
    there = [file for file in (path, *earlier_checkpoints(path)) if file.is_file()]
    problems: list[tuple[Path, GwsssError]] = []
    for file in there:
        try:
            load_checkpoint(file)
        except GwsssError as error:
            problems.append((file, error))
            continue
        for damaged, _ in problems:
            aside = damaged.with_name(f"{damaged.name}.damaged")
            os.replace(damaged, aside)
            tell(f"checkpoint {damaged} is damaged and now {aside.name}; going on from {file.name}")
        return file
    if problems:
        raise problems[0][1]
    return None
