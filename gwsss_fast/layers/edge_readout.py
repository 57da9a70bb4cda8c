"""Class scores of the edges, for edge-aware supervision (Eq. 14 to 17 and a readout)."""

from torch import Tensor, nn

from gwsss_fast import ops


class EdgeReadout(nn.Module):
    """Dual attention over every ordered pair of nodes, two 1x1 convolutions 2C -> C, their sum, and a class readout.

    All of it is linear after the attentions, so the global average is taken first.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.position = nn.Linear(2 * channels, channels)
        self.channel = nn.Linear(2 * channels, channels)
        self.readout = nn.Linear(channels, num_classes)

    def forward(self, g: Tensor) -> Tensor:
        """g: (B, K, N, C). Returns edge logits (B, K, K, L)."""
        position, channel = ops.edge_readout(g)
        return self.readout(self.position(position) + self.channel(channel))
