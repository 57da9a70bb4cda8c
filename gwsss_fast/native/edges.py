"""What the native operations share: which tensors they take, and in which arithmetic."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def refuse(**tensors: Tensor) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            return f"it needs tensors on the CPU, and {name} is on {tensor.device}"
        if tensor.dtype not in (torch.float32, torch.bfloat16):
            return f"it computes in float32 and bfloat16, not {tensor.dtype}"
        if tensor.shape[-1] == 0:
            return "it needs at least one channel"
    return None


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; else float32 is faster."""
    return torch.cpu._is_avx512_bf16_supported()


def packed(x: Tensor) -> Tensor:
    """`x` as the kernels read it: contiguous, and float32 where products of bfloat16 would be slow."""
    return (x if x.dtype == torch.float32 or multiplies_bfloat16() else x.float()).contiguous()
