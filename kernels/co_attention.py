"""Co-attention (Eq. 5, 7, 8): all K (K - 1) directed edges of all groups in one start, forward and backward.

A program owns BLOCK_M positions of one node and sums over the node's partners, so every element is written by exactly
one program, nothing is added atomically and two runs agree bit for bit. That costs the backward pass the scores three
times, once for each of its kernels, and the weights' gradient twice.

Factors p, q (B, K, N, D) have rows `stride_factor` apart; nodes, messages and their gradients are (B, K, N, C). Row
statistics and delta are (B, K, K, N), indexed [receiver, sender]. `node` counts through all groups.
"""

import triton
import triton.language as tl
from gwsss_fast.kernels.online_softmax import add_weighted, load_rows, node_start, place, row_log_sum_exp, store_rows
from gwsss_fast.kernels.softmax_gradient import add_receiver_gradient, add_sender_gradient, hold_rows


@triton.jit
def _edge(statistics, receiver, sender, K, N):
    """Where the rows of an edge begin in (B, K, K, N)."""
    return statistics + (tl.cast(receiver, tl.int64) * K + sender % K) * N


@triton.jit
def _partner(index, node, K):
    """The partner number `index` of 0..K-2: the others of the node's group, in order."""
    own = node % K
    return node - own + index + tl.where(index >= own, 1, 0)


@triton.jit
def _sides(p, q, receiver, sender, N, stride, DIRECTED: tl.constexpr):
    """Where the receiver's and the sender's factor of an edge begin: p and q for receiver < sender, else q and p.

    DIRECTED: always p on the receiver and q on the sender.
    """
    straight = DIRECTED | (receiver < sender)
    left = node_start(tl.where(straight, p, q), receiver, N, stride)
    return left, node_start(tl.where(straight, q, p), sender, N, stride)


@triton.jit
def messages(
    p,
    q,
    g,
    row_lse,
    out,
    K,
    N,
    D,
    C,
    stride_factor,
    stride_g,
    DIRECTED: tl.constexpr,
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
    """out = sum over senders of P g, contiguous, and the rows' log-sum-exps.

    Axis 1 shares out the blocks of BLOCK_C columns. Programs that own the same rows write the same statistics.
    """
    node, start = place(N, BLOCK_M)
    row = start + tl.arange(0, BLOCK_M)
    tl.store(_edge(row_lse, node, node, K, N) + row, tl.zeros((BLOCK_M,), tl.float32), mask=row < N)
    for index in tl.range(0, K - 1, disable_licm=True):
        sender = _partner(index, node, K)
        left, right = _sides(p, q, node, sender, N, stride_factor, DIRECTED)
        own = load_rows(left, start, N, D, stride_factor, BLOCK_M, BLOCK_D, FULL_D)
        lse = row_log_sum_exp(own, left, start, right, N, D, stride_factor, FULL_D, PRECISION, BLOCK_S, BLOCK_K)
        tl.store(_edge(row_lse, node, sender, K, N) + row, lse, mask=row < N)
    tl.debug_barrier()  # the statistics are read again by other threads of this program
    for first in tl.range(tl.program_id(1) * BLOCK_C, C, tl.num_programs(1) * BLOCK_C, disable_licm=True):
        acc = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        for index in tl.range(0, K - 1, disable_licm=True):
            sender = _partner(index, node, K)
            left, right = _sides(p, q, node, sender, N, stride_factor, DIRECTED)
            own = load_rows(left, start, N, D, stride_factor, BLOCK_M, BLOCK_D, FULL_D)
            lse = tl.load(_edge(row_lse, node, sender, K, N) + row, mask=row < N, other=0.0)
            acc = add_weighted(
                *(acc, own, left, start, lse, right, row_lse, node_start(g, sender, N, stride_g) + first),
                *(N, D, C - first, stride_factor, stride_g, False, POWER, FULL_D, FULL_C, PRECISION, BLOCK_N, BLOCK_K),
            )
        result = acc * tl.exp2(0.0 - POWER)
        store_rows(node_start(out, node, N, C) + first, start, N, C - first, C, result, BLOCK_M, BLOCK_C, FULL_C)


@triton.jit
def value_gradient(
    grad,
    p,
    q,
    row_lse,
    grad_g,
    K,
    N,
    D,
    C,
    stride_grad,
    stride_factor,
    DIRECTED: tl.constexpr,
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
    """grad_g = sum over receivers of P^T grad, contiguous. Axis 1 shares out the blocks of BLOCK_C columns."""
    node, start = place(N, BLOCK_M)
    for first in tl.range(tl.program_id(1) * BLOCK_C, C, tl.num_programs(1) * BLOCK_C, disable_licm=True):
        acc = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        for index in tl.range(0, K - 1, disable_licm=True):
            receiver = _partner(index, node, K)
            left, right = _sides(p, q, receiver, node, N, stride_factor, DIRECTED)
            own = load_rows(right, start, N, D, stride_factor, BLOCK_M, BLOCK_D, FULL_D)
            lse = _edge(row_lse, receiver, node, K, N)
            acc = add_weighted(
                *(acc, own, right, start, lse, left, lse, node_start(grad, receiver, N, stride_grad) + first),
                *(
                    N,
                    D,
                    C - first,
                    stride_factor,
                    stride_grad,
                    True,
                    POWER,
                    FULL_D,
                    FULL_C,
                    PRECISION,
                    BLOCK_N,
                    BLOCK_K,
                ),
            )
        result = acc * tl.exp2(0.0 - POWER)
        store_rows(node_start(grad_g, node, N, C) + first, start, N, C - first, C, result, BLOCK_M, BLOCK_C, FULL_C)


@triton.jit
def _role(node, K, DIRECTED: tl.constexpr):
    """The partners of this program: (first, last) of `_partner`'s numbers.

    "transpose" has two programs for the same positions: 0 for the partners behind the node, with whom its factor is p
    in both directions, and 1 for those before it, with whom it is q.
    """
    before = node % K
    if DIRECTED:
        return 0, K - 1
    else:
        behind = tl.program_id(1) == 0
        return tl.where(behind, before, 0), tl.where(behind, K - 1, before)


@triton.jit
def receiver_gradient(
    grad,
    p,
    q,
    g,
    row_lse,
    delta,
    grad_p,
    grad_q,
    K,
    N,
    D,
    C,
    stride_grad,
    stride_factor,
    stride_g,
    DIRECTED: tl.constexpr,
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
    """What the nodes' factors get as receivers, into grad_p and grad_q (contiguous), and delta = rowsum(P dP).

    Axis 1: see `_role`; axis 2: blocks of BLOCK_G columns of the gradient.
    """
    node, start = place(N, BLOCK_M)
    row = start + tl.arange(0, BLOCK_M)
    first = tl.program_id(2) * BLOCK_G if BLOCK_G < BLOCK_D else 0
    use_p = DIRECTED | (tl.program_id(1) == 0)
    mine, theirs = node_start(tl.where(use_p, p, q), node, N, stride_factor), tl.where(use_p, q, p)
    own = load_rows(mine, start, N, D, stride_factor, BLOCK_M, BLOCK_D, FULL_D)
    grad_node = node_start(grad, node, N, stride_grad)
    tiles = hold_rows(grad_node, start, N, C, stride_grad, FULL_C, BLOCK_M, BLOCK_C, HELD)
    acc = tl.zeros((BLOCK_M, BLOCK_G), tl.float32)
    low, high = _role(node, K, DIRECTED)
    for index in tl.range(low, high, disable_licm=True):
        sender = _partner(index, node, K)
        lse = tl.load(_edge(row_lse, node, sender, K, N) + row, mask=row < N, other=0.0)
        acc, moment = add_receiver_gradient(
            *(acc, own, mine, start, lse, tiles, grad_node, node_start(theirs, sender, N, stride_factor)),
            *(node_start(g, sender, N, stride_g), first, N, D, C, stride_factor, stride_grad, stride_g),
            *(FULL_D, FULL_C, PRECISION, BLOCK_N, BLOCK_K, BLOCK_C, HELD),
        )
        if first == 0:
            tl.store(_edge(delta, node, sender, K, N) + row, moment, mask=row < N)
    result = node_start(tl.where(use_p, grad_p, grad_q), node, N, D) + first
    store_rows(result, start, N, D - first, D, acc, BLOCK_M, BLOCK_G, FULL_D)


@triton.jit
def sender_gradient(
    grad,
    p,
    q,
    g,
    row_lse,
    delta,
    partial_p,
    partial_q,
    grad_p,
    grad_q,
    K,
    N,
    D,
    C,
    stride_grad,
    stride_factor,
    stride_g,
    DIRECTED: tl.constexpr,
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
    """What the nodes' factors get as senders, with what they got as receivers (partial) added: grad_p and grad_q.

    DIRECTED: grad_q alone, and nothing to add. Axis 1: see `_role`.
    """
    node, start = place(N, BLOCK_M)
    use_q = DIRECTED | (tl.program_id(1) == 1)
    mine, theirs = node_start(tl.where(use_q, q, p), node, N, stride_factor), tl.where(use_q, p, q)
    own = load_rows(mine, start, N, D, stride_factor, BLOCK_M, BLOCK_D, FULL_D)
    g_node = node_start(g, node, N, stride_g)
    tiles = hold_rows(g_node, start, N, C, stride_g, FULL_C, BLOCK_M, BLOCK_C, HELD)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if not DIRECTED:
        partial = node_start(tl.where(use_q, partial_q, partial_p), node, N, D)
        acc = load_rows(partial, start, N, D, D, BLOCK_M, BLOCK_D, FULL_D)
    low, high = _role(node, K, DIRECTED)
    for index in tl.range(low, high, disable_licm=True):
        receiver = _partner(index, node, K)
        acc = add_sender_gradient(
            *(acc, own, mine, start, tiles, g_node, node_start(theirs, receiver, N, stride_factor)),
            *(node_start(grad, receiver, N, stride_grad), _edge(row_lse, receiver, node, K, N)),
            *(_edge(delta, receiver, node, K, N), N, D, C, stride_factor, stride_grad, stride_g),
            *(FULL_D, FULL_C, PRECISION, BLOCK_N, BLOCK_K, BLOCK_C, HELD),
        )
    result = node_start(tl.where(use_q, grad_q, grad_p), node, N, D)
    store_rows(result, start, N, D, D, acc, BLOCK_M, BLOCK_D, FULL_D)
