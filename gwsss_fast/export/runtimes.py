"""Running an exported model again, whatever its format."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as images_to

from gwsss_fast.data.transforms import normalise
from gwsss_fast.errors import GwsssError, first_line
from gwsss_fast.export.contents import kind_of, read_metadata
from gwsss_fast.export.metadata import Metadata, fitting
from gwsss_fast.export.safe_programs import load_program

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class Runtime(ABC):
    """An exported model that runs: runtime(images) gives its first output.

    name: of the library, with its version and device. metadata: of the model. device: where it computes; images and
    outputs may be anywhere, outputs are where the images were.
    """

    name: str
    metadata: Metadata
    device: torch.device

    def __call__(self, images: Tensor) -> Tensor:
        """Logits or labels of images (B, 3, H, W), or logits of groups (B, K, 3, H, W); see `Metadata`.

        Raises GwsssError for a shape that the model does not take.
        """
        return self.outputs(images)[self.metadata.outputs[0]]

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """All outputs by name. Raises GwsssError for a shape that the model does not take."""
        self.metadata.check_images(images)
        results = self._run(images.detach().to(self.device, torch.float32))
        return {name: x.to(images.device) for name, x in zip(self.metadata.outputs, results, strict=True)}

    @abstractmethod
    def _run(self, images: Tensor) -> list[Tensor]:
        """The outputs in order; images are float32 on `device` and of a shape that fits."""


def open_runtime(path: str | Path, device: str = "auto") -> Runtime:
    """The runtime for an exported model, chosen by the file's content.

    device: "auto" (a GPU where the file and the libraries can use one), "cpu" or "cuda". ONNX files run in ONNX
    Runtime; engines need the library that built them, an NVIDIA GPU and its driver. A file of AOTInductor and an engine
    are compiled code, so open only those you trust; from the others nothing is executed. Raises GwsssError for a file
    that is none, a missing library, GPU or driver, and versions that do not fit.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "checkpoint":
        raise GwsssError(f"{path} is a checkpoint, not an exported model; export it first")
    metadata = read_metadata(path)
    if device not in ("auto", "cpu") and not torch.cuda.is_available():
        raise GwsssError(f"device {device}: PyTorch sees no GPU here; use cpu or auto")
    if kind == "onnx":
        return OnnxRuntime(path, metadata, device)
    if kind in ("tensorrt", "tensorrt-rtx"):
        from gwsss_fast.export.engines import EngineRuntime

        return EngineRuntime(path, metadata, device)
    return ProgramRuntime(path, metadata, device) if kind == "torch-export" else AotiRuntime(path, metadata, device)


class OnnxRuntime(Runtime):
    """An ONNX file in ONNX Runtime, on as many CPU threads as PyTorch has, or on a GPU where its build can use one."""

    def __init__(self, path: Path, metadata: Metadata, device: str = "auto") -> None:
        library = require("onnxruntime", "export", "ONNX files are run by ONNX Runtime")
        on_gpu = CUDA in library.get_available_providers() and torch.cuda.is_available()
        if device not in ("auto", "cpu") and not on_gpu:
            raise GwsssError(
                f"device {device}: this ONNX Runtime has no CUDA provider; `pip install onnxruntime-gpu`, or use cpu"
            )
        self.device = _torch_device(device) if on_gpu else torch.device("cpu")
        options = library.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        gpu: list[Any] = [(CUDA, {"device_id": self.device.index or 0})] if self.device.type == "cuda" else []
        try:
            self.session = library.InferenceSession(str(path), options, providers=[*gpu, CPU])
        except Exception as error:  # its own exceptions share no base class
            raise GwsssError(
                f"{path}: ONNX Runtime {library.__version__} cannot run it on {self.device.type}"
                f"{_of_precision(metadata)} ({first_line(error)})"
            ) from error
        self.input = self.session.get_inputs()[0].name
        self.metadata = metadata
        self.name = f"ONNX Runtime {library.__version__}, {self.device.type}"

    def _run(self, images: Tensor) -> list[Tensor]:
        """Through the host: the copy is small beside the network."""
        feed = {self.input: images.cpu().contiguous().numpy()}
        return [torch.from_numpy(np.asarray(x)) for x in self.session.run(list(self.metadata.outputs), feed)]


class ProgramRuntime(Runtime):
    """A program of torch.export in PyTorch."""

    def __init__(self, path: Path, metadata: Metadata, device: str = "auto") -> None:
        self.device = _torch_device(device)
        program = load_program(path)
        if self.device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(self.device))
        self.module = program.module()
        self.metadata = metadata
        self.name = f"torch.export in PyTorch {torch.__version__}, {self.device.type}"

    def _run(self, images: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            return _as_list(self.module(images))


class AotiRuntime(Runtime):
    """A program that AOTInductor compiled, for the device and kind of processor it was compiled for."""

    def __init__(self, path: Path, metadata: Metadata, device: str = "auto") -> None:
        wanted = metadata.device if device == "auto" else device.partition(":")[0]
        if wanted != metadata.device:
            raise GwsssError(
                f"{path} was compiled for {metadata.device}, not {wanted}; export it with --device {wanted}"
            )
        self.device = torch.device(metadata.device if device == "auto" else device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise GwsssError(f"{path} was compiled for a GPU and PyTorch sees none here; export it for cpu")
        made_for, here = metadata.versions.get("cpu"), torch.backends.cpu.get_cpu_capability()
        if self.device.type == "cpu" and made_for not in (None, here):  # it would end by an illegal instruction
            raise GwsssError(f"{path} was compiled for a processor with {made_for}, here is {here}; export it here")
        made_with, index = metadata.versions.get("torch", "unknown"), self.device.index
        try:
            self.model = torch._inductor.aoti_load_package(str(path), device_index=-1 if index is None else index)
        except Exception as error:
            raise GwsssError(
                f"{path}: torch {torch.__version__} cannot load this package, which torch {made_with} made "
                f"({first_line(error)}); export it on this machine"
            ) from error
        self.metadata = metadata
        self.name = f"AOTInductor in PyTorch {torch.__version__}, {self.device.type}"

    def _run(self, images: Tensor) -> list[Tensor]:
        return _as_list(self.model(images.contiguous()))


def prepare(image: Image.Image, metadata: Metadata) -> Tensor:
    """The input (1, 3, H, W) that the model wants of one image: resized where it takes one size alone or the image is
    beyond its limits, and normalised unless the graph does that."""
    height, width = fitting(image.height, image.width, metadata.height, metadata.width)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if metadata.normalise:
        return images_to.to_image(image).as_subclass(Tensor).float()[None]
    return normalise(image)[None]


def labels_of(output: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (B, H, W) at `size` of a segmenter's output, be it logits (B, L + 1, h, w) or labels (B, h, w)."""
    if output.ndim == 4:
        return F.interpolate(output.float(), size=size, mode="bilinear", align_corners=False).argmax(1)
    if output.shape[-2:] == torch.Size(size):
        return output.long()
    return F.interpolate(output[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()


def require(library: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional library. Raises GwsssError that says which extra to install."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise GwsssError(
            f"{purpose}, and {library} cannot be imported ({first_line(error)}); `pip install 'gwsss-fast[{extra}]'`"
        ) from None


def _torch_device(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _as_list(result: Any) -> list[Tensor]:
    if isinstance(result, dict):
        return list(result.values())
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _of_precision(metadata: Metadata) -> str:
    return "" if metadata.precision == "fp32" else f" in {metadata.precision}"
