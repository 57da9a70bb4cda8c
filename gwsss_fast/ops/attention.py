"""`ops.attention`: softmax(q k^T) v without a scale (Eq. 6), and what Eq. 8 adds to it."""

import torch
from torch import Tensor

from gwsss_fast import reference
from gwsss_fast.launch import edges
from gwsss_fast.ops import dispatch, native_kernels, triton_kernels

dispatch.register("attention", "reference", dispatch.Kernel(reference.attention, reference.attention_backward))
triton_kernels.register("attention", refuse=lambda q, k, v, *extras: edges.refuse(q, v))
native_kernels.register("attention", "cpp")


@torch.library.custom_op("gwsss_fast::attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, message: Tensor | None, message_scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    return dispatch.kernel("attention", backend).forward(q, k, v, residual, message, message_scale)


@_attention.register_fake
def _(q, k, v, residual, message, message_scale, backend):  # type: ignore[no-untyped-def]
    statistics = q.dtype if q.dtype == torch.float64 else torch.float32
    return v.new_empty((*q.shape[:-1], v.shape[-1])), q.new_empty(q.shape[:-1], dtype=statistics)


@torch.library.custom_op("gwsss_fast::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, row_lse: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return dispatch.kernel("attention", backend).backward(grad, q, k, v, row_lse)


@_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, row_lse: Tensor, backend: str):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, residual, message, ctx.message_scale, ctx.backend = inputs
    ctx.has_residual, ctx.has_message = residual is not None, message is not None
    ctx.save_for_backward(q, k, v, output[1])


def _backward(ctx, grad, _grad_row_lse):  # type: ignore[no-untyped-def]
    grads = dispatch.without_autocast(_attention_backward, grad, *ctx.saved_tensors, ctx.backend)
    of_message = ctx.message_scale * grad if ctx.has_message else None
    return *grads, grad if ctx.has_residual else None, of_message, None, None


_attention.register_autograd(_backward, setup_context=_save)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    residual: Tensor | None = None,
    message: Tensor | None = None,
    message_scale: float = 1.0,
) -> Tensor:
    """softmax(q k^T) v + residual + message_scale * message, the softmax over the keys: no scale (Eq. 6 and 8).

    q, k: (..., N, D); v: (..., N, C); residual, message: v's shape, or None for nothing; one dtype and device. Returns
    (..., N, C). Scores, softmax and the sum are in float32 for 16-bit inputs. Under autocast the inputs are cast first.
    Raises GwsssError when shapes do not fit.
    """
    if message is not None and isinstance(message_scale, torch.SymFloat):
        # An exported graph with a free group size: an operator's float argument would fix it.
        message, message_scale = message * message_scale, 1.0
    given = {"q": q, "k": k, "v": v, "residual": residual, "message": message}
    names = [name for name, x in given.items() if x is not None]
    cast = dict(zip(names, dispatch.autocast(*(x for x in given.values() if x is not None)), strict=True))
    q, k, v, residual, message = (cast.get(name) for name in given)  # type: ignore[assignment]
    dispatch.check_same("attention", **cast)
    dispatch.check(
        q.dim() >= 2 and q.shape == k.shape, f"attention: k {tuple(k.shape)} must have q's shape {tuple(q.shape)}"
    )
    dispatch.check(
        v.shape[:-1] == q.shape[:-1],
        f"attention: v {tuple(v.shape)} must agree with q {tuple(q.shape)} but in channels",
    )
    for name in names[3:]:
        shape = tuple(cast[name].shape)
        dispatch.check(shape == tuple(v.shape), f"attention: {name} {shape} must have v's shape {tuple(v.shape)}")
    backend = dispatch.choose("attention", *cast.values())
    return dispatch.without_autocast(_attention, q, k, v, residual, message, message_scale, backend)[0]
