"""What the two score functions of an edge have in common."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gwsss_fast.errors import GwsssError

SCORES = ("bilinear", "cosine")


def check_score(score: str) -> str:
    """`score` when it is known; raises GwsssError otherwise."""
    if score not in SCORES:
        raise GwsssError(f"score is {score!r}; choose from {', '.join(SCORES)}")
    return score


def scored(left: Tensor, right: Tensor, score: str, temperature: float, centred: bool) -> tuple[Tensor, Tensor]:
    """The factors (B, K, N, D) whose product is the score: as they are, or of unit length, `temperature` on the left.

    centred: subtract each factor's mean over its group first. Features that are never negative all point the same way;
    without their mean, cosine tells positions apart whatever the backbone. Normalising here keeps every kernel the
    same: it only ever sees a plain product.
    """
    if score == "bilinear":
        return left, right
    if centred:
        left, right = (x - x.mean((1, 2), keepdim=True) for x in (left, right))
    return F.normalize(left, dim=-1) * temperature, F.normalize(right, dim=-1)


def tie(first: nn.Linear, second: nn.Linear) -> None:
    """Give both projections the same orthonormal rows, so that scores begin as the similarity of the features."""
    with torch.no_grad():
        nn.init.orthogonal_(first.weight)
        second.weight.copy_(first.weight)
        for layer in (first, second):
            if layer.bias is not None:
                layer.bias.zero_()
