"""Self-attention (Eq. 6), one edge of a node to itself, with what is added to it; the family of `co_attention`.

A program owns BLOCK_M positions of one of the flattened leading elements, here called nodes: every element is written
by one program, nothing is added atomically. q, k (nodes, N, D) have rows `stride_factor` apart, v (nodes, N, C)
`stride_v`; statistics and delta are (nodes, N), results contiguous.
"""

import triton
import triton.language as tl
from gwsss_fast.kernels.online_softmax import (
    add_weighted,
    load_rows,
    node_start,
    place,
    row_log_sum_exp,
    store_rows,
)
from gwsss_fast.kernels.softmax_gradient import add_receiver_gradient, add_sender_gradient, hold_rows


@triton.jit
def attend(
    q,
    k,
    v,
    residual,
    message,
    row_lse,
    out,
    message_scale,
    N,
    D,
    C,
    stride_factor,
    stride_v,
    stride_residual,
    stride_message,
    HAS_RESIDUAL: tl.constexpr,
    HAS_MESSAGE: tl.constexpr,
    POWER: tl.constexpr,
    FULL_D: tl.constexpr,
    FULL_C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out = softmax(q k^T) v + residual + message_scale * message, and the rows' log-sum-exps.

    Axis 1 shares out the blocks of BLOCK_C columns. Programs that own the same rows write the same statistics.
    """
    node, start = place(N, BLOCK_M)
    row = start + tl.arange(0, BLOCK_M)
    mine = node_start(q, node, N, stride_factor)
    own = load_rows(mine, start, N, D, stride_factor, BLOCK_M, BLOCK_D, FULL_D)
    other = node_start(k, node, N, stride_factor)
    lse = row_log_sum_exp(own, mine, start, other, N, D, stride_factor, FULL_D, PRECISION, BLOCK_S, BLOCK_K)
    tl.store(row_lse + tl.cast(node, tl.int64) * N + row, lse, mask=row < N)
    for first in tl.range(tl.program_id(1) * BLOCK_C, C, tl.num_programs(1) * BLOCK_C, disable_licm=True):
        acc = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        acc = add_weighted(
            *(acc, own, mine, start, lse, other, row_lse, node_start(v, node, N, stride_v) + first),
            *(N, D, C - first, stride_factor, stride_v, False, POWER, FULL_D, FULL_C, PRECISION, BLOCK_N, BLOCK_K),
        )
        acc *= tl.exp2(0.0 - POWER)
        # A loop, so that one addend at a time takes registers beside the accumulator.
        for addend in tl.range(1 - HAS_RESIDUAL, 1 + HAS_MESSAGE, disable_licm=True):
            scale = tl.where(addend == 0, 1.0, message_scale)
            stride = tl.where(addend == 0, stride_residual, stride_message)
            base = node_start(tl.where(addend == 0, residual, message), node, N, stride) + first
            acc += scale * load_rows(base, start, N, C - first, stride, BLOCK_M, BLOCK_C, FULL_C).to(tl.float32)
        store_rows(node_start(out, node, N, C) + first, start, N, C - first, C, acc, BLOCK_M, BLOCK_C, FULL_C)


@triton.jit
def value_gradient(
    grad,
    q,
    k,
    row_lse,
    grad_v,
    N,
    D,
    C,
    stride_grad,
    stride_factor,
    POWER: tl.constexpr,
    FULL_D: tl.constexpr,
    FULL_C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """grad_v = P^T grad. Axis 1 shares out the blocks of BLOCK_C columns."""
    node, start = place(N, BLOCK_M)
    mine = node_start(k, node, N, stride_factor)
    own = load_rows(mine, start, N, D, stride_factor, BLOCK_M, BLOCK_D, FULL_D)
    other = node_start(q, node, N, stride_factor)
    lse = row_lse + tl.cast(node, tl.int64) * N
    for first in tl.range(tl.program_id(1) * BLOCK_C, C, tl.num_programs(1) * BLOCK_C, disable_licm=True):
        acc = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        acc = add_weighted(
            *(acc, own, mine, start, lse, other, lse, node_start(grad, node, N, stride_grad) + first),
            *(N, D, C - first, stride_factor, stride_grad, True, POWER, FULL_D, FULL_C, PRECISION, BLOCK_N, BLOCK_K),
        )
        result = acc * tl.exp2(0.0 - POWER)
        store_rows(node_start(grad_v, node, N, C) + first, start, N, C - first, C, result, BLOCK_M, BLOCK_C, FULL_C)


@triton.jit
def query_gradient(
    grad,
    q,
    k,
    v,
    row_lse,
    delta,
    grad_q,
    N,
    D,
    C,
    stride_grad,
    stride_factor,
    stride_v,
    FULL_D: tl.constexpr,
    FULL_C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HELD: tl.constexpr,
):
    """grad_q and delta = rowsum(P dP). Axis 1: blocks of BLOCK_G columns of the gradient."""
    node, start = place(N, BLOCK_M)
    row = start + tl.arange(0, BLOCK_M)
    first = tl.program_id(1) * BLOCK_G if BLOCK_G < BLOCK_D else 0
    line = tl.cast(node, tl.int64) * N + row
    mine = node_start(q, node, N, stride_factor)
    own = load_rows(mine, start, N, D, stride_factor, BLOCK_M, BLOCK_D, FULL_D)
    grad_node = node_start(grad, node, N, stride_grad)
    tiles = hold_rows(grad_node, start, N, C, stride_grad, FULL_C, BLOCK_M, BLOCK_C, HELD)
    lse = tl.load(row_lse + line, mask=row < N, other=0.0)
    acc, moment = add_receiver_gradient(
        *(tl.zeros((BLOCK_M, BLOCK_G), tl.float32), own, mine, start, lse, tiles, grad_node),
        *(node_start(k, node, N, stride_factor), node_start(v, node, N, stride_v), first, N, D, C),
        *(stride_factor, stride_grad, stride_v, FULL_D, FULL_C, PRECISION, BLOCK_N, BLOCK_K, BLOCK_C, HELD),
    )
    if first == 0:
        tl.store(delta + line, moment, mask=row < N)
    store_rows(node_start(grad_q, node, N, D) + first, start, N, D - first, D, acc, BLOCK_M, BLOCK_G, FULL_D)


@triton.jit
def key_gradient(
    grad,
    q,
    k,
    v,
    row_lse,
    delta,
    grad_k,
    N,
    D,
    C,
    stride_grad,
    stride_factor,
    stride_v,
    FULL_D: tl.constexpr,
    FULL_C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HELD: tl.constexpr,
):
    """grad_k, with the delta that `query_gradient` has written."""
    node, start = place(N, BLOCK_M)
    line = tl.cast(node, tl.int64) * N
    mine = node_start(k, node, N, stride_factor)
    own = load_rows(mine, start, N, D, stride_factor, BLOCK_M, BLOCK_D, FULL_D)
    v_node = node_start(v, node, N, stride_v)
    tiles = hold_rows(v_node, start, N, C, stride_v, FULL_C, BLOCK_M, BLOCK_C, HELD)
    acc = add_sender_gradient(
        *(tl.zeros((BLOCK_M, BLOCK_D), tl.float32), own, mine, start, tiles, v_node),
        *(node_start(q, node, N, stride_factor), node_start(grad, node, N, stride_grad), row_lse + line, delta + line),
        *(N, D, C, stride_factor, stride_grad, stride_v, FULL_D, FULL_C, PRECISION, BLOCK_N, BLOCK_K, BLOCK_C, HELD),
    )
    store_rows(node_start(grad_k, node, N, D), start, N, D, D, acc, BLOCK_M, BLOCK_D, FULL_D)
