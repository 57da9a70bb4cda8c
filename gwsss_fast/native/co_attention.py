"""The co-attention of the native library on the CPU."""

import torch
from torch import Tensor

from gwsss_fast.native import edges
from gwsss_fast.native.edges import packed


def refuse(p: Tensor, q: Tensor, g: Tensor) -> str | None:
    """Why it cannot take these tensors, or None."""
    return edges.refuse(p=p, q=q, g=g)


def co_attention(p: Tensor, q: Tensor, g: Tensor, reverse: str) -> tuple[Tensor, Tensor]:
    """As `reference.co_attention`; a block of rows of the scores is in memory at a time."""
    run = torch.ops.gwsss_fast_native.co_attention
    messages, row_lse = run(packed(p), packed(q), packed(g), reverse == "transpose")
    return messages.to(g.dtype), row_lse


def co_attention_backward(
    grad: Tensor, p: Tensor, q: Tensor, g: Tensor, row_lse: Tensor, reverse: str
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.co_attention_backward`."""
    run = torch.ops.gwsss_fast_native.co_attention_backward
    arguments = (packed(grad), packed(p), packed(q), packed(g), row_lse.contiguous())
    grads = run(*arguments, reverse == "transpose")
    return grads[0].to(p.dtype), grads[1].to(q.dtype), grads[2].to(g.dtype)
