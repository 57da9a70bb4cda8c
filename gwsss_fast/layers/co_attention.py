"""The edges between different images: low-rank bilinear co-attention (Eq. 5, 7, 8)."""

import torch
from torch import Tensor, nn

from gwsss_fast import ops
from gwsss_fast.errors import GwsssError
from gwsss_fast.layers.scores import check_score, scored, tie

AGGREGATES = ("sum", "mean")


class CoAttention(nn.Module):
    """Messages from the other images of the group.

    channels: C. rank: D, the width of P and Q. reverse, score, temperature, centred: see `GroupGNN`. aggregate: "sum"
    over the K - 1 senders (Eq. 8) or their "mean". tied: P = Q orthogonal at the start. Raises GwsssError for a bad
    option.
    """

    def __init__(
        self,
        channels: int,
        rank: int,
        *,
        reverse: str = "transpose",
        score: str = "bilinear",
        temperature: float = 1.0,
        centred: bool = False,
        aggregate: str = "sum",
        tied: bool = False,
    ) -> None:
        super().__init__()
        if reverse not in ops.REVERSES:
            raise GwsssError(f"reverse is {reverse!r}; choose from {', '.join(ops.REVERSES)}")
        if aggregate not in AGGREGATES:
            raise GwsssError(f"aggregate is {aggregate!r}; choose from {', '.join(AGGREGATES)}")
        self.reverse, self.score, self.temperature = reverse, check_score(score), temperature
        self.centred = centred
        self.aggregate = aggregate
        self.p = nn.Linear(channels, rank, bias=False)
        self.q = nn.Linear(channels, rank, bias=False)
        if tied:
            tie(self.p, self.q)

    def factors(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """p and q of the nodes g (B, K, N, C), each (B, K, N, D)."""
        return scored(self.p(g), self.q(g), self.score, self.temperature, self.centred)

    def forward(self, g: Tensor) -> Tensor:
        """g: (B, K, N, C). Returns the messages (B, K, N, C); zeros for K = 1."""
        messages, scale = self.unscaled(g)
        return messages if scale == 1 else messages * scale

    def unscaled(self, g: Tensor) -> tuple[Tensor, float]:
        """The sum over the senders and what it has to be multiplied by, for whoever adds it to something anyway."""
        messages = ops.co_attention(*self.factors(g), g, reverse=self.reverse)
        return messages, 1 / max(g.shape[1] - 1, 1) if self.aggregate == "mean" else 1.0

    @torch.no_grad()
    def rows(self, g: Tensor, receiver: int) -> Tensor:
        """The weights softmax_rows(E_ij) of one receiver i over each node j's positions, (B, K, N, N).

        The receiver's own entry (j = i) is zero: its self edge is another operation.
        """
        p, q = self.factors(g)
        rows = g.new_zeros(*g.shape[:3], g.shape[2])
        for sender in range(g.shape[1]):
            if sender != receiver:
                rows[:, sender] = torch.softmax(ops.edge_scores(p, q, receiver, sender, self.reverse), -1)
        return rows
