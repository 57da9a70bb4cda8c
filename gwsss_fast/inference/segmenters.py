"""Opening what a predictor runs: a checkpoint or an exported network, told apart by what is in the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gwsss_fast.config import Config, absolute_paths, read_config
from gwsss_fast.data.transforms import MEAN, STD
from gwsss_fast.errors import GwsssError
from gwsss_fast.export.contents import kind_of
from gwsss_fast.export.metadata import ANY, Range, fitting
from gwsss_fast.export.runtimes import Runtime, open_runtime
from gwsss_fast.inference.fast_cpu import CheckedSegmenter, FastSegmenter, has_bf16
from gwsss_fast.models.precision import PRECISIONS, autocast
from gwsss_fast.training.checkpoints import load_checkpoint
from gwsss_fast.training.precision import check_precision, choose_device
from gwsss_fast.training.segmenter import load_segmenter

MOST_CLASSES = 254  # a mask has 8 bits, and 255 means something else


@dataclass(frozen=True)
class Segmenter:
    """A network ready to run, with what must be known to use it. Raises GwsssError for more classes than a mask holds.

    run: images (B, 3, H, W) -> logits (B, L + 1, h, w) of any dtype, or labels (B, H, W). classes: without background.
    precision: of the arithmetic. what: in words, for people. scales, flip: how the trained model was evaluated. mean,
    std: of the images' values in 0..1; None where the network wants 0..255. batch, height, width: the least and the
    largest that it takes, None = any. scored: it gives logits, not labels.
    """

    run: Callable[[Tensor], Tensor]
    classes: tuple[str, ...]
    device: torch.device
    precision: str
    what: str
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    mean: tuple[float, ...] | None = MEAN
    std: tuple[float, ...] = STD
    batch: Range = ANY
    height: Range = ANY
    width: Range = ANY
    scored: bool = True

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MOST_CLASSES:
            raise GwsssError(
                f"{len(self.classes)} classes; a predictor needs the names of 1 to {MOST_CLASSES}, no background"
            )

    def fit(self, height: float, width: float) -> tuple[int, int]:
        """The size nearest to height x width that the network takes."""
        return fitting(height, width, self.height, self.width)

    def __call__(self, images: Tensor) -> Tensor:
        """`run` of any number of images: in parts where they are too many, the last one repeated where too few."""
        low, high = self.batch
        parts = []
        for part in images.split(high or len(images)):
            missing = low - len(part)
            whole = part if missing <= 0 else torch.cat([part, part[-1:].expand(missing, -1, -1, -1)])
            parts.append(self.run(whole)[: len(part)])
        return torch.cat(parts) if len(parts) > 1 else parts[0]


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


def open_segmenter(path: str | Path, device: str = "auto", precision: str = "auto") -> Segmenter:
    """The segmenter in a file: a checkpoint, an ONNX file, an exported program or an engine, told apart by content.

    Raises GwsssError for a file that holds none, for a device that it cannot run on, and for another precision than
    that of an exported file.
    """
    path, place = Path(path), choose_device(device)
    if path.is_file() and kind_of(path) != "checkpoint":
        return from_runtime(open_runtime(path, device), path, precision)
    content = load_checkpoint(path)
    if "segmenter" not in content.get("initialised_from", {}) or "config" not in content:
        raise GwsssError(f"{path} is no checkpoint of a segmenter; give RUN/segmenter/last.pt")
    config: Config = absolute_paths(read_config(str(content["config"]), str(path)))
    classes = tuple(content["classes"])
    options = config.evaluate
    model = load_segmenter(config, path, classes)
    return from_module(model, classes, place, precision, options.scales, options.flip)


def from_runtime(runtime: Runtime, path: Path, precision: str = "auto") -> Segmenter:
    """The segmenter of an exported model. Raises GwsssError for a group classifier and for another precision."""
    about = runtime.metadata
    if about.task != "segmentation":
        raise GwsssError(f"{path} is exported for {about.task}; give a segmenter's file")
    if precision not in ("auto", about.precision):
        raise GwsssError(
            f"precision {precision}: {path} was exported in {about.precision}; export it again, or use auto"
        )
    return Segmenter(
        runtime,
        about.classes,
        runtime.device,
        about.precision,
        runtime.name,
        (1.0,) if about.resize or about.fixed_size else about.scales,
        about.flip,
        None if about.normalise else about.mean,
        about.std,
        about.batch,
        about.height,
        about.width,
        not about.argmax,
    )


def from_module(
    model: nn.Module,
    classes: Sequence[str],
    device: torch.device,
    precision: str = "auto",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Segmenter:
    """The segmenter of a DeepLabV2, or of any module from normalised images to logits; it is put into eval mode.

    On a CPU copies of it are prepared for speed, and `auto` holds bf16 against fp32 on the first images. Raises
    GwsssError for no class or more than a mask has values for.
    """
    wanted, precision = precision, choose_precision(precision, device)
    model = model.eval().to(device)
    if device.type == "cpu":
        checked = wanted == "auto" and precision == "bf16"
        run: Callable[[Tensor], Tensor] = CheckedSegmenter(model) if checked else FastSegmenter(model, precision)
    else:

        def run(images: Tensor) -> Tensor:
            with autocast(device, precision):
                return model(images)

    what = f"PyTorch {torch.__version__}, {device.type}, {precision}"
    return Segmenter(run, tuple(classes), device, precision, what, tuple(scales), flip)
