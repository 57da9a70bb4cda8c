"""Starts the kernels of the ConvGRU.

Kernel 1 in 16 bits, or in float32 where tf32 is allowed: matrix products with the gates in their epilogues. Otherwise
PyTorch makes the products (cuBLAS in full float32, which no tensor core serves; cuDNN for larger kernels) and
pointwise kernels do the rest. The weights' gradients are plain products over all rows and stay with PyTorch too.

Kept for the backward pass: z, r and c, three tensors of the state's size and dtype (77 MB a step for 8 groups of 4
nodes, 784 positions and 512 channels in 16 bits); making them again would cost half of the forward pass's products
twice over. With them the backward pass holds at its peak 7 more such tensors for kernel 1 and 9 for larger ones.
Everything is deterministic but cuDNN's weight gradients, which are so when `torch.backends.cudnn.deterministic` is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d
from torch.nn.grad import conv2d_weight

from gwsss_fast.kernels import conv_gru as kernels
from gwsss_fast.launch.launcher import Tiles, blocks, launch, power_of_two
from gwsss_fast.launch.tuning import dtype_name, tiles_for


def _rows(x: Tensor) -> Tensor:
    """(M, C, H, W) as (M H W, C) with unit stride in C: no copy when x is channels last, padded or not."""
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _images(rows: Tensor, like: Tensor) -> Tensor:
    batch, _, height, width = like.shape
    return rows.reshape(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def _fused(h: Tensor, weight: Tensor) -> bool:
    """Whether the products run in our kernels: kernel 1, on tensor cores."""
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return weight.shape[-1] == 1 and (h.dtype != torch.float32 or tf32)


def _precision(h: Tensor) -> str:
    """How the products take their operands: the interpreter has none for bfloat16."""
    if h.dtype == torch.float32:
        return "tf32"
    return "upcast" if h.dtype == torch.bfloat16 and h.device.type == "cpu" else "ieee"


def _product_tiles(name: str, h: Tensor, run: Callable[[Tiles], None]) -> Tiles:
    """128 x 128 tiles for wide states on many rows, fewer rows where those would leave multiprocessors idle.

    Each stage of the pipeline holds 128 bytes a row of both operands: 96 KiB in three stages, which every card has.
    The products of the backward pass read four tensors at their end and have registers for 64 x 128 values.
    """
    rows, channels = h.shape
    wide = min(power_of_two(channels), 128)
    deep = min(power_of_two(channels), 128 // h.element_size())
    full = blocks(rows, 128) * blocks(channels, wide) >= 128 and name != "reset_gradient"
    tall = 128 if full else 64 if channels % 16 == 0 else 32
    heuristic = Tiles({"BLOCK_M": tall, "BLOCK_N": wide, "BLOCK_K": deep}, 8 if wide == 128 else 4, 3)
    candidates = [
        Tiles({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": deep}, num_warps=warps, num_stages=stages)
        for m, n, warps in ((128, 128, 8), (128, 64, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4))
        for stages in (3, 4)
        if n <= wide
    ]
    key = {"C": channels, "rows": power_of_two(rows), "dtype": dtype_name(h)}
    return tiles_for(f"conv_gru.{name}", h, key, heuristic, candidates, run)


def _start_product(kernel: Any, h: Tensor, arguments: tuple[Any, ...], parts: int = 1, **constants: Any) -> None:
    """Start a product of (R, C) results for `parts` gates. arguments: its tensors first, then its numbers."""
    rows, channels = h.shape

    def run(tiles: Tiles) -> None:
        grid = blocks(rows, tiles.blocks["BLOCK_M"]) * blocks(channels, tiles.blocks["BLOCK_N"]) * parts
        launch(kernel, (grid,), *arguments, tiles=tiles, PRECISION=_precision(h), **constants)

    name = "gates" if parts == 2 else "candidate"
    run(_product_tiles(name, h, run))


def _pointwise_tiles(channels: int) -> Tiles:
    """2,048 values a program, for these kernels read up to seven tensors; 32 rows, for some also add them up. A quarter
    of it where rows do not begin at multiples of 16 bytes: each value then has an address of its own."""
    height, wide = (32, 64) if channels % 16 == 0 else (16, 32)
    return Tiles({"BLOCK_M": height, "BLOCK_N": wide}, num_warps=4, num_stages=2)


def _start_pointwise(kernel: Any, rows: int, channels: int, *arguments: Any, **constants: Any) -> None:
    tiles = _pointwise_tiles(channels)
    grid = blocks(rows, tiles.blocks["BLOCK_M"]) * blocks(channels, tiles.blocks["BLOCK_N"])
    launch(kernel, (grid,), *arguments, tiles=tiles, **constants)


def _parts(like: Tensor, tiles: Tiles) -> Tensor:
    """Room for the sums of a bias's gradient over a tile's rows: added in a fixed order, not by atomics."""
    (rows, channels), height = like.shape, tiles.blocks["BLOCK_M"]
    return torch.empty((blocks(rows, height), channels), device=like.device, dtype=torch.float32)


def conv_gru(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference.conv_gru`: h', z, r, c, each (M, C, H, W) in channels last; the last three empty unless `keep`."""
    m_rows, h_rows, bias = _rows(m), _rows(h), bias.contiguous()
    out, z, reset = (h_rows.new_empty(h_rows.shape) for _ in range(3))
    r, c = (h_rows.new_empty(h_rows.shape if keep else (0,)) for _ in range(2))
    if _fused(h, weight):
        flat = weight.flatten(1).contiguous()
        sizes = (*h_rows.shape, m_rows.stride(0), h_rows.stride(0))
        _start_product(kernels.gates, h_rows, (m_rows, h_rows, flat, bias, z, r, reset, *sizes), 2, KEEP=keep)
        _start_product(kernels.candidate, h_rows, (m_rows, reset, flat, bias, z, h_rows, out, c, *sizes), KEEP=keep)
    else:
        _forward_of_products((m_rows, h_rows, weight, bias), (out, z, r, c, reset), h, keep)
    z, r, c = (_images(x, h) if keep else h.new_empty(0) for x in (z, r, c))
    return _images(out, h), z, r, c


def _forward_of_products(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor], results: tuple[Tensor, ...], like: Tensor, keep: bool
) -> None:
    """Fill out, z, r, c and r h by products of PyTorch; only the candidate's state part waits for the reset gate."""
    m, h, weight, bias = inputs
    out, z, r, c, reset = results
    rows, channels = h.shape
    message = _product(m, weight[:, :channels], bias, like)
    state = _product(h, weight[: 2 * channels, channels:], None, like)
    sizes = (rows, channels)
    strides = (message.stride(0), state.stride(0), h.stride(0))
    _start_pointwise(kernels.gates_of_products, *sizes, message, state, h, z, r, reset, *sizes, *strides, KEEP=keep)
    state = _product(reset, weight[2 * channels :, channels:], None, like)
    strides = (message.stride(0), state.stride(0), h.stride(0))
    _start_pointwise(kernels.blend, *sizes, message, state, z, h, out, c, *sizes, *strides, KEEP=keep)


def conv_gru_backward(
    grad: Tensor, m: Tensor, h: Tensor, weight: Tensor, bias: Tensor, z: Tensor, r: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference.conv_gru_backward`: gradients of m, h, weight and bias."""
    inputs = tuple(_rows(x) for x in (grad, m, h))
    # The kernels read the gates as contiguous rows, as the forward pass makes them.
    kept = tuple(_rows(x).contiguous() for x in (z, r, c))
    if _fused(h, weight):
        grad_m, grad_h, grad_weight, grad_bias = _backward_fused(inputs, weight, kept)
    else:
        grad_m, grad_h, grad_weight, grad_bias = _backward_of_products(inputs, weight, kept, h)
    return _images(grad_m, m), _images(grad_h, h), grad_weight.view_as(weight), grad_bias.to(bias.dtype)


Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _start_update_slopes(
    inputs: tuple[Tensor, ...], kept: tuple[Tensor, ...], slope_z: Tensor, slope_c: Tensor
) -> tuple[Tensor, Tensor]:
    """Fill the gradients before the non-linearities of z and c; returns their sums, (C,) in float32."""
    (grad, _, h), (z, _, c) = inputs, kept
    parts_z, parts_c = (_parts(h, _pointwise_tiles(h.shape[1])) for _ in range(2))
    strides = (grad.stride(0), h.stride(0), slope_z.stride(0), slope_c.stride(0))
    _start_pointwise(
        kernels.update_slopes, *h.shape, grad, h, z, c, slope_z, slope_c, parts_z, parts_c, *h.shape, *strides
    )
    return parts_z.sum(0), parts_c.sum(0)


def _backward_fused(inputs: tuple[Tensor, ...], weight: Tensor, kept: tuple[Tensor, ...]) -> Gradients:
    """Kernel 1. slopes (R, 3C) are the gradients before the non-linearities [update, reset, candidate]."""
    _, m, h = inputs
    rows, channels = h.shape
    flat = weight.flatten(1).contiguous()
    slopes = h.new_empty(rows, 3 * channels)
    slope_z, slope_r, slope_c = slopes.chunk(3, 1)
    reset, grad_h = (h.new_empty(h.shape) for _ in range(2))
    bias_z, bias_c = _start_update_slopes(inputs, kept, slope_z, slope_c)
    bias_r = _start_reset_gradient((slope_c, flat), inputs, kept, (slope_r, reset, grad_h))

    grad_m = slopes @ flat[:, :channels]
    gates = slopes[:, : 2 * channels]
    grad_h.addmm_(gates, flat[: 2 * channels, channels:])
    grad_weight = torch.empty_like(flat)
    torch.mm(slopes.T, m, out=grad_weight[:, :channels])
    torch.mm(gates.T, h, out=grad_weight[: 2 * channels, channels:])
    torch.mm(slope_c.T, reset, out=grad_weight[2 * channels :, channels:])
    return grad_m, grad_h, grad_weight, torch.cat([bias_z, bias_r, bias_c])


def _start_reset_gradient(
    factors: tuple[Tensor, ...], inputs: tuple[Tensor, ...], kept: tuple[Tensor, ...], results: tuple[Tensor, ...]
) -> Tensor:
    """Fill slope_r, reset and direct from slope_c and the weights; returns the sum of slope_r, (C,) in float32."""
    (grad, _, h), (z, r, _) = inputs, kept
    parts = h.new_empty(0)

    def run(tiles: Tiles) -> None:
        nonlocal parts
        parts = _parts(h, tiles)
        launch(
            kernels.reset_gradient,
            (len(parts) * blocks(h.shape[1], tiles.blocks["BLOCK_N"]),),
            *(*factors, grad, h, z, r, *results, parts, *h.shape),
            *(factors[0].stride(0), grad.stride(0), h.stride(0)),
            tiles=tiles,
            PRECISION=_precision(h),
        )

    run(_product_tiles("reset_gradient", h, run))
    return parts.sum(0)


def _backward_of_products(
    inputs: tuple[Tensor, ...], weight: Tensor, kept: tuple[Tensor, ...], like: Tensor
) -> Gradients:
    """Any kernel. Message and state parts of an input's gradient leave one product, so nothing is concatenated."""
    (grad, m, h), (z, r, _) = inputs, kept
    sizes = rows, channels = h.shape
    of_gates, of_candidate = weight[: 2 * channels], weight[2 * channels :]
    slopes = h.new_empty(rows, 2 * channels)
    (slope_z, slope_r), slope_c = slopes.chunk(2, 1), h.new_empty(h.shape)
    bias_z, bias_c = _start_update_slopes(inputs, kept, slope_z, slope_c)
    back = _input_gradient(slope_c, of_candidate, like)

    reset, parts = h.new_empty(h.shape), _parts(h, _pointwise_tiles(h.shape[1]))
    strides = (back.stride(0), h.stride(0), slopes.stride(0))
    results = (slope_r, reset, parts)
    _start_pointwise(kernels.reset_slopes, *sizes, back[:, channels:], h, r, *results, *sizes, *strides)
    from_gates = _input_gradient(slopes, of_gates, like)
    grad_m, grad_h = (h.new_empty(h.shape) for _ in range(2))
    strides = (grad.stride(0), back.stride(0), from_gates.stride(0))
    _start_pointwise(kernels.join_gradients, *sizes, grad, back, from_gates, z, r, grad_m, grad_h, *sizes, *strides)
    del back, from_gates

    grad_weight = torch.empty(weight.shape, device=weight.device, dtype=weight.dtype)
    for lines, gradient, inner in ((slice(None, 2 * channels), slopes, h), (slice(2 * channels, None), slope_c, reset)):
        grad_weight[lines, :channels] = _weight_gradient(gradient, m, weight, like)
        grad_weight[lines, channels:] = _weight_gradient(gradient, inner, weight, like)
    return grad_m, grad_h, grad_weight, torch.cat([bias_z, parts.sum(0), bias_c])


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, like: Tensor) -> Tensor:
    """Rows (R, C) through a convolution (C', C, k, k): rows (R, C')."""
    size = weight.shape[-1]
    if size > 1:
        return _rows(conv2d(_images(rows, like), _channels_last(weight), bias, padding=size // 2))
    flat = weight.flatten(1).T
    return rows @ flat if bias is None else torch.addmm(bias, rows, flat)


def _input_gradient(rows: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """Gradient (R, C) of the input of `_product` from that of its result, (R, C')."""
    size = weight.shape[-1]
    if size > 1:
        return _rows(conv_transpose2d(_images(rows, like), _channels_last(weight), padding=size // 2))
    return rows @ weight.flatten(1)


def _weight_gradient(gradient: Tensor, rows: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """Gradient (C', C, k, k) of the weights of `_product` from that of its result and its input."""
    size = weight.shape[-1]
    shape = (gradient.shape[1], rows.shape[1], size, size)
    if size > 1:
        return conv2d_weight(_images(rows, like), shape, _images(gradient, like), padding=size // 2)
    return (gradient.T @ rows).view(shape)
