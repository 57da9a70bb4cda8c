"""ResNet-101 at stride 8: the last two stages trade their stride for dilation."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from gwsss_fast.models.base import Backbone

LAYOUT_KEY = "caffe_layout"


class ResNet101(Backbone):
    """torchvision's ResNet under torchvision's names: (B, 3, H, W) -> (B, 2048, ceil(H / 8), ceil(W / 8)).

    Weights converted from the original Caffe release expect small differences in the architecture: the stride of a
    stage sits in the first 1x1 convolution instead of the 3x3, the first block of a dilated stage is dilated like the
    others, and max pooling rounds up. The buffer `caffe_layout` (0 or 1) says which layout the weights belong to; it is
    part of the state dict, so a checkpoint always restores the network that its weights were trained in.
    """

    out_channels = 2048
    stride = 8
    default_weights = "ResNet101_Weights.IMAGENET1K_V1"
    caffe_layout: Tensor

    def __init__(self, blocks: tuple[int, int, int, int] = (3, 4, 23, 3)) -> None:
        super().__init__()
        body = ResNet(Bottleneck, list(blocks), num_classes=1, replace_stride_with_dilation=[False, True, True])
        self.conv1, self.bn1, self.relu, self.maxpool = body.conv1, body.bn1, body.relu, body.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = body.layer1, body.layer2, body.layer3, body.layer4
        self.register_buffer(LAYOUT_KEY, torch.zeros((), dtype=torch.long))

    def forward(self, images: Tensor) -> Tensor:
        """Feature map (B, 2048, ceil(H / 8), ceil(W / 8)), not negative, of normalised images (B, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def set_caffe_layout(self, caffe: bool) -> None:
        """Move strides and dilations to where the Caffe weights (True) or torchvision's (False) expect them."""
        self.caffe_layout.fill_(int(caffe))
        self.maxpool.ceil_mode = caffe
        first = self.layer2[0]
        first.conv1.stride, first.conv2.stride = ((2, 2), (1, 1)) if caffe else ((1, 1), (2, 2))
        for stage, dilation in ((self.layer3, 2), (self.layer4, 4)):
            rate = dilation if caffe else dilation // 2
            convolution = cast(nn.Conv2d, stage[0].conv2)
            convolution.dilation = convolution.padding = (rate, rate)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # torchvision's own files lack the key: they are of torchvision's layout.
        layout = state_dict.setdefault(prefix + LAYOUT_KEY, torch.zeros((), dtype=torch.long))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if layout.device.type != "meta":
            self.set_caffe_layout(bool(layout))
