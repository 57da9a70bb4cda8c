"""Matrix products of the native kernels, by the libraries that PyTorch brings."""

import torch
from torch import Tensor
from torch.nn.functional import linear

_LEAST = 1 << 18
"""Multiplications from which oneDNN is asked."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias for x (R, I) and weight (O, I), in their dtype: (R, O).

    float32 by oneDNN: PyTorch's own choice is MKL, which leaves the AVX-512 units of other makers' processors idle.
    """
    if x.dtype == torch.float32 and x.shape[0] * weight.numel() >= _LEAST and has_onednn():
        if not weight.is_contiguous() and not weight.T.is_contiguous():
            weight = weight.contiguous()  # oneDNN is 100 times slower on lines apart from each other
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return linear(x, weight, bias)


def has_onednn() -> bool:
    """Whether float32 products can be asked of oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
