"""The processes of one job, as torchrun starts them: which one this is, and what they tell each other.

Without torchrun there is one process, and every function here gives back what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gwsss_fast.errors import GwsssError

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: as long as one of them may work alone, on the report for example."""
_Value = TypeVar("_Value")
_alone = False  # process 0 is in `on_main`


class ToldError(GwsssError):
    """What stopped process 0, in the others: it has been said already."""


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _together() else 0


def size() -> int:
    """The number of processes; 1 in what `on_main` runs, since nobody else is there."""
    return dist.get_world_size() if _together() else 1


def is_main() -> bool:
    """Whether this is process 0, which alone writes and prints."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def restarted() -> bool:
    """Whether torchrun has started the job again after a process died (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def job() -> Iterator[None]:
    """Join the processes that torchrun started, for the time of the block. NCCL joins GPUs, gloo all else."""
    if _joined() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def share(items: Sequence[_Value]) -> list[_Value]:
    """The items that fall to this process: every `size()`-th."""
    return list(items[rank() :: size()])


def gather(value: _Value) -> list[_Value]:
    """The values of all processes, in their order."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: _Value) -> _Value:
    """The value of process 0."""
    if size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def add(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, in place."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def wait() -> None:
    """Go on when all have come here."""
    if size() > 1:
        gather(None)  # by gloo: a barrier of NCCL would want a device


def on_main(body: Callable[[], _Value]) -> _Value:
    """What `body` gives in process 0, which alone runs it, while the others wait. Its GwsssError is raised in all."""
    if size() == 1:
        return body()
    value, problem = None, None
    if is_main():
        global _alone
        _alone = True
        try:
            value = body()
        except GwsssError as error:
            problem = error
        finally:
            _alone = False
    value, text = broadcast((value, None if problem is None else str(problem)))
    if problem is not None:
        raise problem
    if text is not None:
        raise ToldError(text)
    return value  # type: ignore[return-value]


def main_first(body: Callable[[], _Value]) -> _Value:
    """What `body` gives, in process 0 before the others: what it makes once, such as a cache, they find."""
    if size() == 1:
        return body()
    kept: list[_Value] = []
    on_main(lambda: kept.append(body()))
    return kept[0] if kept else body()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _together() -> bool:
    return _joined() and not _alone
