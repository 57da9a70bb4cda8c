"""Batches in an order that depends on the seed and the step alone, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from gwsss_fast.data.dataset import Split
from gwsss_fast.data.images import read_size
from gwsss_fast.data.loading import checked, make_loader
from gwsss_fast.data.torch_datasets import ImageCache
from gwsss_fast.training.parts import Share, of_share, own_rows

_SAMPLE = 32  # images measured to guess the size of all of them


class EpochDataset(Protocol):
    """A data set whose content changes with the epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Any: ...

    def set_epoch(self, epoch: int) -> None: ...


class _Positions(Sampler[list[int]]):
    """The positions of each batch of the epoch at hand."""

    def __init__(self) -> None:
        self.batches: Sequence[list[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def epochs_of_batches(
    dataset: EpochDataset, batches: Any, start: int, epoch_steps: int, workers: int, pin: bool
) -> Iterator[Share]:
    """This process's share of the batches from step `start` on, without end: epochs, each `epoch_steps` long.

    batches(epoch): the positions of each batch of that epoch. Worker processes live as long as the iterator. Raises
    the GwsssError of an item that cannot be read.
    """
    positions = _Positions()
    loader = make_loader(
        dataset, workers=workers, batch_sampler=positions, persistent_workers=workers > 0, pin_memory=pin
    )
    epoch, skip = divmod(start, epoch_steps)
    while True:
        dataset.set_epoch(epoch)
        whole = batches(epoch)[skip:epoch_steps]
        positions.batches = [of_share(batch) for batch in whole]
        for batch, items in zip(whole, checked(loader), strict=True):
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


def image_cache(split: Split, megabytes: int) -> ImageCache:
    """A cache filled with the split's images when all of them fit, else an empty one."""
    if not len(split) or not megabytes:
        return ImageCache()
    sizes = []
    for record in split.records[:: max(len(split) // _SAMPLE, 1)]:
        with record.located():
            sizes.append(read_size(record.image))
    need = 3 * len(split) * sum(width * height for width, height in sizes) / len(sizes)
    if need > 0.9 * megabytes * 2**20:
        return ImageCache()
    cache = ImageCache(megabytes)
    cache.preload(split.records)
    return cache
