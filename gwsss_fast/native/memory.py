"""Uninitialised tensors for the native kernels' results, in memory that the library keeps and uses again."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def new_empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Contiguous, on the CPU, of the dtype of `like` (float32 or bfloat16).

    NaN where PyTorch was asked to fill uninitialised memory (torch.use_deterministic_algorithms).
    """
    result = torch.ops.gwsss_fast_native.new_empty(like, list(shape))
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if fill and torch.are_deterministic_algorithms_enabled():
        result.fill_(math.nan)
    return result
