"""Files read by threads while the batch before is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Content = TypeVar("Content")


def read_ahead(
    items: Sequence[Item], read: Callable[[Item], Content], size: int
) -> Iterator[list[tuple[Item, Content]]]:
    """Batches of `size` items, each with read(item), in order; the last may be smaller.

    Threads read the next batch while the caller deals with one, so no more than two are held at a time. What `read`
    raises is raised here.
    """
    with ThreadPoolExecutor(size) as pool:
        waiting: list[tuple[Item, Future[Content]]] = []
        try:
            for start in range(0, len(items) + size, size):
                ready = waiting
                waiting = [(item, pool.submit(read, item)) for item in items[start : start + size]]
                if ready:
                    yield [(item, future.result()) for item, future in ready]
        finally:
            for _, future in waiting:
                future.cancel()
