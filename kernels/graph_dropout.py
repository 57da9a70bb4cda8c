"""Graph dropout (Eq. 11, 12): the channel means of every position, then the product with the map they give.

The map needs the maximum over a whole node before anything can be scaled, so there are two kernels: the second reads
the nodes again, from the L2 cache when they fit, and takes the maximum from the means, which are C times smaller.
"""

import triton
import triton.language as tl


@triton.jit
def channel_mean(g, o, rows, C, stride_g, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """o[row] = mean over channels of g[row, :]; g has unit stride in its channels and `stride_g` between rows."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < rows
    total = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, C, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        values = tl.load(
            g + row[:, None] * stride_g + column[None, :], mask=inside[:, None] & (column < C)[None, :], other=0.0
        )
        total += tl.sum(values.to(tl.float32), 1)
    tl.store(o + row, total / C, mask=inside)


@triton.jit
def _drop_map(o, r, node, row, inside, N, K, drop_rate, drop_threshold, PER_NODE: tl.constexpr, BLOCK_O: tl.constexpr):
    """s and its derivative by o, at the positions `row` of a node."""
    means = o + node * N
    largest = tl.full((BLOCK_O,), -float("inf"), tl.float32)
    for start in range(0, N, BLOCK_O):
        position = start + tl.arange(0, BLOCK_O)
        largest = tl.maximum(largest, tl.load(means + position, mask=position < N, other=-float("inf")))
    limit = tl.max(largest, 0) * drop_threshold
    value = tl.load(means + row, mask=inside, other=0.0)
    importance = 1.0 / (1.0 + tl.exp(-value))
    kept = tl.where(value < limit, 1.0, 0.0)
    draw = tl.load(r + (node if PER_NODE else node // K))
    keep_salient = draw < drop_rate
    s = tl.where(keep_salient, importance, value * kept)
    return s, tl.where(keep_salient, importance * (1.0 - importance), kept)


@triton.jit
def scale(
    g,
    o,
    r,
    out,
    N,
    C,
    K,
    stride_g,
    drop_rate,
    drop_threshold,
    PER_NODE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """out = g * s for BLOCK_N positions of one node; out is contiguous."""
    node = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < N
    s, _ = _drop_map(o, r, node, row, inside, N, K, drop_rate, drop_threshold, PER_NODE, BLOCK_O)
    line = node * N + row
    for start in range(0, C, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        mask = inside[:, None] & (column < C)[None, :]
        values = tl.load(g + line[:, None] * stride_g + column[None, :], mask=mask, other=0.0)
        product = values.to(tl.float32) * s[:, None]
        tl.store(out + line[:, None] * C + column[None, :], product.to(out.dtype.element_ty), mask=mask)


@triton.jit
def scale_backward(
    grad,
    g,
    o,
    r,
    grad_g,
    N,
    C,
    K,
    stride_grad,
    stride_g,
    drop_rate,
    drop_threshold,
    PER_NODE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """grad_g = grad * s + slope / C * sum over channels of grad * g; one read of both when BLOCK_C holds a row."""
    node = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < N
    s, slope = _drop_map(o, r, node, row, inside, N, K, drop_rate, drop_threshold, PER_NODE, BLOCK_O)
    line = node * N + row
    through_map = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, C, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        mask = inside[:, None] & (column < C)[None, :]
        values = tl.load(g + line[:, None] * stride_g + column[None, :], mask=mask, other=0.0).to(tl.float32)
        slopes = tl.load(grad + line[:, None] * stride_grad + column[None, :], mask=mask, other=0.0).to(tl.float32)
        through_map += tl.sum(values * slopes, 1)
    through_map *= slope / C
    for start in range(0, C, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        mask = inside[:, None] & (column < C)[None, :]
        slopes = tl.load(grad + line[:, None] * stride_grad + column[None, :], mask=mask, other=0.0).to(tl.float32)
        result = slopes * s[:, None] + through_map[:, None]
        tl.store(grad_g + line[:, None] * C + column[None, :], result.to(grad_g.dtype.element_ty), mask=mask)
