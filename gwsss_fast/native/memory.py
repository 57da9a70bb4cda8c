"""Uninitialised tensors for the native kernels' results, in memory that the library keeps and uses again."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def new_empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Contiguous, of the dtype and on the device of `like`; on the CPU float32 or bfloat16.

    NaN where PyTorch was asked to fill uninitialised memory (torch.use_deterministic_algorithms).
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)  # PyTorch keeps a GPU's memory itself
    result = torch.ops.gwsss_fast_native.new_empty(like, list(shape))
    return result.fill_(math.nan) if fills() else result


def fills() -> bool:
    """Whether PyTorch was asked to fill uninitialised memory."""
    wanted = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    return wanted and torch.are_deterministic_algorithms_enabled()
