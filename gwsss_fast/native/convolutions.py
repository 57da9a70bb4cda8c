"""Convolutions of the native kernels on rows of positions: matrix products, Winograd's way, or PyTorch's own."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d
from torch.nn.grad import conv2d_weight

from gwsss_fast.native import winograd
from gwsss_fast.native.products import has_onednn, product

_WIDE, _MANY = 256, 512
"""Channels and positions from which Winograd's convolution is the faster."""


def _by_winograd(rows: Tensor, weight: Tensor) -> bool:
    wide = weight.shape[-1] == 3 and min(weight.shape[:2]) >= _WIDE and len(rows) >= _MANY
    return wide and rows.dtype == torch.float32 and has_onednn()


def _nodes(rows: Tensor, like: Tensor) -> Tensor:
    """Rows as contiguous nodes (M, H, W, C)."""
    batch, _, height, width = like.shape
    return rows.contiguous().view(batch, height, width, -1)


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
    if _by_winograd(rows, weight):
        return winograd.convolution(_nodes(rows, like), weight.contiguous(), bias.contiguous()).view(len(rows), -1)
    return rows_of(conv2d(images_of(rows, like), weight, bias, padding=weight.shape[-1] // 2))


def input_gradient(rows: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """Gradient (R, I) of the input of `convolution` from that of its result, (R, O)."""
    if weight.shape[-1] == 1:
        return product(rows, weight.flatten(1).T)
    if _by_winograd(rows, weight):
        return winograd.input_gradient(_nodes(rows, like), weight.contiguous()).view(len(rows), -1)
    return rows_of(conv_transpose2d(images_of(rows, like), weight, padding=weight.shape[-1] // 2))


def weight_gradient(gradient: Tensor, rows: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """Gradient (O, I, k, k) of the weight of `convolution` from that of its result, (R, O), and its input, (R, I)."""
    if weight.shape[-1] == 1:
        return product(gradient.T, rows.T).view_as(weight)
    if _by_winograd(rows, weight):
        return winograd.weight_gradient(_nodes(gradient, like), _nodes(rows, like))
    shape = tuple(weight.shape)
    return conv2d_weight(images_of(rows, like), shape, images_of(gradient, like), padding=weight.shape[-1] // 2)
