"""The ConvGRU with a kernel of 1 as matrix products on channels-last nodes.

One product serves the message part of all three gates and one the state part of two; only the candidate's state part
has to wait for the reset gate.
"""

import torch
from torch import Tensor


def refuse(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Why these inputs cannot be run, or None."""
    return None if weight.shape[-1] == 1 else f"its products are for kernel 1, not {weight.shape[-1]}"


def _rows(x: Tensor) -> Tensor:
    """(M, C, H, W) as (M H W, C): no copy when x is channels last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _images(rows: Tensor, like: Tensor) -> Tensor:
    batch, channels, height, width = like.shape
    return rows.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def _gates(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Update gate z, reset gate r and candidate c of rows (R, C)."""
    channels = h.shape[1]
    from_message = torch.addmm(bias, m, weight[:, :channels].T)
    from_state = h @ weight[: 2 * channels, channels:].T
    z, r = (torch.sigmoid(x) for x in from_message[:, : 2 * channels].add_(from_state).chunk(2, 1))
    c = torch.addmm(from_message[:, 2 * channels :], r * h, weight[2 * channels :, channels:].T).tanh_()
    return z, r, c


def conv_gru(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference.conv_gru`, for k = 1: h', z, r, c, each (M, C, H, W) in channels last; empty unless `keep`."""
    rows = _rows(h)
    z, r, c = _gates(_rows(m), rows, weight.flatten(1), bias)
    out = _images(torch.lerp(rows, c, z), h)
    z, r, c = (_images(x, h) if keep else h.new_empty(0) for x in (z, r, c))
    return out, z, r, c


def conv_gru_backward(
    grad: Tensor, m: Tensor, h: Tensor, weight: Tensor, bias: Tensor, z: Tensor, r: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of m, h, weight and bias."""
    channels = h.shape[1]
    flat = weight.flatten(1)
    grad_rows, m_rows, h_rows = _rows(grad), _rows(m), _rows(h)
    z, r, c = (_rows(x) for x in (z, r, c))
    into_state = flat[:, channels:]

    before = grad_rows.new_empty(len(grad_rows), 3 * channels)  # gradients before the gates' non-linearities
    grad_z, grad_r, grad_c = before.chunk(3, 1)
    torch.mul(grad_rows * z, 1 - c * c, out=grad_c)
    grad_reset = grad_c @ into_state[2 * channels :]
    torch.mul(grad_reset * h_rows, r * (1 - r), out=grad_r)
    torch.mul(grad_rows * (c - h_rows), z * (1 - z), out=grad_z)

    grad_m = before @ flat[:, :channels]
    gates = before[:, : 2 * channels]
    grad_h = torch.addmm(grad_rows * (1 - z) + grad_reset * r, gates, into_state[: 2 * channels])
    state_weight = torch.cat([gates.T @ h_rows, grad_c.T @ (r * h_rows)])
    grad_weight = torch.cat([before.T @ m_rows, state_weight], 1).view_as(weight)
    return _images(grad_m, m), _images(grad_h, h), grad_weight, before.sum(0)
