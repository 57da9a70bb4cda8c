"""The graph network over a group of images: the drop-in module of the method (Section IV of the paper)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gwsss_fast.errors import GwsssError
from gwsss_fast.layers import CoAttention, ConvGRU, EdgeReadout, GraphDropout, SelfEdge
from gwsss_fast.layers.graph_dropout import mean_square
from gwsss_fast.ops import BACKENDS
from gwsss_fast.ops import backend as use_backend
from gwsss_fast.ops.dispatch import forced as forced_backend

NODE_SCALES = ("matched", "literal")
TANH_ROOM = 4.0
"""Nodes are brought to this part of unit size, where the update's tanh is nearly linear: activations of a network are
heavy-tailed, and at unit size their peaks saturate, which cost 1 to 3 points of map mIoU."""
GRAPH_GRADIENTS = ("full", "state", "none")


@dataclass
class GroupOutput:
    """What `GroupGNN` returns for B groups of K images, L classes and feature maps of H x W.

    logits, initial_logits: (B, K, L), final (Eq. 9) and intermediate (Eq. 10) class scores. edge_logits: (B, K, K, L),
    or None in eval and without edge supervision. maps, initial_maps: (B, K, L, H, W), raw class activation maps whose
    global averages are the logits. features: (B, K, C, H, W), the nodes after the last step. Without message passing
    (steps = 0) the final readout is the intermediate one.
    """

    logits: Tensor
    initial_logits: Tensor
    edge_logits: Tensor | None
    maps: Tensor
    initial_maps: Tensor
    features: Tensor

    def cams(self) -> Tensor:
        """Self-ensembled maps (B, K, L, H, W) in [0, 1]: the mean of both readouts' ReLU, each over its own maximum."""
        return (normalised(self.maps) + normalised(self.initial_maps)) / 2


torch.export.register_dataclass(GroupOutput, serialized_type_name="gwsss_fast.GroupOutput")


def normalised(maps: Tensor) -> Tensor:
    """ReLU, then each class's map (..., H, W) divided by its maximum; a map without a positive value becomes zero."""
    positive = maps.relu()
    return positive / positive.amax((-2, -1), keepdim=True).clamp_min(1e-5)


class GroupGNN(nn.Module):
    """Message passing between the images of a group, with class activation maps before and after it.

    Args:
        in_channels: C, channels of the features.
        num_classes: L, classes without background.
        steps: T message-passing steps; 0 is a plain classifier without group-wise learning.
        reduction: d of Eq. 5; the score projections have C / d channels.
        drop_rate, drop_threshold: delta_r and delta_d of Eq. 11; drop_rate = None leaves graph dropout out.
        drop_scale: "literal" (Eq. 12) or "preserve" (each node keeps its root mean square).
        drop_per_node: draw r once a node instead of once a group and step.
        drop_eval: "identity", or "importance" to keep the importance branch in eval.
        gru_kernel_size: 1 or 3.
        reverse: "transpose" (E_ji = E_ij^T) or "directed".
        score: "bilinear" (Eq. 5) or "cosine", both factors of unit length and multiplied by `temperature`.
        centred: cosine scores of the factors less their mean over the group.
        aggregate: "sum" over the other images (Eq. 8) or "mean".
        tied: score projections start equal and orthogonal, so scores begin as similarity of content; the values of
            the self edge and the candidate of the update start as the identity, on the features' own axes.
        gate_bias: start value of the update gate's bias; negative values open the graph gradually.
        node_scale: "matched" brings a node to a size that suits the update's tanh before the first step and back after
            the last, whatever the backbone's features are; "literal" leaves it.
        graph_gradient: how far the losses behind the graph reach into the features: "full", through messages and
            state; "state", through a node's own state alone; "none", so that the intermediate readout alone shapes the
            features and the graph reads them: then give `initial_logits` a weight that trains a backbone, such as 0.5.
        self_edge: with the self-attention edge of Eq. 6.
        edge_supervision: with edge logits (Eq. 14 to 17) while training.
        checkpoint_steps: while training, keep only the nodes between steps and compute each step again in the backward
            pass: less memory for about a third more time.
        backend: backend of the operations ("auto" or one of `ops.BACKENDS`).

    Raises GwsssError for an unknown option.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        steps: int = 3,
        reduction: int = 4,
        drop_rate: float | None = 0.8,
        drop_threshold: float = 0.7,
        gru_kernel_size: int = 1,
        reverse: str = "transpose",
        score: str = "cosine",
        temperature: float = 15.0,
        centred: bool = True,
        aggregate: str = "mean",
        tied: bool = True,
        gate_bias: float = 1.0,
        drop_scale: str = "preserve",
        drop_per_node: bool = False,
        drop_eval: str = "identity",
        node_scale: str = "matched",
        graph_gradient: str = "none",
        self_edge: bool = True,
        edge_supervision: bool = True,
        checkpoint_steps: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _check_sizes(in_channels=in_channels, num_classes=num_classes, reduction=reduction)
        if not isinstance(steps, int) or steps < 0:
            raise GwsssError(f"steps is {steps}; choose 0 (no group-wise learning) or a larger whole number")
        _check_numbers(drop_rate=drop_rate, drop_threshold=drop_threshold)
        if not (temperature > 0 and math.isfinite(temperature)):
            raise GwsssError(f"temperature is {temperature}; it must be finite and above zero")
        if not math.isfinite(gate_bias):
            raise GwsssError(f"gate_bias is {gate_bias}; it must be finite")
        if backend not in ("auto", *BACKENDS):
            raise GwsssError(f"backend is {backend!r}; choose from auto, {', '.join(BACKENDS)}")
        self.in_channels, self.num_classes, self.steps, self.backend = in_channels, num_classes, steps, backend
        self.checkpoint_steps = checkpoint_steps
        self.graph_gradient = _one_of("graph_gradient", graph_gradient, GRAPH_GRADIENTS)
        self.node_scale = _one_of("node_scale", node_scale, NODE_SCALES)
        self.initial_readout = nn.Linear(in_channels, num_classes)
        if steps == 0:
            return
        rank = max(in_channels // reduction, 1)
        scores: dict[str, Any] = {"score": score, "temperature": temperature, "centred": centred, "tied": tied}
        self.co_attention = CoAttention(in_channels, rank, reverse=reverse, aggregate=aggregate, **scores)
        self.self_edge = SelfEdge(in_channels, rank, **scores) if self_edge else None
        # Eq. 8 adds up to three messages of a feature's size: the others' mean, the self-attention, its residual.
        content = 1 / (3 if self_edge else 1) if tied else 0.0
        self.update = ConvGRU(in_channels, gru_kernel_size, gate_bias=gate_bias, content=content)
        self.dropout = None
        if drop_rate is not None:
            self.dropout = GraphDropout(
                drop_rate, drop_threshold, scale=drop_scale, per_node=drop_per_node, evaluation=drop_eval
            )
        self.readout = nn.Linear(in_channels, num_classes)
        self.edges = EdgeReadout(in_channels, num_classes) if edge_supervision else None

    def forward(self, features: Tensor, steps: int | None = None, draws: Tensor | None = None) -> GroupOutput:
        """features: (B, K, C, H, W), or (K, C, H, W) for one group (B = 1); any K >= 1, H and W.

        steps: message-passing steps of this call instead of the constructor's; 0 reads the features alone. draws: the
        uniform numbers r of graph dropout in training, (steps - 1, B), or (steps - 1, B, K) with drop_per_node; None
        draws them here.
        """
        steps = self.steps if steps is None or self.steps == 0 else steps
        if self.backend == "auto":
            return self._forward(features, steps, draws)
        with use_backend(self.backend):
            return self._forward(features, steps, draws)

    def _forward(self, features: Tensor, steps: int, draws: Tensor | None) -> GroupOutput:
        g = self._nodes(features)
        size = features.shape[-2:]
        initial_logits, initial_maps = _read(self.initial_readout, g, size)
        if steps == 0:
            return GroupOutput(initial_logits, initial_logits, None, initial_maps, initial_maps, _images(g, size))
        g = g.detach() if self.graph_gradient == "none" else g
        size_of_nodes = self._size_of_nodes(g)
        g = g / size_of_nodes
        for step in range(1, steps + 1):
            r = draws[step - 1] if draws is not None and step < steps else None
            if self.checkpoint_steps and self.training:
                g = checkpoint(self._step_again, forced_backend(), g, size, step < steps, r, use_reentrant=False)
            else:
                g = self._step(g, size, step < steps, r)
        g = g * size_of_nodes
        logits, maps = _read(self.readout, g, size)
        edge_logits = self.edges(g) if self.edges is not None and self.training else None
        return GroupOutput(logits, initial_logits, edge_logits, maps, initial_maps, _images(g, size))

    def _step_again(self, backend: str, *arguments: Any) -> Tensor:
        """`_step` with the backend of the forward pass also where the backward pass runs it again."""
        if backend == "auto" or torch.compiler.is_compiling():  # PyTorch 2.11 traces no change of state in a checkpoint
            return self._step(*arguments)
        with use_backend(backend):
            return self._step(*arguments)

    @torch.no_grad()
    def _size_of_nodes(self, g: Tensor) -> Tensor:
        """What the nodes (B, K, N, C) are divided by before the first step, (B, K, 1, 1); never zero."""
        if self.node_scale == "literal":
            return g.new_ones(1, 1, 1, 1)
        return (TANH_ROOM * mean_square(g).sqrt()).clamp_min(1e-6).to(g.dtype)

    @torch.no_grad()
    def start_graph(self) -> None:
        """Copy the intermediate readout into the final one, for a graph that joins a trained classifier."""
        if self.steps > 0:
            self.readout.load_state_dict(self.initial_readout.state_dict())

    def _step(self, g: Tensor, size: torch.Size, feeds_another: bool, r: Tensor | None) -> Tensor:
        """One round of Eq. 8 and 2 on the nodes (B, K, N, C); graph dropout on what feeds another step."""
        senders = g if self.graph_gradient == "full" else g.detach()
        if self.self_edge is None:
            message = self.co_attention(senders)
        else:
            message = self.self_edge(senders, *self.co_attention.unscaled(senders))
        state = self.update(_images(message, size).flatten(0, 1), _images(g, size).flatten(0, 1))
        g = state.permute(0, 2, 3, 1).reshape(g.shape)
        return self.dropout(g, r) if self.dropout is not None and feeds_another else g

    def draw(self, groups: int, nodes: int, generator: torch.Generator) -> Tensor | None:
        """`forward`'s draws for so many groups of so many images, on the CPU; None without graph dropout."""
        if self.steps == 0 or self.dropout is None:
            return None
        shape = (groups, nodes) if self.dropout.per_node else (groups,)
        return torch.rand(max(self.steps - 1, 0), *shape, generator=generator)

    def _nodes(self, features: Tensor) -> Tensor:
        """The features as nodes (B, K, N, C); no copy when they are channels last."""
        if features.dim() == 4:
            features = features.unsqueeze(0)
        if features.dim() != 5 or features.shape[2] != self.in_channels or 0 in features.shape:
            raise GwsssError(
                f"GroupGNN: features must be (B, K, {self.in_channels}, H, W) or (K, {self.in_channels}, H, W) "
                f"and not empty, not {tuple(features.shape)}"
            )
        wanted = self.initial_readout.weight.dtype
        if features.dtype != wanted and not (
            features.is_floating_point() and torch.is_autocast_enabled(features.device.type)
        ):
            raise GwsssError(f"GroupGNN: features are {features.dtype} but the weights {wanted}; cast one of them")
        return features.permute(0, 1, 3, 4, 2).flatten(2, 3).contiguous()

    def attention_rows(self, features: Tensor, receiver: int = 0) -> Tensor:
        """Co-attention weights of the first step from the image `receiver` to each image of its group.

        features: as in `forward`, one group. Returns (K, N, N): entry [j, n] is the softmax row of the receiver's
        position n over the positions of image j; zero for j = receiver. Raises GwsssError when there is no graph.
        """
        if self.steps == 0:
            raise GwsssError("attention_rows: this model has steps = 0, so it has no co-attention")
        g = self._nodes(features)
        return self.co_attention.rows(g / self._size_of_nodes(g), receiver)[0]


def _images(g: Tensor, size: torch.Size) -> Tensor:
    """Nodes (B, K, N, C) as feature maps (B, K, C, H, W) in the same memory."""
    return g.unflatten(2, tuple(size)).permute(0, 1, 4, 2, 3)


def _read(readout: nn.Linear, g: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Logits (B, K, L) and maps (B, K, L, H, W) of Eq. 9 or 10."""
    maps = readout(g)
    return maps.mean(2), _images(maps, size)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise GwsssError(f"{name} is {value!r}; choose from {', '.join(choices)}")
    return value


def _check_numbers(**shares: float | None) -> None:
    for name, value in shares.items():
        if value is not None and not 0 <= value <= 1:
            raise GwsssError(f"{name} is {value}; it must lie in 0..1")


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise GwsssError(f"{name} is {value!r}; it must be a whole number, at least 1")
