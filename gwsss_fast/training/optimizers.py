"""SGD in as few kernels as this machine offers."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from gwsss_fast.errors import GwsssError


def make_sgd(kind: str, groups: list[dict[str, Any]], device: torch.device, **options: Any) -> torch.optim.Optimizer:
    """An SGD optimiser. kind: "torch" (a kernel for lists of tensors), "fused" (PyTorch's single kernel), "apex"
    (NVIDIA's FusedSGD), or "auto": on a GPU apex's where that build is installed, else PyTorch's fused one.

    options: lr, momentum, weight_decay, nesterov. Raises GwsssError for "apex" without NVIDIA's build or a GPU.
    """
    apex = _apex() if kind in ("auto", "apex") and device.type == "cuda" else None
    if kind == "apex" and apex is None:
        raise GwsssError(
            "training.optimizer apex needs a GPU and NVIDIA's own build of apex with apex.optimizers.FusedSGD (the "
            "package of that name on the index is another project); use auto, fused or torch"
        )
    if apex is not None:
        return apex(groups, **options)
    fused = kind == "fused" or (kind == "auto" and device.type == "cuda")
    return torch.optim.SGD(groups, fused=True if fused else None, **options)


def _apex() -> Any:
    """apex.optimizers.FusedSGD of NVIDIA's build; None where it is not installed, or without its CUDA extensions."""
    try:
        importlib.import_module("amp_C")
        return getattr(importlib.import_module("apex.optimizers"), "FusedSGD", None)
    except Exception:  # the unrelated package of this name fails in many ways
        return None
