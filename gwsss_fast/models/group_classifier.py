"""From images to class predictions and activation maps: a backbone, a projection where widths differ, the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gwsss_fast.errors import GwsssError
from gwsss_fast.models.base import Backbone

if TYPE_CHECKING:
    from gwsss_fast.GroupGNN import GroupOutput


class GroupClassifier(nn.Module):
    """Classifies the images of a group together.

    backbone: maps (M, 3, H, W) to (M, C', h, w) and has `out_channels`. gnn: a GroupGNN, or any module with
    `in_channels` that takes (B, K, C, h, w). Where C' and C differ, `project`, a 1x1 convolution and ReLU, joins them.
    Everything is kept in channels_last memory, in which the graph reads the very same features as (B, K, N, C).
    """

    def __init__(self, backbone: Backbone, gnn: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.gnn = gnn
        channels = int(gnn.in_channels)  # type: ignore[arg-type]
        self.project: nn.Module = nn.Identity()
        if backbone.out_channels != channels:
            convolution = nn.Conv2d(backbone.out_channels, channels, 1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            self.project = nn.Sequential(convolution, nn.ReLU(inplace=True))
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.project.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, images: Tensor) -> Tensor:
        """Node features (B, K, C, h, w) or (K, C, h, w) of images (B, K, 3, H, W) or (K, 3, H, W), channels last.

        Raises GwsssError for images of any other shape.
        """
        if images.ndim not in (4, 5) or images.shape[-3] != 3:
            raise GwsssError(f"images have shape {tuple(images.shape)}; pass (B, K, 3, H, W) or (K, 3, H, W)")
        flat = images.reshape(-1, *images.shape[-3:]).contiguous(memory_format=torch.channels_last)
        nodes = self.project(self.backbone(flat)).contiguous(memory_format=torch.channels_last)
        return nodes.unflatten(0, images.shape[:-3])

    def forward(self, images: Tensor, steps: int | None = None, draws: Tensor | None = None) -> GroupOutput:
        """GroupOutput of a batch of groups (B, K, 3, H, W) or of one group (K, 3, H, W) of normalised images.

        steps: message-passing steps of this call; None = the graph's own. draws: as in GroupGNN.forward.
        """
        options = {name: value for name, value in (("steps", steps), ("draws", draws)) if value is not None}
        return self.gnn(self.features(images), **options)

    def parameter_groups(
        self,
        lr_backbone: float,
        lr_graph: float,
        *,
        message_lr_factor: float = 1.0,
        bias_lr_factor: float = 1.0,
        weight_decay: float | None = None,
    ) -> list[dict[str, Any]]:
        """Groups for an optimiser: the pretrained part (`backbone`), what starts from scratch (`graph`), and the
        message passing with the readouts behind it (`messages`), at `lr_graph` times `message_lr_factor`.

        Biases get a group of their own when `bias_lr_factor` is not 1. Parameters without gradient are left out, so
        freeze first. `weight_decay` None leaves the optimiser's own. Each group carries a `name` for the logs.
        """
        fresh = list(self.project.named_parameters())
        messages: list[tuple[str, nn.Parameter]] = []
        for name, parameter in self.gnn.named_parameters():
            (fresh if name.startswith("initial_readout.") else messages).append((name, parameter))
        parts = (
            ("backbone", lr_backbone, list(self.backbone.named_parameters())),
            ("graph", lr_graph, fresh),
            ("messages", lr_graph * message_lr_factor, messages),
        )
        groups: list[dict[str, Any]] = []
        for name, lr, parameters in parts:
            weights: list[nn.Parameter] = []
            biases: list[nn.Parameter] = []
            for parameter_name, parameter in parameters:
                if parameter.requires_grad:
                    bias = bias_lr_factor != 1.0 and "bias" in parameter_name.rpartition(".")[2]
                    (biases if bias else weights).append(parameter)
            groups.append({"name": name, "params": weights, "lr": lr})
            groups.append({"name": f"{name} biases", "params": biases, "lr": lr * bias_lr_factor})
        if weight_decay is not None:
            groups = [{**group, "weight_decay": weight_decay} for group in groups]
        return [group for group in groups if group["params"]]
