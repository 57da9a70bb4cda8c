"""Whether a result may be believed: the tolerance rule that stands before every reported time.

`err(ours, float64 reference) <= 2 x err(plain PyTorch in that dtype, same reference) + tiny`, 3 x for gradients, in the
largest error and in the root of the squared ones. NaN and infinity never pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.cases import Operation, as_tuple

VALUE_FACTOR, GRADIENT_FACTOR = 2.0, 3.0
PEER_FACTOR = 4.0
"""Peers may err more: they are held to being the same function, not to our rule."""
VANISHED = 1e-6


@dataclass(frozen=True)
class Verdict:
    """One compared tensor: its error and what was allowed, both as parts of the largest exact value."""

    what: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # false for NaN

    def __str__(self) -> str:
        return f"{self.what}: error {self.error:.2e} of the largest value, {self.allowed:.2e} allowed"


def tiny(dtype: torch.dtype) -> float:
    """Room besides the rule, as a part of the largest value: a quarter of the dtype's rounding step, 1e-6 at least."""
    return max(1e-6, torch.finfo(dtype).eps / 4)


def judge(what: str, value: Tensor, exact: Tensor, plain: Tensor, factor: float, scale: float) -> list[Verdict]:
    """Verdicts by the largest and by the mean-square error.

    scale: largest exact value of all tensors compared together; one that vanishes beside it (by cancellation, as the
    gradient of scores with one key) is held to the rounding of that scale.
    """
    value, exact, plain = value.detach().double(), exact.detach().double(), plain.detach().double()
    if value.shape != exact.shape:
        return [Verdict(f"{what}: shape {tuple(value.shape)} instead of {tuple(exact.shape)}", float("inf"), 0.0)]
    if not value.numel():
        return []
    largest = float(exact.abs().max())
    vanished = largest <= VANISHED * scale
    unit = max(scale if vanished else largest, torch.finfo(torch.float64).tiny)
    verdicts = []
    for name, norm in (("largest", _largest), ("mean square", _mean_square)):
        theirs = norm(plain - exact) / unit
        if not theirs < float("inf"):  # plain PyTorch overflowed: what rounding alone explains
            theirs = 0.0
        verdicts.append((f"{what} ({name})", norm(value - exact) / unit, factor * theirs))
    return [Verdict(name, error, allowed) for name, error, allowed in verdicts]


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _mean_square(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def compare(
    values: Sequence[Tensor],
    exact: Sequence[Tensor],
    plain: Sequence[Tensor],
    outputs: int,
    factor: float = 1.0,
    dtype: torch.dtype | None = None,
) -> list[Verdict]:
    """Verdicts of outputs (the first `outputs` tensors) and gradients (the rest); `factor` widens both.

    dtype: in which was computed, where that is not the values' own.
    """
    scale = max((float(x.detach().abs().max()) for x in exact if x.numel()), default=0.0)
    verdicts = []
    for number, (value, truth, eager) in enumerate(zip(values, exact, plain, strict=True)):
        room = factor * (VALUE_FACTOR if number < outputs else GRADIENT_FACTOR)
        what = f"output {number}" if number < outputs else f"gradient {number - outputs}"
        extra = tiny(dtype or value.dtype)
        for verdict in judge(what, value, truth, eager, room, scale):
            verdicts.append(Verdict(verdict.what, verdict.error, verdict.allowed + extra))
    return verdicts


def run(function: Callable[..., Any], tensors: Sequence[Tensor], differentiable: int, seed: int = 7) -> list[Tensor]:
    """Outputs, then gradients of the first `differentiable` tensors for fixed random cotangents; 0: outputs alone."""
    leaves = [x.detach().requires_grad_(number < differentiable) for number, x in enumerate(tensors)]
    with torch.set_grad_enabled(differentiable > 0):
        results = as_tuple(function(*leaves))
    if not differentiable:
        return list(results)
    gradients = torch.autograd.grad(results, leaves[:differentiable], cotangents(results, seed))
    return [*(x.detach() for x in results), *gradients]


def cotangents(results: Sequence[Tensor], seed: int = 7) -> list[Tensor]:
    """The same random values for every dtype and device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, generator=generator).to(device=x.device, dtype=x.dtype) for x in results]


@dataclass(frozen=True)
class Expected:
    """What a case is compared with: float64 results, and those of plain PyTorch in its dtype (see `compare`)."""

    exact: list[Tensor]
    plain: list[Tensor]
    outputs: int
    dtype: torch.dtype | None = None

    def verdicts(self, values: Sequence[Tensor], factor: float = 1.0) -> list[Verdict]:
        """Of outputs and gradients, or of outputs alone."""
        count = self.outputs if len(values) == self.outputs else None
        return compare(values, self.exact[:count], self.plain[:count], self.outputs, factor, self.dtype)

    def failures(self, values: Sequence[Tensor], factor: float = 1.0) -> list[str]:
        return [str(verdict) for verdict in self.verdicts(values, factor) if not verdict.passed]


def expected(operation: Operation, tensors: Sequence[Tensor]) -> Expected:
    """Results of the float64 equations on the same values, differentiated by autograd, and of plain PyTorch."""
    wide = [x.double() if number < operation.differentiable else x for number, x in enumerate(tensors)]
    exact = run(operation.exact, wide, operation.differentiable)
    plain = run(operation.plain, tensors, operation.differentiable)
    return Expected(exact, plain, len(exact) - operation.differentiable)
