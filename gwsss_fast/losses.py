"""Multi-granularity supervision (Eq. 13)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gwsss_fast.errors import GwsssError
from gwsss_fast.GroupGNN import GroupOutput

WEIGHTS = (0.7, 0.1, 0.2)


def group_loss(out: GroupOutput, labels: Tensor, weights: Sequence[float] = WEIGHTS, reduction: str = "mean") -> Tensor:
    """Weighted sum of the final, intermediate and edge classification losses, a scalar, in float32 for 16-bit
    outputs.

    labels: (B, K, L), or (K, L) for one group, in {0, 1}. An edge's target is the AND of its two images' labels.
    weights: (final, intermediate, edge). Each loss is the multi-label cross-entropy with logits; reduction: "mean"
    over groups, nodes or edges, and classes, or "sum" over all but the groups (Eq. 13 to the letter). The edge term is
    left out where `out.edge_logits` is None. Raises GwsssError when labels or weights do not fit.
    """
    if labels.dim() == 2:
        labels = labels.unsqueeze(0)
    if labels.shape != out.logits.shape:
        raise GwsssError(f"group_loss: labels must be {tuple(out.logits.shape)}, not {tuple(labels.shape)}")
    if reduction not in ("mean", "sum"):
        raise GwsssError(f"group_loss: reduction is {reduction!r}; choose mean or sum")
    if len(weights) != 3:
        raise GwsssError(f"group_loss: weights are {tuple(weights)}; give three, final, intermediate and edge")
    labels = labels.to(torch.promote_types(out.logits.dtype, torch.float32))
    final, intermediate, edge = weights
    loss = final * _term(out.logits, labels, reduction) + intermediate * _term(out.initial_logits, labels, reduction)
    if out.edge_logits is not None:
        loss = loss + edge * _term(out.edge_logits, labels.unsqueeze(2) * labels.unsqueeze(1), reduction)
    return loss


def _term(logits: Tensor, target: Tensor, reduction: str) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(logits.to(target.dtype), target, reduction=reduction)
    return loss / logits.shape[0] if reduction == "sum" else loss
