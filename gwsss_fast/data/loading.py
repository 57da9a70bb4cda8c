"""Worker processes that answer neither Ctrl-C nor SIGTERM, nor wrap an error of the user's in a traceback of their own.

One that dies (killed for its memory, say) ends the job with one message.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from gwsss_fast.data.encoded import UNMADE
from gwsss_fast.data.images import pixel_limit, set_pixel_limit
from gwsss_fast.errors import GwsssError

_DEAD = r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (\w[\w ]*)|exited)"  # PyTorch's words
_DEATHS = {  # the signal -> what has most likely happened, and what helps
    "Killed": "most likely by the operating system, which had no memory left; lower --workers or data.cache_mb",
    "Bus error": "the shared memory (/dev/shm) is full; make it larger (docker: --shm-size) or lower --workers",
    "": "a broken file may have crashed its decoder: check_data tells which; or lower --workers",
}


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
        except MemoryError:
            return GwsssError("no memory left to read images; lower --workers, data.cache_mb or the batch")


def make_loader(dataset: Any, *, workers: int = 0, **options: Any) -> DataLoader[Any]:
    """A loader whose batches depend on the data set and the sampler alone; read it through `checked`.

    `options` are DataLoader's. Drawing from it leaves PyTorch's global random state as it is.
    """
    if options.get("batch_size", 1) is not None:
        options["collate_fn"] = _collate
    return DataLoader(
        _Guarded(dataset),
        num_workers=workers,
        worker_init_fn=partial(_start_worker, pixel_limit()),
        generator=torch.Generator(),  # else each pass would draw from the global generator
        **options,
    )


def checked(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of `make_loader`. Raises the GwsssError that an item of one met, as it was raised in the worker, and
    that of `worker_death`."""
    batches = iter(loader)
    while True:
        death = None
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            death = worker_death(error)
            if death is None:
                raise
        if death is not None:
            _abandon(batches)
            raise death
        if isinstance(batch, GwsssError):
            raise batch
        yield batch


def worker_death(error: RuntimeError) -> GwsssError | None:
    """What PyTorch raises when a worker process died, as an error that says which and what to do; None for others.

    PyTorch learns of it by a signal, so the error may come from any line of the main process.
    """
    reason = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error  # the one that knows the signal
    found = re.search(_DEAD, str(reason)) or re.search(_DEAD, str(error))
    if found is None:
        return None
    end = f"was killed ({found[2]})" if found[2] else "ended by itself"
    return GwsssError(
        f"the loader's worker process {found[1]} {end}: {_DEATHS.get(found[2] or '', _DEATHS[''])}, or load without "
        "worker processes (--workers 0); --resume goes on"
    )


def _abandon(batches: Iterator[Any]) -> None:
    """End the other worker processes. PyTorch's signal handler would raise its error again, anywhere, for each of them
    as long as it knows of the dead one."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main and hasattr(signal, "SIGCHLD") else None
    try:
        getattr(batches, "_shutdown_workers", lambda: None)()
    finally:
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def _collate(items: list[Any]) -> Any:
    """A batch of items, of Unmade ones a list; the error among them."""
    error = next((item for item in items if isinstance(item, GwsssError)), None)
    if error is not None:
        return error
    if not isinstance(items[0], dict) or UNMADE not in items[0]:
        return default_collate(items)
    others = [{name: value for name, value in item.items() if name != UNMADE} for item in items]
    return {UNMADE: [item[UNMADE] for item in items], **default_collate(others)}


def _start_worker(pixels: int, worker: int) -> None:
    """Ctrl-C reaches every process of the terminal and a batch system's or torchrun's SIGTERM every one of the group,
    but only the main one decides: without its workers it could not end what it is at."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    set_pixel_limit(pixels / 1e6)
