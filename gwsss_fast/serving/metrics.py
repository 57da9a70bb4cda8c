"""Counters for Prometheus, in its text format."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Requests by endpoint and status, and how long they took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.time()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._buckets: Counter[tuple[str, float]] = Counter()
        self._images = 0

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count one request that was answered. endpoint: one of ours, never what a client made up."""
        with self._lock:
            self._requests[endpoint, status] += 1
            self._seconds[endpoint] += seconds
            for bound in BUCKETS:
                self._buckets[endpoint, bound] += seconds <= bound

    def images(self, count: int) -> None:
        """Count images that were computed."""
        with self._lock:
            self._images += count

    def text(self, waiting: int, places: int, working: bool) -> str:
        """Everything, and the state of the queue."""
        lines: list[str] = []

        def family(name: str, kind: str, text: str, *samples: tuple[str, float]) -> None:
            lines.extend((f"# HELP gwsss_{name} {text}", f"# TYPE gwsss_{name} {kind}"))
            lines.extend(f"gwsss_{name}{labels} {value:.12g}" for labels, value in samples)

        with self._lock:
            requests = [(f'{{endpoint="{e}",status="{s}"}}', n) for (e, s), n in sorted(self._requests.items())]
            family("requests_total", "counter", "Requests that were answered.", *requests)
            family("images_total", "counter", "Images that were computed.", ("", self._images))
            family("request_seconds", "histogram", "Time from a request's head to its answer.", *self._histogram())
        family("queue_length", "gauge", "Requests that wait to be computed.", ("", waiting))
        family("queue_places", "gauge", "Requests that may wait.", ("", places))
        family("up", "gauge", "1 while requests are computed.", ("", working))
        family("start_time_seconds", "gauge", "When the server started, in Unix time.", ("", self._started))
        memory = resident_memory()
        if memory is not None:
            family("resident_memory_bytes", "gauge", "Memory of the process.", ("", memory))
        return "\n".join(lines) + "\n"

    def _histogram(self) -> list[tuple[str, float]]:
        samples: list[tuple[str, float]] = []
        for endpoint in sorted({endpoint for endpoint, _ in self._requests}):
            count = sum(n for (name, _), n in self._requests.items() if name == endpoint)
            samples += [
                (f'_bucket{{endpoint="{endpoint}",le="{bound:g}"}}', self._buckets[endpoint, bound])
                for bound in BUCKETS
            ]
            samples.append((f'_bucket{{endpoint="{endpoint}",le="+Inf"}}', count))
            samples.append((f'_sum{{endpoint="{endpoint}"}}', self._seconds[endpoint]))
            samples.append((f'_count{{endpoint="{endpoint}"}}', count))
        return samples


def resident_memory() -> int | None:
    """Bytes of this process in memory, where Linux tells."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:
        return None
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
