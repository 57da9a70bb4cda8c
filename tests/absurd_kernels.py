"""Kernels that the resource checks must judge: they are compiled and never run."""

import triton
import triton.language as tl


@triton.jit
def product(a, b, c, N, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """c = a b for one tile; how much shared memory it takes depends on the tile and the stages."""
    index = tl.arange(0, BLOCK)
    grid = index[:, None] * N + index[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, N, BLOCK):
        left = tl.load(a + grid + start)
        right = tl.load(b + grid + start * N)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(c + grid, total)


@triton.jit
def row_sums(a, b, N, WIDTH: tl.constexpr):
    """Holds more values than a warp has registers for, and needs them all twice."""
    index = tl.arange(0, WIDTH)
    values = tl.load(a + index * N)
    mean = tl.sum(values, 0) / WIDTH
    tl.store(b + index, values - mean)
