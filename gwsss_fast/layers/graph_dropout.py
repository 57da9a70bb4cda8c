"""The graph dropout layer (Eq. 11, 12)."""

import torch
from torch import Tensor, nn

from gwsss_fast import ops
from gwsss_fast.errors import GwsssError

DROP_SCALES = ("literal", "preserve")
DROP_EVALS = ("identity", "importance")


class GraphDropout(nn.Module):
    """Importance or drop map on the nodes while training.

    drop_rate, drop_threshold: delta_r and delta_d. scale: "literal" multiplies by s as in Eq. 12; "preserve" then
    brings each node back to the root mean square it had, since s lies well under 1 in both branches and would shrink
    the features at every step; the factor is a constant to the gradient. per_node: draw r once a node instead of once
    a group. evaluation: what `eval()` does, "identity" or the "importance" branch. Raises GwsssError for a bad option.
    """

    def __init__(
        self,
        drop_rate: float = 0.8,
        drop_threshold: float = 0.7,
        *,
        scale: str = "literal",
        per_node: bool = False,
        evaluation: str = "identity",
    ) -> None:
        super().__init__()
        if scale not in DROP_SCALES:
            raise GwsssError(f"drop_scale is {scale!r}; choose from {', '.join(DROP_SCALES)}")
        if evaluation not in DROP_EVALS:
            raise GwsssError(f"drop_eval is {evaluation!r}; choose from {', '.join(DROP_EVALS)}")
        self.drop_rate, self.drop_threshold = drop_rate, drop_threshold
        self.scale, self.per_node, self.evaluation = scale, per_node, evaluation

    def forward(self, g: Tensor, r: Tensor | None = None) -> Tensor:
        """g: (B, K, N, C). r: the uniform numbers of the groups (B,) or nodes (B, K); None draws. Returns as g."""
        shape = g.shape[:2] if self.per_node else g.shape[:1]
        if self.training:
            r = torch.rand(shape, device=g.device) if r is None else r.to(g.device)
        elif self.evaluation == "importance":
            r = torch.full(shape, -1.0, device=g.device)
        else:
            return g
        dropped = ops.graph_dropout(g, r, self.drop_rate, self.drop_threshold)
        if self.scale == "literal":
            return dropped
        before, after = mean_square(g.detach()), mean_square(dropped.detach())
        # A map that was dropped as a whole stays zero: nothing is left to scale.
        factor = torch.where(after > 0, before / after.clamp_min(torch.finfo(after.dtype).tiny), 0.0).sqrt()
        return dropped * factor.to(dropped.dtype)


def mean_square(x: Tensor) -> Tensor:
    """Of each node (B, K, N, C), (B, K, 1, 1); 16-bit values would overflow in their own dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().mean((2, 3), keepdim=True)
