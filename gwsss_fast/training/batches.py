"""Batches in an order that depends on the seed and the step alone, whatever the number of workers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from gwsss_fast import distributed
from gwsss_fast.config import DataConfig
from gwsss_fast.data.bad_images import BadImages
from gwsss_fast.data.dataset import Split
from gwsss_fast.data.encoded import EncodedFiles
from gwsss_fast.data.image_cache import DiskCache, ImageCache
from gwsss_fast.data.images import read_size
from gwsss_fast.data.loading import checked, make_loader
from gwsss_fast.errors import GwsssError
from gwsss_fast.training.parts import Share, of_share, own_rows
from gwsss_fast.training.runs import Run

_SAMPLE = 32  # images measured to guess the size of all of them


class EpochDataset(Protocol):
    """A data set whose content changes with the epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Any: ...

    def set_epoch(self, epoch: int) -> None: ...

    def prepare_epoch(self, epoch: int) -> None: ...


class _Positions(Sampler[list[int]]):
    """The positions of each batch of the epoch at hand."""

    def __init__(self) -> None:
        self.batches: Sequence[list[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def epochs_of_batches(
    dataset: EpochDataset,
    batches: Any,
    start: int,
    epoch_steps: int,
    workers: int,
    pin: bool,
    bad_images: BadImages | None = None,
    finish: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Iterator[Share]:
    """This process's share of the batches from step `start` on, without end: epochs, each `epoch_steps` long.

    batches(epoch): the positions of each batch of that epoch. Worker processes live as long as the iterator, and the
    next epoch is prepared while one runs. finish: what is left to do to the batches that they load. Raises the
    GwsssError of an item that cannot be read, of a worker process that dies, of an epoch without a batch, and of
    `bad_images` past their limit.
    """
    positions = _Positions()
    loader = make_loader(
        dataset, workers=workers, batch_sampler=positions, persistent_workers=workers > 0, pin_memory=pin
    )
    epoch, skip = divmod(start, epoch_steps)
    while True:
        dataset.set_epoch(epoch)
        whole = batches(epoch)[skip:epoch_steps]
        if not whole:
            raise GwsssError(f"epoch {epoch + 1} has no batch: no group or image of {len(dataset)} can be used")
        positions.batches = [of_share(batch) for batch in whole]
        for number, (batch, items) in enumerate(zip(whole, checked(loader), strict=True)):
            if number == 0:
                dataset.prepare_epoch(epoch + 1)
            if finish is not None:
                items = finish(items)
            if bad_images is not None:
                bad_images.note(items)
                bad_images.check()
            rows, idle = own_rows(len(batch))
            yield Share(items, tuple(rows), len(batch), idle)
        epoch, skip = epoch + 1, 0


def image_ids(split: Split, indices: Tensor) -> list[str]:
    """The names of the images at `indices` of the split, whatever their shape."""
    return [split.records[index].id for index in indices.flatten().tolist()]


def consecutive(count: int, size: int) -> list[list[int]]:
    """Positions 0..count-1 in order, `size` a batch; the last batch may be smaller."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def shuffled(count: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Positions 0..count-1 in the order of (seed, epoch), `size` a batch, without a smaller last one.

    Fewer images than `size` are repeated.
    """
    order = np.random.default_rng([seed, epoch]).permutation(max(count, size)) % count
    return [order[start : start + size].tolist() for start in range(0, len(order) - size + 1, size)]


def watch_bad_images(run: Run, split: Split, stage: str) -> BadImages | None:
    """The tally of unreadable images where they are to be skipped, None where they stop the training.

    The limit is one of all processes together. The names go to the terminal, from whatever process, and into
    logs/bad_images.txt.
    """
    if run.config.data.on_bad_image != "skip":
        return None

    def report(text: str) -> None:
        if distributed.is_main():
            run.note(text)
        else:
            print(text, file=sys.stderr)
        path = run.folder / "logs" / "bad_images.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    enlist = partial(distributed.enlist, f"bad images of {stage}")
    return BadImages(split, run.config.data.bad_image_limit, report, enlist)


def image_cache(split: Split, config: DataConfig) -> ImageCache | EncodedFiles:
    """In a folder when one is named; else in memory, filled with the split's images when all of them fit; else empty.

    None where images are decoded on the device: files stay as they are. Raises GwsssError for an image that cannot be
    read, unless those are skipped.
    """
    if config.decode == "device":
        return EncodedFiles()
    if not len(split) or not config.cache_mb:
        return ImageCache()
    if config.cache_dir is not None:
        return DiskCache(config.cache_dir, config.cache_mb)
    skip_bad, sizes = config.on_bad_image == "skip", []
    for record in split.records[:: max(len(split) // _SAMPLE, 1)]:
        with suppress(*([GwsssError] if skip_bad else [])), record.located():
            sizes.append(read_size(record.image))
    need = 3 * len(split) * sum(width * height for width, height in sizes) / max(len(sizes), 1)
    if need > 0.9 * config.cache_mb * 2**20:
        return ImageCache()
    cache = ImageCache(config.cache_mb)
    cache.preload(split.records, skip_bad)
    return cache
