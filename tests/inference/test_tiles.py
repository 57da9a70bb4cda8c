"""Windows over an image: every pixel counts once, what the network says is the same, and nothing large is kept."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gwsss_fast.inference.tiles import OVERLAP, _fade, blended, windows


@pytest.mark.parametrize("length", [1, 31, 32, 33, 57, 58, 81, 200, 333])
@pytest.mark.parametrize("tile", [32, 33])
def test_weights_add_up_to_one_and_neighbours_overlap(length: int, tile: int) -> None:
    total, users = torch.zeros(length), torch.zeros(length)
    found = windows(length, tile)
    for window in found:
        assert 0 <= window.start <= window.low < window.high <= window.end <= length
        assert window.end - window.start == min(tile, length)
        weight = torch.ones(1, window.high - window.low, 1)
        _fade(weight, window)
        total[window.low : window.high] += weight[0, :, 0]
        users[window.low : window.high] += 1
    torch.testing.assert_close(total, torch.ones(length))
    assert users.max() <= 2
    for before, after in pairwise(found):
        assert before.end - after.start >= tile // OVERLAP


@pytest.mark.parametrize(("height", "width"), [(30, 30), (32, 100), (100, 20), (90, 131)])
def test_what_does_not_depend_on_the_window_comes_out_as_it_is(height: int, width: int) -> None:
    values = torch.randn(3, height, width)
    result = torch.full_like(values, torch.nan)
    pieces = 0
    for top, left, piece in blended(height, width, (32, 40), lambda rows, columns: values[:, rows, columns].clone()):
        place = result[:, top : top + piece.shape[1], left : left + piece.shape[2]]
        assert place.isnan().all()  # each pixel once
        place.copy_(piece)
        pieces += 1
    assert pieces == len(windows(height, 32)) * len(windows(width, 40))
    torch.testing.assert_close(result, values)


def test_between_two_windows_their_values_change_gradually() -> None:
    def predict(rows: slice, columns: slice) -> Tensor:
        return torch.full((1, rows.stop - rows.start, columns.stop - columns.start), float(columns.start))

    row = torch.cat([piece[0, 5] for top, _, piece in blended(32, 57, (32, 32), predict) if top == 0])
    steps = row.diff()
    assert row[0] == 0
    assert row[-1] == 25
    assert (steps >= 0).all()
    assert 0 < steps.max() <= 25 / (32 // OVERLAP // 2) + 1e-4
