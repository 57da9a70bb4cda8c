"""TensorRT-RTX engines built without a GPU; TensorRT by stand-ins for its packages, GPU and driver."""

import contextlib
import ctypes
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gwsss_fast import GwsssError, predict
from gwsss_fast.export import build_engines, engines
from gwsss_fast.export.build_engines import build_by_torch_tensorrt, build_engine, profile
from gwsss_fast.export.contents import kind_of, read_metadata
from gwsss_fast.export.deployed import deployed
from gwsss_fast.export.metadata import Metadata, write_beside
from gwsss_fast.export.onnx_files import quantise
from gwsss_fast.export.programs import export_program
from gwsss_fast.export.runtimes import open_runtime
from tests.command_line import fails
from tests.export.networks import Exported, description, exported, nano

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this says what happens without a GPU")
SPANS = {"batch": (1, 8), "height": (33, 513), "width": (33, 513)}


def engine_metadata(metadata: Metadata, format: str, *capabilities: str) -> Metadata:
    return replace(metadata, format=format, device="cuda", compute_capabilities=capabilities, **SPANS)


@needs_no_gpu
def test_an_engine_of_resnet101_for_named_cards(
    resnet101: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    metadata = engine_metadata(resnet101.metadata, "tensorrt-rtx", "8.6", "12.0")
    path = tmp_path / "model.engine"
    parsed = build_engine(resnet101.path, path, metadata, metadata.compute_capabilities)
    assert parsed.inputs == {"images": (-1, 3, -1, -1)}
    assert parsed.outputs == {"logits": (-1, 3, -1, -1)}
    assert parsed.layers == 245  # 108 convolutions, 100 ReLU, 36 sums, 1 pooling
    assert path.stat().st_size > 4 * sum(x.numel() for x in resnet101.module.parameters())
    assert kind_of(path) == "tensorrt-rtx"
    assert read_metadata(path) == metadata
    with pytest.raises(GwsssError, match="a TensorRT-RTX engine needs an NVIDIA GPU and driver; there is none"):
        open_runtime(path)
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    status = predict.main([str(tmp_path / "image.png"), "--model", str(path), "--output", str(tmp_path / "masks")])
    fails(capsys, status, "needs an NVIDIA GPU and driver")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    network = nano()
    return exported(network, description(network), tmp_path_factory.mktemp("small") / "model.onnx")


@needs_no_gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_16_bits_with_all_options_in_the_graph(precision: str, tmp_path: Path) -> None:
    """The types of the ONNX file are those of the engine: networks are strongly typed."""
    pytest.importorskip("tensorrt_rtx")
    options = {"normalise": True, "argmax": True, "precision": precision, "opset": 22}
    file = exported(nano(), description(nano(), **options), tmp_path / "model.onnx")
    metadata = engine_metadata(file.metadata, "tensorrt-rtx", "8.9")
    parsed = build_engine(file.path, tmp_path / "model.engine", metadata, ("8.9",))
    assert parsed.outputs == {"labels": (-1, -1, -1)}


@needs_no_gpu
def test_int8_is_written_as_the_parser_wants_it(small: Exported, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    metadata = replace(engine_metadata(small.metadata, "tensorrt-rtx", "8.9"), precision="int8")
    quantise(small.path, tmp_path / "int8.onnx", [torch.randn(1, 3, 33, 33)], metadata)
    parsed = build_engine(tmp_path / "int8.onnx", tmp_path / "model.engine", metadata, ("8.9",))
    assert parsed.layers >= 8  # with those that quantise the images and the weights


@needs_no_gpu
def test_what_cannot_be_built(small: Exported, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "model.engine"
    metadata = engine_metadata(small.metadata, "tensorrt-rtx")
    with pytest.raises(GwsssError, match=r"builds for compute capability 7\.5, .*12\.0.*, not for 9\.0"):
        build_engine(small.path, path, metadata, ("9.0",))
    with pytest.raises(GwsssError, match="--compute-capabilities"):
        build_engine(small.path, path, metadata)
    with pytest.raises(GwsssError, match="give --height LEAST:LARGEST"):
        profile(replace(metadata, height=(33, None)))
    with pytest.raises(GwsssError, match=r"expected images .* and labels"):
        build_engine(small.path, path, replace(metadata, argmax=True), ("8.6",))
    (tmp_path / "broken.onnx").write_bytes(small.path.read_bytes()[:300])
    with pytest.raises(GwsssError, match="cannot parse this network"):
        build_engine(tmp_path / "broken.onnx", path, metadata, ("8.6",))
    with pytest.raises(GwsssError, match="TensorRT builds an engine for the GPU that is here, and there is none"):
        build_engine(small.path, path, replace(metadata, format="tensorrt"))
    assert not path.exists()


class StandIn(ModuleType):
    """As much of `tensorrt` as is used: an engine is its network's name, and gives the sum of each image's planes."""

    __version__ = "10.0"

    class ILogger:
        def __init__(self) -> None: ...

    class NetworkDefinitionCreationFlag:
        STRONGLY_TYPED = 1

    class BuilderFlag:
        TF32 = "tf32"

    class Builder:
        def __init__(self, logger: object) -> None: ...

        def create_network(self, flags: int) -> SimpleNamespace:
            assert flags == 2
            images = SimpleNamespace(name="images", shape=(-1, 3, -1, -1))
            logits = SimpleNamespace(name="logits", shape=(-1, 3, -1, -1))
            entries = {"get_input": lambda number: images, "get_output": lambda number: logits}
            return SimpleNamespace(num_inputs=1, num_outputs=1, num_layers=5, name="", **entries)

        def create_builder_config(self) -> SimpleNamespace:
            config = SimpleNamespace(profiles=[], cleared=[])
            config.clear_flag = config.cleared.append
            config.add_optimization_profile = lambda shapes: config.profiles.append(shapes) or 0
            config.create_timing_cache = lambda content: SimpleNamespace(serialize=lambda: content + b"+times")
            config.set_timing_cache = lambda cache, mismatch: b"damaged" not in cache.serialize() and not mismatch
            return config

        def create_optimization_profile(self) -> SimpleNamespace:
            shapes = SimpleNamespace(of={})
            shapes.set_shape = lambda name, *values: shapes.of.update({name: values})
            return shapes

        def build_serialized_network(self, network: SimpleNamespace, config: SimpleNamespace) -> bytes:
            assert config.cleared == ["tf32"]
            assert config.profiles[0].of == {"images": ((1, 3, 33, 33), (1, 3, 321, 321), (8, 3, 513, 513))}
            return b"ftrt" + network.name.encode() + b"\0"

    class OnnxParser:
        def __init__(self, network: object, logger: object) -> None: ...

        def parse(self, content: bytes) -> bool:
            return True

    class Runtime:
        def __init__(self, logger: object) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> SimpleNamespace | None:
            if b"\0" not in content:
                self.logger.log(SimpleNamespace(name="ERROR"), "the version does not match")
                return None
            names = ["images", "logits"]
            return SimpleNamespace(
                num_io_tensors=2,
                get_tensor_name=names.__getitem__,
                get_tensor_mode=lambda name: SimpleNamespace(name="INPUT" if name == "images" else "OUTPUT"),
                get_tensor_dtype=lambda name: SimpleNamespace(name="FLOAT"),
                create_execution_context=StandInContext,
            )


class StandInContext:
    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[2] != 40

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], 3, 1, 1)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        given, made = (
            np.ctypeslib.as_array(ctypes.cast(self.addresses[name], ctypes.POINTER(ctypes.c_float)), shape)
            for name, shape in (("images", self.shape), ("logits", self.get_tensor_shape("logits")))
        )
        made[:] = given.sum((2, 3), keepdims=True)
        return True


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A GPU that is none, and TensorRT that does nothing."""
    monkeypatch.setenv("GWSSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tensorrt", StandIn("tensorrt"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA None/1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    waits: list[object] = []
    stream = SimpleNamespace(cuda_stream=7, wait_stream=waits.append, synchronize=waits.pop)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "PyTorch's")
    return sys.modules["tensorrt"]


def test_tensorrt_with_stand_ins(small: Exported, tmp_path: Path, gpu: ModuleType) -> None:
    metadata = engine_metadata(small.metadata, "tensorrt", "8.6")
    path, cache = tmp_path / "model.engine", tmp_path / "cache/tensorrt/NVIDIA-None-1-tensorrt-10.0.timing"
    for kept in (b"+times", b"+times+times"):
        assert build_engine(small.path, path, metadata).layers == 5
        assert cache.read_bytes() == kept
    cache.write_bytes(b"damaged")
    build_engine(small.path, path, metadata)
    assert cache.read_bytes() == b"+times"
    assert kind_of(path) == "tensorrt"
    assert read_metadata(path) == metadata
    runtime = open_runtime(path)
    assert runtime.name == "TensorRT 10.0, NVIDIA None/1"
    runtime.device = torch.device("cpu")
    images = torch.randn(2, 3, 33, 65)
    assert torch.allclose(runtime(images), images.sum((2, 3), keepdim=True), atol=1e-4)
    with pytest.raises(GwsssError, match="outside of what the engine was built for"):
        runtime(torch.randn(1, 3, 40, 65))
    with pytest.raises(GwsssError, match="height 32 is not supported; this model takes 33 to 513"):
        runtime(torch.randn(1, 3, 32, 65))
    path.write_bytes(path.read_bytes()[:-1])
    words = r"cannot read this engine \(the version does not match\).*for compute capability 8\.6, here is 8\.6"
    with pytest.raises(GwsssError, match=words):
        open_runtime(path)
    with pytest.raises(GwsssError, match="compute capabilities are for --format tensorrt-rtx"):
        build_engine(small.path, path, metadata, ("8.6",))


@needs_no_gpu
def test_the_calls_are_those_of_the_real_interface(
    small: Exported, tmp_path: Path, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bindings of TensorRT-RTX in place of TensorRT's: they have the same names, and need no card.

    Timing caches are deprecated there and empty, but can be made, set and written.
    """
    library = pytest.importorskip("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    metadata, path = engine_metadata(small.metadata, "tensorrt", "8.6"), tmp_path / "model.engine"
    for _ in range(2):
        assert build_engine(small.path, path, metadata).outputs == {"logits": (-1, 3, -1, -1)}
    (cache,) = (tmp_path / "cache/tensorrt").iterdir()
    assert cache.stat().st_size > 0
    assert read_metadata(path) == metadata
    source = Path(engines.__file__).read_text()
    classes = {"runtime": library.Runtime, "engine": library.ICudaEngine, "context": library.IExecutionContext}
    calls = set(re.findall(r"self\.(runtime|engine|context)\.(\w+)", source))
    assert len(calls) >= 9
    for owner, name in calls:
        assert hasattr(classes[owner], name), name
    assert set(engines.DTYPES) <= set(library.DataType.__members__)
    assert "INPUT" in library.TensorIOMode.__members__
    assert {"ERROR", "INTERNAL_ERROR", "WARNING"} <= set(library.ILogger.Severity.__members__)


def test_libraries_that_are_missing(
    small: Exported, tmp_path: Path, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = engine_metadata(small.metadata, "tensorrt", "8.6")
    build_engine(small.path, tmp_path / "model.engine", metadata)
    for name in ("tensorrt", "torch_tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    rtx = replace(metadata, format="tensorrt-rtx")
    program = export_program(deployed(nano(), small.metadata), small.metadata)
    for extra, call in {
        "tensorrt": lambda: open_runtime(tmp_path / "model.engine"),
        "tensorrt-rtx": lambda: build_engine(small.path, tmp_path / "x", rtx, ("8.6",)),
        "tensorrt]": lambda: build_by_torch_tensorrt(program, tmp_path / "x", metadata),
    }.items():
        with pytest.raises(GwsssError, match=rf"pip install 'gwsss-fast\[{extra}"):
            call()


def test_torch_tensorrt_with_a_stand_in(
    small: Exported, tmp_path: Path, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine has no metadata in it, so those beside it count."""
    seen = {}

    def convert(program: object, **options: object) -> bytes:
        seen.update(options)
        return b"ftrt"

    library = ModuleType("torch_tensorrt")
    library.__version__ = "2.14"
    library.Input = SimpleNamespace
    library.dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=convert)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", library)
    metadata, path = engine_metadata(small.metadata, "tensorrt", "8.6"), tmp_path / "model.engine"
    build_by_torch_tensorrt(export_program(deployed(nano(), small.metadata), small.metadata), path, metadata)
    (images,) = seen["arg_inputs"]
    assert (images.min_shape, images.opt_shape, images.max_shape) == profile(metadata)
    assert Path(seen["timing_cache_path"]).name == "NVIDIA-None-1-torch_tensorrt-2.14.timing"
    write_beside(path, metadata)
    assert read_metadata(path) == metadata
    assert build_engines.present_capability() == ("8.6",)
