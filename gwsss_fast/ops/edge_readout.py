"""`ops.edge_readout`: dual attention over every pair of nodes, averaged over the positions (Eq. 14 to 17)."""

import torch
from torch import Tensor

from gwsss_fast import aten, reference
from gwsss_fast.ops import dispatch, native_kernels, triton_kernels

dispatch.register("edge_readout", "reference", dispatch.Kernel(reference.edge_readout, reference.edge_readout_backward))
dispatch.register("edge_readout", "aten", dispatch.Kernel(aten.edge_readout, aten.edge_readout_backward))
triton_kernels.register("edge_readout", refuse=lambda g: triton_kernels.refuse_many(g.shape[:2].numel() * g.shape[1]))
native_kernels.register("edge_readout", "cpp")
# Backends whose forward pass also returns its softmaxes' statistics, (B, K, K, 3, N) and (B, K, K, 3, C), which their
# backward pass then takes; the others need none.
KEEP_STATISTICS = ("triton",)


@torch.library.custom_op("gwsss_fast::edge_readout", mutates_args=())
def _edge_readout(g: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    results = dispatch.kernel("edge_readout", backend).forward(g)
    if backend in KEEP_STATISTICS:
        return results
    return *results, g.new_empty(0, dtype=torch.float32), g.new_empty(0, dtype=torch.float32)


@_edge_readout.register_fake
def _(g: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    groups, nodes, positions, channels = g.shape
    edges = (groups, nodes, nodes)
    shapes = ((*edges, 3, positions), (*edges, 3, channels)) if backend in KEEP_STATISTICS else ((0,), (0,))
    position, channel = (g.new_empty((*edges, 2 * channels)) for _ in range(2))
    of_positions, of_channels = (g.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return position, channel, of_positions, of_channels


@torch.library.custom_op("gwsss_fast::edge_readout_backward", mutates_args=())
def _edge_readout_backward(
    grad_position: Tensor, grad_channel: Tensor, g: Tensor, of_positions: Tensor, of_channels: Tensor, backend: str
) -> Tensor:
    statistics = (of_positions, of_channels) if backend in KEEP_STATISTICS else ()
    return dispatch.kernel("edge_readout", backend).backward(grad_position, grad_channel, g, *statistics).contiguous()


@_edge_readout_backward.register_fake
def _(grad_position, grad_channel, g, of_positions, of_channels, backend):  # type: ignore[no-untyped-def]
    return g.new_empty(g.shape)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    g, ctx.backend = inputs
    ctx.save_for_backward(g, *output[2:])
    ctx.mark_non_differentiable(*output[2:])


def _backward(ctx, grad_position, grad_channel, *_grad_statistics):  # type: ignore[no-untyped-def]
    grads = (grad_position, grad_channel, *ctx.saved_tensors)
    return dispatch.without_autocast(_edge_readout_backward, *grads, ctx.backend), None


_edge_readout.register_autograd(_backward, setup_context=_save)


def edge_readout(g: Tensor) -> tuple[Tensor, Tensor]:
    """Global averages of the position-aware and the channel-aware edge maps of every ordered pair, i = j included.

    With x = [g_i, g_j] (N, 2C): p = softmax_rows(x x^T) x + x and c = x softmax_rows(x^T x)^T + x. g: (B, K, N, C).
    Returns mean_N(p) and mean_N(c), each (B, K, K, 2C). Scores and softmax are in float32 for 16-bit inputs.
    Raises GwsssError when the shape does not fit.
    """
    (g,) = dispatch.autocast(g)
    dispatch.check(g.is_floating_point(), f"edge_readout: g must be floating point, not {g.dtype}")
    dispatch.check(g.dim() == 4, f"edge_readout: g must be (B, K, N, C), not {tuple(g.shape)}")
    return dispatch.without_autocast(_edge_readout, g, dispatch.choose("edge_readout", g))[:2]
