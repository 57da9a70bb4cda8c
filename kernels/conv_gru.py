"""The ConvGRU (Eq. 2) on channels-last rows (R, C), R = M H W, with unit stride in the channels.

Kernel 1: `gates` and `candidate` are matrix products that read message and state in one loop and apply the gates to
the accumulators; `reset_gradient` is the one product of the backward pass that something pointwise follows. For other
kernels, and in float32, the products are made elsewhere and the pointwise kernels at the end do the rest.
Weights are (3C, 2C): rows [update, reset, candidate], columns [message, state].
"""

import triton
import triton.language as tl
from gwsss_fast.kernels.online_softmax import product


@triton.jit
def _sigmoid(x):
    tail = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, tail) / (1.0 + tail)


@triton.jit
def _tanh(x):
    """A series below 0.55, where the quotient would cancel; both within 4 units in the last place of float32."""
    size = tl.abs(x)
    tail = tl.exp(-2.0 * size)
    quotient = (1.0 - tail) / (1.0 + tail)
    square = x * x
    series = -0.05391007 + square * (0.02131275 - 0.00661576 * square)
    series = x + x * square * (-0.33333332 + square * (0.13333118 + square * series))
    return tl.where(size < 0.55, series, tl.where(x < 0, -quotient, quotient))


@triton.jit
def _load(pointer, row, stride, column, mask):
    return tl.load(pointer + row[:, None] * stride + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, row, stride, column, mask, value):
    tl.store(pointer + row[:, None] * stride + column[None, :], value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _message_and_state(
    m,
    h,
    weight,
    bias,
    row,
    inside,
    column,
    gate,
    C,
    stride_m,
    stride_h,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """bias + [m, h] @ weight^T for one gate, in float32: one loop over the channels of both, so one pipeline."""
    within = column < C
    line = (gate * C + column).to(tl.int64) * (2 * C)
    parts = tl.cdiv(C, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, 2 * parts):
        of_state = step >= parts
        channel = tl.where(of_state, step - parts, step) * BLOCK_K + tl.arange(0, BLOCK_K)
        source = tl.where(of_state, h, m)
        start = row * tl.where(of_state, stride_h, stride_m)
        known = channel < C
        x = tl.load(source + start[:, None] + channel[None, :], mask=inside[:, None] & known[None, :], other=0.0)
        w = tl.load(
            weight + tl.where(of_state, C, 0) + line[None, :] + channel[:, None],
            mask=within[None, :] & known[:, None],
            other=0.0,
        )
        acc = product(x, w, acc, PRECISION)
    return acc + tl.load(bias + gate * C + column, mask=within, other=0.0).to(tl.float32)[None, :]


@triton.jit
def gates(
    m,
    h,
    weight,
    bias,
    z,
    r,
    reset,
    rows,
    C,
    stride_m,
    stride_h,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """z and r = sigmoid of their products, and reset = r h; r is stored when KEEP. Results are contiguous (R, C).

    A program makes one tile of one gate; neighbours in the grid share their rows of m and h.
    """
    across = tl.cdiv(C, BLOCK_N)
    tile = tl.program_id(0) % (2 * across)
    gate = tile // across
    row = (tl.program_id(0) // (2 * across)).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (tile % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < rows
    mask = inside[:, None] & (column < C)[None, :]
    value = _sigmoid(
        _message_and_state(
            *(m, h, weight, bias, row, inside, column, gate, C, stride_m, stride_h, PRECISION),
            *(BLOCK_M, BLOCK_N, BLOCK_K),
        )
    )
    if gate == 0:
        _store(z, row, C, column, mask, value)
    else:
        _store(reset, row, C, column, mask, value * _load(h, row, stride_h, column, mask))
        if KEEP:
            _store(r, row, C, column, mask, value)


@triton.jit
def candidate(
    m,
    reset,
    weight,
    bias,
    z,
    h,
    out,
    c,
    rows,
    C,
    stride_m,
    stride_h,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """c = tanh of its product with [m, r h] (stored when KEEP) and out = (1 - z) h + z c, contiguous (R, C)."""
    across = tl.cdiv(C, BLOCK_N)
    row = (tl.program_id(0) // across).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (tl.program_id(0) % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < rows
    mask = inside[:, None] & (column < C)[None, :]
    value = _tanh(
        _message_and_state(
            *(m, reset, weight, bias, row, inside, column, 2, C, stride_m, C, PRECISION),
            *(BLOCK_M, BLOCK_N, BLOCK_K),
        )
    )
    state = _load(h, row, stride_h, column, mask)
    update = _load(z, row, C, column, mask)
    _store(out, row, C, column, mask, state + update * (value - state))
    if KEEP:
        _store(c, row, C, column, mask, value)


@triton.jit
def reset_gradient(
    slope_c,
    weight,
    grad,
    h,
    z,
    r,
    slope_r,
    reset,
    direct,
    bias_parts,
    rows,
    C,
    stride_slope,
    stride_grad,
    stride_h,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """grad_reset = slope_c @ weight[2C:, C:], the gradient of r h, and what follows from it alone.

    slope_r, the gradient before the reset gate's sigmoid, with the same row stride as slope_c; reset = r h and direct
    = grad (1 - z) + grad_reset r, both (R, C); and the sums of slope_r over the tile's rows, bias_parts (tiles, C).
    """
    across = tl.cdiv(C, BLOCK_N)
    part = tl.program_id(0) // across
    row = part.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (tl.program_id(0) % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside, within = row < rows, column < C
    mask = inside[:, None] & within[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, C, BLOCK_K):
        channel = start + tl.arange(0, BLOCK_K)
        known = channel < C
        x = tl.load(
            slope_c + (row * stride_slope)[:, None] + channel[None, :],
            mask=inside[:, None] & known[None, :],
            other=0.0,
        )
        w = tl.load(
            weight + (2 * C + channel).to(tl.int64)[:, None] * (2 * C) + (C + column)[None, :],
            mask=known[:, None] & within[None, :],
            other=0.0,
        )
        acc = product(x, w, acc, PRECISION)
    gate = _load(r, row, C, column, mask)
    acc *= gate
    kept = _load(grad, row, stride_grad, column, mask) * (1.0 - _load(z, row, C, column, mask))
    _store(direct, row, C, column, mask, kept + acc)
    state = _load(h, row, stride_h, column, mask)
    _store(reset, row, C, column, mask, gate * state)
    acc *= (1.0 - gate) * state
    _store(slope_r, row, stride_slope, column, mask, acc)
    tl.store(bias_parts + part.to(tl.int64) * C + column, tl.sum(acc, 0), mask=within)


@triton.jit
def _tile(rows, C, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows, columns and mask of a pointwise kernel's program."""
    across = tl.cdiv(C, BLOCK_N)
    row = (tl.program_id(0) // across).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (tl.program_id(0) % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    return row, column, (row < rows)[:, None] & (column < C)[None, :]


@triton.jit
def _store_sums(parts, C, column, values, BLOCK_N: tl.constexpr):
    """The sums of a pointwise kernel's tile over its rows, parts (row tiles, C); zero outside the mask."""
    part = (tl.program_id(0) // tl.cdiv(C, BLOCK_N)).to(tl.int64)
    tl.store(parts + part * C + column, tl.sum(values, 0), mask=column < C)


@triton.jit
def update_slopes(
    grad,
    h,
    z,
    c,
    slope_z,
    slope_c,
    parts_z,
    parts_c,
    rows,
    C,
    stride_grad,
    stride_h,
    stride_z,
    stride_c,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gradients before the sigmoid of z and the tanh of c, and their sums over the tile's rows."""
    row, column, mask = _tile(rows, C, BLOCK_M, BLOCK_N)
    update = _load(z, row, C, column, mask)
    opened = _load(grad, row, stride_grad, column, mask) * update
    value = _load(c, row, C, column, mask)
    slope = opened * (1.0 - value * value)
    _store(slope_c, row, stride_c, column, mask, slope)
    _store_sums(parts_c, C, column, slope, BLOCK_N)
    slope = opened * (1.0 - update) * (value - _load(h, row, stride_h, column, mask))
    _store(slope_z, row, stride_z, column, mask, slope)
    _store_sums(parts_z, C, column, slope, BLOCK_N)


@triton.jit
def gates_of_products(
    message,
    state,
    h,
    z,
    r,
    reset,
    rows,
    C,
    stride_message,
    stride_state,
    stride_h,
    KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """z, r and reset = r h from the products with m (R, 3C), bias included, and with h (R, 2C)."""
    row, column, mask = _tile(rows, C, BLOCK_M, BLOCK_N)
    update = _load(message, row, stride_message, column, mask) + _load(state, row, stride_state, column, mask)
    _store(z, row, C, column, mask, _sigmoid(update))
    gate = _load(message, row, stride_message, C + column, mask) + _load(state, row, stride_state, C + column, mask)
    gate = _sigmoid(gate)
    _store(reset, row, C, column, mask, gate * _load(h, row, stride_h, column, mask))
    if KEEP:
        _store(r, row, C, column, mask, gate)


@triton.jit
def blend(
    message,
    state,
    z,
    h,
    out,
    c,
    rows,
    C,
    stride_message,
    stride_state,
    stride_h,
    KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """c = tanh(message[:, 2C:] + state) and out = (1 - z) h + z c; state (R, C) is the product with r h."""
    row, column, mask = _tile(rows, C, BLOCK_M, BLOCK_N)
    value = _load(message, row, stride_message, 2 * C + column, mask) + _load(state, row, stride_state, column, mask)
    value = _tanh(value)
    before = _load(h, row, stride_h, column, mask)
    _store(out, row, C, column, mask, before + _load(z, row, C, column, mask) * (value - before))
    if KEEP:
        _store(c, row, C, column, mask, value)


@triton.jit
def reset_slopes(
    grad_reset,
    h,
    r,
    slope_r,
    reset,
    parts,
    rows,
    C,
    stride_grad,
    stride_h,
    stride_slope,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The gradient before the sigmoid of r from that of r h, its sums over the tile's rows, and reset = r h."""
    row, column, mask = _tile(rows, C, BLOCK_M, BLOCK_N)
    state = _load(h, row, stride_h, column, mask)
    gate = _load(r, row, C, column, mask)
    _store(reset, row, C, column, mask, gate * state)
    slope = _load(grad_reset, row, stride_grad, column, mask) * state * gate * (1.0 - gate)
    _store(slope_r, row, stride_slope, column, mask, slope)
    _store_sums(parts, C, column, slope, BLOCK_N)


@triton.jit
def join_gradients(
    grad,
    back,
    from_gates,
    z,
    r,
    grad_m,
    grad_h,
    rows,
    C,
    stride_grad,
    stride_back,
    stride_gates,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gradients of m and h; back and from_gates (R, 2C) came through the weights of candidate and gates."""
    row, column, mask = _tile(rows, C, BLOCK_M, BLOCK_N)
    message = _load(back, row, stride_back, column, mask) + _load(from_gates, row, stride_gates, column, mask)
    _store(grad_m, row, C, column, mask, message)
    kept = _load(grad, row, stride_grad, column, mask) * (1.0 - _load(z, row, C, column, mask))
    kept += _load(back, row, stride_back, C + column, mask) * _load(r, row, C, column, mask)
    _store(grad_h, row, C, column, mask, kept + _load(from_gates, row, stride_gates, C + column, mask))
