"""What an exported model says about itself, inside its file and beside it as FILE.json."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwsss_fast import files
from gwsss_fast.errors import GwsssError

FORMAT = 1
KEY = "gwsss_fast"  # of the entry in ONNX's metadata_props; extra file of a .pt2 is KEY.json
FORMATS = ("onnx", "torch-export", "aoti", "tensorrt", "tensorrt-rtx")
TASKS = ("segmentation", "group-classification")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
DEVICES = ("any", "cpu", "cuda")
Range = tuple[int, int | None]
ANY: Range = (1, None)


@dataclass(frozen=True)
class Metadata:
    """An exported model in words: everything that whoever feeds it has to know.

    Input of "segmentation": images (B, 3, H, W) float32, RGB; of "group-classification": (B, K, 3, H, W). With
    `normalise` in the graph the values are 0..255, otherwise normalised by `mean` and `std` (of RGB in 0..1).
    batch, height, width: the least and the largest that the graph takes, None = any; equal = fixed. With `resize` in
    the graph every image is brought to `network_size` (height, width) there.
    Output: "logits" (B, L + 1, h, w) float32 at the network's stride, or with `argmax` "labels" (B, H, W) at the size
    of the input, background 0. Groups: "logits" and "initial_logits" (B, K, L), "maps" and "initial_maps"
    (B, K, L, h, w).
    classes: foreground names; palette: RGB of each label (of each class for groups). weights_sha256: see
    `weights_checksum`. versions: of gwsss_fast, torch and whatever else made the file. scales, flip: how the run was
    evaluated. compute_capabilities: GPUs that an engine was built for. Raises GwsssError for what contradicts itself.
    """

    format: str
    task: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_sha256: str
    batch: Range = ANY
    height: Range = ANY
    width: Range = ANY
    group_size: int | None = None
    network_size: tuple[int, int] | None = None
    stride: int = 8
    body: str = ""
    normalise: bool = False
    resize: bool = False
    argmax: bool = False
    precision: str = "fp32"
    device: str = "any"
    opset: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    compute_capabilities: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    metadata_format: int = FORMAT

    def __post_init__(self) -> None:
        _one_of("format", self.format, FORMATS)
        _one_of("task", self.task, TASKS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("device", self.device, DEVICES)
        if self.metadata_format != FORMAT:
            raise GwsssError(f"metadata: format {self.metadata_format}, this version reads {FORMAT}")
        if not self.classes or not all(isinstance(name, str) for name in self.classes):
            raise GwsssError("metadata: classes must be names, at least one")
        for name in ("batch", "height", "width"):
            _check_range(name, getattr(self, name))
        if not re.fullmatch("[0-9a-f]{64}", self.weights_sha256):
            raise GwsssError(f"metadata: weights_sha256 {self.weights_sha256!r} is no SHA-256 sum")
        self._check_numbers()
        if (self.task == "group-classification") != (self.group_size is not None):
            raise GwsssError("metadata: group_size belongs to task group-classification, and to no other")
        if self.resize != (self.network_size is not None):
            raise GwsssError("metadata: network_size belongs to a graph that resizes, and to no other")
        if self.argmax and self.task != "segmentation":
            raise GwsssError("metadata: argmax belongs to task segmentation")

    def _check_numbers(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(_finite(x) for x in values) or (name == "std" and min(values) <= 0):
                raise GwsssError(f"metadata: {name} is {values}; it must be three numbers, std above 0")
        if len(self.palette) != len(self.labels):
            raise GwsssError(f"metadata: {len(self.palette)} colours for {len(self.labels)} labels")
        for colour in self.palette:
            if len(colour) != 3 or not all(isinstance(x, int) and 0 <= x <= 255 for x in colour):
                raise GwsssError(f"metadata: {colour} is no colour; write three whole numbers in 0..255")
        sizes = {"stride": self.stride, "group_size": self.group_size, "opset": self.opset}
        height, width = self.network_size or (None, None)
        for name, value in {**sizes, "network height": height, "network width": width}.items():
            if value is not None and not (isinstance(value, int) and value > 0):
                raise GwsssError(f"metadata: {name} is {value!r}; it must be a whole number above 0")
        if not self.scales or not all(_finite(x) and x > 0 for x in self.scales):
            raise GwsssError(f"metadata: scales are {self.scales}; give at least one, each above 0")
        for name in ("normalise", "resize", "argmax", "flip"):
            if not isinstance(getattr(self, name), bool):
                raise GwsssError(f"metadata: {name} is {getattr(self, name)!r}; it must be true or false")

    @property
    def labels(self) -> tuple[str, ...]:
        """What the channels of the output mean: background and the classes, or the classes alone for groups."""
        return ("background", *self.classes) if self.task == "segmentation" else self.classes

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in order."""
        if self.task == "segmentation":
            return ("labels",) if self.argmax else ("logits",)
        return ("logits", "initial_logits", "maps", "initial_maps")

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) of the images where the graph takes one size alone."""
        (low, high), (left, right) = self.height, self.width
        return (low, left) if low == high and left == right else None

    def check_images(self, images: Tensor) -> None:
        """Raises GwsssError when the graph does not take `images`, with the sizes that it takes."""
        rank = 4 if self.group_size is None else 5
        wanted = "(B, 3, H, W)" if rank == 4 else f"(B, {self.group_size}, 3, H, W)"
        shape = tuple(images.shape)
        wrong_group = rank == 5 and len(shape) == 5 and shape[1] != self.group_size
        if len(shape) != rank or shape[-3] != 3 or wrong_group:
            raise GwsssError(f"images have shape {shape}; this model takes {wanted}")
        if not images.is_floating_point():
            raise GwsssError(f"images are {images.dtype}; this model takes float32")
        for name, value in zip(("batch", "height", "width"), (shape[0], *shape[-2:]), strict=True):
            low, high = getattr(self, name)
            if value < low or (high is not None and value > high):
                span = str(low) if low == high else f"{low} to {high}" if high is not None else f"{low} or more"
                raise GwsssError(
                    f"images of shape {shape}: {name} {value} is not supported; this model takes {span}. Resize the "
                    "images, or export it with other sizes"
                )

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str, where: str = "metadata") -> Metadata:
        """Back from JSON. Raises GwsssError naming `where` when it is damaged, incomplete or of another version."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GwsssError(f"{where}: the metadata is no JSON ({error}); export the model again") from None
        names = {item.name for item in fields(cls)}
        if not isinstance(values, dict):
            raise GwsssError(f"{where}: the metadata is no JSON object; export the model again")
        if values.get("metadata_format", FORMAT) != FORMAT:
            raise GwsssError(
                f"{where}: metadata format {values['metadata_format']}, this version reads {FORMAT}; export the model "
                "with this version"
            )
        if unknown := sorted(values.keys() - names):
            raise GwsssError(f"{where}: unknown metadata field {unknown[0]}; export the model with this version")
        try:
            return cls(**{name: _frozen(value) for name, value in values.items()})
        except (TypeError, ValueError) as error:
            reason = str(error).replace("Metadata.__init__()", "the metadata")
            raise GwsssError(f"{where}: {reason}; export the model again") from None


def within(value: int, span: Range) -> int:
    """`value`, or the nearest to it in a range."""
    low, high = span
    return max(low, value if high is None else min(value, high))


def fitting(height: float, width: float, heights: Range, widths: Range) -> tuple[int, int]:
    """The size nearest to height x width in two ranges; what is too large keeps its shape, unless a side is fixed."""
    open_sides = [(side, high) for side, (low, high) in ((height, heights), (width, widths)) if high and low < high]
    share = min(1.0, *(high / side for side, high in open_sides), 1.0)
    return within(round(height * share), heights), within(round(width * share), widths)


def beside(path: str | Path) -> Path:
    """FILE.json of an exported FILE."""
    return Path(f"{path}.json")


def write_beside(path: str | Path, metadata: Metadata) -> None:
    """Write FILE.json."""
    files.write_json(beside(path), asdict(metadata))


def read_beside(path: str | Path) -> Metadata | None:
    """What FILE.json says; None where there is none. Raises GwsssError when it is damaged."""
    file = beside(path)
    if not file.is_file():
        return None
    try:
        return Metadata.from_json(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise GwsssError(f"{file} cannot be read ({error}); export the model again") from None


def weights_checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the weights in order of their names: name, type, shape and bytes of each."""
    total = hashlib.sha256()
    for name, value in sorted(weights.items()):
        plain = value.detach().cpu().contiguous()
        total.update(f"{name} {plain.dtype} {tuple(plain.shape)};".encode())
        if plain.numel():
            total.update(plain.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise GwsssError(f"metadata: {name} is {value!r}; choose from {', '.join(choices)}")


def _check_range(name: str, value: Any) -> None:
    if isinstance(value, tuple) and len(value) == 2:
        low, high = value
        if isinstance(low, int) and low >= 1 and (high is None or (isinstance(high, int) and high >= low)):
            return
    raise GwsssError(f"metadata: {name} is {value!r}; it must be (least, largest), largest None for any")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
