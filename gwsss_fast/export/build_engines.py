"""Building TensorRT and TensorRT-RTX engines from ONNX files, and TensorRT's from exported programs.

TensorRT measures kernels, so it builds for the GPU that is there. TensorRT-RTX compiles without one for the compute
capabilities that it is told. What needs a GPU here is not yet run on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.export import ExportedProgram

from gwsss_fast import files
from gwsss_fast.errors import GwsssError, first_line
from gwsss_fast.export.contents import ENGINE_MARK
from gwsss_fast.export.deployed import USUAL_SIDE
from gwsss_fast.export.engines import MODULES, NAMES, capability, logger
from gwsss_fast.export.metadata import Metadata, Range, within
from gwsss_fast.export.runtimes import require

LONGEST_NAME = 4096  # of a network, in bytes
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Parsed:
    """A network as the parser understood it: shapes by name, -1 where dynamic, and the number of layers."""

    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    layers: int


def profile(metadata: Metadata) -> tuple[Shape, Shape, Shape]:
    """The least, usual and largest shape of the images. Raises GwsssError where a range has no end."""
    spans = (metadata.batch, metadata.height, metadata.width)
    for name, (_, high) in zip(("batch", "height", "width"), spans, strict=True):
        if high is None:
            raise GwsssError(f"an engine is built for sizes with an end; give --{name} LEAST:LARGEST")
    group = () if metadata.group_size is None else (metadata.group_size,)

    def shape(batch: int, height: int, width: int) -> Shape:
        return (batch, *group, 3, height, width)

    least, largest = (shape(*(int(span[end] or 0) for span in spans)) for end in (0, 1))
    usually = shape(*(within(value, span) for value, span in zip((1, USUAL_SIDE, USUAL_SIDE), spans, strict=True)))
    return least, usually, largest


def build_engine(
    onnx_file: Path, path: Path, metadata: Metadata, capabilities: Sequence[str] = (), device: str = "cuda"
) -> Parsed:
    """Build the engine of metadata.format from an ONNX file and write it to `path`, the metadata in its name.

    capabilities: for TensorRT-RTX, such as ("8.6", "12.0"); none = the GPU that is here. Raises GwsssError when the
    library or a GPU is missing, when the parser or builder refuses the network, and when the parsed network is not
    what was exported.
    """
    name = NAMES[metadata.format]
    if not capabilities or metadata.format == "tensorrt":
        check_gpu(name, capabilities)
    library = require(MODULES[metadata.format], metadata.format, f"{name} engines are built by its Python package")
    messages = logger(library)
    builder = library.Builder(messages)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, messages)
    if not parser.parse(onnx_file.read_bytes()):
        reason = parser.get_error(0).desc() if parser.num_errors else messages.last
        raise GwsssError(f"{name} {library.__version__} cannot parse this network: {first_line(reason)}")
    parsed = _facts(network)
    _check(parsed, metadata, name)
    network.name = network_name(metadata)
    config = builder.create_builder_config()
    config.clear_flag(library.BuilderFlag.TF32)  # fp32 is fp32
    shapes = builder.create_optimization_profile()
    shapes.set_shape("images", *profile(metadata))
    if config.add_optimization_profile(shapes) < 0:
        raise GwsssError(f"{name} does not take the sizes {profile(metadata)}: {messages.last}")
    if metadata.format == "tensorrt-rtx":
        _aim(library, config, capabilities)
        plan = builder.build_serialized_network(network, config)
    else:
        plan = _with_timing_cache(library, builder, network, config, device)
    if plan is None:
        raise GwsssError(f"{name} {library.__version__} cannot build this network: {messages.last}")
    path.write_bytes(bytes(plan))
    return parsed


def build_by_torch_tensorrt(program: ExportedProgram, path: Path, metadata: Metadata) -> None:
    """Build a TensorRT engine from an exported program by torch-tensorrt's dynamo front end and write it to `path`.

    It knows no place for metadata, so they stand beside the file alone. Raises GwsssError as `build_engine`.
    """
    check_gpu("TensorRT", ())
    library = require("torch_tensorrt", "tensorrt", "this way to TensorRT needs torch-tensorrt")
    least, usually, largest = profile(metadata)
    images = library.Input(min_shape=least, opt_shape=usually, max_shape=largest, dtype=torch.float32, name="images")
    cache = timing_cache(library, torch.device("cuda"))
    cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        plan = library.dynamo.convert_exported_program_to_serialized_trt_engine(
            program, arg_inputs=[images], use_explicit_typing=True, disable_tf32=True, timing_cache_path=str(cache)
        )
    except Exception as error:
        reason = first_line(error)
        raise GwsssError(f"torch-tensorrt {library.__version__} cannot build this network: {reason}") from error
    path.write_bytes(bytes(plan))


def check_gpu(name: str, capabilities: Sequence[str]) -> None:
    """Raises GwsssError when there is no GPU to build for."""
    if name == "TensorRT" and capabilities:
        raise GwsssError("TensorRT builds for the GPU that is here; compute capabilities are for --format tensorrt-rtx")
    if not torch.cuda.is_available():
        if name == "TensorRT":
            raise GwsssError(
                "TensorRT builds an engine for the GPU that is here, and there is none; run this on the machine that "
                "shall use the engine, or use --format tensorrt-rtx or onnx"
            )
        raise GwsssError("there is no GPU to build for; name some, such as --compute-capabilities 8.6 8.9 12.0")


def network_name(metadata: Metadata) -> str:
    """The name that carries the metadata, where they fit; beside the engine they stand in any case."""
    name = f"{ENGINE_MARK}{metadata.to_json()}"
    return name if len(name) < LONGEST_NAME else ENGINE_MARK.strip()


def known_capabilities(library: ModuleType) -> list[str]:
    """Compute capabilities that this TensorRT-RTX can build for, such as 8.6."""
    names = [name.removeprefix("SM") for name in dir(library.ComputeCapability) if name.startswith("SM")]
    return sorted((f"{name[:-1]}.{name[-1]}" for name in names), key=lambda x: tuple(map(int, x.split("."))))


def timing_cache(library: ModuleType, device: torch.device) -> Path:
    """Where the times of kernels are kept, one file for each GPU and version."""
    gpu = torch.cuda.get_device_name(device).replace(" ", "-").replace("/", "-")
    return files.cache_folder() / "tensorrt" / f"{gpu}-{library.__name__}-{library.__version__}.timing"


def _facts(network: Any) -> Parsed:
    inputs = [network.get_input(number) for number in range(network.num_inputs)]
    outputs = [network.get_output(number) for number in range(network.num_outputs)]
    shapes = [{x.name: tuple(x.shape) for x in found} for found in (inputs, outputs)]
    return Parsed(shapes[0], shapes[1], network.num_layers)


def _check(parsed: Parsed, metadata: Metadata, name: str) -> None:
    """The parsed network is the one that was exported."""

    def side(span: Range) -> int:
        return -1 if span[0] != span[1] else span[0]

    group = () if metadata.group_size is None else (metadata.group_size,)
    wanted = (side(metadata.batch), *group, 3, side(metadata.height), side(metadata.width))
    if parsed.inputs != {"images": wanted} or tuple(parsed.outputs) != metadata.outputs or parsed.layers < 2:
        raise GwsssError(
            f"{name} parsed a network with inputs {parsed.inputs}, outputs {parsed.outputs} and {parsed.layers} "
            f"layers; expected images {wanted} and {', '.join(metadata.outputs)}"
        )


def _aim(library: ModuleType, config: Any, capabilities: Sequence[str]) -> None:
    known = known_capabilities(library)
    for value in capabilities:
        if value not in known:
            raise GwsssError(
                f"TensorRT-RTX {library.__version__} builds for compute capability {', '.join(known)}, not for {value}"
            )
    config.num_compute_capabilities = max(len(capabilities), 1)
    for number, value in enumerate(capabilities):
        config.set_compute_capability(getattr(library.ComputeCapability, f"SM{value.replace('.', '')}"), number)
    if not capabilities:
        config.set_compute_capability(library.ComputeCapability.CURRENT, 0)


def _with_timing_cache(library: ModuleType, builder: Any, network: Any, config: Any, device: str) -> Any:
    """The serialized engine; kernels that were timed before, by whatever export, are not timed again."""
    place = torch.device(device)
    file = timing_cache(library, place)
    with torch.cuda.device(place):
        cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
        if cache is None or not config.set_timing_cache(cache, False):  # damaged, or of another driver
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        plan = builder.build_serialized_network(network, config)
    if plan is not None:
        with files.atomic_path(file) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))
    return plan


def present_capability() -> tuple[str, ...]:
    """The compute capability of the GPU that is here; empty without one."""
    return (capability(torch.device("cuda")),) if torch.cuda.is_available() else ()
