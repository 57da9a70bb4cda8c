"""Worker processes that neither answer Ctrl-C nor wrap an error of the user's in a traceback of their own."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from gwsss_fast.errors import GwsssError


class _Guarded(Dataset[Any]):
    """A data set that gives its GwsssError as an item instead of raising it.

    Raised in a worker, it would reach the main process as a text of many lines with that worker's traceback.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: Any) -> Any:
        try:
            return self.dataset[position]
        except GwsssError as error:
            return error


def make_loader(dataset: Any, *, workers: int = 0, **options: Any) -> DataLoader[Any]:
    """A loader whose batches depend on the data set and the sampler alone; read it through `checked`.

    `options` are DataLoader's. Drawing from it leaves PyTorch's global random state as it is.
    """
    if options.get("batch_size", 1) is not None:
        options["collate_fn"] = _collate
    return DataLoader(
        _Guarded(dataset),
        num_workers=workers,
        worker_init_fn=_ignore_interrupt,
        generator=torch.Generator(),  # else each pass would draw from the global generator
        **options,
    )


def checked(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of `make_loader`. Raises the GwsssError that an item of one met, as it was raised in the worker."""
    for batch in loader:
        if isinstance(batch, GwsssError):
            raise batch
        yield batch


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, GwsssError)), None) or default_collate(items)


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal, but only the main one decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
