"""`ops.attention`: softmax(q k^T) v without a scale (Eq. 6)."""

import torch
from torch import Tensor

from gwsss_fast import reference
from gwsss_fast.ops import dispatch

dispatch.register("attention", "reference", dispatch.Kernel(reference.attention, reference.attention_backward))


@torch.library.custom_op("gwsss_fast::attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return dispatch.kernel("attention", backend).forward(q, k, v)


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    statistics = q.dtype if q.dtype == torch.float64 else torch.float32
    return v.new_empty((*q.shape[:-1], v.shape[-1])), q.new_empty(q.shape[:-1], dtype=statistics)


@torch.library.custom_op("gwsss_fast::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, row_lse: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return dispatch.kernel("attention", backend).backward(grad, q, k, v, out, row_lse)


@_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, row_lse: Tensor, backend: str):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx, grad, _grad_row_lse):  # type: ignore[no-untyped-def]
    return *dispatch.without_autocast(_attention_backward, grad, *ctx.saved_tensors, ctx.backend), None


_attention.register_autograd(_backward, setup_context=_save)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax over the keys of q k^T, times v: no scale (Eq. 6 without its residual).

    q, k: (..., N, D); v: (..., N, C); one dtype and device. Returns (..., N, C). Scores and softmax are in float32
    for 16-bit inputs. Under autocast the inputs are cast first. Raises GwsssError when shapes do not fit.
    """
    q, k, v = dispatch.autocast(q, k, v)
    dispatch.check_same("attention", q=q, k=k, v=v)
    dispatch.check(
        q.dim() >= 2 and q.shape == k.shape, f"attention: k {tuple(k.shape)} must have q's shape {tuple(q.shape)}"
    )
    dispatch.check(
        v.shape[:-1] == q.shape[:-1],
        f"attention: v {tuple(v.shape)} must agree with q {tuple(q.shape)} but in channels",
    )
    return dispatch.without_autocast(_attention, q, k, v, dispatch.choose("attention", q, k, v))[0]
