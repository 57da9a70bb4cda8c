"""Edge-aware supervision, Eq. 14 to 17, up to the global average: the long way over full attention maps."""

import torch
from torch import Tensor

from gwsss_fast.reference.precision import accumulate


def _softmax_backward(weights: Tensor, grad: Tensor) -> Tensor:
    return weights * (grad - (weights * grad).sum(-1, keepdim=True))


def edge_maps(x: Tensor) -> tuple[Tensor, Tensor]:
    """Position-aware p = u x + x and channel-aware c = x v^T + x, (B, N, 2C) each, of x = [g_i, g_j] (B, N, 2C)."""
    u = torch.softmax(x @ x.transpose(-1, -2), -1)
    v = torch.softmax(x.transpose(-1, -2) @ x, -1)
    return u @ x + x, x @ v.transpose(-1, -2) + x


def edge_readout(g: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the positions of p and c for every ordered pair (i, j), i = j included.

    g: (B, K, N, C). Returns two tensors (B, K, K, 2C).
    """
    wide = accumulate(g)
    groups, nodes, _, channels = g.shape
    position = wide.new_empty(groups, nodes, nodes, 2 * channels)
    channel = torch.empty_like(position)
    for i in range(nodes):
        for j in range(nodes):
            p, c = edge_maps(torch.cat([wide[:, i], wide[:, j]], -1))
            position[:, i, j], channel[:, i, j] = p.mean(1), c.mean(1)
    return position.to(g.dtype), channel.to(g.dtype)


def edge_readout_backward(grad_position: Tensor, grad_channel: Tensor, g: Tensor) -> Tensor:
    """Gradient of g, (B, K, N, C)."""
    wide, grad_position, grad_channel = accumulate(g), accumulate(grad_position), accumulate(grad_channel)
    grad = torch.zeros_like(wide, memory_format=torch.contiguous_format)
    nodes, channels = g.shape[1], g.shape[3]
    for i in range(nodes):
        for j in range(nodes):
            x = torch.cat([wide[:, i], wide[:, j]], -1)
            grad_x = _edge_backward(x, grad_position[:, i, j], grad_channel[:, i, j])
            grad[:, i] += grad_x[..., :channels]
            grad[:, j] += grad_x[..., channels:]
    return grad.to(g.dtype)


def _edge_backward(x: Tensor, grad_position: Tensor, grad_channel: Tensor) -> Tensor:
    """Gradient of x (B, N, 2C) from those of mean(p) and mean(c), (B, 2C) each."""
    positions = x.shape[1]
    grad_p = (grad_position / positions).unsqueeze(1).expand_as(x)
    grad_c = (grad_channel / positions).unsqueeze(1).expand_as(x)
    x_t = x.transpose(-1, -2)
    u = torch.softmax(x @ x_t, -1)
    v = torch.softmax(x_t @ x, -1)
    grad_xx = _softmax_backward(u, grad_p @ x_t)
    grad_x = u.transpose(-1, -2) @ grad_p + grad_p + (grad_xx + grad_xx.transpose(-1, -2)) @ x
    grad_gram = _softmax_backward(v, grad_c.transpose(-1, -2) @ x)
    return grad_x + grad_c @ v + grad_c + x @ (grad_gram + grad_gram.transpose(-1, -2))
