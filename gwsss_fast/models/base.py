"""What every backbone promises, and two helpers that change how a module behaves without changing its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Backbone(nn.Module):
    """Maps images (B, 3, H, W) to one feature map (B, out_channels, h, w), h being about H / stride.

    `initialised_from` is the sentence that a run records about where the weights came from. `default_weights` names
    torchvision weights; None means that the architecture has none, "random" that it is meant to start from scratch.
    """

    out_channels: int
    stride: int
    initialised_from: str = "random"
    default_weights: ClassVar[str | None] = None

    def forward(self, images: Tensor) -> Tensor:
        """Feature map (B, out_channels, h, w) of normalised images (B, 3, H, W)."""
        raise NotImplementedError


class FrozenMixin:
    """Keeps a batch-norm layer on its running statistics, whatever train() asks for."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # type: ignore[misc]


_FROZEN_CLASSES: dict[type, type] = {}


def _frozen_class(kind: type) -> type:
    if kind not in _FROZEN_CLASSES:
        _FROZEN_CLASSES[kind] = type(f"Frozen{kind.__name__}", (FrozenMixin, kind), {})
    return _FROZEN_CLASSES[kind]


def freeze_batch_norm(module: nn.Module) -> int:
    """Fix all batch-norm layers in `module` to their running statistics; their affine parameters get no gradient.

    Batches of one group of four images, all sharing classes, are too small and too alike for batch statistics. The
    layer's class is replaced by a subclass rather than its `train` method, so that the switch survives `.train()`,
    deepcopy and pickling of state. Convert to synchronised batch norm before, not after. Returns the number of layers
    that are frozen now.
    """
    count = 0
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            if not isinstance(layer, FrozenMixin):
                layer.__class__ = _frozen_class(type(layer))
            layer.eval()
            layer.requires_grad_(False)
            count += 1
    return count


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run a block with `module` in eval mode and give every submodule its own mode back afterwards."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training
