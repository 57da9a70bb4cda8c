"""A small network that learns from scratch on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from gwsss_fast.models.base import Backbone


class Tiny(Backbone):
    """Five convolutions, three of stride 2: (B, 3, H, W) -> (B, 128, ceil(H / 8), ceil(W / 8)).

    One output sees 31x31 pixels: enough for a part of an object, too little to name a class from the whole scene, which
    keeps the activation maps of so small a network local (the fourth convolution is 1x1 for that reason). Group norm,
    not batch norm: the images of a group share their labels, so statistics over the batch would tell the class while
    training and mislead without it.
    """

    out_channels = 128
    stride = 8
    default_weights = "random"

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for channels, kernel, stride in ((32, 3, 2), (64, 3, 2), (96, 3, 2), (128, 1, 1), (128, 3, 1)):
            layers += [
                nn.Conv2d(previous, channels, kernel, stride=stride, padding=kernel // 2, bias=False),
                nn.GroupNorm(8, channels),
                nn.ReLU(inplace=True),
            ]
            previous = channels
        self.features = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Feature map (B, 128, ceil(H / 8), ceil(W / 8)), not negative, of normalised images (B, 3, H, W)."""
        return self.features(images)
