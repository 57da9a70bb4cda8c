"""Reading ahead: order, how much is held at a time, and errors."""

import threading
from collections.abc import Sequence

import pytest

from gwsss_fast.data.ahead import read_ahead
from gwsss_fast.errors import GwsssError


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (6, [3, 3]), (7, [3, 3, 1])])
def test_batches_in_order(count: int, sizes: Sequence[int]) -> None:
    batches = list(read_ahead(range(count), lambda number: number * number, 3))
    assert [len(batch) for batch in batches] == sizes
    assert [pair for batch in batches for pair in batch] == [(n, n * n) for n in range(count)]


def test_two_batches_at_most_are_held() -> None:
    read: list[int] = []
    lock = threading.Lock()

    def note(number: int) -> int:
        with lock:
            read.append(number)
        return number

    for done, batch in enumerate(read_ahead(range(20), note, 2), 1):
        assert len(batch) == 2
        assert len(read) <= 2 * done + 2


def test_an_error_arrives_where_the_item_was_due() -> None:
    def fail(number: int) -> int:
        if number == 3:
            raise GwsssError("image 3 is broken")
        return number

    batches = read_ahead(range(6), fail, 2)
    assert next(batches) == [(0, 0), (1, 1)]
    with pytest.raises(GwsssError, match="image 3 is broken"):
        next(batches)
