"""torch.export and AOTInductor, the graph network in both, and files that would do harm."""

import contextlib
import copy
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from gwsss_fast import GroupClassifier, GroupGNN, GwsssError
from gwsss_fast.export.contents import kind_of, read_metadata
from gwsss_fast.export.deployed import deployed
from gwsss_fast.export.metadata import Metadata
from gwsss_fast.export.onnx_files import write_onnx
from gwsss_fast.export.programs import compile_package, export_program, save_program, traced_ranges
from gwsss_fast.export.runtimes import open_runtime
from gwsss_fast.models.external import External
from tests.export.networks import Exported, Nano, description, nano


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    metadata = description(nano(), format="torch-export", argmax=True)
    traced = export_program(deployed(nano(), metadata), metadata)
    save_program(traced, path, traced_ranges(traced, metadata))
    return path


def test_a_program_runs_as_eager_and_says_which_sizes_it_takes(program: Path) -> None:
    assert kind_of(program) == "torch-export"
    metadata = read_metadata(program)
    assert metadata.batch == (1, None)
    low, high = metadata.height
    assert (1 < low < 9, high) == (True, None)  # PyTorch traces no size of 1 inside
    runtime = open_runtime(program, "cpu")
    eager = deployed(nano(), metadata)
    for shape in ((1, 3, low, low), (2, 3, 33, 48), (1, 3, 129, 65)):
        images = torch.randn(shape)
        assert torch.equal(runtime(images), eager(images))
    with pytest.raises(GwsssError, match=f"height {low - 1} is not supported; this model takes {low} or more"):
        runtime(torch.randn(1, 3, low - 1, 33))


def test_bf16_and_fixed_sizes(tmp_path: Path) -> None:
    fixed = {"batch": (1, 1), "height": (33, 33), "width": (47, 47)}
    metadata = description(nano(), format="torch-export", precision="bf16", **fixed)
    traced = export_program(deployed(nano(), metadata), metadata)
    assert traced_ranges(traced, metadata) == metadata
    save_program(traced, tmp_path / "model.pt2", metadata)
    images = torch.randn(1, 3, 33, 47)
    found = open_runtime(tmp_path / "model.pt2", "cpu")(images)
    eager = deployed(nano(), replace(metadata, precision="fp32"))(images)
    assert found.dtype == torch.float32
    assert 0 < (found - eager).abs().max() < 0.05 * eager.abs().max()


class Groups(NamedTuple):
    model: GroupClassifier
    traced: torch.export.ExportedProgram
    metadata: Metadata


@pytest.fixture(scope="module")
def groups() -> Groups:
    """A classifier of groups of two; any batch and size."""
    torch.manual_seed(0)
    model = GroupClassifier(External(Nano(), "nano"), GroupGNN(8, 2, steps=1)).eval()
    metadata = description(nano(), task="group-classification", group_size=2, palette=((1, 2, 3), (4, 5, 6)))
    return Groups(model, export_program(deployed(model, metadata), metadata), metadata)


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_the_group_classifier(groups: Groups, format: str, tmp_path: Path) -> None:
    """Its own operations are replaced by plain ones."""
    model, traced, metadata = groups
    metadata = replace(metadata, format=format)
    assert not [node for node in traced.graph.nodes if "gwsss_fast" in str(node.target)]
    path = tmp_path / ("model.onnx" if format == "onnx" else "model.pt2")
    if format == "onnx":
        write_onnx(traced, path, metadata)
    else:
        save_program(traced, path, traced_ranges(traced, metadata))
    runtime = open_runtime(path, "cpu")
    exact = copy.deepcopy(model).double()
    for shape in ((1, 2, 3, 24, 40), (2, 2, 3, 33, 21)):
        images = torch.randn(shape)
        with torch.no_grad():
            eager, reference = model(images), exact(images.double())
        found = runtime.outputs(images)
        assert tuple(found) == ("logits", "initial_logits", "maps", "initial_maps")
        for name, value in found.items():
            right = getattr(reference, name)
            error, own = (float((x.double() - right).abs().max()) for x in (value, getattr(eager, name)))
            assert value.shape == right.shape
            assert error <= 2 * own + 2e-6 * float(right.abs().max()), name
    with pytest.raises(GwsssError, match=r"this model takes \(B, 2, 3, H, W\)"):
        runtime(torch.randn(1, 3, 3, 24, 40))


AOTI = {"format": "aoti", "device": "cpu", "batch": (1, 1), "height": (33, 33), "width": (47, 47)}


def test_packages_of_aotinductor_with_a_stand_in_for_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling takes g++ half a minute; the package around what it makes is the real one."""
    seen = {}

    def compiled(module: torch.nn.Module, images: tuple[Tensor], options: dict) -> list[str]:
        seen.update(options=options, shape=tuple(images[0].shape), logits=module(*images))
        (tmp_path / "x.wrapper.so").write_bytes(b"no library")
        return [str(tmp_path / "x.wrapper.so")]

    monkeypatch.setattr("torch._inductor.aot_compile", compiled)
    metadata, path = description(nano(), **AOTI), tmp_path / "model.pt2"
    compile_package(export_program(deployed(nano(), metadata), metadata), path, metadata, {})
    assert seen["shape"] == (1, 3, 33, 47)
    assert seen["options"]["aot_inductor.package"]
    assert kind_of(path) == "aoti"
    assert read_metadata(path) == metadata
    with pytest.raises(GwsssError, match=r"cannot load this package, which torch .* made"):
        open_runtime(path)
    with pytest.raises(GwsssError, match=r"was compiled for cpu, not cuda|sees no GPU"):
        open_runtime(path, "cuda")
    foreign = replace(metadata, versions={"cpu": "AVX9"})
    compile_package(export_program(deployed(nano(), metadata), metadata), path, foreign, {})
    with pytest.raises(GwsssError, match="compiled for a processor with AVX9, here is"):
        open_runtime(path)

    def broken(*arguments: object, **options: object) -> list[str]:
        raise RuntimeError("no g++")

    monkeypatch.setattr("torch._inductor.aot_compile", broken)
    with pytest.raises(GwsssError, match=r"no g\+\+.*C\+\+ compiler"):
        compile_package(export_program(deployed(nano(), metadata), metadata), path, metadata, {})


@pytest.mark.skipif("GWSSS_SLOW_TESTS" not in os.environ, reason="half a minute of g++; set GWSSS_SLOW_TESTS to run it")
def test_aotinductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    metadata, path = description(nano(), **AOTI), tmp_path / "model.pt2"
    traced = export_program(deployed(nano(), metadata), metadata)
    compile_package(traced, path, metadata, {"aot_inductor.compile_wrapper_opt_level": "O0"})
    images = torch.randn(1, 3, 33, 47)
    eager = deployed(nano(), metadata)(images)
    assert (open_runtime(path)(images) - eager).abs().max() <= 1e-5 * eager.abs().max()


def changed(source: Path, target: Path, change: Callable[[str, bytes], bytes], *more: tuple[str, bytes]) -> Path:
    """A copy of an archive with its records changed and others added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        top = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            new.writestr(name, change(name.partition("/")[2], old.read(name)))
        for name, content in more:
            new.writestr(f"{top}/{name}", content)
    return target


class Bomb:
    def __reduce__(self) -> tuple:
        return (open, ("exploded", "w"))


def in_graph(old: str, new: str) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if not name.startswith("models/"):
            return content
        assert old.encode() in content
        return content.replace(old.encode(), new.encode())

    return change


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_files_that_would_do_harm_are_not_opened(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    bomb, path = buffer.getvalue(), tmp_path / "bad.pt2"

    def same(name: str, content: bytes) -> bytes:
        return content

    def pickled_inputs(name: str, content: bytes) -> bytes:
        return bomb if name.startswith("data/sample_inputs/") else content

    def pickled_weights(name: str, content: bytes) -> bytes:
        return (
            content.replace(b'"use_pickle": false', b'"use_pickle":true') if name.endswith("config.json") else content
        )

    symbol = json.dumps("Symbol('")[1:-1]
    cases = [
        (pickled_inputs, (), "is a pickle of more than tensors"),
        (pickled_weights, (), "names a pickle"),
        (same, (("data/weights/model.pt", bomb),), "is a pickle"),
        (same, (("data/constants/opaque_obj_0", pickle.dumps(Bomb())),), "is a pickle"),
        (in_graph("torch.ops.aten.relu.default", "torch.load"), (), "it calls torch.load"),
        (in_graph(symbol, "open('exploded', 'w') or Symbol('"), (), "it evaluates"),
        (in_graph(symbol, "().__class__ or Symbol('"), (), "it evaluates"),
        (same, (("data/aotinductor/model/x.so", b""),), "an exported program and compiled code"),
    ]
    for change, more, words in cases:
        changed(program, path, change, *more)
        with pytest.raises(GwsssError, match=words):
            open_runtime(path, "cpu")
    assert not (tmp_path / "exploded").exists()
    graph = zipfile.ZipFile(program).read(f"{program.stem}/models/model.json")
    evil = graph.replace(b"torch.ops.aten.relu.default", b"torch.load")
    for more in (("models/model.json", evil), ("MODELS/model.json", evil)):  # PyTorch reads the first one that fits
        changed(program, path, same, more)
        with pytest.raises(GwsssError, match="holds a name twice"):
            open_runtime(path, "cpu")
    changed(program, path, lambda name, content: b"{" if name.startswith("models/") else content)
    with pytest.raises(GwsssError, match="is no JSON"):
        open_runtime(path, "cpu")
    changed(program, path, same)
    assert isinstance(open_runtime(path, "cpu")(torch.randn(1, 3, 33, 33)), Tensor)
    path.write_bytes(program.read_bytes()[:5000])
    with pytest.raises(GwsssError, match="damaged"):
        open_runtime(path)


def test_damage_anywhere_is_one_message(program: Path, tiny: Exported, tmp_path: Path) -> None:
    """Bytes are changed here and there; the file is refused with a reason, or does no harm."""
    random = np.random.default_rng(0)
    for source in (program, tiny.path):
        whole = source.read_bytes()
        for place in [*random.integers(0, len(whole), 12), *random.integers(len(whole) - 2000, len(whole), 12)]:
            content = bytearray(whole)
            content[place : place + 4] = random.bytes(4)
            (tmp_path / "damaged").write_bytes(content)
            with contextlib.suppress(GwsssError):
                open_runtime(tmp_path / "damaged", "cpu")


def test_a_checkpoint_is_told_apart(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "last.pt")
    assert kind_of(tmp_path / "last.pt") == "checkpoint"
    with pytest.raises(GwsssError, match="export it first"):
        open_runtime(tmp_path / "last.pt")
    torch.save({"model": {}}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert kind_of(tmp_path / "old.pt") == "checkpoint"
