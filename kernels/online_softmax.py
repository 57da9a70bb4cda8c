"""What the kernels of attention and co-attention share: one directed edge, seen from a block of positions of one node.

An edge has two factors, (N, D) on the receiver's and on the sender's side. Its weights P are the row softmax of left
right^T, rows over the receiver's positions, columns over the sender's. A program owns BLOCK_M positions of one node and
walks over its partner's positions, BLOCK_N at a time. SENDER says which role the own node has: as a sender it sees the
transpose of P, whose statistics lie along the partner's positions.

A row's log-sum-exp is found first and its weights are built from it afterwards, forward as backward. So the weights
are normalised when they are added up, and one accumulator serves all edges of a receiver: the usual rescaled
accumulator would need a second one for the sum, and registers hold only one of 128 x 256.

Pointers are to a node's first element; rows have unit stride inside. Offsets between blocks of rows are int64. FULL_D
and FULL_C say that the blocks cover D and C without a rest, which saves the masks. Loops keep their invariants inside
(disable_licm): hoisted addresses would fill the registers that the accumulators need, and spill.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def place(N, BLOCK_M: tl.constexpr):
    """The node of all groups and the first position that this program owns."""
    parts = tl.cdiv(N, BLOCK_M)
    node = tl.program_id(0) // parts
    return node, (tl.program_id(0) % parts) * BLOCK_M


@triton.jit
def node_start(base, node, N, stride):
    """Where the rows of a node, counted through all groups, begin."""
    return base + tl.cast(node, tl.int64) * N * stride


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in float32. PRECISION: "ieee" or "tf32" for float32 operands; "upcast" where bfloat16 has no product,
    as in the interpreter."""
    if PRECISION == "upcast":
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def load_rows(node, start, rows, width, stride, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr, FULL: tl.constexpr):
    """Rows from `start` of a node (rows, width), (BLOCK_R, BLOCK_W), zero outside. FULL: its columns are all there."""
    row, column = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_W)
    first = node + tl.cast(start, tl.int64) * stride
    inside = (row < rows - start)[:, None]
    if not FULL:
        inside &= (column < width)[None, :]
    return tl.load(first + (row[:, None] * stride + column[None, :]), mask=inside, other=0.0)


@triton.jit
def store_rows(
    node, start, rows, width, stride, tile, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr, FULL: tl.constexpr
):
    """The opposite of `load_rows`, in the pointer's dtype."""
    row, column = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_W)
    first = node + tl.cast(start, tl.int64) * stride
    inside = (row < rows - start)[:, None]
    if not FULL:
        inside &= (column < width)[None, :]
    tl.store(first + (row[:, None] * stride + column[None, :]), tile.to(node.dtype.element_ty), mask=inside)


@triton.jit
def scores(
    own,
    factor,
    mine,
    own_start,
    other,
    start,
    N,
    D,
    stride,
    FULL_D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """own factor^T in float32, so unnormalised 16-bit features cannot overflow.

    own, factor: tiles of D columns. Where tensor cores do not serve, such wide operands would fill the registers: then
    BLOCK_K is less than their width, and their rows are read from mine and other in chunks of BLOCK_K columns instead.
    """
    result = tl.zeros((own.shape[0], factor.shape[0]), tl.float32)
    if own.shape[1] <= BLOCK_K:
        result = product(own, tl.trans(factor), result, PRECISION)
    else:
        for first in tl.range(0, D, BLOCK_K, disable_licm=True):
            left = load_rows(mine + first, own_start, N, D - first, stride, own.shape[0], BLOCK_K, FULL_D)
            right = load_rows(other + first, start, N, D - first, stride, factor.shape[0], BLOCK_K, FULL_D)
            result = product(left, tl.trans(right), result, PRECISION)
    return result


@triton.jit
def row_log_sum_exp(
    own,
    mine,
    own_start,
    other,
    N,
    D,
    stride,
    FULL_D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """log sum exp over all N positions of the partner of the scores of the own tile (BLOCK_M, BLOCK_D).

    BLOCK_S may be wider than BLOCK_N: there is no accumulator yet.
    """
    # A finite pivot from the start: minus infinity less minus infinity would be no number.
    pivot = tl.full((own.shape[0],), LOWEST, tl.float32)
    total = tl.zeros((own.shape[0],), tl.float32)
    for start in tl.range(0, N, BLOCK_S, disable_licm=True):
        factor = load_rows(other, start, N, D, stride, BLOCK_S, own.shape[1], FULL_D)
        s = scores(own, factor, mine, own_start, other, start, N, D, stride, FULL_D, PRECISION, BLOCK_K)
        s = tl.where((tl.arange(0, BLOCK_S) < N - start)[None, :], s, -float("inf"))
        higher = tl.maximum(pivot, tl.max(s, 1))
        total = total * tl.exp(pivot - higher) + tl.sum(tl.exp(s - higher[:, None]), 1)
        pivot = higher
    return pivot + tl.log(total)


@triton.jit
def weights(s, own_lse, lse, start, N, POWER: tl.constexpr, SENDER: tl.constexpr):
    """2^POWER times the edge's weights, or their transpose for a sender, from the scores s (BLOCK_M, BLOCK_N).

    own_lse: the own rows' statistics (a receiver); lse: where the partner's begin (a sender). Zero beyond N.
    """
    column = start + tl.arange(0, s.shape[1])
    if SENDER:
        other_lse = tl.load(lse + column, mask=column < N, other=float("inf"))
        result = tl.exp2((s - other_lse[None, :]) * LOG2E + POWER)
    else:
        power = tl.where(column < N, POWER, -float("inf"))
        result = tl.exp2((s - own_lse[:, None]) * LOG2E + power[None, :])
    return result


@triton.jit
def add_weighted(
    acc,
    own,
    mine,
    own_start,
    own_lse,
    other,
    lse,
    values,
    N,
    D,
    width,
    stride,
    stride_values,
    SENDER: tl.constexpr,
    POWER: tl.constexpr,
    FULL_D: tl.constexpr,
    FULL_C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """acc (BLOCK_M, BLOCK_C) + 2^POWER P values: a message (receiver), or the gradient of the values (sender).

    own_lse, lse: see `weights`. values: the partner's, at this program's first column, `width` of which are left.
    """
    for start in tl.range(0, N, BLOCK_N, disable_licm=True):
        factor = load_rows(other, start, N, D, stride, BLOCK_N, own.shape[1], FULL_D)
        s = scores(own, factor, mine, own_start, other, start, N, D, stride, FULL_D, PRECISION, BLOCK_K)
        p = weights(s, own_lse, lse, start, N, POWER, SENDER)
        tile = load_rows(values, start, N, width, stride_values, BLOCK_N, acc.shape[1], FULL_C)
        acc = product(p.to(tile.dtype), tile, acc, PRECISION)
    return acc
