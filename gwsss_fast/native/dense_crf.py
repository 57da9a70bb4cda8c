"""The dense CRF of the native library."""

from typing import Any

import torch
from torch import Tensor

from gwsss_fast.native import library


def refuse(prob: Tensor, image: Tensor) -> str | None:
    """Why it cannot take these tensors, or None."""
    for name, tensor in (("prob", prob), ("image", image)):
        if tensor.device.type != "cpu":
            return f"it needs tensors on the CPU, and {name} is on {tensor.device}"
    return None


def refuse_on_gpu(prob: Tensor, image: Tensor) -> str | None:
    """Why the implementation for GPUs cannot take these tensors, or None."""
    if prob.device.type != "cuda":
        return f"it needs tensors on a GPU, and prob is on {prob.device}"
    return None


def dense_crf(prob: Tensor, image: Tensor, **options: Any) -> Tensor:
    """See `ops.dense_crf`."""
    marginals = torch.ops.gwsss_fast_native.dense_crf(prob.float().contiguous(), image.contiguous(), **options)
    return marginals.to(prob.dtype)


def dense_crf_images(probs: list[Tensor], images: list[Tensor], **options: Any) -> list[Tensor]:
    """`dense_crf` of several images, by the side of each other where there are as many as threads."""
    packed = [prob.float().contiguous() for prob in probs], [image.contiguous() for image in images]
    marginals = torch.ops.gwsss_fast_native.dense_crf_images(*packed, **options)
    return [result.to(prob.dtype) for result, prob in zip(marginals, probs, strict=True)]


def dense_crf_backward(grad: Tensor, prob: Tensor, image: Tensor, **options: Any) -> Tensor:
    """Gradient of `prob`: back through every update, by the transposed filter. The image gets none."""
    packed = (grad.float().contiguous(), prob.float().contiguous(), image.contiguous())
    return torch.ops.gwsss_fast_native.dense_crf_backward(*packed, **options).to(prob.dtype)


def forget() -> None:
    """Free the lattices and the memory that the library keeps for a next call."""
    if library.loaded() is not None:
        torch.ops.gwsss_fast_native.dense_crf_forget()
