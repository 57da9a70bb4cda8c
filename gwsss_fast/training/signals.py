"""Ctrl-C and SIGTERM, heeded between two pieces of work instead of within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HEEDED = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM has come, as from a batch system whose time is up."""


class Stop(threading.Event):
    """Set once a signal has come. kind: what to raise when all is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.kind: type[KeyboardInterrupt] = KeyboardInterrupt


@contextmanager
def deferred_interrupt() -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM into an event, so that no step is cut in half; the second acts at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in HEEDED}

    def note(number: int, frame: Any) -> None:
        stop.kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        stop.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in HEEDED:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
