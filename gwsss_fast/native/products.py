"""Matrix products and convolutions of the native kernels, by the libraries that PyTorch brings."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, linear
from torch.nn.grad import conv2d_weight

_LEAST = 1 << 18
"""Multiplications from which oneDNN is asked."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias for x (R, I) and weight (O, I), in their dtype: (R, O).

    float32 by oneDNN: PyTorch's own choice is MKL, which leaves the AVX-512 units of other makers' processors idle.
    """
    if x.dtype == torch.float32 and x.shape[0] * weight.numel() >= _LEAST and _has_onednn():
        if not weight.is_contiguous() and not weight.T.is_contiguous():
            weight = (
                weight.contiguous()
            )  # lines apart from each other would take oneDNN's slowest way, 100 times slower
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return linear(x, weight, bias)


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def rows_of(x: Tensor) -> Tensor:
    """(M, C, H, W) as (M H W, C) with unit stride in C: no copy when x is channels last."""
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def images_of(rows: Tensor, like: Tensor) -> Tensor:
    """Rows (M H W, C) as (M, C, H, W) in channels last, with the sizes of `like` but for C."""
    batch, _, height, width = like.shape
    return rows.reshape(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def convolution(rows: Tensor, weight: Tensor, bias: Tensor, like: Tensor) -> Tensor:
    """Rows (R, I) through weight (O, I, k, k): rows (R, O)."""
    if weight.shape[-1] == 1:
        return product(rows, weight.flatten(1), bias)
    return rows_of(conv2d(images_of(rows, like), weight, bias, padding=weight.shape[-1] // 2))


def input_gradient(rows: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """Gradient (R, I) of the input of `convolution` from that of its result, (R, O)."""
    if weight.shape[-1] == 1:
        return product(rows, weight.flatten(1).T)
    return rows_of(conv_transpose2d(images_of(rows, like), weight, padding=weight.shape[-1] // 2))


def weight_gradient(gradient: Tensor, rows: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """Gradient (O, I, k, k) of the weight of `convolution` from that of its result, (R, O), and its input, (R, I)."""
    if weight.shape[-1] == 1:
        return product(gradient.T, rows.T).view_as(weight)
    shape = tuple(weight.shape)
    return conv2d_weight(images_of(rows, like), shape, images_of(gradient, like), padding=weight.shape[-1] // 2)
