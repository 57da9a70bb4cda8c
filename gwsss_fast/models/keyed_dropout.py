"""Ordinary dropout that drops of each item of a batch what the item's key says.

So neither the number of processes nor that of the parts of a batch has a say in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_STRIDE = 4096  # more than a network has layers of dropout
_SPREAD = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, odd: neighbouring numbers become distant seeds


class _KeyedMixin:
    """Drops by `keys` in training; without them, and else, as its base class. number: of the layer in its network."""

    # (n,) int64 on the CPU, of n items; each is one sample of the input, or several in a row.
    keys: Tensor | None = None
    number = 0

    def forward(self, x: Tensor) -> Tensor:
        keys, rate = self.keys, float(self.p)  # type: ignore[attr-defined]
        if not self.training or keys is None or not 0 < rate < 1 or x.shape[0] % len(keys):  # type: ignore[attr-defined]
            return super().forward(x)  # type: ignore[misc]
        kept = _kept_units(x.detach(), keys, rate, self.number, not isinstance(self, nn.Dropout))
        return x * kept * (1 / (1 - rate))


class KeyedDropout(_KeyedMixin, nn.Dropout):
    """nn.Dropout by keys."""


class KeyedDropout1d(_KeyedMixin, nn.Dropout1d):
    """nn.Dropout1d by keys."""


class KeyedDropout2d(_KeyedMixin, nn.Dropout2d):
    """nn.Dropout2d by keys."""


class KeyedDropout3d(_KeyedMixin, nn.Dropout3d):
    """nn.Dropout3d by keys."""


KEYED: dict[type[nn.Module], type[_KeyedMixin]] = {
    nn.Dropout: KeyedDropout,
    nn.Dropout1d: KeyedDropout1d,
    nn.Dropout2d: KeyedDropout2d,
    nn.Dropout3d: KeyedDropout3d,
}


def key_dropout(module: nn.Module) -> list[_KeyedMixin]:
    """Let every ordinary dropout in `module` go by keys, once it is given some; the layers, to be given them.

    The layer's class is replaced, so names stay what they are.
    """
    for layer in module.modules():
        if type(layer) in KEYED:
            layer.__class__ = KEYED[type(layer)]  # type: ignore[assignment]
    found: list[_KeyedMixin] = [layer for layer in module.modules() if isinstance(layer, _KeyedMixin)]
    for number, keyed in enumerate(found):
        keyed.number = number
    return found


def set_keys(layers: Sequence[_KeyedMixin], keys: Tensor) -> None:
    """What the layers drop by from now on: (n,) int64 on the CPU."""
    for layer in layers:
        layer.keys = keys


# An operator, so that torch.compile need not look into it.
@torch.library.custom_op("gwsss_fast::kept_units", mutates_args=())
def _kept_units(x: Tensor, keys: Tensor, rate: float, number: int, channels: bool) -> Tensor:
    """Which units of x (bool), or which of its channels, stay: of each sample those of its key, this layer and size, so
    that a layer that sees several scales draws for each."""
    kept = _blank(x, channels)
    generator, names = torch.Generator(x.device), keys.tolist()
    repeats = len(kept) // len(names)
    for place, sample in enumerate(kept):
        drawn = _STRIDE * (x[0].numel() * repeats + place % repeats) + number
        generator.manual_seed((names[place // repeats] + _SPREAD * drawn) % 2**63)
        sample.bernoulli_(1 - rate, generator=generator)
    return kept


@_kept_units.register_fake
def _(x: Tensor, keys: Tensor, rate: float, number: int, channels: bool) -> Tensor:
    return _blank(x, channels)


def _blank(x: Tensor, channels: bool) -> Tensor:
    if channels:
        return x.new_empty((*x.shape[:2], *[1] * (x.ndim - 2)), dtype=torch.bool)
    return torch.empty_like(x, dtype=torch.bool)
