"""Batch norm whose statistics are those of the whole batch, over all processes, on any device."""

from __future__ import annotations

import torch
import torch.distributed.nn.functional as collective
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gwsss_fast import distributed
from gwsss_fast.models.base import FrozenMixin


class _SyncedMixin:
    """Takes sums over all processes in training; else as its base class. idle: what this one sees does not count."""

    idle = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.size() == 1:  # type: ignore[attr-defined]
            return super().forward(x)  # type: ignore[misc]
        return _normalise(self, x)  # type: ignore[arg-type]


class SyncedBatchNorm1d(_SyncedMixin, nn.BatchNorm1d):
    """nn.BatchNorm1d over all processes."""


class SyncedBatchNorm2d(_SyncedMixin, nn.BatchNorm2d):
    """nn.BatchNorm2d over all processes."""


SYNCED: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm1d: SyncedBatchNorm1d, nn.BatchNorm2d: SyncedBatchNorm2d}


def synchronise_batch_norm(module: nn.Module) -> tuple[int, set[str]]:
    """Let every trained batch norm in `module` see the batch of all processes; frozen ones stay.

    Returns how many see it, and the names of the kinds of trained batch norm that cannot.

    The layer's class is replaced, so its parameters, its statistics and their names stay what they are.
    """
    found = [layer for layer in module.modules() if type(layer) in SYNCED]
    for layer in found:
        layer.__class__ = SYNCED[type(layer)]
    others = (
        x for x in module.modules() if isinstance(x, _BatchNorm) and not isinstance(x, (_SyncedMixin, FrozenMixin))
    )
    return len(found), {type(layer).__name__ for layer in others}


def set_idle(module: nn.Module, idle: bool) -> None:
    """Whether what this process computes counts for nothing, in the statistics neither; all take part all the same."""
    for layer in module.modules():
        if isinstance(layer, _SyncedMixin):
            layer.idle = idle


def _normalise(layer: _BatchNorm, x: Tensor) -> Tensor:
    """Sums in float32: count, sum and sum of squares of all processes in one exchange, which the gradient passes too.

    A shift by the running mean keeps the squares from cancelling.
    """
    dims = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    shift = (
        torch.zeros_like(x[0, :, ...].flatten(1)[:, 0]).float() if layer.running_mean is None else layer.running_mean
    )
    shift = shift.detach().clone().float()
    values = x.float() - shift.view(shape)
    count = torch.full((1,), x.numel() / x.shape[1], device=x.device)
    sums = torch.cat([values.sum(dims), values.square().sum(dims), count]) * (not layer.idle)
    first, second, whole = collective.all_reduce(sums).split([x.shape[1], x.shape[1], 1])
    mean = first / whole
    variance = (second / whole - mean.square()).clamp_min(0)
    if layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None:
        with torch.no_grad():
            layer.num_batches_tracked += 1
            share = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked)
            layer.running_mean.lerp_((mean + shift).to(layer.running_mean), share)
            unbiased = variance * whole / (whole - 1).clamp_min(1)
            layer.running_var.lerp_(unbiased.to(layer.running_var), share)
    scale = (variance + layer.eps).rsqrt()
    result = (values - mean.view(shape)) * scale.view(shape)
    if layer.affine:
        result = result * layer.weight.float().view(shape) + layer.bias.float().view(shape)
    return result.to(x.dtype)
