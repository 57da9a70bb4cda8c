"""The ConvGRU of the native library: gates by `convolutions`, all that lies between them in one pass each.

Message and state stand side by side in one matrix, so that a gate is one product; its right half then takes r h.
"""

import torch
from torch import Tensor

from gwsss_fast.native import edges
from gwsss_fast.native.convolutions import (
    convolution,
    images_of,
    input_gradient,
    rows_of,
    weight_gradient,
)
from gwsss_fast.native.memory import new_empty

_library = torch.ops.gwsss_fast_native


def refuse(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Why it cannot take these tensors, or None."""
    return edges.refuse(h=h)


def _side_by_side(message: Tensor, state: Tensor) -> Tensor:
    rows, channels = state.shape
    joined = new_empty(state, (rows, 2 * channels))
    joined[:, :channels], joined[:, channels:] = message, state
    return joined


def conv_gru(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference.conv_gru`: h', z, r, c, each (M, C, H, W) in channels last; the last three empty unless `keep`."""
    state, channels = rows_of(h), h.shape[1]
    joined = _side_by_side(rows_of(m), state)
    opened = convolution(joined, weight[: 2 * channels], bias[: 2 * channels], h)
    # What no backward pass wants stays where it was computed: a third less memory to pass through.
    z, r = (new_empty(state, state.shape) for _ in range(2)) if keep else opened.chunk(2, 1)
    _library.conv_gru_gates(opened, state, z, r, joined[:, channels:])
    c = convolution(joined, weight[2 * channels :], bias[2 * channels :], h)
    out = new_empty(state, state.shape) if keep else c
    _library.conv_gru_blend(c, state, z, out)
    z, r, c = (images_of(x, h) if keep else h.new_empty(0) for x in (z, r, c))
    return images_of(out, h), z, r, c


def conv_gru_backward(
    grad: Tensor, m: Tensor, h: Tensor, weight: Tensor, bias: Tensor, z: Tensor, r: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference.conv_gru_backward`: gradients of m, h, weight and bias."""
    channels, grad, message, state, z, r, c = h.shape[1], *(rows_of(x) for x in (grad, m, h, z, r, c))
    of_gates, of_candidate = weight[: 2 * channels], weight[2 * channels :]
    # Gradients before the gates' non-linearities.
    slopes, slope_c = (new_empty(state, (len(state), size)) for size in (2 * channels, channels))
    _library.conv_gru_slopes(grad, state, z, c, slopes[:, :channels], slope_c)
    back = input_gradient(slope_c, of_candidate, h)

    reset = _side_by_side(message, state)
    _library.conv_gru_reset(back[:, channels:], state, r, slopes[:, channels:], reset[:, channels:])
    from_gates = input_gradient(slopes, of_gates, h)
    grad_m, grad_h = (new_empty(state, state.shape) for _ in range(2))
    _library.conv_gru_join(grad, back, from_gates, z, r, grad_m, grad_h)

    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    grad_weight[2 * channels :] = weight_gradient(slope_c, reset, of_candidate, h)
    reset[:, channels:] = state
    grad_weight[: 2 * channels] = weight_gradient(slopes, reset, of_gates, h)
    grad_bias = torch.cat([slopes.sum(0), slope_c.sum(0)])
    return images_of(grad_m, m), images_of(grad_h, h), grad_weight, grad_bias
