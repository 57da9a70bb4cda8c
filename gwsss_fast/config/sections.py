"""The configuration of a run: one frozen dataclass a section, each field with its meaning.

The docstring under a field is the help text of its command-line option (`--section.field VALUE`). Defaults here are
neutral; the values of a run come from a preset (`gwsss_fast/presets`, see yaml_files.py), then from the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

_alias = tyro.conf.arg  # short flags of nested fields are spelled out as aliases


@dataclass(frozen=True)
class DataConfig:
    """Where images, lists, labels and masks come from."""

    root: Annotated[str, _alias(aliases=["--data"])] = "embedded"
    """Folder of the data set, or `embedded` for the generated one."""
    layout: Literal["auto", "voc", "coco", "cub", "folder", "csv", "embedded"] = "auto"
    """How the folder is laid out; `auto` looks."""
    classes_file: str | None = None
    """Text file naming the foreground classes, one a line."""
    train_list: str | None = None
    """List of the images whose masks score the maps."""
    train_aug_list: str | None = None
    """List of the training images."""
    val_list: str | None = None
    """List of the validation images."""
    labels: str = "auto"
    """VOC layout: source of image-level labels: auto, list, cls_labels, masks, xml or a .npy file."""
    saliency: str | None = None
    """Folder of saliency maps (grey PNGs named as the images)."""
    workers: Annotated[int, _alias(aliases=["--workers"])] = 2
    """Loader processes; results do not depend on it."""
    decode: Literal["workers", "device"] = "workers"
    """Who decodes and augments training images: the loader processes, or the device that trains, from the JPEG files
    that they read (by nvJPEG on a GPU). The draws are the same, pixels differ by grey levels; nothing is cached."""
    cache_mb: int = 512
    """Keep the decoded training images in memory when all of them fit into so many megabytes."""
    cache_dir: str | None = None
    """Keep them in this folder instead, as many as fit into `cache_mb`; several runs and processes may share it."""
    verify: bool = True
    """Decode every image and mask before training starts."""
    max_megapixels: float = 50.0
    """Refuse images and masks of more than so many million pixels, before they are decoded."""
    on_bad_image: Annotated[Literal["stop", "skip"], _alias(aliases=["--on-bad-image"])] = "stop"
    """A training image that cannot be read: stop with its name, or go on without it and name it. What `verify` finds is
    left out of all stages; in what breaks later another image takes its place."""
    bad_image_limit: int = 20
    """Skip so many images; one more stops the run. Counted over all processes; anew by `verify` and each training."""
    seed: int = 0
    """Seed of the embedded data set."""
    train_limit: int | None = None
    """Use only so many training images (and as many scoring images), spread over the list; for trial runs."""
    val_limit: int | None = None
    """Use only so many validation images, spread over the list; for trial runs."""


@dataclass(frozen=True)
class ModelConfig:
    """Backbone and graph. A graph option left at None takes the default of GroupGNN's constructor."""

    backbone: Annotated[str, _alias(aliases=["--backbone"])] = "tiny"
    """vgg16, resnet101, resnet38, tiny, timm:NAME, timm:NAME@16, module:function or path/to/file.py:function."""
    weights: str = "default"
    """Initial weights of the backbone: `default`, `none` or a file."""
    graph_channels: int | None = None
    """Channels C of the graph; None = the backbone's, at most 512. Where they differ, a 1x1 convolution joins them."""
    steps: Annotated[int | None, _alias(aliases=["--steps"])] = None
    """Message-passing steps T; 0 = no group-wise learning, None = 3."""
    reduction: int | None = None
    """Channels over rank of the edges, C / D."""
    drop_rate: float | None = None
    """Graph dropout: probability of the importance branch, delta_r."""
    drop_threshold: float | None = None
    """Graph dropout: share of the maximum above which positions are dropped, delta_d."""
    graph_dropout: bool = True
    """Use graph dropout (Eq. 11, 12)."""
    drop_scale: Literal["literal", "preserve"] | None = None
    """Graph dropout: multiply by s as written, or bring each node back to the size it had."""
    drop_per_node: bool | None = None
    """Graph dropout: draw the branch once a node instead of once a group and step."""
    drop_eval: Literal["identity", "importance"] | None = None
    """Graph dropout outside training: nothing, or the importance branch."""
    gru_kernel_size: int | None = None
    """Kernel of the ConvGRU, 1 or 3."""
    reverse: Literal["transpose", "directed"] | None = None
    """Reverse edge: the transpose of the forward edge, or computed by itself."""
    score: Literal["bilinear", "cosine"] | None = None
    """Edge score."""
    temperature: float | None = None
    """Factor on cosine scores."""
    centred: bool | None = None
    """Cosine scores of the factors less their mean over the group."""
    aggregate: Literal["sum", "mean"] | None = None
    """Messages of the K-1 neighbours are summed or averaged."""
    tied: bool | None = None
    """Start with P = Q orthogonal, and with identities where Eq. 6 and the update map features to features."""
    gate_bias: float | None = None
    """Initial bias of the update gate; negative = opens gradually."""
    node_scale: Literal["matched", "literal"] | None = None
    """Bring nodes to a size that suits the update's tanh for the message passing, or leave them as they are."""
    graph_gradient: Literal["full", "state", "none"] | None = None
    """How far the losses behind the graph reach into the features: through messages and state, state alone, or not."""
    self_edge: bool | None = None
    """Use the self edge (Eq. 6)."""
    edge_supervision: bool | None = None
    """Use the edge-aware classifier (Eq. 14-17)."""
    checkpoint_steps: bool | None = None
    """Less memory in training: compute each message-passing step again in the backward pass."""


@dataclass(frozen=True)
class TrainingConfig:
    """How both stages train; but for `sync_batch_norm` the result is the same up to rounding."""

    accumulate: Annotated[int, _alias(aliases=["--accumulate"])] = 1
    """Parts that a step's batch is divided into, one after the other: less memory. A GPU that runs out of memory
    divides further by itself."""
    compile: Annotated[bool, _alias(aliases=["--compile"])] = False
    """torch.compile network and loss."""
    cuda_graphs: bool = False
    """On a GPU: replay the graph network as a CUDA graph (torch.compile, reduce-overhead)."""
    optimizer: Literal["auto", "torch", "fused", "apex"] = "auto"
    """SGD: PyTorch's, its fused kernel, or NVIDIA apex's; auto = apex's or fused on a GPU, else torch."""
    sync_batch_norm: bool = True
    """Several processes: trained batch norm sees the whole batch instead of each process's share."""
    nonfinite_limit: int = 10
    """Skip so many steps whose loss or gradient is not finite; the next one stops the training."""
    keep: int = 2
    """Checkpoints kept of each stage, the newest included; where it is damaged, the one before serves. best.pt, that
    of the epoch with the lowest loss, is kept besides."""
    profile: Annotated[int, _alias(aliases=["--profile"])] = 0
    """Measure so many steps: tell how their time divides and write a trace into logs/. They are a little slower."""


@dataclass(frozen=True)
class ClassifierConfig:
    """Stage 1: the group classifier."""

    epochs: Annotated[int, _alias(aliases=["--epochs"])] = 15
    """Epochs; in each, every image leads one group."""
    plain_epochs: float = 0
    """The first so many epochs train the backbone and the intermediate readout alone, on images drawn at random."""
    steps_per_epoch: int | None = None
    """Shorten an epoch to so many optimiser steps."""
    groups: Annotated[int, _alias(aliases=["--groups"])] = 1
    """Groups B a step."""
    group_size: Annotated[int, _alias(aliases=["--group-size"])] = 4
    """Images K a group, for training and for maps."""
    sampling: Literal["greedy", "one-common", "random"] = "greedy"
    """How partners are drawn, for training and for maps."""
    size: int = 224
    """Side of the training images, pixels."""
    mode: Literal["crop", "squash"] = "crop"
    """Random resized crop, or the whole image squashed to a square."""
    scale: tuple[float, float] = (0.3, 1.0)
    """Area of the crop as a share of the image, smallest and largest."""
    flip: bool = True
    """Random horizontal flip."""
    color_jitter: float = 0.0
    """Strength of colour jitter."""
    backbone_lr: float = 1e-3
    """Learning rate of the backbone."""
    graph_lr: float = 1e-2
    """Learning rate of everything after the backbone."""
    message_lr_factor: float = 1.0
    """Factor on `graph_lr` for the message passing and the readouts behind it."""
    bias_lr_factor: float = 1.0
    """Biases learn so many times faster."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: float = 5e-4
    """Weight decay."""
    schedule: Literal["step", "poly", "constant"] = "step"
    """Learning rate: times step_factor every step_epochs, (1 - t)^poly_power, or constant."""
    step_epochs: int = 5
    """Epochs between two steps of the step schedule."""
    step_factor: float = 0.1
    """Factor of the step schedule."""
    poly_power: float = 0.9
    """Power of the poly schedule."""
    warmup_steps: int = 0
    """Optimiser steps of linear warm-up."""
    clip_norm: float | None = None
    """Clip the gradient's norm."""
    loss_weights: tuple[float, float, float] = (0.7, 0.5, 0.2)
    """Weights of the final, intermediate and edge loss (Eq. 13; paper: 0.7, 0.1, 0.2). The second alone trains the
    backbone where the graph's gradient is "none"."""
    loss_reduction: Literal["mean", "sum"] = "mean"
    """Means or literal sums over nodes, edges and classes."""
    frozen_batch_norm: Literal["auto", "yes", "no"] = "auto"
    """Keep batch norm's statistics and affine parameters; auto = for pretrained backbones."""
    checkpoint_every: int = 500
    """Write a checkpoint every so many steps (and after each epoch)."""


@dataclass(frozen=True)
class CamConfig:
    """Class activation maps."""

    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Scales whose maps are summed."""
    flip: bool = True
    """Sum with the maps of the mirrored image."""
    size: int | None = None
    """Side at scale 1 in pixels; None = the classifier's."""
    rounds: int = 1
    """Average over so many groups an image."""
    groups: int = 4
    """Groups in one forward pass."""
    high_res: bool = True
    """Store the ensembled maps at the image's size besides stride 4 (0.5 MB more for an image of VOC); without them
    pseudo labels are made from the maps at stride 4, enlarged."""
    oaa: bool = False
    """Online accumulation: maximum over the maps seen while training, instead of maps made afterwards."""


@dataclass(frozen=True)
class PseudoConfig:
    """Pseudo labels from maps."""

    maps: str | None = None
    """Folder of another project's maps (IRN's or SEAM's ID.npy, OAA's ID_CLASS.png) instead of the run's own."""
    maps_list: str | None = None
    """List whose lines, from 0, OAA's INDEX_CLASS.png count: the one it was trained with."""
    readout: Literal["ensemble", "graph", "initial"] = "ensemble"
    """Which maps to use."""
    background: Literal["auto", "saliency", "threshold", "alpha"] = "auto"
    """Background rule; auto = saliency where the data set has it, else threshold."""
    threshold: float = 0.25
    """Background score of the threshold rule."""
    alpha: float = 4.0
    """Power of the alpha rule, (1 - max)^alpha."""
    missing_saliency: Literal["error", "threshold"] = "error"
    """An image without a saliency map: stop, or use the threshold rule for it."""
    conflict: float = 0.9
    """Saliency rule: a pixel with two channels above this is ignored."""
    salient: float = 32 / 255
    """Saliency rule: a pixel is salient from here."""
    raise_above: float = 0.8
    """Saliency rule: map values above this raise the saliency."""
    min_foreground: float = 0.01
    """Saliency rule: an image with a smaller share of foreground is ignored altogether."""
    crf: Literal["psa", "irn", "deeplab", "mcis", "toco"] | None = None
    """Dense CRF preset."""


@dataclass(frozen=True)
class SegmenterConfig:
    """Stage 2: DeepLab-V2 on the pseudo labels."""

    pseudo_labels: Annotated[str | None, _alias(aliases=["--pseudo-labels"])] = None
    """Folder of another project's pseudo labels, ID.png, instead of the run's own."""
    body: str | None = None
    """Backbone; None = the classifier's."""
    init: Literal["auto", "classifier", "source"] = "auto"
    """Start from the trained classifier's backbone or from a source of weights; auto = classifier where the body is the
    classifier's backbone, no other weights are named, and maps and pseudo labels are the run's own."""
    weights: str = "default"
    """Weights when init is source: `default`, `none` or a file."""
    iterations: int = 20000
    """Optimiser steps."""
    batch: int = 10
    """Images a step."""
    crop: int = 321
    """Side of the training crops, pixels."""
    scales: tuple[float, float] = (0.5, 1.5)
    """Smallest and largest random scale."""
    flip: bool = True
    """Random horizontal flip."""
    color_jitter: float = 0.0
    """Jitter of brightness, contrast and saturation."""
    rates: tuple[int, ...] = (6, 12, 18, 24)
    """Dilations of the ASPP branches."""
    lr: float = 2.5e-4
    """Learning rate."""
    head_lr_factor: float = 10.0
    """The ASPP learns so many times faster."""
    head_bias_lr_factor: float = 20.0
    """Its biases learn so many times faster, without weight decay."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay."""
    poly_power: float = 0.9
    """Power of the poly schedule."""
    clip_norm: float | None = None
    """Clip the gradient's norm."""
    frozen_batch_norm: Literal["auto", "yes", "no"] = "auto"
    """Keep batch norm's statistics and affine parameters; auto = for pretrained backbones."""
    loss_resolution: Literal["features", "image"] = "features"
    """Labels shrunk to the logits (as published), or logits enlarged to the image."""
    multi_scale_loss: bool = False
    """MSC: loss at scales 1, 0.75, 0.5 and of their maximum."""
    checkpoint_every: int = 500
    """Write a checkpoint every so many steps."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Prediction and scores."""

    scales: tuple[float, ...] = (1.0,)
    """Test scales of the segmenter."""
    flip: bool = False
    """Average with the prediction of the mirrored image."""
    crf: Literal["psa", "irn", "deeplab", "mcis", "toco"] | None = None
    """Dense CRF preset on the segmenter's probabilities."""
    ignored_prediction: Literal["background", "ignore"] = "background"
    """How a predicted 255 (pseudo labels) is counted."""
    val_maps: bool = True
    """Score the classifier's own maps on val, so that the segmenter can be compared with them."""


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    cam: CamConfig = field(default_factory=CamConfig)
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    seed: int = 0
    """Seed of weights, sampling and augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass (autocast)."""
    backend: Literal["auto", "reference", "aten", "triton", "cpp", "cuda"] = "auto"
    """Backend of the operations."""
    threads: int = 0
    """CPU threads; 0 = PyTorch's choice (all cores)."""
    max_steps: int | None = None
    """Stop each training stage after so many steps; for trial runs."""
    output: str | None = None
    """Folder of the run; None = runs/<preset>-<data>-<date>."""
