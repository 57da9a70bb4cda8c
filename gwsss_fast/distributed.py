"""The processes of one job, as torchrun starts them: which one this is, and what they tell each other.

Without torchrun there is one process, and every function here gives back what it was given.

A process that ends before the job does says so in the store that all share, and each learns it within PULSE seconds
(`ended`), or at once where it waits for a message of the one that left.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gwsss_fast.errors import GwsssError, Terminated

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: as long as one of them may work alone, on the report for example."""
STARTING = timedelta(minutes=10)
PULSE, FAREWELL = 0.5, 3.0
GRACE = 60.0
"""Seconds until a process that has not ended by itself is ended, after another one has: it may wait for ever."""
LOST = (
    "another process of the job has died or cannot be reached any more; what was saved is kept, continue with --resume"
)
_Value = TypeVar("_Value")
_alone = False  # this process works without the others
_watch: _Watch | None = None


class ToldError(GwsssError):
    """What stopped another process, in this one: it has been said already."""


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
    """Join the processes that torchrun started, for the time of the block. NCCL joins GPUs, gloo all else.

    What one process raises ends all: in the others a ToldError is raised, KeyboardInterrupt or Terminated where it was
    that. Raises GwsssError, in one of those that are left, when a process has vanished.
    """
    if _joined() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    global _watch
    store = _join()
    _watch = _Watch(store, rank(), size())
    _watch.start()
    problem: BaseException | None = None
    try:
        yield
        wait()  # nobody leaves while another may still fail
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends as it is; torchrun would cut its last words off
        problem = _watch.raised(error)
        if problem is error:
            raise
        raise problem from error
    finally:
        _watch.close(problem is None)
        _watch = None
        _leave(problem)


def ended() -> BaseException | None:
    """What to raise because another process has ended; to be asked between two pieces of work done without it."""
    return _consequence(_watch.kind) if _watch is not None and _watch.kind else None


def check() -> None:
    """Raise what `ended` gives."""
    problem = ended()
    if problem is not None:
        raise problem


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


def unshare(own: Sequence[_Value]) -> list[_Value]:
    """The items of all, from what each process made of its `share`, in their order."""
    shares = gather(list(own))
    return [shares[at % len(shares)][at // len(shares)] for at in range(sum(map(len, shares)))]


def exchange(values: Sequence[_Value]) -> list[_Value]:
    """Send `values[r]` to process r; what all have sent to this one, in their order."""
    if size() == 1:
        return list(values)
    received: list[Any] = [None] * size()
    for target, value in enumerate(values):
        dist.gather_object(value, received if target == rank() else None, target)
    return received


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


def add_counts(counts: NDArray[np.int64]) -> None:
    """Let `counts` be their sum over all processes."""
    add(torch.from_numpy(counts))


def wait() -> None:
    """Go on when all have come here."""
    if size() > 1:
        gather(None)  # by gloo: a barrier of NCCL would want a device


@contextmanager
def alone() -> Iterator[None]:
    """Work without the others, who may have gone: `size` is 1."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def on_main(body: Callable[[], _Value]) -> _Value:
    """What `body` gives in process 0, which alone runs it, while the others wait. What it raises ends all (`job`)."""
    if size() == 1:
        return body()
    value, problem = None, None
    if is_main():
        try:
            with alone():
                value = body()
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            problem = error
    value, kind, text = broadcast((value, _kind(problem), str(problem)))
    if problem is not None:
        raise problem
    if kind:
        raise _consequence(kind, text)
    return value  # type: ignore[return-value]


def enlist(name: str, item: int) -> list[int] | None:
    """Put `item` on a list that all processes share, once: the whole list, in the order in which they came; [] when it
    was on it already, None where there is one process. No process waits for the others."""
    if _watch is None or size() == 1:
        return None
    store = dist.PrefixStore(name, _watch.store)
    if store.compare_set(f"item {item}", "", str(rank())).decode() != str(rank()):
        return []
    count = store.add("count", 1)
    store.set(f"place {count}", str(item))
    return [int(store.get(f"place {place}")) for place in range(1, count + 1)]


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


def _join() -> dist.Store:
    """Make the process group, and give the store that all share. Raises GwsssError when not all processes come."""
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=STARTING))
        store = _of_this_start(store, number, count)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise GwsssError(f"the processes of this job do not find each other: {problem}") from error
    return dist.PrefixStore("end", store)


def _leave(problem: BaseException | None) -> None:
    """Give the process group up. After a problem its work on GPUs is dropped, not waited for: others may never come."""
    spoken = isinstance(problem, (ToldError, KeyboardInterrupt))
    last = threading.Timer(GRACE, _end, (_kind(problem), "" if spoken else str(problem)))
    last.daemon = True
    if problem is not None:
        last.start()
        with suppress(RuntimeError, AttributeError):  # no group of NCCL
            dist.group.WORLD._get_backend(torch.device("cuda")).abort()  # type: ignore[union-attr]
    dist.destroy_process_group()
    last.cancel()


def _end(kind: str, text: str) -> None:
    """End this process, wherever it hangs, with a last word."""
    if text:
        print(f"error: {text}", file=sys.stderr, flush=True)
    os._exit({"interrupted": 130, "terminated": 143}.get(kind, 2))


def _of_this_start(store: dist.Store, number: int, count: int) -> dist.Store:
    """A part of `store` for this start alone: torchrun's outlives a restart, and holds addresses of the dead.

    Process 0 names the part, with a word of each other process that no earlier start has used, until all have seen it.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + STARTING.total_seconds()
    others = range(1, count)
    if number:
        store.set(f"here-{number}", own)
    while time.monotonic() < end:
        if number == 0:
            words = [own, *(store.get(f"here-{other}").decode() for other in others)]
            store.set("start", " ".join(words))
            if store.check([f"{own}-{other}" for other in others]):
                return dist.PrefixStore(own, store)
        else:
            words = store.get("start").decode().split()
            if own in words:
                store.set(f"{words[0]}-{number}", "")
                return dist.PrefixStore(words[0], store)
        time.sleep(0.01)
    raise RuntimeError(f"not all {count} have come")


class _Watch(threading.Thread):
    """Looks whether another process has ended. kind: how, once one has."""

    def __init__(self, store: dist.Store, number: int, count: int) -> None:
        super().__init__(name="gwsss-watch", daemon=True)
        self.store, self.own, self.number, self.count = store, store.clone(), number, count
        self.over, self.kind = threading.Event(), ""

    def run(self) -> None:
        """Look every PULSE seconds; end this process where it does not do so itself."""
        while not self.kind:
            if self.over.wait(PULSE):
                return
            self.kind = self.look()
        if not self.over.wait(GRACE):
            _end(self.kind, LOST if self.kind == "lost" else "")

    def look(self) -> str:
        """How another process has ended; empty while none has."""
        try:
            if not self.own.check(["first"]):
                return ""
            number, kind = self.own.get("first").decode().split(" ", 1)
            if int(number) == self.number:
                return ""
            self.own.set(f"noticed-{self.number}", "")
            return kind
        except RuntimeError:
            return "lost"  # the store is gone, and with it the process that kept it

    def raised(self, error: BaseException) -> BaseException:
        """What this process raises after `error`: the first one to end is the one that speaks."""
        if isinstance(error, ToldError):
            return error
        lost, own = _is_lost(error), f"{self.number} {_kind(error)}"
        first = f"- {self.kind}"
        if not self.kind:
            try:
                first = self.store.compare_set("first", "", own).decode()
            except RuntimeError:
                first = own
        if first == own:
            return GwsssError(LOST) if lost else error
        if lost or isinstance(error, (GwsssError, OSError)):
            return _consequence(first.split(" ", 1)[1])
        return error

    def close(self, well: bool) -> None:
        """End; where that is not the end of the job, process 0, which may keep the store, waits until all know why."""
        self.over.set()
        self.join()
        if well:
            return
        others = [f"noticed-{number}" for number in range(self.count) if number != self.number]
        end = time.monotonic() + FAREWELL
        with suppress(RuntimeError):
            self.store.set(f"noticed-{self.number}", "")
            while self.number == 0 and time.monotonic() < end and not self.store.check(others):
                time.sleep(0.02)


def _is_lost(error: BaseException) -> bool:
    """Whether the connection to another process broke."""
    if not isinstance(error, RuntimeError):
        return False
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def _kind(error: BaseException | None) -> str:
    """How a process ends that raises `error`, in a word for the others."""
    if error is None:
        return ""
    if isinstance(error, SystemExit):
        return f"exit {error.code or 0}"
    if isinstance(error, KeyboardInterrupt):
        return "terminated" if isinstance(error, Terminated) else "interrupted"
    return "failed"


def _consequence(kind: str, text: str = "") -> BaseException:
    """What a process raises since another one has ended so."""
    if kind.startswith("exit "):
        return SystemExit(int(kind[5:]) if kind[5:].isdigit() else 2)
    if kind in ("interrupted", "terminated"):
        return Terminated() if kind == "terminated" else KeyboardInterrupt()
    return GwsssError(LOST) if kind == "lost" else ToldError(text or "another process has stopped")
