"""Ctrl-C and SIGTERM, heeded between two pieces of work instead of within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gwsss_fast import distributed
from gwsss_fast.errors import Terminated

HEEDED = (signal.SIGINT, signal.SIGTERM)


class Stop(threading.Event):
    """Set once a signal has come. kind: what to raise when all is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.kind: type[KeyboardInterrupt] = KeyboardInterrupt

    def flags(self) -> list[float]:
        """Whether Ctrl-C and whether SIGTERM has come: numbers that processes add up."""
        return [float(self.is_set() and self.kind is kind) for kind in (KeyboardInterrupt, Terminated)]

    def take(self, flags: Sequence[float]) -> bool:
        """Take over what has come to any process, by the sum of their `flags`; whether anything has."""
        for kind, flag in zip((KeyboardInterrupt, Terminated), flags, strict=True):
            if flag:
                self.kind = kind
        return any(flags)

    def problem(self) -> BaseException | None:
        """What to raise: a signal has come, or another process of the job has ended."""
        return self.kind() if self.is_set() else distributed.ended()


@contextmanager
def terminating(*more: int) -> Iterator[None]:
    """SIGTERM raises Terminated, as Ctrl-C raises KeyboardInterrupt, so that what is under way is put in order.

    more: further signals that do, where they are not ignored (as nohup ignores that of a terminal that is closed).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    numbers = (signal.SIGTERM, *(number for number in more if signal.getsignal(number) is not signal.SIG_IGN))
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred_interrupt() -> Iterator[Stop]:
    """Turn Ctrl-C and SIGTERM into an event, so that no step is cut in half; a second Ctrl-C acts at once.

    A second SIGTERM does not: where a batch system tells all processes, torchrun tells its own once more.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in HEEDED}

    def note(number: int, frame: Any) -> None:
        stop.kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        stop.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in HEEDED:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
