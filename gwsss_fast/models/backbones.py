"""Feature extractors by name."""

from __future__ import annotations

from collections.abc import Callable

from gwsss_fast.errors import GwsssError
from gwsss_fast.models.base import Backbone, freeze_batch_norm
from gwsss_fast.models.external import External, function_backbone, timm_backbone
from gwsss_fast.models.resnet38 import ResNet38
from gwsss_fast.models.resnet101 import ResNet101
from gwsss_fast.models.tiny import Tiny
from gwsss_fast.models.vgg16 import VGG16
from gwsss_fast.models.weights import load_weights

__all__ = ["BACKBONES", "Backbone", "External", "build_backbone", "freeze_batch_norm"]

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "vgg16": VGG16,
    "resnet101": ResNet101,
    "resnet38": ResNet38,
    "tiny": Tiny,
}


def build_backbone(name: str, weights: str = "default") -> Backbone:
    """A backbone by name, its weights loaded and its `initialised_from` filled in.

    name: vgg16 (stride 8, 512 channels), resnet101 (8, 2048), resnet38 (8, 4096), tiny (8, 128), timm:NAME,
    module:function or path/to/file.py:function. weights: "default" (pretrained where there is such a thing), "none" or
    the path of a weight file. Raises GwsssError for an unknown name and whatever keeps the weights from being loaded.
    """
    if name in BACKBONES:
        backbone = BACKBONES[name]()
        backbone.initialised_from = load_weights(backbone, weights)
        return backbone
    if name.startswith("timm:"):
        return timm_backbone(name, weights)
    if ":" in name.strip(":"):
        return function_backbone(name, weights)
    known = ", ".join(BACKBONES)
    raise GwsssError(f"unknown backbone {name}; choose {known}, timm:NAME, module:function or path/to/file.py:function")
