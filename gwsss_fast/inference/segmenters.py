"""Opening what a predictor runs: a checkpoint or an exported network, told apart by what is in the file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gwsss_fast.config import Config, absolute_paths, read_config
from gwsss_fast.data.transforms import MEAN, STD
from gwsss_fast.errors import GwsssError
from gwsss_fast.inference.fast_cpu import FastSegmenter, has_bf16
from gwsss_fast.models.precision import PRECISIONS, autocast
from gwsss_fast.training.checkpoints import load_checkpoint
from gwsss_fast.training.precision import check_precision
from gwsss_fast.training.segmenter import load_segmenter

MOST_CLASSES = 254  # a mask has 8 bits, and 255 means something else


@dataclass(frozen=True)
class Segmenter:
    """A network ready to run, with what must be known to use it.

    run: images (B, 3, H, W) -> logits (B, L + 1, h, w) of any dtype, or labels (B, H, W). classes: without background.
    precision: of the arithmetic. scales, flip: how the trained model was evaluated. mean, std: of the images' values in
    0..1; None where the network takes them as they are. size: the only (H, W) that it takes; None for any. batch: the
    only number of images; None for any.
    """

    run: Callable[[Tensor], Tensor]
    classes: tuple[str, ...]
    device: torch.device
    precision: str
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    mean: tuple[float, ...] | None = MEAN
    std: tuple[float, ...] | None = STD
    size: tuple[int, int] | None = None
    batch: int | None = None


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the processor multiplies it (AVX-512 or AMX; GPUs from compute capability 8.0), else fp32.

    Raises GwsssError for an unknown precision and for one that the device does not suit.
    """
    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
        return "bf16" if device.type == "cpu" and has_bf16() else "fp32"
    if name not in PRECISIONS:
        raise GwsssError(f"unknown precision {name!r}; use auto, {', '.join(PRECISIONS)}")
    check_precision(name, device)
    return name


def open_segmenter(path: str | Path, device: torch.device, precision: str = "auto") -> Segmenter:
    """The segmenter in a file. Raises GwsssError for a file that holds none."""
    path = Path(path)
    content = load_checkpoint(path)
    if "segmenter" not in content.get("initialised_from", {}) or "config" not in content:
        raise GwsssError(f"{path} is no checkpoint of a segmenter; give RUN/segmenter/last.pt")
    config: Config = absolute_paths(read_config(str(content["config"]), str(path)))
    classes = tuple(content["classes"])
    options = config.evaluate
    model = load_segmenter(config, path, classes)
    return from_module(model, classes, device, precision, options.scales, options.flip)


def from_module(
    model: nn.Module,
    classes: Sequence[str],
    device: torch.device,
    precision: str = "auto",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Segmenter:
    """The segmenter of a DeepLabV2, or of any module from normalised images to logits; it is put into eval mode.

    On a CPU a copy of it is prepared for speed. Raises GwsssError for no class or more than a mask has values for.
    """
    if not 1 <= len(classes) <= MOST_CLASSES:
        raise GwsssError(f"{len(classes)} classes; a predictor needs the names of 1 to {MOST_CLASSES}, no background")
    precision = choose_precision(precision, device)
    model = model.eval().to(device)
    if device.type == "cpu":
        run: Callable[[Tensor], Tensor] = FastSegmenter(model, precision)
    else:

        def run(images: Tensor) -> Tensor:
            with autocast(device, precision):
                return model(images)

    return Segmenter(run, tuple(classes), device, precision, tuple(scales), flip)


def is_checkpoint(path: Path) -> bool:
    """Whether torch.save wrote the file."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())
