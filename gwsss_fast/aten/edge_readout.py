"""The edge readout by two exact identities, without any N x N x 2C product.

1. With x = [g_i, g_j]: x x^T = g_i g_i^T + g_j g_j^T, so K Gram matrices serve all K^2 edges, and the edges (i, j) and
   (j, i) share one softmax; x^T x has the 2 x 2 blocks g_a^T g_b.
2. After the softmaxes all is linear up to the global average: mean(p) = (column means of u) x + mean(x) and
   mean(c) = v mean(x) + mean(x).
"""

import torch
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _channel_scores(wide: Tensor, i: int, j: int) -> Tensor:
    x = torch.cat([wide[:, i], wide[:, j]], -1)
    return x.transpose(-1, -2) @ x


def _pairs(nodes: int) -> list[tuple[int, int]]:
    """Unordered pairs: the reversed edge's means are those of (i, j) with the two halves of channels exchanged."""
    return [(i, j) for i in range(nodes) for j in range(i, nodes)]


def edge_readout(g: Tensor) -> tuple[Tensor, Tensor]:
    """g: (B, K, N, C). Returns mean(p) and mean(c), each (B, K, K, 2C)."""
    wide = _wide(g)
    groups, nodes, _, channels = g.shape
    gram = wide @ wide.transpose(-1, -2)
    mean = wide.mean(2)
    position = wide.new_empty(groups, nodes, nodes, 2 * channels)
    channel = torch.empty_like(position)
    for i, j in _pairs(nodes):
        columns = torch.softmax(gram[:, i] + gram[:, j], -1).mean(1, keepdim=True)
        mean_x = torch.cat([mean[:, i], mean[:, j]], -1)
        summary = torch.cat([columns @ wide[:, i], columns @ wide[:, j]], -1).squeeze(1) + mean_x
        v = torch.softmax(_channel_scores(wide, i, j), -1)
        mixture = (v @ mean_x.unsqueeze(-1)).squeeze(-1) + mean_x
        position[:, i, j], channel[:, i, j] = summary, mixture
        position[:, j, i], channel[:, j, i] = summary.roll(channels, -1), mixture.roll(channels, -1)
    return position.to(g.dtype), channel.to(g.dtype)


def edge_readout_backward(grad_position: Tensor, grad_channel: Tensor, g: Tensor) -> Tensor:
    """Gradient of g, (B, K, N, C). Both orders of a pair reach the same softmax, so their gradients are added first."""
    wide, grad_position, grad_channel = _wide(g), _wide(grad_position), _wide(grad_channel)
    nodes, positions, channels = g.shape[1:]
    gram = wide @ wide.transpose(-1, -2)
    mean = wide.mean(2)
    grad = torch.zeros_like(wide, memory_format=torch.contiguous_format)
    grad_gram = torch.zeros_like(gram)
    grad_mean = torch.zeros_like(mean)
    for i, j in _pairs(nodes):
        x = torch.cat([wide[:, i], wide[:, j]], -1)
        mean_x = torch.cat([mean[:, i], mean[:, j]], -1)
        grad_p, grad_c = grad_position[:, i, j], grad_channel[:, i, j]
        if i != j:
            grad_p = grad_p + grad_position[:, j, i].roll(channels, -1)
            grad_c = grad_c + grad_channel[:, j, i].roll(channels, -1)

        u = torch.softmax(gram[:, i] + gram[:, j], -1)
        toward_columns = (x @ grad_p.unsqueeze(-1)).squeeze(-1) / positions
        columns = u.mean(1)
        grad_x = columns.unsqueeze(-1) * grad_p.unsqueeze(1)
        spread = toward_columns.unsqueeze(1)
        grad_scores = u * (spread - (u * spread).sum(-1, keepdim=True))
        grad_gram[:, i] += grad_scores
        grad_gram[:, j] += grad_scores

        v = torch.softmax(x.transpose(-1, -2) @ x, -1)
        toward_v = mean_x.unsqueeze(1)
        grad_v = v * (grad_c.unsqueeze(-1) * (toward_v - (v * toward_v).sum(-1, keepdim=True)))
        grad_x = grad_x + x @ (grad_v + grad_v.transpose(-1, -2))
        grad_mean_x = grad_p + grad_c + (grad_c.unsqueeze(1) @ v).squeeze(1)
        for node, part in ((i, slice(None, channels)), (j, slice(channels, None))):
            grad[:, node] += grad_x[..., part]
            grad_mean[:, node] += grad_mean_x[..., part]
    grad += (grad_gram + grad_gram.transpose(-1, -2)) @ wide + grad_mean.unsqueeze(2) / positions
    return grad.to(g.dtype)
