"""The self-attention of the native library on the CPU."""

import torch
from torch import Tensor

from gwsss_fast.native import edges
from gwsss_fast.native.edges import packed


def refuse(q: Tensor, k: Tensor, v: Tensor, *extras: Tensor) -> str | None:
    """Why it cannot take these tensors, or None."""
    addends = dict(zip(("residual", "message"), extras, strict=False))
    return edges.refuse(q=q, k=k, v=v, **addends)


def _nodes(x: Tensor) -> Tensor:
    """(..., N, W) as (nodes, N, W)."""
    return packed(x).flatten(0, -3) if x.dim() > 2 else packed(x)[None]


def attention(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, message: Tensor | None, message_scale: float
) -> tuple[Tensor, Tensor]:
    """As `reference.attention`: the output (..., N, C) and row log-sum-exps (..., N)."""
    extras = [None if x is None else _nodes(x) for x in (residual, message)]
    run = torch.ops.gwsss_fast_native.attention
    out, row_lse = run(_nodes(q), _nodes(k), _nodes(v), *extras, message_scale)
    return out.reshape(v.shape).to(v.dtype), row_lse.reshape(q.shape[:-1])


def attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, row_lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.attention_backward`: the gradients of q, k and v."""
    rows = row_lse.flatten(0, -2) if row_lse.dim() > 1 else row_lse[None]
    nodes = [_nodes(x) for x in (grad, q, k, v)]
    grads = torch.ops.gwsss_fast_native.attention_backward(*nodes, rows.contiguous())
    wide = [x.reshape(of.shape).to(of.dtype) for x, of in zip(grads, (q, k, v), strict=True)]
    return wide[0], wide[1], wide[2]
