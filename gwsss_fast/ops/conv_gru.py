"""`ops.conv_gru`: the convolutional gated recurrent unit that updates a node (Eq. 2)."""

import torch
from torch import Tensor

from gwsss_fast import aten, reference
from gwsss_fast.ops import dispatch, native_kernels, triton_kernels

dispatch.register("conv_gru", "reference", dispatch.Kernel(reference.conv_gru, reference.conv_gru_backward))
dispatch.register(
    "conv_gru", "aten", dispatch.Kernel(aten.conv_gru, aten.conv_gru_backward, refuse=aten.refuse_conv_gru)
)
triton_kernels.register("conv_gru")
native_kernels.register("conv_gru", "cpp")


def _node_layout(x: Tensor) -> Tensor:
    """Channels last, the layout of nodes, whatever a backend returns: compiled code relies on fixed strides."""
    return x.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("gwsss_fast::conv_gru", mutates_args=())
def _conv_gru(
    m: Tensor, h: Tensor, weight: Tensor, bias: Tensor, backend: str, keep: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, z, r, c = dispatch.kernel("conv_gru", backend).forward(m, h, weight, bias, keep)
    if keep:
        z, r, c = (_node_layout(x) for x in (z, r, c))
    return _node_layout(out), z, r, c


@_conv_gru.register_fake
def _(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor, backend: str, keep: bool = True):  # type: ignore[no-untyped-def]
    out, *gates = (torch.empty_like(h, memory_format=torch.channels_last) for _ in range(4))
    return out, *(x if keep else h.new_empty(0) for x in gates)


@torch.library.custom_op("gwsss_fast::conv_gru_backward", mutates_args=())
def _conv_gru_backward(
    grad: Tensor, m: Tensor, h: Tensor, weight: Tensor, bias: Tensor, z: Tensor, r: Tensor, c: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = dispatch.kernel("conv_gru", backend).backward(grad, m, h, weight, bias, z, r, c)
    grad_m, grad_h, *grad_parameters = grads
    return _node_layout(grad_m), _node_layout(grad_h), *(x.contiguous() for x in grad_parameters)


@_conv_gru_backward.register_fake
def _(grad, m, h, weight, bias, z, r, c, backend):  # type: ignore[no-untyped-def]
    nodes = (torch.empty_like(x, memory_format=torch.channels_last) for x in (m, h))
    return *nodes, weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.backend, _keep = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # the gates' gradients would be three tensors of zeros


def _backward(ctx, grad, *_grad_gates):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 6
    return *dispatch.without_autocast(_conv_gru_backward, grad, *ctx.saved_tensors, ctx.backend), None, None


_conv_gru.register_autograd(_backward, setup_context=_save)


def conv_gru(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """z = sigmoid(conv_z[m, h]); r = sigmoid(conv_r[m, h]); c = tanh(conv_c[m, r h]); returns (1 - z) h + z c.

    m, h: (M, C, H, W), message and state; weight: (3C, 2C, k, k), k odd, rows ordered [update, reset, candidate] and
    columns [message, state]; bias: (3C,). Returns (M, C, H, W). Raises GwsssError when shapes do not fit.
    """
    m, h, weight, bias = dispatch.autocast(m, h, weight, bias)
    dispatch.check_same("conv_gru", m=m, h=h, weight=weight, bias=bias)
    dispatch.check(h.dim() == 4, f"conv_gru: h must be (M, C, H, W), not {tuple(h.shape)}")
    dispatch.check(m.shape == h.shape, f"conv_gru: m {tuple(m.shape)} must have h's shape {tuple(h.shape)}")
    channels, kernel = h.shape[1], weight.shape[-1]
    dispatch.check(
        weight.shape == (3 * channels, 2 * channels, kernel, kernel) and kernel % 2 == 1,
        f"conv_gru: weight must be (3C, 2C, k, k) with C = {channels} and k odd, not {tuple(weight.shape)}",
    )
    dispatch.check(bias.shape == (3 * channels,), f"conv_gru: bias must be ({3 * channels},), not {tuple(bias.shape)}")
    backend = dispatch.choose("conv_gru", m, h, weight, bias)
    # The gates are handed to the backward pass, which is spared half of its products; without one they are not kept.
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (m, h, weight, bias))
    return dispatch.without_autocast(_conv_gru, m, h, weight, bias, backend, keep)[0]
