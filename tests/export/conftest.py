"""Exported files that several tests read; each is made once."""

import pytest
import torch
from torch import nn

from gwsss_fast import DeepLabV2
from gwsss_fast.models.backbones import build_backbone
from tests.export.networks import Exported, description, exported


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """DeepLab-V2 with the body `tiny` as ONNX, any size."""
    torch.manual_seed(0)
    network = DeepLabV2(3, "tiny").eval()
    return exported(network, description(network), tmp_path_factory.mktemp("tiny") / "model.onnx")


@pytest.fixture(scope="session")
def resnet101(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """DeepLab-V2 with ResNet-101 in Caffe's layout (max pooling rounds up) as ONNX, any size."""
    torch.manual_seed(0)
    body = build_backbone("resnet101", "none")
    body.set_caffe_layout(True)
    for name, layer in body.named_modules():
        if name.endswith("bn3"):
            nn.init.constant_(layer.weight, 0.2)  # so that a hundred layers at random do not blow up
    network = DeepLabV2(3, body).eval()
    return exported(network, description(network), tmp_path_factory.mktemp("resnet101") / "model.onnx")
