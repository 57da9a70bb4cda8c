"""The modules that are exported: a network with what stands before and after it in a deployment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gwsss_fast.errors import GwsssError
from gwsss_fast.export.metadata import Metadata, within
from gwsss_fast.models.deeplab import DeepLabV2
from gwsss_fast.models.group_classifier import GroupClassifier

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
USUAL_SIDE, USUAL_BATCH = 321, 2
WIDEST_PROBE = 64


class Deployed(nn.Module):
    """images -> the outputs that `metadata` names. The network computes in the metadata's precision, int8 in fp32
    (it is quantised later); inputs and outputs are float32, labels int64."""

    def __init__(self, network: nn.Module, metadata: Metadata) -> None:
        super().__init__()
        self.network = network.eval().to(DTYPES[metadata.precision])
        self.dtype = DTYPES[metadata.precision]
        self.network_size, self.argmax = metadata.network_size, metadata.argmax
        self.normalise = metadata.normalise
        std = torch.tensor(metadata.std).view(3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", torch.tensor(metadata.mean).view(3, 1, 1) / std, persistent=False)

    def prepared(self, images: Tensor) -> Tensor:
        """Normalised and resized as far as that belongs to the graph."""
        if self.normalise:
            images = images * self.scale - self.shift  # type: ignore[operator]
        if self.network_size is not None:
            images = F.interpolate(images, size=self.network_size, mode="bilinear", align_corners=False)
        return images.to(self.dtype)


class DeployedSegmenter(Deployed):
    """images (B, 3, H, W) -> logits (B, L + 1, h, w) at the network's stride, or labels (B, H, W)."""

    network: DeepLabV2

    def forward(self, images: Tensor) -> Tensor:
        """As the class says."""
        # Not network(x): its change of memory format is for eager PyTorch, and ties symbolic sizes to each other.
        logits = self.network.aspp(self.network.body(self.prepared(images))).float()
        if not self.argmax:
            return logits
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False).argmax(1)


class DeployedClassifier(Deployed):
    """images (B, K, 3, H, W) -> logits and initial logits (B, K, L), maps and initial maps (B, K, L, h, w)."""

    network: GroupClassifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As the class says."""
        flat = self.prepared(images.flatten(0, 1))
        features = self.network.project(self.network.backbone(flat)).unflatten(0, (-1, images.shape[1]))
        out = self.network.gnn(features)
        return out.logits.float(), out.initial_logits.float(), out.maps.float(), out.initial_maps.float()


def deployed(network: nn.Module, metadata: Metadata) -> Deployed:
    """The module that is exported for `metadata`, in eval mode; `network` itself changes to its precision."""
    kind = DeployedSegmenter if metadata.task == "segmentation" else DeployedClassifier
    return kind(network, metadata).eval()


def least_side(body: nn.Module) -> int:
    """The smallest square image, a power of two, that a backbone takes. Raises GwsssError above 64."""
    parameter = next(body.parameters())
    side = 1
    while side <= WIDEST_PROBE:
        try:
            with torch.inference_mode():
                found = body(torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device))
            if found.numel():
                return side
        except RuntimeError:
            pass
        side *= 2
    raise GwsssError(f"the backbone takes no image of {WIDEST_PROBE}x{WIDEST_PROBE}; export it with fixed sizes")


def example_images(metadata: Metadata, height: int = 65, width: int = 73, batch: int = USUAL_BATCH) -> Tensor:
    """An input of a size that the model takes, near the one given; values as after normalisation."""
    sides = within(height, metadata.height), within(width, metadata.width)
    shape: list[Any] = [within(batch, metadata.batch), 3, *sides]
    if metadata.group_size is not None:
        shape.insert(1, metadata.group_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
