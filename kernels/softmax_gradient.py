"""The gradients of one directed edge's factors, shared by attention and co-attention; see `online_softmax`.

With dP = grad values^T and delta = rowsum(P dP) of that edge: dS = P (dP - delta), grad_left = dS right and
grad_right = dS^T left. delta is known only when a row has been walked through, and dP is the dearest product of all. So
a receiver walks once: with T = P (dP - shift) for any shift, rowsum(T) = delta - shift and grad_left = T right -
rowsum(T) P right. The shift is the mean of dP over the partner's first positions: it takes out what they have in
common, to which a 16-bit T would lose digits. Both sums are divided by that of P, which rounding has moved off one:
where dP is large, delta would be off by more than the gradient. The sender's walk, in a later kernel, reads delta.
"""

import triton
import triton.language as tl
from gwsss_fast.kernels.online_softmax import load_rows, product, scores, weights


@triton.jit
def hold_rows(
    node, start, N, C, stride, FULL_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, HELD: tl.constexpr
):
    """HELD tiles (BLOCK_M, BLOCK_C) side by side from the first channel on, which stay in shared memory."""
    tiles = ()
    for part in tl.static_range(HELD):
        first = part * BLOCK_C
        tiles += (load_rows(node + first, start, N, C - first, stride, BLOCK_M, BLOCK_C, FULL_C),)
    return tiles


@triton.jit
def weight_gradient(
    tiles,
    own,
    own_start,
    other,
    start,
    N,
    C,
    stride_own,
    stride_other,
    FULL_C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HELD: tl.constexpr,
):
    """own other^T over the C channels: what the weights' gradient is, with gradient and values on the two sides.

    tiles: all channels of the own rows, in HELD parts; HELD = 0: both sides are read, BLOCK_C channels at a time.
    """
    result = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if HELD > 0:
        for part in tl.static_range(HELD):
            first = part * BLOCK_C
            theirs = load_rows(other + first, start, N, C - first, stride_other, BLOCK_N, BLOCK_C, FULL_C)
            result = product(tiles[part], tl.trans(theirs), result, PRECISION)
    else:
        for first in tl.range(0, C, BLOCK_C, disable_licm=True):
            mine = load_rows(own + first, own_start, N, C - first, stride_own, BLOCK_M, BLOCK_C, FULL_C)
            theirs = load_rows(other + first, start, N, C - first, stride_other, BLOCK_N, BLOCK_C, FULL_C)
            result = product(mine, tl.trans(theirs), result, PRECISION)
    return result


@triton.jit
def add_receiver_gradient(
    acc,
    own,
    mine,
    own_start,
    own_lse,
    tiles,
    grad,
    other,
    values,
    first,
    N,
    D,
    C,
    stride,
    stride_grad,
    stride_values,
    FULL_D: tl.constexpr,
    FULL_C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HELD: tl.constexpr,
):
    """acc (BLOCK_M, BLOCK_G) + the gradient of the receiver's factor from column `first`, and delta (BLOCK_M,).

    tiles: the own rows of `grad`, see `hold_rows`; other, values: the sender's factor and node.
    """
    rows: tl.constexpr = acc.shape[0]
    opening = weight_gradient(
        *(tiles, grad, own_start, values, 0, N, C, stride_grad, stride_values),
        *(FULL_C, PRECISION, rows, BLOCK_N, BLOCK_C, HELD),
    )
    shift = tl.sum(opening, 1) / tl.minimum(N, BLOCK_N)
    moment = tl.zeros((rows,), tl.float32)
    rounded = tl.zeros((rows,), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    mean = tl.zeros(acc.shape, tl.float32)
    for start in tl.range(0, N, BLOCK_N, disable_licm=True):
        factor = load_rows(other, start, N, D, stride, BLOCK_N, own.shape[1], FULL_D)
        s = scores(own, factor, mine, own_start, other, start, N, D, stride, FULL_D, PRECISION, BLOCK_K)
        p = weights(s, own_lse, own_lse, start, N, 0, False)
        dp = weight_gradient(
            *(tiles, grad, own_start, values, start, N, C, stride_grad, stride_values),
            *(FULL_C, PRECISION, rows, BLOCK_N, BLOCK_C, HELD),
        )
        t = p * (dp - shift[:, None])
        moment += tl.sum(t, 1)
        total += tl.sum(p, 1)
        t = t.to(factor.dtype)
        # What is subtracted below is the sum of what was added, rounding included, or a saturated row would keep it.
        rounded += tl.sum(t.to(tl.float32), 1)
        if acc.shape[1] != own.shape[1]:
            factor = load_rows(other + first, start, N, D - first, stride, BLOCK_N, acc.shape[1], FULL_D)
        acc = product(t, factor, acc, PRECISION)
        mean = product(p.to(factor.dtype), factor, mean, PRECISION)
    return acc - (rounded / total)[:, None] * mean, shift + moment / total


@triton.jit
def add_sender_gradient(
    acc,
    own,
    mine,
    own_start,
    tiles,
    values,
    other,
    grad,
    lse,
    delta,
    N,
    D,
    C,
    stride,
    stride_grad,
    stride_values,
    FULL_D: tl.constexpr,
    FULL_C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HELD: tl.constexpr,
):
    """acc (BLOCK_M, BLOCK_D) + the gradient of the sender's factor.

    tiles: the own rows of `values`; other, grad: the receiver's factor and gradient; lse, delta: its rows'.
    """
    for start in tl.range(0, N, BLOCK_N, disable_licm=True):
        factor = load_rows(other, start, N, D, stride, BLOCK_N, own.shape[1], FULL_D)
        s = scores(own, factor, mine, own_start, other, start, N, D, stride, FULL_D, PRECISION, BLOCK_K)
        p = weights(s, lse, lse, start, N, 0, True)
        dp = weight_gradient(
            *(tiles, values, own_start, grad, start, N, C, stride_values, stride_grad),
            *(FULL_C, PRECISION, acc.shape[0], BLOCK_N, BLOCK_C, HELD),
        )
        column = start + tl.arange(0, BLOCK_N)
        row_delta = tl.load(delta + column, mask=column < N, other=0.0)
        acc = product((p * (dp - row_delta[None, :])).to(factor.dtype), factor, acc, PRECISION)
    return acc
