"""The edge readout (Eq. 14 to 17) by two identities: K Gram matrices give the scores of every edge, and the global
average leaves only column means of the position weights and one weighted mean of the channel weights.

Scores of the positions of edge (i, j): S = G_i + G_j with G = g g^T (N, N). Scores of its channels: blocks A_ab = g_a^T
g_b (C, C); the rows of i hold [A_ii, A_ij], or A_ii alone for i = j, where the second half would repeat the first.
All are float32 and symmetric to the last bit, so what runs down a column is read along a row; were the two sides of
the diagonal rounded apart, a weight of 1 would be 1.004 where scores are in the ten thousands. `edge` below is
(b K + i) K + j, `node` is b K + i.

Statistics of a softmax are three vectors by edge, (B, K, K, 3, size): the largest score of each row, the inverse of its
sum of exponentials, and what the readout took from it. Maximum and sum stay apart, because their one log sum exp would
be rounded at the size of the scores, which are large, and every weight of the row with it.
"""

import triton
import triton.language as tl
from gwsss_fast.kernels.online_softmax import LOWEST, product


@triton.jit
def gram(
    g,
    out,
    size,
    depth,
    count,
    stride_node,
    stride_size,
    stride_depth,
    stride_matrix,
    stride_out,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = X X^T in float32 for X of `count` nodes under each other, (count size, depth).

    Positions: one node, size = N, depth = C. Channels: K nodes, size = C, depth = N. Values on and above the diagonal
    are made, and written on both sides of it.
    """
    tiles = tl.cdiv(size, BLOCK)
    above, left = tl.program_id(0) // (count * tiles), tl.program_id(0) % (count * tiles)
    if left < above:
        return
    matrix = tl.program_id(1).to(tl.int64)
    row = (above % tiles) * BLOCK + tl.arange(0, BLOCK)
    column = (left % tiles) * BLOCK + tl.arange(0, BLOCK)
    row_inside, column_inside = row < size, column < size
    rows = g + (matrix * count + above // tiles) * stride_node + row.to(tl.int64)[:, None] * stride_size
    columns = g + (matrix * count + left // tiles) * stride_node + column.to(tl.int64)[None, :] * stride_size
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        known, offset = k < depth, k.to(tl.int64) * stride_depth
        x = tl.load(rows + offset[None, :], mask=row_inside[:, None] & known[None, :], other=0.0)
        y = tl.load(columns + offset[:, None], mask=column_inside[None, :] & known[:, None], other=0.0)
        acc = product(x, y, acc, PRECISION)
    row += (above // tiles) * size
    column += (left // tiles) * size
    target = out + matrix * stride_matrix
    mask = row_inside[:, None] & column_inside[None, :]
    upper = target + row.to(tl.int64)[:, None] * stride_out + column[None, :]
    tl.store(upper, acc, mask=mask & (row[:, None] <= column[None, :]))
    lower = target + column.to(tl.int64)[:, None] * stride_out + row[None, :]
    mask = column_inside[:, None] & row_inside[None, :]
    tl.store(lower, tl.trans(acc), mask=mask & (row[None, :] < column[:, None]))


@triton.jit
def mirror(matrices, size, stride_matrix, stride_row, BLOCK: tl.constexpr):
    """Copy what is above the diagonal of square matrices to below it."""
    tiles = tl.cdiv(size, BLOCK)
    above, left = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    if left < above:
        return
    row, column = above * BLOCK + tl.arange(0, BLOCK), left * BLOCK + tl.arange(0, BLOCK)
    matrix = matrices + tl.program_id(1).to(tl.int64) * stride_matrix
    upper = matrix + row.to(tl.int64)[:, None] * stride_row + column[None, :]
    values = tl.load(upper, mask=(row[:, None] < column[None, :]) & (column < size)[None, :], other=0.0)
    lower = matrix + column.to(tl.int64)[:, None] * stride_row + row[None, :]
    tl.store(lower, tl.trans(values), mask=(row[None, :] < column[:, None]) & (column < size)[:, None])


@triton.jit
def edge_of(K):
    """edge, group, i and j of the program's second index."""
    edge = tl.program_id(1)
    group = edge // (K * K)
    return edge.to(tl.int64), group.to(tl.int64), (edge // K) % K, edge % K


@triton.jit
def pair_scores(grams, group, i, j, row, column, N, K, stride_gram, mask):
    """G_i + G_j at (row, column)."""
    offset = row.to(tl.int64)[:, None] * stride_gram + column[None, :]
    first = tl.load(grams + (group * K + i) * N * stride_gram + offset, mask=mask, other=0.0)
    return first + tl.load(grams + (group * K + j) * N * stride_gram + offset, mask=mask, other=0.0)


@triton.jit
def row_weights(s, statistics, edge, size, row):
    """The softmax of scores s (rows, columns) along the rows of `edge`; zero beyond `size` rows."""
    vector, inside = statistics + edge * 3 * size + row, row < size
    pivot = tl.load(vector, mask=inside, other=float("inf"))
    return tl.exp(s - pivot[:, None]) * tl.load(vector + size, mask=inside, other=0.0)[:, None]


@triton.jit
def column_weights(s, statistics, edge, size, column):
    """The transpose of the softmax of s^T: columns of s are the rows of `edge`; zero beyond `size` columns."""
    vector, inside = statistics + edge * 3 * size + column, column < size
    pivot = tl.load(vector, mask=inside, other=float("inf"))
    return tl.exp(s - pivot[None, :]) * tl.load(vector + size, mask=inside, other=0.0)[None, :]


@triton.jit
def position_statistics(grams, statistics, N, K, stride_gram, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """The first two statistics of S. One program serves an edge and its reverse."""
    edge, group, i, j = edge_of(K)
    if i > j:
        return
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < N
    # A finite pivot from the start: minus infinity less minus infinity would be no number.
    pivot = tl.full((BLOCK_R,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, N, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        known = (column < N)[None, :]
        s = pair_scores(grams, group, i, j, row, column, N, K, stride_gram, inside[:, None] & known)
        s = tl.where(known, s, -float("inf"))
        higher = tl.maximum(pivot, tl.max(s, 1))
        total = total * tl.exp(pivot - higher) + tl.sum(tl.exp(s - higher[:, None]), 1)
        pivot = higher
    back = (group * K + j) * K + i
    for one in tl.static_range(2):
        vector = statistics + tl.where(one == 0, edge, back) * 3 * N + row
        tl.store(vector, pivot, mask=inside)
        tl.store(vector + N, 1.0 / total, mask=inside)


@triton.jit
def position_weights(grams, statistics, N, K, stride_gram, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """The third statistic of S: column means of its softmax, plus the 1/N of mean(x)."""
    edge, group, i, j = edge_of(K)
    if i > j:
        return
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < N
    total = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, N, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        mask = inside[:, None] & (column < N)[None, :]
        s = pair_scores(grams, group, i, j, row, column, N, K, stride_gram, mask)
        total += tl.sum(column_weights(s, statistics, edge, N, column), 1)
    back = (group * K + j) * K + i
    tl.store(statistics + edge * 3 * N + 2 * N + row, (total + 1.0) / N, mask=inside)
    tl.store(statistics + back * 3 * N + 2 * N + row, (total + 1.0) / N, mask=inside)


@triton.jit
def position_readout(
    g, statistics, out, N, C, K, stride_node, stride_row, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """weights_ij g_i, weights being the third statistic: the first half of out (B, K, K, 2C) for edge (i, j) and the
    second half for (j, i)."""
    edge, group, i, j = edge_of(K)
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < C
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    node = g + (group * K + i) * stride_node
    for start in range(0, N, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        known = row < N
        weight = tl.load(statistics + edge * 3 * N + 2 * N + row, mask=known, other=0.0)
        pointer = node + row.to(tl.int64)[:, None] * stride_row + column[None, :]
        values = tl.load(pointer, mask=known[:, None] & inside[None, :], other=0.0)
        total += weight[:, None] * values.to(tl.float32)
    _store_halves(out, tl.sum(total, 0), edge, group, i, j, K, C, column, inside)


@triton.jit
def _store_halves(out, value, edge, group, i, j, K, C, column, inside):
    value = value.to(out.dtype.element_ty)
    tl.store(out + edge * 2 * C + column, value, mask=inside)
    tl.store(out + ((group * K + j) * K + i) * 2 * C + C + column, value, mask=inside)


@triton.jit
def channel_readout(
    blocks,
    mean,
    statistics,
    out,
    C,
    K,
    stride_matrix,
    stride_row,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The statistics of the rows of i, the third being mixed = softmax([A_ii, A_ij]) [mean_i, mean_j]; out as in
    `position_readout`, from mixed + mean_i. blocks: (B, K C, K C), mean: (B, K, C)."""
    edge, group, i, j = edge_of(K)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < C
    lines = blocks + group * stride_matrix + (i * C + row).to(tl.int64)[:, None] * stride_row
    pivot = tl.full((BLOCK_R,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    weighted = tl.zeros((BLOCK_R,), tl.float32)
    steps = tl.cdiv(C, BLOCK_C)
    for step in range(0, tl.where(i == j, steps, 2 * steps)):
        other = tl.where(step < steps, i, j)
        column = (step % steps) * BLOCK_C + tl.arange(0, BLOCK_C)
        known = column < C
        s = tl.load(lines + (other * C + column)[None, :], mask=inside[:, None] & known[None, :], other=0.0)
        s = tl.where(known[None, :], s, -float("inf"))
        higher = tl.maximum(pivot, tl.max(s, 1))
        weight = tl.exp(s - higher[:, None])
        values = tl.load(mean + (group * K + other) * C + column, mask=known, other=0.0)
        kept = tl.exp(pivot - higher)
        total = total * kept + tl.sum(weight, 1)
        weighted = weighted * kept + tl.sum(weight * values[None, :], 1)
        pivot = higher
    weighted /= total
    vector = statistics + edge * 3 * C + row
    tl.store(vector, pivot, mask=inside)
    tl.store(vector + C, 1.0 / total, mask=inside)
    tl.store(vector + 2 * C, weighted, mask=inside)
    own = tl.load(mean + (group * K + i) * C + row, mask=inside, other=0.0)
    _store_halves(out, weighted + own, edge, group, i, j, K, C, row, inside)
