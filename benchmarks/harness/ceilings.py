"""What the machine can do at most, measured in the same run: a large matrix product and a large copy."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from benchmarks.harness.cases import dtype_name
from benchmarks.harness.timing import Timer, interleave
from benchmarks.harness.work import Work


@dataclass(frozen=True)
class Ceilings:
    """flops: operations a second of a matrix product, by dtype name. bandwidth: bytes read and written a second."""

    flops: dict[str, float]
    bandwidth: float

    def floor_ms(self, work: Work, dtype: str) -> float:
        """The least milliseconds that `work` can take: no version runs much faster."""
        return 1e3 * max(work.flops / self.flops[dtype], work.bytes / self.bandwidth)

    def of_gemm(self, work: Work, dtype: str, milliseconds: float) -> float:
        """Part of the measured matrix product's rate."""
        return work.flops / (1e-3 * milliseconds) / self.flops[dtype]

    def of_copy(self, work: Work, milliseconds: float) -> float:
        """Part of the measured copy's rate."""
        return work.bytes / (1e-3 * milliseconds) / self.bandwidth


def measure(
    device: str,
    timer: Timer,
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32),
    side: int = 8192,
    values: int = 2**30,
    rounds: int = 12,
) -> Ceilings:
    """side: of the square factors. values: of two bytes, copied. On random values: zeros run faster than real data."""
    rates = {}
    for dtype in dtypes:
        # float32 runs on the plain cores, ten times slower or more, and is at its best long before this size.
        size = side // 2 if dtype == torch.float32 else side
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        product = functools.partial(torch.mm, left, right, out=out)
        times = interleave({"gemm": [product]}, timer, rounds)
        rates[dtype_name(dtype)] = 2.0 * size**3 / (1e-3 * times["gemm"].p50)
    source = torch.randn(values // 2, device=device).view(torch.int16)
    target = torch.empty_like(source)
    times = interleave({"copy": [lambda: target.copy_(source)]}, timer, rounds)
    return Ceilings(rates, 2.0 * source.numel() * source.element_size() / (1e-3 * times["copy"].p50))
