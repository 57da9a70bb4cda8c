"""Running TensorRT and TensorRT-RTX engines, which share one Python interface. Not yet run on a GPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gwsss_fast.errors import GwsssError, first_line
from gwsss_fast.export.metadata import Metadata
from gwsss_fast.export.runtimes import Runtime, require

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
DTYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32}
DTYPES |= {"INT64": torch.int64, "UINT8": torch.uint8, "BOOL": torch.bool, "INT8": torch.int8}


class EngineRuntime(Runtime):
    """An engine on the GPU it was built for, fed from PyTorch's memory."""

    def __init__(self, path: Path, metadata: Metadata, device: str = "auto") -> None:
        name = NAMES[metadata.format]
        if device == "cpu" or not torch.cuda.is_available():
            raise GwsssError(
                f"{path}: a {name} engine needs an NVIDIA GPU and driver; there is none to use here. On a CPU run an "
                "ONNX, torch-export or AOTInductor file"
            )
        library = require(MODULES[metadata.format], metadata.format, f"this file is run by {name}")
        self.device = torch.device("cuda" if device == "auto" else device)
        self.messages = logger(library)
        with torch.cuda.device(self.device):
            self.runtime = library.Runtime(self.messages)
            self.engine = self._read(library, path, metadata, name)
            self.context = self.engine.create_execution_context()
        # On the default stream the library waits for the whole GPU before and after.
        self.stream = torch.cuda.Stream(self.device)
        if self.context is None:
            raise GwsssError(f"{path}: {name} has no memory to run this engine ({self.messages.last})")
        self.metadata = metadata
        self.name = f"{name} {library.__version__}, {torch.cuda.get_device_name(self.device)}"

    def _read(self, library: ModuleType, path: Path, metadata: Metadata, name: str) -> Any:
        engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            made_with = metadata.versions.get(MODULES[metadata.format], "of another version")
            raise GwsssError(
                f"{path}: {name} {library.__version__} cannot read this engine ({self.messages.last}); it was built "
                f"by {made_with} for compute capability {', '.join(metadata.compute_capabilities) or 'unknown'}, here "
                f"is {capability(self.device)}. Build it again here"
            )
        return engine

    def _run(self, images: Tensor) -> list[Tensor]:
        images = images.contiguous()
        names = [self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)]
        (entry,) = (name for name in names if self.engine.get_tensor_mode(name).name == "INPUT")
        with torch.cuda.device(self.device):
            if not self.context.set_input_shape(entry, tuple(images.shape)):
                raise GwsssError(f"images of shape {tuple(images.shape)} are outside of what the engine was built for")
            self.context.set_tensor_address(entry, images.data_ptr())
            results = []
            for name in names:
                if name != entry:
                    dtype = DTYPES[self.engine.get_tensor_dtype(name).name]
                    shape = tuple(self.context.get_tensor_shape(name))
                    results.append(torch.empty(shape, dtype=dtype, device=self.device))
                    self.context.set_tensor_address(name, results[-1].data_ptr())
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            if not self.context.execute_async_v3(self.stream.cuda_stream):
                raise GwsssError(f"{self.name} failed on images of shape {tuple(images.shape)}: {self.messages.last}")
            self.stream.synchronize()
        return [x.float() if x.is_floating_point() else x for x in results]


def capability(device: torch.device) -> str:
    """The GPU's compute capability, such as 8.6."""
    return ".".join(map(str, torch.cuda.get_device_capability(device)))


def logger(library: ModuleType) -> Any:
    """A silent logger of `library` that keeps the last error and the warnings."""

    class Messages(library.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.last, self.warnings = "no reason given", list[str]()

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self.last = first_line(message)
            elif severity.name == "WARNING":
                self.warnings.append(message)

    return Messages()
