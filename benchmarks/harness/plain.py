"""The operations in plain PyTorch, in their inputs' dtype and differentiated by autograd: what anyone would write.

They are peers to be measured against, and the yardstick of the tolerance rule: a kernel may err twice as much as these
do in the same dtype. Batched wherever PyTorch can batch: unfused products are a serious peer while N x N fits in the
cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, scaled_dot_product_attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None = None,
    message: Tensor | None = None,
    message_scale: float = 1.0,
) -> Tensor:
    """softmax(q k^T) v, (..., N, D) x2 and (..., N, C): two batched products and a softmax; then what is added."""
    return with_sums(torch.softmax(q @ k.transpose(-1, -2), -1) @ v, residual, message, message_scale)


def with_sums(out: Tensor, residual: Tensor | None, message: Tensor | None, message_scale: float) -> Tensor:
    """out + residual + message_scale * message, without those that are None."""
    out = out if residual is None else out + residual
    return out if message is None else out + message_scale * message


def edges(p: Tensor, q: Tensor, g: Tensor, reverse: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys (B, K (K - 1), N, D) and values (B, K (K - 1), N, C) of all edges, receiver by receiver."""
    nodes = g.shape[1]
    pairs = [(i, j) for i in range(nodes) for j in range(nodes) if i != j]
    if reverse == "directed":
        queries, keys = p[:, [i for i, _ in pairs]], q[:, [j for _, j in pairs]]
    else:
        factors = torch.stack([p, q], 1).flatten(1, 2)  # p of every node, then q of every node
        queries = factors[:, [i if i < j else nodes + i for i, j in pairs]]
        keys = factors[:, [nodes + j if i < j else j for i, j in pairs]]
    return queries, keys, g[:, [j for _, j in pairs]]


def co_attention(p: Tensor, q: Tensor, g: Tensor, reverse: str = "transpose") -> Tensor:
    """Every edge in one batch, then the sum over senders."""
    if g.shape[1] == 1:
        return 0 * (g + p.sum(-1, keepdim=True) + q.sum(-1, keepdim=True))
    return sum_of_senders(attention(*edges(p, q, g, reverse)), g)


def sum_of_senders(messages: Tensor, g: Tensor) -> Tensor:
    """(B, K (K - 1), N, C) to (B, K, N, C)."""
    groups, nodes, positions, channels = g.shape
    return messages.reshape(groups, nodes, nodes - 1, positions, channels).sum(2)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`scaled_dot_product_attention` without its scale; (B, K, N, .) is its (batch, heads, positions, channels)."""
    return scaled_dot_product_attention(q, k, v, scale=1.0)


def graph_dropout(g: Tensor, r: Tensor, drop_rate: float = 0.8, drop_threshold: float = 0.7) -> Tensor:
    """The mean is kept in float32, as rounding it would flip positions of the map; the rest is in g's dtype."""
    o = g.mean(-1, dtype=torch.promote_types(g.dtype, torch.float32))
    kept = (o < o.amax(-1, keepdim=True) * drop_threshold).to(o.dtype)
    branch = (r < drop_rate).reshape(*r.shape, *[1] * (3 - r.dim()))
    return g * torch.where(branch, torch.sigmoid(o), o * kept).to(g.dtype).unsqueeze(-1)


def conv_gru(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Two convolutions over joined message and state, as the equations read."""
    channels, padding = h.shape[1], weight.shape[-1] // 2
    gates = conv2d(torch.cat([m, h], 1), weight[: 2 * channels], bias[: 2 * channels], padding=padding)
    z, r = torch.sigmoid(gates).chunk(2, 1)
    c = torch.tanh(conv2d(torch.cat([m, r * h], 1), weight[2 * channels :], bias[2 * channels :], padding=padding))
    return (1 - z) * h + z * c


def edge_readout(g: Tensor) -> tuple[Tensor, Tensor]:
    """Both attentions of every ordered pair over full maps, then the averages over the positions."""
    position, channel = [], []
    nodes = range(g.shape[1])
    for i in nodes:
        x = torch.stack([torch.cat([g[:, i], g[:, j]], -1) for j in nodes], 1)
        x_t = x.transpose(-1, -2)
        position.append((torch.softmax(x @ x_t, -1) @ x + x).mean(2))
        channel.append((x @ torch.softmax(x_t @ x, -1).transpose(-1, -2) + x).mean(2))
    return torch.stack(position, 1), torch.stack(channel, 1)
