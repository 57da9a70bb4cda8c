"""Graph dropout of the native library: nodes are read from memory once, and written once."""

import torch
from torch import Tensor

from gwsss_fast.native import edges
from gwsss_fast.native.memory import fills, new_empty

_library = torch.ops.gwsss_fast_native


def refuse(g: Tensor, r: Tensor) -> str | None:
    """Why it cannot take these tensors, or None."""
    return edges.refuse(g=g)


def refuse_on_gpu(g: Tensor, r: Tensor) -> str | None:
    """Why the implementation for GPUs cannot take these tensors, or None."""
    if g.device.type != "cuda":
        return f"it needs tensors on a GPU, and g is on {g.device}"
    if g.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it computes in float32, float16 and bfloat16, not {g.dtype}"
    return None


def _keep_salient(g: Tensor, r: Tensor, drop_rate: float) -> Tensor:
    """(B, K), whether a node takes the importance map."""
    keep = r < drop_rate
    return (keep if keep.dim() == 2 else keep.unsqueeze(1).expand(g.shape[:2])).contiguous()


def _draws(r: Tensor, drop_rate: float) -> Tensor:
    """As the operators on the CPU take them: float32, or whether they lie below the rate."""
    return r if r.dtype == torch.float32 else r < drop_rate


def graph_dropout(g: Tensor, r: Tensor, drop_rate: float, drop_threshold: float) -> tuple[Tensor, Tensor]:
    """See `reference.graph_dropout`."""
    g = g.contiguous()
    if g.device.type == "cpu":  # one call: where caches are cold, each takes as long as some megabytes of the nodes
        return _library.graph_dropout_on_cpu(g, _draws(r, drop_rate), drop_rate, drop_threshold, fills())
    out, o = new_empty(g, g.shape), g.new_empty(g.shape[:3], dtype=torch.float32)
    _library.graph_dropout(g, _keep_salient(g, r, drop_rate), drop_threshold, out, o)
    return out, o


def graph_dropout_backward(
    grad: Tensor, g: Tensor, o: Tensor, r: Tensor, drop_rate: float, drop_threshold: float
) -> Tensor:
    """See `reference.graph_dropout_backward`."""
    grad, g, o = grad.contiguous(), g.contiguous(), o.contiguous()
    if g.device.type == "cpu":
        draws = _draws(r, drop_rate)
        return _library.graph_dropout_on_cpu_backward(grad, g, o, draws, drop_rate, drop_threshold, fills())
    grad_g = new_empty(g, g.shape)
    _library.graph_dropout_backward(grad, g, o, _keep_salient(g, r, drop_rate), drop_threshold, grad_g)
    return grad_g
