"""The edge readout of the native library, by the identities in `aten.edge_readout`: K Gram matrices serve all edges.

The softmaxes of all edges are made row by row, where a block of scores that several edges share is exponentiated once.
One group at a time; scores and softmax in float32.
"""

import torch
from torch import Tensor

from gwsss_fast.native import edges
from gwsss_fast.native.memory import new_empty
from gwsss_fast.native.products import product

_library = torch.ops.gwsss_fast_native
_BLOCK = 256
"""Rows of a symmetric product that are made at a time, from the diagonal on."""
_TERMS = 128
"""Terms of a sum over positions that are added one after another: more would round further than a mean does."""


def refuse(g: Tensor) -> str | None:
    """Why it cannot take this tensor, or None."""
    return edges.refuse(g=g)


def _gram(x: Tensor, out: Tensor) -> None:
    """out = x x^T (n, n), of which mirroring is left to do."""
    for start in range(0, len(x), _BLOCK):
        end = start + _BLOCK
        out[start:end, start:] = product(x[start:end], x[start:])


def _position_scores(g: Tensor) -> Tensor:
    """g g^T (K, N, N) of g (K, N, C)."""
    nodes, positions, _ = g.shape
    scores = new_empty(g, (nodes, positions, positions))
    for node in range(nodes):
        _gram(g[node], scores[node])
    _library.edge_readout_mirror(scores, False)
    return scores


def _channel_scores(g: Tensor) -> Tensor:
    """x^T x (K C, K C) of all nodes side by side, x (N, K C)."""
    transposed = g.transpose(1, 2).reshape(-1, g.shape[1])
    scores = new_empty(g, (len(transposed), len(transposed)))
    _gram(transposed, scores)
    _library.edge_readout_mirror(scores.unsqueeze(0), False)
    return scores


def _sum_over_positions(weights: Tensor, g: Tensor) -> Tensor:
    """weights (K, K, N) times g (K, N, C): (K, K, C)."""
    starts = range(0, g.shape[1], _TERMS)
    parts = [torch.bmm(weights[..., at : at + _TERMS], g[:, at : at + _TERMS]) for at in starts]
    return torch.stack(parts).sum(0)


def edge_readout(g: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.edge_readout`: mean(p) and mean(c), each (B, K, K, 2C)."""
    groups, nodes, _, channels = g.shape
    position, channel = (new_empty(g, (groups, nodes, nodes, 2, channels)) for _ in range(2))
    for group in range(groups):
        wide = g[group].float().contiguous()
        of_positions = _sum_over_positions(_library.edge_readout_positions(_position_scores(wide)), wide)
        scores = _channel_scores(wide)
        of_channels = _library.edge_readout_channels(scores, wide.mean(1))
        for result, half in ((position[group], of_positions), (channel[group], of_channels)):
            result[:, :, 0], result[:, :, 1] = half, half.transpose(0, 1)
    return position.flatten(3), channel.flatten(3)


def _of_halves(grad: Tensor, channels: int) -> Tensor:
    """Gradients (K, K, C) of the halves of edge (i, j) that belong to i, which also stand in edge (j, i)."""
    grad = grad.float()
    return grad[..., :channels] + grad[..., channels:].transpose(0, 1)


def edge_readout_backward(grad_position: Tensor, grad_channel: Tensor, g: Tensor) -> Tensor:
    """As `reference.edge_readout_backward`: gradient of g, (B, K, N, C)."""
    groups, _, positions, channels = g.shape
    grad = new_empty(g, g.shape)
    for group in range(groups):
        wide = g[group].float().contiguous()
        grad_p, grad_c = (_of_halves(x[group], channels) for x in (grad_position, grad_channel))
        through_channels, grad_mean = _channels_backward(wide, grad_c)
        grad[group] = _positions_backward(wide, grad_p) + through_channels + grad_mean.unsqueeze(1) / positions
    return grad


def _channels_backward(g: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of g through its channels' scores, (K, N, C), and of its means over positions, (K, C)."""
    scores = _channel_scores(g)
    grad_mean = _library.edge_readout_channels_backward(scores, g.mean(1), grad.contiguous()) + grad.sum(1)
    _library.edge_readout_mirror(scores.unsqueeze(0), True)
    nodes, positions, channels = g.shape
    side_by_side = g.transpose(0, 1).reshape(positions, -1)
    return product(side_by_side, scores).view(positions, nodes, channels).transpose(0, 1), grad_mean


def _positions_backward(g: Tensor, grad: Tensor) -> Tensor:
    """Gradient of g through the position-aware maps, their means over positions included."""
    scores = _position_scores(g)
    toward = torch.bmm(grad, g.transpose(1, 2))  # (K, K, N)
    weights = _library.edge_readout_positions_backward(scores, (toward + toward.transpose(0, 1)).contiguous())
    _library.edge_readout_mirror(scores, True)
    result = torch.bmm(weights.transpose(1, 2), grad)
    for node in range(len(g)):
        result[node] += product(scores[node], g[node].T)
    return result
