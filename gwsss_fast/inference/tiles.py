"""Large images in overlapping windows, blended, without the probabilities of the whole image in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

OVERLAP = 4
"""Neighbouring windows share at least one part in so many of a window."""


@dataclass(frozen=True)
class Window:
    """Pixels start..end of an axis are looked at; low..high of them count.

    ramp_in, ramp_out: so many pixels at either end count in part, where a neighbour counts as well; their weights add
    up to 1, and nowhere do more than two count.
    """

    start: int
    end: int
    low: int
    high: int
    ramp_in: int
    ramp_out: int


def windows(length: int, tile: int) -> list[Window]:
    """Windows of `tile` pixels along an axis of `length`, at even distances; one where it is no longer than that.

    Two neighbours overlap by a quarter of a tile at least, and are blended linearly over the middle half of it, so that
    what the network makes of its own edges counts nowhere but at the image's.
    """
    if length <= tile:
        return [Window(0, length, 0, length, 0, 0)]
    least = tile // OVERLAP
    ramp = max(least // 2, 1)
    count = -(-(length - least) // (tile - least))
    starts = [number * (length - tile) // (count - 1) for number in range(count)]
    # The ramp between two neighbours begins here: around the middle of what they share.
    ramps = [(after + before + tile - ramp) // 2 for before, after in pairwise(starts)]
    found = []
    for number, start in enumerate(starts):
        first, last = number == 0, number == count - 1
        low = 0 if first else ramps[number - 1]
        high = length if last else ramps[number] + ramp
        found.append(Window(start, start + tile, low, high, 0 if first else ramp, 0 if last else ramp))
    return found


def _fade(piece: Tensor, window: Window) -> None:
    """Give the ends of the second dimension, which are the window's, their weights."""
    for ramp, end in ((window.ramp_in, slice(0, window.ramp_in)), (window.ramp_out, slice(-window.ramp_out, None))):
        if ramp:
            rising = (torch.arange(ramp, device=piece.device) + 0.5) / ramp
            piece[:, end] *= (rising if end.start == 0 else 1 - rising)[:, None]


def blended(
    height: int, width: int, tile: tuple[int, int], predict: Callable[[slice, slice], Tensor]
) -> Iterator[tuple[int, int, Tensor]]:
    """The probabilities of an image of height x width in pieces: (top, left, (L, h, w)), each pixel in just one.

    predict: probabilities (L, h, w) float32 of a window, given its rows and columns; they are overwritten. tile: height
    and width of windows. What is kept between windows are the ramps alone: a strip of the image's width and one of a
    window's height.
    """
    above: Tensor | None = None
    for row in windows(height, tile[0]):
        below: Tensor | None = None
        beside: Tensor | None = None
        for column in windows(width, tile[1]):
            whole = predict(slice(row.start, row.end), slice(column.start, column.end))
            piece = whole[:, row.low - row.start : row.high - row.start, column.low - column.start :]
            piece = piece[:, :, : column.high - column.low]
            _fade(piece, row)
            _fade(piece.transpose(1, 2), column)
            if beside is not None:
                piece[:, :, : column.ramp_in] += beside
            if column.ramp_out:
                beside = piece[:, :, -column.ramp_out :].clone()
                piece = piece[:, :, : -column.ramp_out]
            left, right = column.low, column.low + piece.shape[2]
            if above is not None:
                piece[:, : row.ramp_in] += above[:, :, left:right]
            if row.ramp_out:
                if below is None:
                    below = piece.new_empty((len(piece), row.ramp_out, width))
                below[:, :, left:right] = piece[:, -row.ramp_out :]
                piece = piece[:, : -row.ramp_out]
            yield row.low, left, piece
        above = below
