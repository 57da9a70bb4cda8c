"""One thread that computes, and the bounded queue before it."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from gwsss_fast.serving.limits import Refused

Job = Callable[[], Any]


class Worker:
    """Runs jobs one after another in a thread of its own; at most `places` wait.

    A job whose future is cancelled before its turn is left out. What a job raises, its future raises.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._jobs: queue.Queue[tuple[Future[Any], Job] | None] = queue.Queue()
        self._lock = threading.Lock()
        self._open = True
        self._waiting = 0
        self._mean_seconds = 1.0
        self._thread = threading.Thread(target=self._work, name="gwsss_fast compute", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that are not begun."""
        return self._waiting

    @property
    def working(self) -> bool:
        """Whether jobs are taken and the thread lives."""
        return self._open and self._thread.is_alive()

    def submit(self, job: Job) -> Future[Any]:
        """Put `job` at the end of the queue. Raises Refused (503, with the time after which to try again)."""
        future: Future[Any] = Future()
        with self._lock:
            if not self.working:
                raise Refused(503, "the server is stopping", retry_after=5)
            if self._waiting >= self.places:
                seconds = max(1, math.ceil(self._waiting * self._mean_seconds))
                raise Refused(503, f"{self._waiting} requests are waiting; try again in {seconds} s", seconds)
            self._waiting += 1
            self._jobs.put((future, job))
        return future

    def close(self, seconds: float | None = None) -> None:
        """Take no more jobs, finish those that were taken, and end the thread; wait for it at most so long."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            self._jobs.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            item = self._jobs.get()
            if item is None:
                return
            with self._lock:
                self._waiting -= 1
            self._run(*item)
            del item  # a job holds its images; not until the next one comes

    def _run(self, future: Future[Any], job: Job) -> None:
        if not future.set_running_or_notify_cancel():
            return
        start = time.perf_counter()
        try:
            result = job()
        except BaseException as error:
            with contextlib.suppress(Exception):
                future.set_exception(error)
        else:
            future.set_result(result)
        self._mean_seconds += 0.2 * (time.perf_counter() - start - self._mean_seconds)
