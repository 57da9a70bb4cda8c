"""A network made ready for a CPU: batch norm inside the convolutions, sums and ReLU behind them in the same pass over
memory, weights laid out once, bfloat16 where the processor multiplies it."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from gwsss_fast.models.base import FrozenMixin
from gwsss_fast.models.deeplab import ASPP, DeepLabV2, MultiScale
from gwsss_fast.models.precision import PRECISIONS, autocast

SAMPLE_SIDE = 65
"""Pixels of the image on which a prepared network is held against the one it was made from."""
LARGEST_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""How far they may be apart there, as a part of the largest logit; only mistakes pass it."""
CHECKED = 4
LEAST_AGREEMENT = 0.995
"""Of the pixels of the first CHECKED images, so many must have the same label in bfloat16 as in float32."""
CHANNELS_LAST = torch.channels_last


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 (AVX-512 BF16 or AMX); without, it is slower than float32."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.backends.mkldnn.is_available() and any(check() for check in checks if check is not None)


class FastSegmenter:
    """Calls a network on the CPU, in the fastest way that is right for it.

    The network itself is left as it is. What cannot be traced, or is not the same when prepared, runs as it is, with
    autocast for bf16. `prepared` says which.
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        self.precision = precision
        dtype = PRECISIONS[precision] or torch.float32
        fast = prepare(model, dtype)
        self.prepared = fast is not None and _agree(fast, model, dtype)
        self.model = fast if fast is not None and self.prepared else model

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """The network's output for images (B, 3, H, W)."""
        with autocast(images.device, self.precision):
            return self.model(images.contiguous(memory_format=CHANNELS_LAST))


class CheckedSegmenter:
    """Calls a network in bfloat16 where that leaves its labels as they are, else in float32.

    The first images are looked at in both, and float32 answers; when CHECKED have been seen, the share of pixels with
    the same label decides, and the other network is dropped. precision: what answers the next call.
    """

    def __init__(self, model: nn.Module) -> None:
        self.precision, self.prepared = "fp32", True
        self.exact: FastSegmenter | None = FastSegmenter(model, "fp32")
        self.fast: FastSegmenter | None = FastSegmenter(model, "bf16")
        self.seen = self.same = self.pixels = 0

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """The network's output for images (B, 3, H, W)."""
        exact, fast = self.exact, self.fast  # another thread may decide meanwhile
        if exact is None or fast is None:
            return (exact or fast)(images)  # type: ignore[misc]
        wanted = exact(images)
        ours, theirs = (
            F.interpolate(x.float(), size=images.shape[-2:], mode="bilinear", align_corners=False).argmax(1)
            for x in (fast(images), wanted)
        )
        self.seen, self.pixels = self.seen + len(images), self.pixels + ours.numel()
        self.same += int((ours == theirs).sum())
        if self.seen >= CHECKED:
            self.precision = "bf16" if self.same >= LEAST_AGREEMENT * self.pixels else "fp32"
            self.exact, self.fast = (None, fast) if self.precision == "bf16" else (exact, None)
        return wanted


def prepare(model: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """A copy of a network in eval mode whose convolutions are PackedConvolutions; None where that is not possible."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return None
    if isinstance(model, MultiScale):
        base = prepare(model.base, dtype)
        return None if base is None else MultiScale(base, model.scales).eval()  # type: ignore[arg-type]
    try:
        if isinstance(model, DeepLabV2) and isinstance(model.aspp, ASPP):
            model = copy.copy(model)
            model._modules = {**model._modules, "aspp": PackedASPP(model.aspp, dtype)}  # type: ignore[arg-type]
        graph = _Tracer().trace(model)
        traced = fx.GraphModule(model, graph)
        if _writes_over_what_is_read(traced):
            return None
        _pack(traced, dtype)
    except Exception:  # tracing runs the model's own code on stand-ins, which raises almost anything
        return None
    return traced.eval()


class PackedConvolution(nn.Module):
    """relu(convolution(x) + other), with or without either, in one call of oneDNN.

    overwrite: the result may be put into `other`. A float32 convolution of 1x1 is a matrix product: oneDNN's own goes
    through its weights anew in each call where images are of another size than those they were laid out for.
    """

    def __init__(self, source: nn.Conv2d, norm: _BatchNorm | None, relu: bool, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias = folded(source, norm)
        self.geometry = (list(source.padding), list(source.stride), list(source.dilation), source.groups)
        self.bias = None if bias is None else bias.to(dtype)
        self.dtype, self.relu, self.overwrite, self.packed = dtype, relu, False, False
        plain = source.kernel_size == source.stride == (1, 1) and source.groups == 1 and not any(self.geometry[0])
        self.product = plain and dtype == torch.float32
        self.weight = weight.to(dtype).contiguous(memory_format=CHANNELS_LAST)
        if self.product:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight[:, :, 0, 0].to(dtype).contiguous())

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W); other: of the result's shape."""
        x, other = x.to(self.dtype), None if other is None else other.to(self.dtype)
        if self.product:
            return self._product(x, other)
        if not self.packed:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.geometry, list(x.shape))
            self.packed = True
        rest: Any = (self.weight, self.bias, *self.geometry)
        after: Any = "relu" if self.relu else None
        if other is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *rest, after or "none", [], "")
        if self.overwrite:
            return torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *rest, "add", None, after, [], None)
        return torch.ops.mkldnn._convolution_pointwise.binary(x, other, *rest, "add", None, after, [], None)

    def _product(self, x: Tensor, other: Tensor | None) -> Tensor:
        rows, multiply = x.permute(0, 2, 3, 1), torch.ops.mkldnn._linear_pointwise
        if other is None:
            out = multiply(rows, self.weight, self.bias, "relu" if self.relu else "none", [], "")
        else:
            out = multiply.binary(rows, other.permute(0, 2, 3, 1), self.weight, self.bias, "add")
            out = out.relu_() if self.relu else out
        return out.permute(0, 3, 1, 2)


class PackedASPP(nn.Module):
    """ASPP as one matrix product: every tap of every branch by itself, then their sum, shifted.

    The products of a few classes each are too narrow to be fast by themselves. The branches' centres are one.
    """

    def __init__(self, source: ASPP, dtype: torch.dtype) -> None:
        super().__init__()
        weights: dict[tuple[int, int], Tensor] = {}
        for branch in source.branches:
            assert isinstance(branch, nn.Conv2d)
            for y in range(3):
                for x in range(3):
                    shift = ((y - 1) * int(branch.dilation[0]), (x - 1) * int(branch.dilation[0]))
                    tap = branch.weight[:, :, y, x].detach()
                    weights[shift] = weights[shift] + tap if shift in weights else tap
        self.shifts, self.dtype = list(weights), dtype
        biases = [branch.bias.detach() for branch in source.branches]  # type: ignore[operator,union-attr]
        self.bias = torch.stack(biases).sum(0).float()
        taps = torch.cat([*weights.values()]).to(dtype).contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(taps)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, num_classes, h, w) float32 of features (B, in_channels, h, w)."""
        rows = features.to(self.dtype).permute(0, 2, 3, 1)
        batch, height, width, _ = rows.shape
        products = torch.ops.mkldnn._linear_pointwise(rows, self.weight, None, "none", [], "")
        taps = products.view(batch, height, width, len(self.shifts), len(self.bias)).permute(3, 0, 1, 2, 4)
        total = self.bias.expand(batch, height, width, -1).contiguous()
        for (down, right), tap in zip(self.shifts, taps, strict=True):
            if abs(down) < height and abs(right) < width:
                ours, theirs = zip(_overlap(down, height), _overlap(right, width), strict=True)
                total[:, ours[0], ours[1]] += tap[:, theirs[0], theirs[1]]
        return total.permute(0, 3, 1, 2)


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Where output positions and the inputs `shift` further on are both inside."""
    return slice(max(0, -shift), length - max(0, shift)), slice(max(0, shift), length - max(0, -shift))


@torch.no_grad()
def folded(source: nn.Conv2d, norm: _BatchNorm | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution with the batch norm behind it inside."""
    weight: Any = source.weight.detach()
    bias: Any = None if source.bias is None else source.bias.detach()
    if norm is None:
        return weight, bias
    values: Any = (weight, bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    weight, bias, mean, variance, scale, shift = (None if x is None else x.detach().double() for x in values)
    fused = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)  # type: ignore[arg-type]
    return fused[0].detach().float(), fused[1].detach().float()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (_BatchNorm, PackedASPP)) or super().is_leaf_module(m, module_qualified_name)


def _pack(traced: fx.GraphModule, dtype: torch.dtype) -> None:
    modules = dict(traced.named_modules())
    for number, node in enumerate(list(traced.graph.nodes)):
        source = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(source, nn.Conv2d) or type(source) is not nn.Conv2d or source.padding_mode != "zeros":
            continue
        if isinstance(source.padding, str):
            continue
        last, norm = node, None
        other: Any = None
        after = _only_user(last)
        found = modules.get(str(after.target)) if after is not None and after.op == "call_module" else None
        if after is not None and isinstance(found, _BatchNorm) and _is_plain(found):
            last, norm = after, found
        after = _only_user(last)
        if after is not None and _is_sum(after):
            other = after.args[1] if after.args[0] is last else after.args[0]
            last = after
        after = _only_user(last)
        relu = after is not None and _is_relu(after, modules)
        last = after if relu and after is not None else last
        name = f"packed_{number}"
        traced.add_submodule(name, PackedConvolution(source, norm, relu, dtype))
        with traced.graph.inserting_before(last):
            inputs = (node.args[0],) if other is None else (node.args[0], other)
            fused = traced.graph.call_module(name, inputs)
        last.replace_all_uses_with(fused)
        modules[name] = traced.get_submodule(name)
        _remove(traced.graph, last, until=node)
    _allow_overwriting(traced)
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()


def _remove(graph: fx.Graph, last: fx.Node, until: fx.Node) -> None:
    """Take the nodes from `last` back to `until` away, along those that nothing uses any more."""
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if not node.users and node.op != "placeholder":
            inputs = list(node.all_input_nodes)
            graph.erase_node(node)
            waiting += [] if node is until else inputs


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_plain(norm: _BatchNorm) -> bool:
    """Whether it is batch norm alone: some libraries' subclasses have an activation inside."""
    kind = next(kind for kind in type(norm).__mro__ if not issubclass(kind, FrozenMixin))
    return kind in (nn.BatchNorm2d, nn.SyncBatchNorm) and norm.running_mean is not None


def _is_sum(node: fx.Node) -> bool:
    """Whether it adds two values of the graph, not one of them to itself."""
    if node.op != "call_function" or node.target not in (operator.add, operator.iadd, torch.add) or node.kwargs:
        return False
    return len(node.args) == 2 and all(isinstance(x, fx.Node) for x in node.args) and len(node.all_input_nodes) == 2


def _allow_overwriting(traced: fx.GraphModule) -> None:
    """Let convolutions put their result into what they add, where it is a tensor that nothing reads later."""
    modules = dict(traced.named_modules())
    place = {node: number for number, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, PackedConvolution) and len(node.args) == 2:
            other = node.args[1]
            own = other.op == "call_module" and isinstance(modules[str(other.target)], (PackedConvolution, _BatchNorm))
            layer.overwrite = own and all(place[user] <= place[node] for user in other.users)


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules.get(str(node.target))) is nn.ReLU
    return node.op == "call_function" and node.target in (F.relu, torch.relu)


def _writes_over_what_is_read(traced: fx.GraphModule) -> bool:
    """Whether an operation overwrites a value that others use too: then their order counts, which packing changes."""
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        inside = node.op == "call_module" and getattr(modules[str(node.target)], "inplace", False)
        named = node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")
        augmented = node.op == "call_function" and node.target is operator.iadd
        if (inside or named or augmented or node.kwargs.get("inplace")) and len(node.all_input_nodes[0].users) > 1:
            return True
    return False


@torch.inference_mode()
def _agree(fast: nn.Module, model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a prepared network does what the network does, on one small image."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, SAMPLE_SIDE, SAMPLE_SIDE, generator=generator).contiguous(memory_format=CHANNELS_LAST)
    try:
        wanted = model(image).float()
        with autocast(image.device, "bf16" if dtype == torch.bfloat16 else "fp32"):
            found = fast(image).float()
    except Exception:  # the network as it is will say what is wrong with it, if anything
        return False
    if found.shape != wanted.shape:
        return False
    return bool((found - wanted).abs().max() <= LARGEST_ERROR[dtype] * wanted.abs().max())
