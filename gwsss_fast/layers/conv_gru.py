"""The update of a node's state by a message (Eq. 2)."""

import torch
from torch import Tensor, nn

from gwsss_fast import ops
from gwsss_fast.errors import GwsssError


class ConvGRU(nn.Module):
    """Convolutional gated recurrent unit with a square kernel of odd size.

    gate_bias: start value of the update gate's bias; below zero the gate begins nearly closed (0.12 open at -2) and
    the graph enters gradually. content: when above zero, the candidate begins as tanh(content * message) on the
    features' own axes instead of a random mixture of them. Raises GwsssError for an even kernel.
    """

    def __init__(self, channels: int, kernel_size: int = 1, *, gate_bias: float = 0.0, content: float = 0.0) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise GwsssError(f"gru_kernel_size is {kernel_size}; choose an odd number, 1 or 3")
        self.weight = nn.Parameter(torch.empty(3 * channels, 2 * channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(3 * channels))
        bound = (2 * channels * kernel_size**2) ** -0.5  # as PyTorch initialises a convolution of this fan-in
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
            self.bias.uniform_(-bound, bound)
            self.bias[:channels] += gate_bias
            if content > 0:
                self.weight[2 * channels :] = 0
                middle = kernel_size // 2
                self.weight[2 * channels :, :channels, middle, middle] = content * torch.eye(channels)
                self.bias[2 * channels :] = 0

    def forward(self, message: Tensor, state: Tensor) -> Tensor:
        """message, state: (M, C, H, W). Returns the new state (M, C, H, W)."""
        return ops.conv_gru(message, state, self.weight, self.bias)
