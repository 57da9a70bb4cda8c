"""Small networks to export, and what is said about them."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from gwsss_fast import DeepLabV2
from gwsss_fast.data.palette import voc_palette
from gwsss_fast.data.transforms import MEAN, STD
from gwsss_fast.export.deployed import Deployed, deployed, least_side
from gwsss_fast.export.metadata import Metadata, weights_checksum
from gwsss_fast.export.onnx_files import write_onnx
from gwsss_fast.export.programs import export_program


class Nano(nn.Module):
    """One convolution."""

    out_channels, stride = 8, 2

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.convolution(images).relu()


class Exported(NamedTuple):
    path: Path
    module: Deployed
    metadata: Metadata


def description(network: nn.Module, **fields: object) -> Metadata:
    """Metadata of a segmenter with two classes, any size."""
    low = least_side(network.body)
    plain = Metadata(
        format="onnx",
        task="segmentation",
        classes=("red", "green"),
        palette=tuple(tuple(x) for x in voc_palette()[:3].tolist()),
        mean=MEAN,
        std=STD,
        weights_sha256=weights_checksum(network.state_dict()),
        height=(low, None),
        width=(low, None),
        versions={"torch": torch.__version__},
    )
    return replace(plain, **fields)


def nano() -> DeepLabV2:
    torch.manual_seed(0)
    return DeepLabV2(3, Nano(), rates=(1, 2)).eval()


def exported(network: DeepLabV2, metadata: Metadata, path: Path) -> Exported:
    module = deployed(network, metadata)
    write_onnx(export_program(module, metadata), path, metadata)
    return Exported(path, module, metadata)
