"""Renaming the keys of published weight files to this package's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from gwsss_fast.models.resnet101 import LAYOUT_KEY

# kazuto1011/deeplab-pytorch: the DeepLab authors' Caffe weights, layer1 being the stem and layer2 to layer5 the stages.
DEEPLAB_STEM = "layer1.conv1.conv.weight"
DEEPLAB_UNITS = {"reduce": ("conv1", "bn1"), "conv3x3": ("conv2", "bn2"), "increase": ("conv3", "bn3")}
DEEPLAB_BLOCK = re.compile(r"layer([2-5])\.block(\d+)\.(reduce|conv3x3|increase|shortcut)\.(conv|bn)\.(\w+)")
DEEPLAB_BRANCH = re.compile(r"aspp\.c(\d+)\.(weight|bias)")

# Those weights see 0..255 BGR minus this mean; the images here are RGB, divided by 255 and normalised as for ImageNet.
CAFFE_MEAN = (122.675, 116.669, 104.008)  # R, G, B
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# itijyou/ademxapp: the wide ResNet-38 for MXNet.
MXNET_STATISTICS = {
    "weight": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}
MXNET_BLOCK = re.compile(r"(res|bn)(\d)(?:a|b(\d+))_branch(\w+?)_(weight|gamma|beta|moving_mean|moving_var)")
MXNET_LAST = re.compile(r"bn7_(gamma|beta|moving_mean|moving_var)")


def from_deeplab_pytorch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """deeplab-pytorch's names, with or without "base.", to DeepLabV2's (`body.` and `aspp.`); others stay as they are.

    The stem is rescaled so that the network sees images as this package normalises them; the state carries the mark
    of the Caffe layout (see ResNet101).
    """
    state = {key.removeprefix("base."): value for key, value in state.items()}
    renamed = {_deeplab_name(key): value for key, value in state.items()}
    _adapt_stem(renamed)
    renamed[f"body.{LAYOUT_KEY}"] = torch.ones((), dtype=torch.long)
    return renamed


def _deeplab_name(key: str) -> str:
    if key.startswith("layer1.conv1."):
        _, _, kind, rest = key.split(".", 3)
        return f"body.{kind}1.{rest}"
    if match := DEEPLAB_BLOCK.fullmatch(key):
        stage, block, unit, kind, rest = match.groups()
        if unit == "shortcut":
            name = f"downsample.{0 if kind == 'conv' else 1}"
        else:
            name = DEEPLAB_UNITS[unit][0 if kind == "conv" else 1]
        return f"body.layer{int(stage) - 1}.{int(block) - 1}.{name}.{rest}"
    if match := DEEPLAB_BRANCH.fullmatch(key):
        return f"aspp.branches.{match[1]}.{match[2]}"
    return key


def _adapt_stem(state: dict[str, Tensor]) -> None:
    """Fold BGR order and scale into the first convolution, the difference of the means into its batch norm.

    With x the normalised image, Caffe's input is 255 std x + (255 mean - caffe mean), channels reversed. The constant
    part shifts the convolution's output by the same number everywhere (but for the zero-padded rim, where it is at most
    one grey level off), which the running mean takes away again.
    """
    weight = state["body.conv1.weight"]
    if weight.ndim != 4 or weight.shape[1] != 3:
        return  # not those weights after all: loading will name the shape
    weight = weight.flip(1).double()
    scale = 255 * weight.new_tensor(IMAGENET_STD)
    shift = 255 * weight.new_tensor(IMAGENET_MEAN) - weight.new_tensor(CAFFE_MEAN)
    state["body.conv1.weight"] = (weight * scale.view(1, 3, 1, 1)).to(state["body.conv1.weight"].dtype)
    mean = "body.bn1.running_mean"
    if mean in state:
        state[mean] = (state[mean].double() - (weight * shift.view(1, 3, 1, 1)).sum((1, 2, 3))).to(state[mean].dtype)


def from_mxnet_resnet38(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The MXNet release's names ("arg:res2b1_branch2a_weight") to ResNet38's ("b2_1.conv_branch2a.weight")."""
    return {_mxnet_name(key): value for key, value in state.items()}


def _mxnet_name(key: str) -> str:
    name = key.removeprefix("arg:").removeprefix("aux:")
    if name == "conv1a_weight":
        return "conv1a.weight"
    if match := MXNET_LAST.fullmatch(name):
        return f"bn7.{MXNET_STATISTICS[match[1]]}"
    if match := MXNET_BLOCK.fullmatch(name):
        kind, stage, index, branch, statistic = match.groups()
        block = f"b{stage}_{index}" if index else f"b{stage}"
        return f"{block}.{'conv' if kind == 'res' else 'bn'}_branch{branch}.{MXNET_STATISTICS[statistic]}"
    return key


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Apply the renaming that fits the state's keys, if any."""
    if DEEPLAB_STEM in state or f"base.{DEEPLAB_STEM}" in state:
        return from_deeplab_pytorch(state)
    if any(key.removeprefix("arg:") == "res2a_branch2a_weight" for key in state):
        return from_mxnet_resnet38(state)
    return dict(state)
