"""DeepLab-V2: a stride-8 body, atrous spatial pyramid pooling, its loss and its test-time protocol."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from gwsss_fast.errors import GwsssError
from gwsss_fast.models.backbones import build_backbone
from gwsss_fast.models.base import evaluating, freeze_batch_norm
from gwsss_fast.models.external import External
from gwsss_fast.models.vgg16 import VGG16
from gwsss_fast.models.weights import load_weights

RATES = (6, 12, 18, 24)
IGNORE = 255
CLASSIFIER_STD = 0.01
FC_CHANNELS = 1024


class ASPP(nn.Module):
    """The sum of parallel 3x3 atrous convolutions: (B, in_channels, h, w) -> (B, num_classes, h, w)."""

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int] = RATES) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate) for rate in rates
        )
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=CLASSIFIER_STD)  # type: ignore[arg-type]
            nn.init.zeros_(branch.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, num_classes, h, w) of features (B, in_channels, h, w)."""
        return _sum_of_branches(self.branches, features)


class LargeFovASPP(nn.Module):
    """VGG16's variant: pool5 without stride, then in each branch fc6 (3x3, atrous), fc7 and fc8 (1x1), summed.

    Only fc8 is initialised small as the published classifiers are: fc6 and fc7, which the published network takes from
    ImageNet, would pass hardly any signal if they started so.
    """

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int] = RATES) -> None:
        super().__init__()
        self.pool5 = nn.MaxPool2d(kernel_size=3, stride=1, padding=1)
        self.branches = nn.ModuleList(self._branch(in_channels, num_classes, rate) for rate in rates)

    @staticmethod
    def _branch(in_channels: int, num_classes: int, rate: int) -> nn.Sequential:
        fc6 = nn.Conv2d(in_channels, FC_CHANNELS, 3, padding=rate, dilation=rate)
        fc7 = nn.Conv2d(FC_CHANNELS, FC_CHANNELS, 1)
        fc8 = nn.Conv2d(FC_CHANNELS, num_classes, 1)
        for layer in (fc6, fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(fc8.weight, std=CLASSIFIER_STD)
        for layer in (fc6, fc7, fc8):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        layers: list[tuple[str, nn.Module]] = [
            ("fc6", fc6),
            ("relu6", nn.ReLU(inplace=True)),
            ("drop6", nn.Dropout(0.5)),
            ("fc7", fc7),
            ("relu7", nn.ReLU(inplace=True)),
            ("drop7", nn.Dropout(0.5)),
            ("fc8", fc8),
        ]
        return nn.Sequential(OrderedDict(layers))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, num_classes, h, w) of features (B, in_channels, h, w)."""
        return _sum_of_branches(self.branches, self.pool5(features))


def _sum_of_branches(branches: nn.ModuleList, features: Tensor) -> Tensor:
    total = branches[0](features)
    for branch in branches[1:]:  # type: ignore[union-attr]
        total = total + branch(features)
    return total


class DeepLabV2(nn.Module):
    """Semantic segmentation: images (B, 3, H, W) -> logits (B, num_classes, h, w) at the body's stride.

    Args:
        num_classes: with background.
        body: the name of a backbone, or a module that maps images to one feature map. VGG16 gets the large
            field-of-view head, everything else the plain one.
        rates: dilations of the head's branches.
        weights: "none", "default" (pretrained body) or a path: a body's file, published COCO weights, or a DeepLab.
        frozen_batch_norm: keep batch norm on its running statistics; None: where the body has learnt some.

    Raises GwsssError for fewer than two classes, no rates, and whatever keeps the body or weights from being loaded.
    """

    head_prefix = "aspp."  # a weight file may have another number of classes there

    def __init__(
        self,
        num_classes: int,
        body: str | nn.Module = "resnet101",
        rates: Sequence[int] = RATES,
        weights: str = "none",
        frozen_batch_norm: bool | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise GwsssError(f"num_classes is {num_classes}; DeepLab-V2 needs the background and at least one class")
        if not rates or min(rates) < 1:
            raise GwsssError(f"rates are {tuple(rates)}; give at least one dilation, each 1 or more")
        from_file = weights not in ("none", "default")
        if isinstance(body, str):
            body = build_backbone(body, "none" if from_file else weights)
        elif not hasattr(body, "out_channels"):
            body = External(body, type(body).__name__)
        self.body: nn.Module = body
        self.initialised_from = str(getattr(body, "initialised_from", "as given"))
        head = LargeFovASPP if isinstance(body, VGG16) else ASPP
        self.aspp = head(int(body.out_channels), num_classes, rates)  # type: ignore[arg-type]
        if from_file:
            self.initialised_from = load_weights(self, weights)
        if has_statistics(body) if frozen_batch_norm is None else frozen_batch_norm:
            freeze_batch_norm(self.body)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes, h, w), about H / stride by W / stride, of normalised images (B, 3, H, W)."""
        return self.aspp(self.body(images.contiguous(memory_format=torch.channels_last)))

    def parameter_groups(
        self, lr: float, weight_decay: float, *, head_factor: float = 10.0, head_bias_factor: float = 20.0
    ) -> list[dict[str, Any]]:
        """Groups for SGD: body at `lr`; head weights at 10 times that; head biases at 20 times, without decay.

        Parameters without gradient are left out; each group carries a `name` for the logs.
        """
        head = [(name, p) for name, p in self.aspp.named_parameters() if p.requires_grad]
        weights = [p for name, p in head if not name.endswith("bias")]
        biases = [p for name, p in head if name.endswith("bias")]
        body = [p for p in self.body.parameters() if p.requires_grad]
        groups = [
            {"name": "body", "params": body, "lr": lr, "weight_decay": weight_decay},
            {"name": "head", "params": weights, "lr": head_factor * lr, "weight_decay": weight_decay},
            {"name": "head biases", "params": biases, "lr": head_bias_factor * lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]


def has_statistics(module: nn.Module) -> bool:
    """Whether any batch norm in `module` has running statistics other than those of a new layer."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            if layer.running_mean.is_meta:
                continue
            if bool(layer.running_mean.any()) or not bool((layer.running_var == 1).all()):
                return True
    return False


class MultiScale(nn.Module):
    """The multi-scale inputs (MSC) of DeepLab-V2 around a DeepLabV2.

    Training: the logits at scale 1 and at each of `scales`, each at its own size, and their element-wise maximum at the
    size of the first; segmentation_loss sums over such a list. Eval: the maximum alone.
    """

    def __init__(self, base: DeepLabV2, scales: Sequence[float] = (0.75, 0.5)) -> None:
        super().__init__()
        self.base = base
        self.scales = tuple(scales)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, num_classes, h, w), a list of them while training, of normalised images (B, 3, H, W)."""
        logits = [self.base(images)]
        for scale in self.scales:
            logits.append(self.base(_scaled(images, scale)))
        size = logits[0].shape[-2:]
        most = logits[0]
        for other in logits[1:]:
            most = torch.maximum(most, F.interpolate(other, size=size, mode="bilinear", align_corners=False))
        return [*logits, most] if self.training else most

    def parameter_groups(self, lr: float, weight_decay: float, **factors: float) -> list[dict[str, Any]]:
        """As DeepLabV2.parameter_groups."""
        return self.base.parameter_groups(lr, weight_decay, **factors)


def _scaled(images: Tensor, scale: float) -> Tensor:
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def segmentation_loss(
    logits: Tensor | Sequence[Tensor],
    target: Tensor,
    resize: Literal["target", "logits"] = "target",
    pixels: Tensor | Sequence[Tensor] | None = None,
) -> Tensor:
    """Mean cross-entropy over the pixels that are not 255, a scalar; several logits: the sum of their losses.

    logits: (B, num_classes, h, w). target: (B, H, W) integers. Where sizes differ, the target is reduced to the
    logits' size as in the published protocol, or, with resize="logits", the logits are enlarged to the target's.
    pixels: what each sum is divided by, where this is a part of a larger batch (`valid_pixels` of all of it).
    Without a single valid pixel the loss is 0 and its gradient zeros. Raises GwsssError when the shapes do not match.
    """
    if not isinstance(logits, Tensor):
        counts: Sequence[Tensor | None] = [None] * len(logits) if pixels is None else list(pixels)
        pairs = zip(logits, counts, strict=True)
        return torch.stack([segmentation_loss(each, target, resize, count) for each, count in pairs]).sum()
    if logits.ndim != 4 or target.ndim != 3 or logits.shape[0] != target.shape[0]:
        raise GwsssError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)}; pass (B, classes, h, w) and (B, H, W)"
        )
    logits = logits.float()
    if resize == "logits" and logits.shape[-2:] != target.shape[-2:]:
        logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, _reduced(target, logits.shape[-2:]), ignore_index=IGNORE, reduction="sum")
    count = valid_pixels(target, logits.shape[-2:]) if pixels is None else pixels
    assert isinstance(count, Tensor)
    return total / (count.clamp_min(1) if pixels is None else torch.where(count > 0, count, 1))


def valid_pixels(target: Tensor, size: Sequence[int]) -> Tensor:
    """How many pixels of the target (B, H, W), reduced to `size`, are not 255: a scalar."""
    return (_reduced(target, size) != IGNORE).sum()


def _reduced(target: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(target.shape[-2:]) == tuple(size):
        return target.long()
    # float32 holds every class number exactly, and interpolation takes no integers on some devices.
    return F.interpolate(target[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0].long()


@torch.no_grad()
def predict_probabilities(
    model: nn.Module, image: Tensor, scales: Sequence[float] = (1,), flip: bool = False
) -> Tensor:
    """Class probabilities at full resolution: the mean over scales, and mirrored inputs with `flip`, of the softmax.

    image: normalised, (3, H, W) -> (num_classes, H, W) float32, or (B, 3, H, W) -> (B, num_classes, H, W). The model
    runs in eval mode and gets its own mode back. Raises GwsssError for other shapes and for no scales.
    """
    if image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise GwsssError(f"image has shape {tuple(image.shape)}; pass (3, H, W) or (B, 3, H, W)")
    if not scales or min(scales) <= 0:
        raise GwsssError(f"scales are {tuple(scales)}; give at least one, each above 0")
    images = image[None] if image.ndim == 3 else image
    size = images.shape[-2:]
    total: Tensor | None = None
    with evaluating(model):
        for scale in scales:
            scaled = images if scale == 1 else _scaled(images, scale)
            for mirrored in (False, True)[: 1 + flip]:
                logits = model(scaled.flip(-1) if mirrored else scaled).float()
                logits = logits.flip(-1) if mirrored else logits
                logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
                total = logits.softmax(1) if total is None else total + logits.softmax(1)
    assert total is not None
    probabilities = total / (len(scales) * (1 + flip))
    return probabilities[0] if image.ndim == 3 else probabilities
