"""Images that turn out to be unreadable while a network trains: replaced by others, named once each, up to a limit.

A data set that replaces them says so in its items under `REPLACED`: of each image the index (int64, into the split) of
the one that should have been there, -1 where nothing was replaced. Batches carry the same, with one dimension more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gwsss_fast.data.images import read_image
from gwsss_fast.data.records import Split
from gwsss_fast.errors import GwsssError

REPLACED = "replaced"
AS_DRAWN = -1


class BadImages:
    """Tally of the images of `split` that were replaced; `report` is told of each, once, and why.

    Every process of a distributed training has one of its own. enlist: puts an image on the list of all of them and
    gives it whole, [] when it was there already, None where there is one process. Resuming begins anew.
    """

    def __init__(
        self,
        split: Split,
        limit: int,
        report: Callable[[str], None],
        enlist: Callable[[int], list[int] | None] = lambda index: None,
    ) -> None:
        self.limit = limit
        self._split, self._report, self._enlist = split, report, enlist
        self.reasons: dict[int, str] = {}  # by index: those that this process met
        self.found: list[int] = []  # those of all processes, when this one last met a new one

    def note(self, batch: dict[str, Any]) -> None:
        """Look at a batch: report its bad images that are new to all processes."""
        for index in np.unique(np.asarray(batch[REPLACED])).tolist():
            if index == AS_DRAWN or index in self.reasons:
                continue
            self.reasons[index] = _reason(self._split, index)
            found = self._enlist(index)
            if found != []:
                self.found = [*self.found, index] if found is None else found
                self._report(f"skipped ({len(self.found)} of at most {self.limit}): {self.reasons[index]}")

    def check(self) -> None:
        """Raises GwsssError naming them when there are more than the limit, in the process that met the last one."""
        if len(self.found) > self.limit:
            names = ", ".join(self._split.records[index].id for index in self.found)
            raise GwsssError(
                f"{len(self.found)} images cannot be read, more than data.bad_image_limit = {self.limit}: {names}; "
                f"{next(iter(self.reasons.values()))}"
            )


def substitutes(labels: np.ndarray, bad: int, key: tuple[int, ...]) -> Iterator[int]:
    """Images to take instead of `bad`: those that share the most of its labels (n, L) first, ties in the order of
    `key`; the same key gives the same images, whatever process asks. Never `bad` itself."""
    order = np.random.default_rng(key).permutation(len(labels))
    shared = labels[order].astype(np.int64) @ labels[bad].astype(np.int64)
    for index in order[np.argsort(-shared, kind="stable")].tolist():
        if index != bad:
            yield index


def _reason(split: Split, index: int) -> str:
    """Why the image cannot be read; it is read once more for that."""
    record = split.records[index]
    try:
        with record.located():
            read_image(record.image)
    except GwsssError as error:
        return str(error)
    return f"{record.where + ': ' if record.where else ''}image {record.image} or its mask could not be used"
