"""The arithmetic of a forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The autocast context of one of `PRECISIONS`; fp32 does nothing."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
