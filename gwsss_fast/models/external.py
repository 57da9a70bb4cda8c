"""Backbones from elsewhere: timm's models, and any function that returns a module."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gwsss_fast.errors import GwsssError
from gwsss_fast.models.base import Backbone, evaluating
from gwsss_fast.models.weights import load_weights

PROBE_SIZE = 224
STRIDES = (8, 16)


class External(Backbone):
    """Wraps a module that maps images (B, 3, H, W) to one feature map; channels and stride come from a dry run."""

    def __init__(self, body: nn.Module, name: str) -> None:
        super().__init__()
        self.body = body
        self.out_channels, self.stride = probe(self, name)

    def forward(self, images: Tensor) -> Tensor:
        """The wrapped module's feature map (B, out_channels, h, w) of normalised images (B, 3, H, W)."""
        features = self.body(images)
        if isinstance(features, (list, tuple)) and len(features) == 1:
            features = features[0]  # timm's feature extractors return a list
        return features


def probe(module: nn.Module, name: str) -> tuple[int, int]:
    """Channels and stride of a module, by one image in eval mode without gradients; its own modes are kept.

    Raises GwsssError naming `name` when it fails or does not return one tensor (1, C, h, w).
    """
    parameter = next(module.parameters(), torch.empty(0))
    image = torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE, device=parameter.device, dtype=parameter.dtype)
    try:
        with evaluating(module), torch.no_grad():
            features = module(image)
    except Exception as error:
        raise GwsssError(
            f"backbone {name} fails on an image of shape (1, 3, {PROBE_SIZE}, {PROBE_SIZE}): {_short(error)}"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 4 or features.shape[0] != 1:
        got = f"a tensor of shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise GwsssError(f"backbone {name} returns {got}; it must return one feature map (B, C, h, w)")
    return features.shape[1], max(1, round(PROBE_SIZE / features.shape[2]))


def function_backbone(name: str, weights: str = "default") -> Backbone:
    """`module:function` or `path/to/file.py:function`; the function takes no arguments and returns a module.

    weights: "default" and "none" leave the module as the function built it, a path is loaded into it. Raises
    GwsssError when the import fails, the function is missing or fails, or its module is no backbone.
    """
    body = _call(find_function(name), name)
    record = f"as built by {name}"
    if weights not in ("default", "none"):
        record = load_weights(body, weights)
    backbone = External(body, name)
    backbone.initialised_from = record
    return backbone


def find_function(name: str) -> Callable[[], Any]:
    """The function of `module:function` or `path/to/file.py:function`. Raises GwsssError when there is none."""
    where, _, function_name = name.rpartition(":")
    function = getattr(_import(where, name), function_name, None)
    if not callable(function):
        raise GwsssError(f"backbone {name}: {where} has no function {function_name}")
    return function


def _call(function: Callable[[], Any], name: str) -> nn.Module:
    try:
        body = function()
    except Exception as error:
        raise GwsssError(f"backbone {name} cannot be built: {_short(error)}") from error
    if not isinstance(body, nn.Module):
        raise GwsssError(f"backbone {name} returns {type(body).__name__}; it must return a torch.nn.Module")
    return body


def _import(where: str, name: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(where)
        if not path.is_file():
            raise GwsssError(f"backbone {name}: the file {path} does not exist")
        # A name of its own: the file must not shadow a module that happens to be called the same.
        unique = f"gwsss_fast_backbone_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(unique, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[unique]
            raise
        return module
    except GwsssError:
        raise
    except Exception as error:
        raise GwsssError(f"backbone {name}: importing {where} fails: {_short(error)}") from error


def timm_backbone(name: str, weights: str = "default") -> Backbone:
    """`timm:NAME`: the last feature map of a timm model at output stride 8, else 16; `timm:NAME@16` wants one of them.

    weights: "default" (timm's pretrained ones), "none" or the path of a file in timm's names. Raises GwsssError when
    timm is missing, does not know the model, cannot run it at these strides or cannot get its weights.
    """
    timm, (architecture, strides) = check_timm(name), timm_parts(name)
    options: dict[str, Any] = {"pretrained": weights != "none", "features_only": True, "out_indices": (-1,)}
    record = "random" if weights == "none" else f"timm {architecture}"
    if weights not in ("default", "none"):
        # Through the whole model and our own checks: timm's extractors silently leave out what does not fit.
        whole = timm.create_model(architecture, pretrained=False, num_classes=0)
        record = load_weights(whole, weights)
        options["pretrained_cfg_overlay"] = {"state_dict": whole.state_dict()}
    backbone = External(_timm_body(timm, architecture, options, strides, name), name)
    if backbone.stride not in strides:
        wanted = " or ".join(map(str, strides))
        raise GwsssError(f"backbone {name} has stride {backbone.stride}; choose a model that runs at stride {wanted}")
    backbone.initialised_from = record
    return backbone


def check_timm(name: str) -> Any:
    """The module timm, which knows `timm:NAME`. Raises GwsssError when it is missing or does not."""
    try:
        import timm
    except ImportError as error:
        raise GwsssError(f"backbone {name} needs timm; install it with: pip install 'gwsss-fast[timm]'") from error
    architecture, _ = timm_parts(name)
    if not timm.is_model(architecture.split(".")[0]):
        raise GwsssError(f"timm has no model {architecture}; timm.list_models() names those it has")
    return timm


def timm_parts(name: str) -> tuple[str, tuple[int, ...]]:
    """The model and the strides at which it may run of `timm:MODEL` or `timm:MODEL@STRIDE`."""
    architecture, at, stride = name.removeprefix("timm:").partition("@")
    if at and stride not in map(str, STRIDES):
        raise GwsssError(f"backbone {name}: the stride after @ is {' or '.join(map(str, STRIDES))}")
    return architecture, (int(stride),) if at else STRIDES


def _timm_body(timm: Any, architecture: str, options: dict[str, Any], strides: tuple[int, ...], name: str) -> nn.Module:
    # Transformers take no output stride, but an image size that may vary; a few models take neither.
    variants: list[dict[str, Any]] = [{"output_stride": stride} for stride in strides]
    variants += [{"dynamic_img_size": True}, {}]
    for variant in variants:
        try:
            return timm.create_model(architecture, **options, **variant)
        except (TypeError, NotImplementedError, AssertionError, ValueError):
            continue  # this model does not know the option; the next variant, or the plain model below
        except Exception as error:
            raise GwsssError(
                f"cannot load the weights of {name} ({_short(error)}); pass --model.weights PATH, or none to start at "
                "random"
            ) from error
    raise GwsssError(f"timm cannot run {architecture} as a feature extractor; choose another model")


def _short(error: Exception) -> str:
    """The error's kind and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
