"""Feature extractors by name."""

from __future__ import annotations

from pathlib import Path

from gwsss_fast.errors import GwsssError
from gwsss_fast.models.base import Backbone, freeze_batch_norm
from gwsss_fast.models.external import External, check_timm, find_function, function_backbone, timm_backbone
from gwsss_fast.models.resnet38 import ResNet38
from gwsss_fast.models.resnet101 import ResNet101
from gwsss_fast.models.tiny import Tiny
from gwsss_fast.models.vgg16 import VGG16
from gwsss_fast.models.weights import load_weights

__all__ = ["BACKBONES", "Backbone", "External", "build_backbone", "check_backbone", "freeze_batch_norm"]

BACKBONES: dict[str, type[Backbone]] = {
    "vgg16": VGG16,
    "resnet101": ResNet101,
    "resnet38": ResNet38,
    "tiny": Tiny,
}


def build_backbone(name: str, weights: str = "default") -> Backbone:
    """A backbone by name, its weights loaded and its `initialised_from` filled in.

    name: vgg16 (stride 8, 512 channels), resnet101 (8, 2048), resnet38 (8, 4096), tiny (8, 128), timm:NAME or
    timm:NAME@STRIDE, module:function or path/to/file.py:function. weights: "default" (pretrained where there is such a
    thing), "none" or the path of a weight file. Raises GwsssError for an unknown name and whatever keeps the weights
    from being loaded.
    """
    if name in BACKBONES:
        backbone = BACKBONES[name]()
        backbone.initialised_from = load_weights(backbone, weights)
        return backbone
    if name.startswith("timm:"):
        return timm_backbone(name, weights)
    if ":" in name.strip(":"):
        return function_backbone(name, weights)
    raise _unknown(name)


def check_backbone(name: str, weights: str = "default", option: str = "model.weights") -> None:
    """Raises GwsssError where build_backbone would for an unknown name, missing weights or a missing file.

    Builds and fetches nothing. `option` sets the weights and is named in errors.
    """
    if name.startswith("timm:"):
        check_timm(name)
    elif name not in BACKBONES and ":" in name.strip(":"):
        find_function(name)
    elif name not in BACKBONES:
        raise _unknown(name)
    elif weights == "default" and BACKBONES[name].default_weights is None:
        raise GwsssError(f"{name} has no weights to download; pass --{option} PATH, or none to start at random")
    if weights not in ("default", "none") and not Path(weights).is_file():
        raise GwsssError(f"--{option}: weight file {weights} does not exist; pass the path of a file, default or none")


def _unknown(name: str) -> GwsssError:
    known = f"{', '.join(BACKBONES)}, timm:NAME, module:function or path/to/file.py:function"
    return GwsssError(f"unknown backbone {name}; choose {known}")
