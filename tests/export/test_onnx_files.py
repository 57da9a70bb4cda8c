"""ONNX against eager PyTorch: every size, both bodies, each option of the graph, 16 bits and int8."""

import copy
import os
from dataclasses import replace
from pathlib import Path

import onnx
import onnx.numpy_helper
import pytest
import torch
from PIL import Image

from gwsss_fast import DeepLabV2, GwsssError
from gwsss_fast.data.embedded.painting import render
from gwsss_fast.data.embedded.planning import plan_split
from gwsss_fast.data.images import read_image
from gwsss_fast.export.agreement import BOUNDS, compare
from gwsss_fast.export.contents import kind_of, read_metadata
from gwsss_fast.export.deployed import deployed
from gwsss_fast.export.onnx_files import check_onnx, quantise, write_onnx
from gwsss_fast.export.programs import export_program
from gwsss_fast.export.runtimes import open_runtime, prepare
from gwsss_fast.export.samples import Sample
from gwsss_fast.models import deeplab, vgg16
from tests.export.networks import Exported, description, exported, nano

SIZES = [(1, 1, 1), (1, 1, 64), (2, 2, 3), (1, 7, 9), (3, 33, 47), (1, 64, 65), (1, 321, 321), (1, 513, 513)]
SMALL_SIZES = [(1, 1, 1), (1, 2, 3), (1, 8, 9), (2, 33, 47), (1, 64, 97)]
TINY = 1e-6  # of the largest logit


def photographs() -> list[Image.Image]:
    """Real ones where GWSSS_TEST_DATA names a data set, else drawn ones."""
    found = sorted((Path(os.environ.get("GWSSS_TEST_DATA", "")) / "JPEGImages").glob("*.jpg"))[:6]
    if found:
        return [read_image(path) for path in found]
    return [Image.fromarray(render(scene)[0]) for scene in plan_split("val", 4, 0, 128)]


def within_tolerance(file: Exported, shape: tuple[int, int, int]) -> None:
    """err(ONNX) <= 2 err(eager) + tiny, both against float64."""
    batch, height, width = shape
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
    exact = copy.deepcopy(file.module).double()
    exact.dtype = torch.float64
    with torch.no_grad():
        reference = exact.network.aspp(exact.network.body(images.double()))
        eager = file.module(images)
    found = open_runtime(file.path, "cpu")(images)
    assert found.shape == eager.shape
    errors = [float((x.double() - reference).abs().max()) for x in (found, eager)]
    assert errors[0] <= 2 * errors[1] + TINY * float(reference.abs().max()), shape


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_every_size_of_a_dynamic_file(tiny: Exported, shape: tuple[int, int, int]) -> None:
    within_tolerance(tiny, shape)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 33, 47), (1, 321, 321)], ids=str)
def test_fixed_sizes(shape: tuple[int, int, int], tmp_path: Path) -> None:
    batch, height, width = shape
    network = DeepLabV2(3, "tiny").eval()
    fixed = description(network, batch=(batch, batch), height=(height, height), width=(width, width))
    file = exported(network, fixed, tmp_path / "fixed.onnx")
    within_tolerance(file, shape)
    (given,) = onnx.load(str(file.path), load_external_data=False).graph.input
    assert [x.dim_value for x in given.type.tensor_type.shape.dim] == [batch, 3, height, width]


def test_resnet101(resnet101: Exported) -> None:
    for shape in SMALL_SIZES:
        within_tolerance(resnet101, shape)
    graph = onnx.load(str(resnet101.path), load_external_data=False).graph
    pools = [node for node in graph.node if node.op_type == "MaxPool"]
    assert [x.i for node in pools for x in node.attribute if x.name == "ceil_mode"] == [1]
    assert sum(node.op_type == "Conv" for node in graph.node) == 108  # batch norm is folded
    assert not any(node.doc_string or node.metadata_props for node in graph.node)


def test_vgg16_of_a_few_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = [x if x == "M" else 8 for x in vgg16.cfgs["D"]]
    monkeypatch.setitem(vgg16.cfgs, "D", narrow)
    monkeypatch.setattr(vgg16.VGG16, "out_channels", 8)
    monkeypatch.setattr(deeplab, "FC_CHANNELS", 16)
    network = DeepLabV2(3, "vgg16").eval()
    metadata = description(network)
    assert metadata.height == (8, None)
    file = exported(network, metadata, tmp_path / "vgg16.onnx")
    for shape in [(1, 8, 8), (1, 15, 17), (2, 33, 71), (1, 129, 127)]:
        within_tolerance(file, shape)


def test_equal_pixels_on_photographs(tiny: Exported, resnet101: Exported) -> None:
    samples = [Sample(str(number), image) for number, image in enumerate(photographs())]
    small = [Sample(x.name, x.image.resize((97, 65))) for x in samples[:2]]
    for file, used in ((tiny, samples), (resnet101, small)):
        (scores,) = compare(file.module, [open_runtime(file.path, "cpu")], used, file.metadata).values()
        assert scores["pixels"] == sum(x.image.width * x.image.height for x in used)
        assert scores["pixel_agreement"] >= 0.999
        assert 0 < scores["logit_difference"] < 1e-4 * scores["logit_scale"]


def test_normalisation_resizing_and_argmax_inside_at_a_fixed_size(tmp_path: Path) -> None:
    network = nano()
    inside = description(network, normalise=True, argmax=True, resize=True, network_size=(33, 47), batch=(2, 2))
    file = exported(network, inside, tmp_path / "inside.onnx")
    assert read_metadata(file.path) == inside
    runtime = open_runtime(file.path, "cpu")
    image = photographs()[0].resize((61, 40))
    raw = prepare(image, inside).expand(2, -1, -1, -1)
    assert raw.max() > 100
    labels = runtime(raw)
    with torch.no_grad():
        assert labels.dtype == torch.int64
        assert torch.equal(labels, file.module(raw))
        plain = deployed(network, description(network))
        resized = torch.nn.functional.interpolate(prepare(image, description(network)), (33, 47), mode="bilinear")
        logits = torch.nn.functional.interpolate(plain(resized), (40, 61), mode="bilinear")
    assert (labels[0] == logits.argmax(1)[0]).float().mean() > 0.999
    with pytest.raises(GwsssError, match="batch 1 is not supported; this model takes 2"):
        runtime(raw[:1])


def test_16_bits(tmp_path: Path) -> None:
    network = nano()
    half = exported(copy.deepcopy(network), description(network, precision="fp16"), tmp_path / "half.onnx")
    images = torch.randn(1, 3, 21, 33)
    with torch.no_grad():
        eager = deployed(network, description(network))(images)
    found = open_runtime(half.path, "cpu")(images)
    assert found.dtype == torch.float32
    assert 0 < (found - eager).abs().max() < 0.01 * eager.abs().max()
    brain = description(network, precision="bf16", opset=22)
    exported(copy.deepcopy(network), brain, tmp_path / "brain.onnx")
    with pytest.raises(GwsssError, match="cannot run it on cpu in bf16"):
        open_runtime(tmp_path / "brain.onnx", "cpu")


def test_int8_keeps_the_head_in_floating_point(tiny: Exported, tmp_path: Path) -> None:
    images = photographs()
    metadata = replace(tiny.metadata, precision="int8")
    inputs = [prepare(image, metadata) for image in images[:2]]
    quantise(tiny.path, tmp_path / "int8.onnx", inputs, metadata)
    nodes = onnx.load(str(tmp_path / "int8.onnx")).graph.node
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) >= 5
    samples = [Sample(str(number), image) for number, image in enumerate(images)]
    (scores,) = compare(tiny.module, [open_runtime(tmp_path / "int8.onnx", "cpu")], samples, metadata).values()
    assert BOUNDS["int8"] - 0.15 < scores["pixel_agreement"] < 1
    makers = {output: node.op_type for node in nodes for output in node.output}
    sums = [{makers.get(x) for x in node.input} for node in nodes if node.op_type == "Add"]
    assert {"Conv"} in sums
    assert not any("DequantizeLinear" in inputs for inputs in sums)
    with pytest.raises(GwsssError, match="images to calibrate"):
        quantise(tiny.path, tmp_path / "none.onnx", [], metadata)


def test_the_calibration_data_is_what_the_ranges_come_from(tiny: Exported, tmp_path: Path) -> None:
    image, scales = torch.randn(1, 3, 33, 33), []
    for factor in (1.0, 10.0):
        quantise(tiny.path, tmp_path / "x.onnx", [factor * image], tiny.metadata)
        constants = {x.name: x for x in onnx.load(str(tmp_path / "x.onnx")).graph.initializer}
        scales.append(float(onnx.numpy_helper.to_array(constants["images_scale"])))
    assert scales[1] == pytest.approx(10 * scales[0], rel=1e-5)


def test_what_is_no_onnx_file_of_ours(tiny: Exported, tmp_path: Path) -> None:
    content = tiny.path.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(GwsssError, match="no model that this package reads"):
        kind_of(tmp_path / "cut.onnx")
    foreign = onnx.load(str(tiny.path))
    del foreign.metadata_props[:]
    onnx.save(foreign, str(tmp_path / "foreign.onnx"))
    with pytest.raises(GwsssError, match=r"no metadata of gwsss_fast in it.*foreign\.onnx\.json"):
        open_runtime(tmp_path / "foreign.onnx")
    foreign.graph.node[0].op_type = "Convolve"
    onnx.save(foreign, str(tmp_path / "broken.onnx"))
    with pytest.raises(GwsssError, match=r"onnx\.checker"):
        check_onnx(tmp_path / "broken.onnx", tiny.metadata)
    for text in (b"", b"no model at all", b"\x80\x00\x00"):
        (tmp_path / "nothing").write_bytes(text)
        with pytest.raises(GwsssError, match="nothing is no model"):
            kind_of(tmp_path / "nothing")
    with pytest.raises(GwsssError, match="does not exist"):
        kind_of(tmp_path / "missing.onnx")


def test_missing_libraries_say_what_to_install(tiny: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("onnxruntime", "onnxscript", "onnxruntime.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    words = r"pip install 'gwsss-fast\[export\]'"
    with pytest.raises(GwsssError, match=words):
        open_runtime(tiny.path)
    with pytest.raises(GwsssError, match=words):
        quantise(tiny.path, tmp_path / "x.onnx", [], tiny.metadata)
    network = nano()
    program = export_program(deployed(network, description(network)), description(network))
    with pytest.raises(GwsssError, match=words):
        write_onnx(program, tmp_path / "x.onnx", tiny.metadata)
