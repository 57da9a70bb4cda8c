"""The gradient of the edge readout: of the scores, elementwise from their statistics, then of the nodes.

Arrays and numbers as in `edge_readout`.
"""

import triton
import triton.language as tl
from gwsss_fast.kernels.edge_readout import column_weights, edge_of, pair_scores, row_weights
from gwsss_fast.kernels.online_softmax import product


@triton.jit
def weight_slopes(g, grad, slopes, N, C, K, stride_node, stride_row, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """slopes (B, K, K, N) = g_i grad_ij / N; grad (B, K, K, C) is the gradient of what `position_readout` gives."""
    edge, group, i, _ = edge_of(K)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < N
    lines = g + (group * K + i) * stride_node + row.to(tl.int64)[:, None] * stride_row
    total = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, C, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        known = column < C
        values = tl.load(lines + column[None, :], mask=inside[:, None] & known[None, :], other=0.0)
        slope = tl.load(grad + edge * C + column, mask=known, other=0.0)
        total += tl.sum(values.to(tl.float32) * slope[None, :], 1)
    tl.store(slopes + edge * N + row, total / N, mask=inside)


@triton.jit
def mean_slopes(grams, statistics, slopes, out, N, K, stride_gram, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """out (B, K, K, N): the mean of an edge's slopes under each row of the softmax of S."""
    edge, group, i, j = edge_of(K)
    if i > j:
        return
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < N
    total = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, N, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        known = column < N
        s = pair_scores(grams, group, i, j, row, column, N, K, stride_gram, inside[:, None] & known[None, :])
        slope = tl.load(slopes + edge * N + column, mask=known, other=0.0)
        total += tl.sum(row_weights(s, statistics, edge, N, row) * slope[None, :], 1)
    tl.store(out + edge * N + row, total, mask=inside)
    tl.store(out + ((group * K + j) * K + i) * N + row, total, mask=inside)


@triton.jit
def position_gradient(
    grams,
    statistics,
    slopes,
    means,
    scale,
    out,
    N,
    K,
    stride_gram,
    stride_out,
    BLOCK: tl.constexpr,
):
    """out (B, K, N, N): the gradient of G_i plus its transpose, times its group's scale: what multiplies g_i.

    That of S_ij is u (slopes[column] - means[row]), u its softmax; all edges of i are added, (i, i) counts twice.
    """
    tiles = tl.cdiv(N, BLOCK)
    above, left = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    if left < above:
        return
    node = tl.program_id(1)
    i = node % K
    group = (node // K).to(tl.int64)
    row, column = above * BLOCK + tl.arange(0, BLOCK), left * BLOCK + tl.arange(0, BLOCK)
    row_inside, column_inside = row < N, column < N
    mask = row_inside[:, None] & column_inside[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for j in range(0, K):
        s = pair_scores(grams, group, i, j, row, column, N, K, stride_gram, mask)
        edge = (group * K + i) * K + j
        row_slope = tl.load(slopes + edge * N + row, mask=row_inside, other=0.0)
        column_slope = tl.load(slopes + edge * N + column, mask=column_inside, other=0.0)
        row_mean = tl.load(means + edge * N + row, mask=row_inside, other=0.0)
        column_mean = tl.load(means + edge * N + column, mask=column_inside, other=0.0)
        part = row_weights(s, statistics, edge, N, row) * (column_slope[None, :] - row_mean[:, None])
        part += column_weights(s, statistics, edge, N, column) * (row_slope[:, None] - column_mean[None, :])
        total += tl.where(i == j, 2.0, 1.0) * part
    total *= tl.load(scale + group)
    total = total.to(out.dtype.element_ty)
    matrix = out + node.to(tl.int64) * N * stride_out
    tl.store(matrix + row.to(tl.int64)[:, None] * stride_out + column[None, :], total, mask=mask)
    if left > above:
        lower = matrix + column.to(tl.int64)[:, None] * stride_out + row[None, :]
        tl.store(lower, tl.trans(total), mask=column_inside[:, None] & row_inside[None, :])


@triton.jit
def channel_gradient(
    blocks,
    mean,
    statistics,
    grad,
    scale,
    out,
    mean_parts,
    C,
    K,
    stride_matrix,
    stride_row,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out (B, K C, K C): the gradient of block A_ij plus the transpose of A_ji's, times its group's scale; and what the
    weights of this block give the gradient of mean_i, mean_parts (B, K, K, C).

    The diagonal block takes part in every edge of i, any other in one and its reverse. grad: of `channel_readout`.
    """
    _, group, i, j = edge_of(K)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < C
    line = group * stride_matrix + (i * C + row).to(tl.int64)[:, None] * stride_row
    row_value = tl.load(mean + (group * K + i) * C + row, mask=inside, other=0.0)
    factor = tl.load(scale + group)
    to_mean = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, C, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        known = column < C
        mask = inside[:, None] & known[None, :]
        s = tl.load(blocks + line + (j * C + column)[None, :], mask=mask, other=0.0)
        column_value = tl.load(mean + (group * K + j) * C + column, mask=known, other=0.0)
        total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for other in range(tl.where(i == j, 0, j), tl.where(i == j, K, j + 1)):
            edge = (group * K + i) * K + other
            back = tl.where(i == j, edge, (group * K + other) * K + i)
            row_mixed = tl.load(statistics + edge * 3 * C + 2 * C + row, mask=inside, other=0.0)
            row_grad = tl.load(grad + edge * C + row, mask=inside, other=0.0)
            column_mixed = tl.load(statistics + back * 3 * C + 2 * C + column, mask=known, other=0.0)
            column_grad = tl.load(grad + back * C + column, mask=known, other=0.0)
            along = row_weights(s, statistics, edge, C, row) * row_grad[:, None]
            total += along * (column_value[None, :] - row_mixed[:, None])
            down = column_weights(s, statistics, back, C, column) * column_grad[None, :]
            total += down * (row_value[:, None] - column_mixed[None, :])
            to_mean += tl.sum(down, 1)
        tl.store(out + line + (j * C + column)[None, :], (total * factor).to(out.dtype.element_ty), mask=mask)
    tl.store(mean_parts + ((group * K + i) * K + j) * C + row, to_mean, mask=inside)


@triton.jit
def _add_direct(acc, statistics, grad, node, row, column, N, C, K):
    """acc + weights^T grad over the edges of a node: the gradient of `position_readout` for fixed weights."""
    for j in range(0, K):
        edge = node * K + j
        weight = tl.load(statistics + edge * 3 * N + 2 * N + row, mask=row < N, other=0.0)
        acc += weight[:, None] * tl.load(grad + edge * C + column, mask=column < C, other=0.0)[None, :]
    return acc


@triton.jit
def node_gradient(
    g,
    matrices,
    blocks,
    scale,
    statistics,
    grad,
    grad_mean,
    out,
    N,
    C,
    K,
    stride_node,
    stride_row,
    stride_gram,
    stride_matrix,
    stride_block,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The gradient of g_i (N, C): from its Gram matrix, from the blocks of all nodes, from the position weights, which
    `grad` (B, K, K, C) multiplies, and from mean_i, whose gradient is N grad_mean. matrices: of `position_gradient`,
    blocks: of `channel_gradient`, both in the dtype of g."""
    across = tl.cdiv(C, BLOCK_N)
    node = tl.program_id(1).to(tl.int64)
    i, group = node % K, node // K
    row = (tl.program_id(0) // across) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (tl.program_id(0) % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside, within = row < N, column < C
    line = row.to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, N, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        known = k < N
        offset = (node * N + line)[:, None] * stride_gram + k[None, :]
        mask = inside[:, None] & known[None, :]
        pointer = g + node * stride_node + k.to(tl.int64)[:, None] * stride_row + column[None, :]
        y = tl.load(pointer, mask=known[:, None] & within[None, :], other=0.0)
        acc = product(tl.load(matrices + offset, mask=mask, other=0.0), y, acc, PRECISION)
    steps = tl.cdiv(C, BLOCK_K)
    for step in range(0, K * steps):
        other = step // steps
        k = (step % steps) * BLOCK_K + tl.arange(0, BLOCK_K)
        known = k < C
        pointer = g + (group * K + other) * stride_node + line[:, None] * stride_row + k[None, :]
        x = tl.load(pointer, mask=inside[:, None] & known[None, :], other=0.0)
        offset = (
            group * stride_matrix + (other * C + k).to(tl.int64)[:, None] * stride_block + (i * C + column)[None, :]
        )
        mask = known[:, None] & within[None, :]
        acc = product(x, tl.load(blocks + offset, mask=mask, other=0.0), acc, PRECISION)
    acc = acc / tl.load(scale + group) + tl.load(grad_mean + node * C + column, mask=within, other=0.0)[None, :]
    acc = _add_direct(acc, statistics, grad, node, row, column, N, C, K)
    pointer = out + (node * N + line)[:, None] * C + column[None, :]
    tl.store(pointer, acc.to(out.dtype.element_ty), mask=inside[:, None] & within[None, :])
