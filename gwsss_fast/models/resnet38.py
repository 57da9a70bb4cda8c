"""The wide ResNet-38 ("Wider or Deeper", model A1) at stride 8 as AffinityNet uses it, with the published names."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gwsss_fast.models.base import Backbone


class PreActivation(nn.Module):
    """Residual block whose layers each see a batch norm and ReLU first; the shortcut sees the first one's output.

    The convolutions run through `channels` with `kernels`; the first one carries the stride and `first_dilation`, all
    other 3x3 ones `dilation`. The shortcut is a 1x1 convolution where shapes change, else the untouched input.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        kernels: tuple[int, ...],
        *,
        stride: int = 1,
        first_dilation: int = 1,
        dilation: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.steps = ("2a", "2b1", "2b2")[: len(kernels)]
        for position, (step, kernel) in enumerate(zip(self.steps, kernels, strict=True)):
            rate = (first_dilation if position == 0 else dilation) if kernel == 3 else 1
            here, there = channels[position], channels[position + 1]
            self.add_module(f"bn_branch{step}", nn.BatchNorm2d(here))
            convolution = nn.Conv2d(
                here,
                there,
                kernel,
                stride=stride if position == 0 else 1,
                padding=rate * (kernel // 2),
                dilation=rate,
                bias=False,
            )
            self.add_module(f"conv_branch{step}", convolution)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_branch1: nn.Conv2d | None = None
        if channels[0] != channels[-1] or stride != 1:
            self.conv_branch1 = nn.Conv2d(channels[0], channels[-1], 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels[0], H, W) -> (B, channels[-1], ceil(H / stride), ceil(W / stride))."""
        shortcut, branch = x, x
        for position, step in enumerate(self.steps):
            branch = F.relu(getattr(self, f"bn_branch{step}")(branch))
            if position == 0:
                if self.conv_branch1 is not None:
                    shortcut = self.conv_branch1(branch)
            else:
                branch = self.dropout(branch)
            branch = getattr(self, f"conv_branch{step}")(branch)
        return shortcut + branch


class ResNet38(Backbone):
    """(B, 3, H, W) -> (B, 64 * width, ceil(H / 8), ceil(W / 8)); the published network has width 64 (4096 channels)."""

    stride = 8
    default_weights = None

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.out_channels = 64 * width
        self.conv1a = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self._names: list[str] = []
        previous = width
        for stage, factor, count in ((2, 2, 3), (3, 4, 3), (4, 8, 6)):
            middle = factor * width
            for index in range(count):
                block = PreActivation((previous, middle, middle), (3, 3), stride=2 if index == 0 else 1)
                previous = self._add(stage, index, block, middle)
        middle, wide = 8 * width, 16 * width
        for index in range(3):
            rate = 1 if index == 0 else 2
            block = PreActivation((previous, middle, wide), (3, 3), first_dilation=rate, dilation=2)
            previous = self._add(5, index, block, wide)
        for stage, factor, dropout in ((6, 32, 0.3), (7, 64, 0.5)):
            wide = factor * width
            channels = (previous, wide // 4, wide // 2, wide)
            previous = self._add(stage, 0, PreActivation(channels, (1, 3, 1), dilation=4, dropout=dropout), wide)
        self.bn7 = nn.BatchNorm2d(previous)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def _add(self, stage: int, index: int, block: PreActivation, channels: int) -> int:
        name = f"b{stage}" if index == 0 else f"b{stage}_{index}"
        self.add_module(name, block)
        self._names.append(name)
        return channels

    def forward(self, images: Tensor) -> Tensor:
        """Feature map (B, 64 * width, ceil(H / 8), ceil(W / 8)), not negative, of normalised images (B, 3, H, W)."""
        x = self.conv1a(images)
        for name in self._names:
            x = getattr(self, name)(x)
        return F.relu(self.bn7(x))
