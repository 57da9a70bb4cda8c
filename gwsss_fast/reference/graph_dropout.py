"""The graph dropout layer, Eq. 11 and 12: g * s with an importance map or a drop map s, one number a position."""

import torch
from torch import Tensor

from gwsss_fast.reference.precision import accumulate


def _map(o: Tensor, r: Tensor, drop_rate: float, drop_threshold: float) -> tuple[Tensor, Tensor]:
    """s and its derivative by o, all (B, K, N) (Eq. 11).

    The indicator is piecewise constant, so it contributes no gradient.
    """
    importance = torch.sigmoid(o)
    kept = (o < o.amax(-1, keepdim=True) * drop_threshold).to(o.dtype)
    keep_salient = (r < drop_rate).reshape(*r.shape, *[1] * (o.dim() - r.dim()))
    s = torch.where(keep_salient, importance, o * kept)
    return s, torch.where(keep_salient, importance * (1 - importance), kept)


def graph_dropout(g: Tensor, r: Tensor, drop_rate: float, drop_threshold: float) -> tuple[Tensor, Tensor]:
    """g: (B, K, N, C); r: (B,), or (B, K) for one draw a node, in [0, 1).

    Returns g * s, (B, K, N, C), and the channel means o (B, K, N), which the backward pass needs again.
    """
    wide = accumulate(g)
    o = wide.mean(-1)
    s, _ = _map(o, r, drop_rate, drop_threshold)
    return (wide * s.unsqueeze(-1)).to(g.dtype), o


def graph_dropout_backward(
    grad: Tensor, g: Tensor, o: Tensor, r: Tensor, drop_rate: float, drop_threshold: float
) -> Tensor:
    """Gradient of g: through the product, and through s by way of the channel mean."""
    wide_grad, wide = accumulate(grad), accumulate(g)
    s, slope = _map(o, r, drop_rate, drop_threshold)
    through_map = (wide_grad * wide).sum(-1) * slope / g.shape[-1]
    return (wide_grad * s.unsqueeze(-1) + through_map.unsqueeze(-1)).to(g.dtype)
