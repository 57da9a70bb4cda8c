"""The update of Eq. 2 by a convolutional gated recurrent unit."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input, conv2d_weight


def _gates(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Update gate z, reset gate r and candidate c, each (M, C, H, W)."""
    channels, padding = h.shape[1], weight.shape[-1] // 2
    joined = torch.cat([m, h], 1)
    opened = conv2d(joined, weight[: 2 * channels], bias[: 2 * channels], padding=padding)
    z, r = (torch.sigmoid(x) for x in opened.chunk(2, 1))
    reset = torch.cat([m, r * h], 1)
    c = torch.tanh(conv2d(reset, weight[2 * channels :], bias[2 * channels :], padding=padding))
    return z, r, c


def conv_gru(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z = sigmoid(conv_z[m, h]), r = sigmoid(conv_r[m, h]), c = tanh(conv_c[m, r h]), h' = (1 - z) h + z c.

    m, h: (M, C, H, W); weight: (3C, 2C, k, k) with rows [update, reset, candidate] and columns [message, state];
    bias: (3C,); k odd. Returns h' (M, C, H, W) and, for the backward pass, z, r and c; empty tensors unless `keep`.
    """
    z, r, c = _gates(m, h, weight, bias)
    out = (1 - z) * h + z * c
    return (out, z, r, c) if keep else (out, h.new_empty(0), h.new_empty(0), h.new_empty(0))


def conv_gru_backward(
    grad: Tensor, m: Tensor, h: Tensor, weight: Tensor, bias: Tensor, z: Tensor, r: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of m, h, weight and bias."""
    channels, padding = h.shape[1], weight.shape[-1] // 2
    grad_c = grad * z * (1 - c * c)
    grad_z = grad * (c - h) * z * (1 - z)

    reset = torch.cat([m, r * h], 1)
    candidate_weight = weight[2 * channels :]
    grad_reset = conv2d_input(reset.shape, candidate_weight, grad_c, padding=padding)
    grad_weight_c = conv2d_weight(reset, candidate_weight.shape, grad_c, padding=padding)
    grad_m, grad_rh = grad_reset[:, :channels], grad_reset[:, channels:]
    grad_r = grad_rh * h * r * (1 - r)

    joined = torch.cat([m, h], 1)
    gate_weight = weight[: 2 * channels]
    grad_gates = torch.cat([grad_z, grad_r], 1)
    grad_joined = conv2d_input(joined.shape, gate_weight, grad_gates, padding=padding)
    grad_weight_gates = conv2d_weight(joined, gate_weight.shape, grad_gates, padding=padding)

    grad_m = grad_m + grad_joined[:, :channels]
    grad_h = grad * (1 - z) + grad_rh * r + grad_joined[:, channels:]
    grad_weight = torch.cat([grad_weight_gates, grad_weight_c], 0)
    grad_bias = torch.cat([grad_gates.sum((0, 2, 3)), grad_c.sum((0, 2, 3))])
    return grad_m, grad_h, grad_weight, grad_bias
