"""The dtype in which scores, softmaxes and statistics are computed."""

import torch
from torch import Tensor


def accumulate(x: Tensor) -> Tensor:
    """`x` in float32 when it has 16 bits, else as it is (float32 and float64 stay)."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
