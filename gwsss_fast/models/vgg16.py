"""VGG16 at stride 8 (equations page, "Node features"): no classifier, no pool5, pool4 without stride, conv5 dilated."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from gwsss_fast.models.base import Backbone

POOL4 = 23  # positions in torchvision's list of layers
CONV5 = (24, 26, 28)
POOL5 = 30


class VGG16(Backbone):
    """torchvision's VGG16 features under torchvision's names (features.N): (B, 3, H, W) -> (B, 512, H // 8, W // 8)."""

    out_channels = 512
    stride = 8
    default_weights = "VGG16_Weights.IMAGENET1K_V1"

    def __init__(self) -> None:
        super().__init__()
        layers = list(make_layers(cfgs["D"], batch_norm=False))[:POOL5]
        # A window of three centred on each cell keeps the map aligned with the image; two would shift it half a cell.
        layers[POOL4] = nn.MaxPool2d(kernel_size=3, stride=1, padding=1)
        for position in CONV5:
            convolution = cast(nn.Conv2d, layers[position])
            convolution.dilation = convolution.padding = (2, 2)
        self.features = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, layer.bias))

    def forward(self, images: Tensor) -> Tensor:
        """Feature map (B, 512, H // 8, W // 8), not negative, of normalised images (B, 3, H, W)."""
        return self.features(images)
