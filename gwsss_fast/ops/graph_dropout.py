"""`ops.graph_dropout`: the graph dropout layer (Eq. 11, 12)."""

import torch
from torch import Tensor

from gwsss_fast import reference
from gwsss_fast.ops import dispatch, native_kernels, triton_kernels

dispatch.register(
    "graph_dropout", "reference", dispatch.Kernel(reference.graph_dropout, reference.graph_dropout_backward)
)
triton_kernels.register("graph_dropout", refuse=lambda g, r: triton_kernels.refuse_many(g.shape[:2].numel()))
native_kernels.register("graph_dropout", "cpp")
native_kernels.register("graph_dropout", "cuda")


def _forward(g: Tensor, r: Tensor, drop_rate: float, drop_threshold: float, backend: str) -> tuple[Tensor, Tensor]:
    out, o = dispatch.kernel("graph_dropout", backend).forward(g, r, drop_rate, drop_threshold)
    return out.contiguous(), o.contiguous()


_graph_dropout = torch.library.custom_op("gwsss_fast::graph_dropout", _forward, mutates_args=())


@_graph_dropout.register_fake
def _(g: Tensor, r: Tensor, drop_rate: float, drop_threshold: float, backend: str) -> tuple[Tensor, Tensor]:
    statistics = g.dtype if g.dtype == torch.float64 else torch.float32
    return g.new_empty(g.shape), g.new_empty(g.shape[:3], dtype=statistics)


def _gradient(
    grad: Tensor, g: Tensor, o: Tensor, r: Tensor, drop_rate: float, drop_threshold: float, backend: str
) -> Tensor:
    return dispatch.kernel("graph_dropout", backend).backward(grad, g, o, r, drop_rate, drop_threshold).contiguous()


_graph_dropout_backward = torch.library.custom_op("gwsss_fast::graph_dropout_backward", _gradient, mutates_args=())


@_graph_dropout_backward.register_fake
def _(grad: Tensor, g: Tensor, o: Tensor, r: Tensor, drop_rate: float, drop_threshold: float, backend: str) -> Tensor:
    return g.new_empty(g.shape)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    g, r, *ctx.options = inputs
    ctx.save_for_backward(g, output[1], r)


def _backward(ctx, grad, _grad_o):  # type: ignore[no-untyped-def]
    arguments = (grad, *ctx.saved_tensors, *ctx.options)
    if dispatch.unobserved(*arguments[:4]):
        grad_g = _gradient(*arguments)
    else:
        grad_g = dispatch.without_autocast(_graph_dropout_backward, *arguments)
    return grad_g, None, None, None, None


_graph_dropout.register_autograd(_backward, setup_context=_save)


class GraphDropout(torch.autograd.Function):
    """The operator's gradient where nobody sees the operator, see `dispatch.unobserved`."""

    @staticmethod
    def forward(ctx, g, r, *options):  # type: ignore[no-untyped-def]
        out, o = _forward(g, r, *options)
        ctx.save_for_backward(g, o, r)
        ctx.options = options
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return _backward(ctx, grad, None)


def _check(g: Tensor, r: Tensor, drop_rate: float, drop_threshold: float) -> None:
    """Raise GwsssError that names what does not fit."""
    dispatch.check(g.is_floating_point(), f"graph_dropout: g must be floating point, not {g.dtype}")
    dispatch.check(g.dim() == 4, f"graph_dropout: g must be (B, K, N, C), not {tuple(g.shape)}")
    dispatch.check(
        r.dim() in (1, 2) and r.shape == g.shape[: r.dim()],
        f"graph_dropout: r must be (B,) or (B, K) for g {tuple(g.shape)}, not {tuple(r.shape)}",
    )
    for name, value in (("drop_rate", drop_rate), ("drop_threshold", drop_threshold)):
        dispatch.check(0 <= value <= 1, f"graph_dropout: {name} is {value}; it must lie in 0..1")
    dispatch.check(r.device == g.device, f"graph_dropout: r is on {r.device} but g is on {g.device}; move one of them")


def graph_dropout(g: Tensor, r: Tensor, drop_rate: float = 0.8, drop_threshold: float = 0.7) -> Tensor:
    """g * s with s = sigmoid(o) where r < drop_rate, else o * 1(o < max(o) * drop_threshold); o = mean over channels.

    g: (B, K, N, C); r: (B,), one draw from [0, 1) a group, or (B, K), one a node. Returns g's shape and dtype; the
    mean and the map are in float32 for 16-bit inputs. Raises GwsssError when shapes do not fit or a share
    lies outside of 0..1.
    """
    (g,) = dispatch.autocast(g)
    fits = g.is_floating_point() and g.dim() == 4 and r.dim() in (1, 2) and r.shape == g.shape[: r.dim()]
    if not (fits and 0 <= drop_rate <= 1 and 0 <= drop_threshold <= 1 and r.device == g.device):
        _check(g, r, drop_rate, drop_threshold)  # the messages alone take as long as small nodes
    backend = dispatch.choose("graph_dropout", g, r)
    if dispatch.unobserved(g, r, gradients=True):
        return GraphDropout.apply(g, r, drop_rate, drop_threshold, backend)
    return dispatch.without_autocast(_graph_dropout, g, r, drop_rate, drop_threshold, backend)[0]
