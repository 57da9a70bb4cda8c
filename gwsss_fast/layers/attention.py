"""The edge of a node to itself: self-attention with a residual (Eq. 6)."""

from torch import Tensor, nn

from gwsss_fast import ops
from gwsss_fast.layers.scores import check_score, scored, tie


class SelfEdge(nn.Module):
    """softmax(f(g) k(g)^T) h(g) + g, with 1x1 convolutions f, k: C -> D and h: C -> C.

    score, temperature, centred: as in `CoAttention`. tied: f = k orthogonal and h the identity at the start, so that
    the message begins as an average of similar positions on the features' own scale.
    """

    def __init__(
        self,
        channels: int,
        rank: int,
        *,
        score: str = "bilinear",
        temperature: float = 1.0,
        centred: bool = False,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.score, self.temperature = check_score(score), temperature
        self.centred = centred
        self.f = nn.Linear(channels, rank)
        self.k = nn.Linear(channels, rank)
        self.h = nn.Linear(channels, channels)
        if tied:
            tie(self.f, self.k)
            nn.init.eye_(self.h.weight)
            nn.init.zeros_(self.h.bias)

    def forward(self, g: Tensor, message: Tensor | None = None, message_scale: float = 1.0) -> Tensor:
        """g, message: (B, K, N, C). Returns (B, K, N, C), with message_scale * message added if there is one."""
        factors = scored(self.f(g), self.k(g), self.score, self.temperature, self.centred)
        return ops.attention(*factors, self.h(g), residual=g, message=message, message_scale=message_scale)
