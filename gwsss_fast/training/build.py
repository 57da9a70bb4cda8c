"""Models from the configuration."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from gwsss_fast.config import Config, ModelConfig
from gwsss_fast.GroupGNN import GroupGNN
from gwsss_fast.models.backbones import build_backbone, freeze_batch_norm
from gwsss_fast.models.deeplab import has_statistics
from gwsss_fast.models.group_classifier import GroupClassifier
from gwsss_fast.training.checkpoints import check_classes, load_checkpoint, restore_model

MOST_CHANNELS = 512  # wider backbones are projected to this unless graph_channels says otherwise
# Fields of the model section that are arguments of GroupGNN under the same name.
GRAPH_OPTIONS = tuple(
    field.name
    for field in fields(ModelConfig)
    if field.name not in ("backbone", "weights", "graph_channels", "graph_dropout")
)


def graph_options(config: ModelConfig) -> dict[str, Any]:
    """The keyword arguments of GroupGNN that the configuration sets; the rest is the constructor's business."""
    options = {name: getattr(config, name) for name in GRAPH_OPTIONS if getattr(config, name) is not None}
    return options if config.graph_dropout else {**options, "drop_rate": None}


def build_classifier(config: Config, num_classes: int) -> GroupClassifier:
    """A new GroupClassifier, its backbone initialised as the configuration says, batch norm frozen where asked."""
    backbone = build_backbone(config.model.backbone, config.model.weights)
    frozen = config.classifier.frozen_batch_norm
    if frozen == "yes" or (frozen == "auto" and has_statistics(backbone)):
        freeze_batch_norm(backbone)
    channels = config.model.graph_channels or min(backbone.out_channels, MOST_CHANNELS)
    return GroupClassifier(backbone, GroupGNN(channels, num_classes, **graph_options(config.model)))


def load_classifier(
    config: Config, checkpoint: Path, classes: tuple[str, ...]
) -> tuple[GroupClassifier, dict[str, Any]]:
    """The classifier of a checkpoint, in eval mode, and the checkpoint's content.

    Raises GwsssError when the file does not fit the configuration or the classes.
    """
    content = load_checkpoint(checkpoint)
    check_classes(content, classes, checkpoint)
    # Initial weights are overwritten at once, so none are fetched.
    backbone = build_backbone(config.model.backbone, "none")
    channels = config.model.graph_channels or min(backbone.out_channels, MOST_CHANNELS)
    model = GroupClassifier(backbone, GroupGNN(channels, len(classes), **graph_options(config.model)))
    restore_model(model, content, checkpoint)
    return model.eval(), content
