"""Convolutions of 3 x 3 in float32 by Winograd's F(2x2, 3x3) (Lavin and Gray, 2016), on nodes (M, H, W, C).

16 matrix products do with 4/9 of the multiplications. The constants are 1 and 1/2, so little is lost to rounding.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from gwsss_fast.native.memory import new_empty
from gwsss_fast.native.products import product

_library = torch.ops.gwsss_fast_native
_TILES = 1024
"""Of 2 x 2 positions that are worked on together, to bound the memory: 16 values each for every channel."""


_APART = 16 * 5  # values, five cache lines


def _parts(images: Tensor) -> Iterator[tuple[slice, int]]:
    """Ranges of images, and the tiles in each."""
    a_image = -(-images.shape[1] // 2) * -(-images.shape[2] // 2)
    step = max(1, _TILES // max(a_image, 1))
    for start in range(0, len(images), step):
        end = min(start + step, len(images))
        yield slice(start, end), (end - start) * a_image


def _planes(like: Tensor, rows: int, columns: int) -> list[Tensor]:
    """16 matrices. Written side by side, they lie no power of two apart, or they would share one set of the cache."""
    values = rows * columns
    return [plane[:values].view(rows, columns) for plane in new_empty(like, (16, values + _APART))]


def _convolve(images: Tensor, of_weight: list[Tensor], bias: Tensor | None) -> Tensor:
    out = new_empty(images, (*images.shape[:3], len(of_weight[0])))
    for part, tiles in _parts(images):
        spread = _planes(images, tiles, images.shape[3])
        _library.winograd_input(images[part], spread)
        made = [product(x, weight) for x, weight in zip(spread, of_weight, strict=True)]
        _library.winograd_output(made, bias, out[part])
    return out


def convolution(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Images (M, H, W, I) through weight (O, I, 3, 3) with a border of zeros: (M, H, W, O)."""
    of_weight = _planes(weight, *weight.shape[:2])
    _library.winograd_weight(weight, False, of_weight)
    return _convolve(images, of_weight, bias)


def input_gradient(images: Tensor, weight: Tensor) -> Tensor:
    """Gradient (M, H, W, I) of the images of `convolution` from that of its result."""
    of_weight = _planes(weight, weight.shape[1], weight.shape[0])
    _library.winograd_weight(weight, True, of_weight)
    return _convolve(images, of_weight, None)


def weight_gradient(gradient: Tensor, images: Tensor) -> Tensor:
    """Gradient (O, I, 3, 3) of the weight of `convolution` from that of its result, (M, H, W, O), and its images."""
    sums: list[Tensor] = []
    for part, tiles in _parts(images):
        slopes, spread = (_planes(images, tiles, x.shape[3]) for x in (gradient, images))
        _library.winograd_output_gradient(gradient[part], slopes)
        _library.winograd_input(images[part], spread)
        made = [product(slope.T, x.T) for slope, x in zip(slopes, spread, strict=True)]
        sums = [a.add_(b) for a, b in zip(sums, made, strict=True)] if sums else made
    weight = new_empty(images, (gradient.shape[3], images.shape[3], 3, 3))
    _library.winograd_weight_gradient(sums, weight)
    return weight
