"""`ops.co_attention`: the messages of all edges between different images of a group (Eq. 5, 7, 8)."""

import torch
from torch import Tensor

from gwsss_fast import reference
from gwsss_fast.launch import edges
from gwsss_fast.ops import dispatch, native_kernels, triton_kernels

REVERSES = ("transpose", "directed")
dispatch.register("co_attention", "reference", dispatch.Kernel(reference.co_attention, reference.co_attention_backward))
triton_kernels.register("co_attention", refuse=lambda p, q, g: edges.refuse(p, g))
native_kernels.register("co_attention", "cpp")


@torch.library.custom_op("gwsss_fast::co_attention", mutates_args=())
def _co_attention(p: Tensor, q: Tensor, g: Tensor, reverse: str, backend: str) -> tuple[Tensor, Tensor]:
    return dispatch.kernel("co_attention", backend).forward(p, q, g, reverse)


@_co_attention.register_fake
def _(p: Tensor, q: Tensor, g: Tensor, reverse: str, backend: str) -> tuple[Tensor, Tensor]:
    groups, nodes, positions, _ = g.shape
    statistics = g.dtype if g.dtype == torch.float64 else torch.float32
    return g.new_empty(g.shape), g.new_empty((groups, nodes, nodes, positions), dtype=statistics)


@torch.library.custom_op("gwsss_fast::co_attention_backward", mutates_args=())
def _co_attention_backward(
    grad: Tensor, p: Tensor, q: Tensor, g: Tensor, row_lse: Tensor, reverse: str, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return dispatch.kernel("co_attention", backend).backward(grad, p, q, g, row_lse, reverse)


@_co_attention_backward.register_fake
def _(grad, p, q, g, row_lse, reverse, backend):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (p, q, g))


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    p, q, g, ctx.reverse, ctx.backend = inputs
    ctx.save_for_backward(p, q, g, output[1])


def _backward(ctx, grad, _grad_row_lse):  # type: ignore[no-untyped-def]
    grads = dispatch.without_autocast(_co_attention_backward, grad, *ctx.saved_tensors, ctx.reverse, ctx.backend)
    return *grads, None, None


_co_attention.register_autograd(_backward, setup_context=_save)


def co_attention(p: Tensor, q: Tensor, g: Tensor, reverse: str = "transpose") -> Tensor:
    """m_i = sum over j != i of softmax_rows(E_ij) g_j (Eq. 7, 8 without the self edge).

    p, q: (B, K, N, D), the two low-rank projections of the nodes; g: (B, K, N, C), the nodes. One dtype and device.
    reverse: "transpose" (E_ij = p_i q_j^T for i < j and E_ji = E_ij^T) or "directed" (p on the receiver always).
    Returns (B, K, N, C); zeros for K = 1. Scores and softmax are in float32 for 16-bit inputs. Raises GwsssError.
    """
    p, q, g = dispatch.autocast(p, q, g)
    dispatch.check_same("co_attention", p=p, q=q, g=g)
    dispatch.check(reverse in REVERSES, f"co_attention: reverse is {reverse!r}; choose from {', '.join(REVERSES)}")
    dispatch.check(g.dim() == 4, f"co_attention: g must be (B, K, N, C), not {tuple(g.shape)}")
    dispatch.check(
        p.dim() == 4 and p.shape == q.shape, f"co_attention: q {tuple(q.shape)} must have p's shape {tuple(p.shape)}"
    )
    dispatch.check(
        p.shape[:3] == g.shape[:3], f"co_attention: p {tuple(p.shape)} must agree with g {tuple(g.shape)} in B, K and N"
    )
    backend = dispatch.choose("co_attention", p, q, g)
    return dispatch.without_autocast(_co_attention, p, q, g, reverse, backend)[0]
