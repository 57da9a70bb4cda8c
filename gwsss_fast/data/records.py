"""What a data set is once it is open: records in splits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gwsss_fast.errors import GwsssError

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the image, both corners within
OnFault = Callable[[GwsssError], None]  # told of a fault that one image or source of labels can be left out for


def raise_fault(error: GwsssError) -> None:
    """The usual OnFault: nothing is left out."""
    raise error


@dataclass(frozen=True)
class Record:
    """One image. `labels` are 0-based foreground classes, sorted; `id` is unique and fit for a file name.

    `where` is the list, or CSV file, and the line that first name the image, if any do. `boxes` surround the things of
    the image's labels, where the data set says so itself.
    """

    id: str
    image: Path
    mask: Path | None = None
    saliency: Path | None = None
    labels: tuple[int, ...] = ()
    where: str = ""
    boxes: tuple[Box, ...] = ()

    @contextmanager
    def located(self) -> Iterator[None]:
        """Let a GwsssError about one of the image's files begin with list and line."""
        try:
            yield
        except GwsssError as error:
            if not self.where:
                raise
            raise GwsssError(f"{self.where}: {error}") from error


@dataclass(frozen=True)
class Split:
    """The records of one list; `classes` are the foreground classes alone."""

    name: str
    classes: tuple[str, ...]
    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def labels(self) -> np.ndarray:
        """Multi-hot labels (n, L) uint8."""
        labels = np.zeros((len(self.records), len(self.classes)), np.uint8)
        for row, record in zip(labels, self.records, strict=True):
            row[list(record.labels)] = 1
        return labels

    def subset(self, indices: Iterable[int]) -> Split:
        """The records at `indices`, in that order."""
        return Split(self.name, self.classes, tuple(self.records[index] for index in indices))


@dataclass(frozen=True)
class DataSet:
    """An open data set. Splits: `train` (has masks, scores the maps), `train_aug` (training) and `val`."""

    root: Path
    layout: str
    classes: tuple[str, ...]
    splits: dict[str, Split]

    @property
    def training(self) -> Split:
        """The images to learn from: `train_aug`, else `train`."""
        return self.splits["train_aug"] if "train_aug" in self.splits else self.splits["train"]

    @property
    def scoring(self) -> Split | None:
        """`train` when its images have masks to score maps against."""
        split = self.splits.get("train")
        return split if split is not None and all(record.mask is not None for record in split.records) else None

    @property
    def validation(self) -> Split | None:
        """`val`, with or without masks, when there is one."""
        return self.splits.get("val")


class MissingFilesError(GwsssError):
    """Files that a list names do not exist. `missing` has one line for each: list, line number and path."""

    def __init__(self, missing: Sequence[str]) -> None:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        super().__init__(f"{missing[0]} does not exist{more}; add the file or take it off the list")
        self.missing = tuple(missing)
