"""ONNX files: from an exported program, checked, with the metadata in them; int8 by ONNX Runtime's quantiser."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from gwsss_fast.errors import GwsssError, first_line
from gwsss_fast.export.metadata import KEY, Metadata
from gwsss_fast.export.programs import quiet
from gwsss_fast.export.runtimes import require

OPSET = 18
PURPOSE = "ONNX files are written by PyTorch with the help of onnxscript"
QUANTISED = ["Conv", "MaxPool", "Add"]


def write_onnx(program: ExportedProgram, path: Path, metadata: Metadata) -> None:
    """Write `program` as one ONNX file, and check it.

    Raises GwsssError when a library is missing or an operation of the network has no ONNX counterpart.
    """
    require("onnxscript", "export", PURPOSE)
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=metadata.opset or OPSET,
                output_names=list(metadata.outputs),
                verbose=False,
            )
    except Exception as error:
        reason = first_line(error)
        raise GwsssError(f"this network cannot be written as ONNX ({reason}); try --format torch-export") from error
    assert made is not None
    model = made.model
    _forget_sources(model)
    model.metadata_props[KEY] = metadata.to_json()
    model.producer_name, model.producer_version = "gwsss_fast", metadata.versions.get("gwsss_fast", "")
    made.save(str(path), external_data=False)
    check_onnx(path, metadata)


def _forget_sources(model: Any) -> None:
    """Drop the exporter's notes on where in which Python file an operation came from."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in [*graph.inputs, *graph.initializers.values()]:
            value.metadata_props.clear()


def check_onnx(path: Path, metadata: Metadata) -> None:
    """onnx.checker with shape inference, and the names of inputs and outputs. Raises GwsssError naming the fault."""
    onnx = require("onnx", "export", "ONNX files are checked by onnx")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise GwsssError(f"{path.name} does not pass onnx.checker: {first_line(error)}") from error
    graph = onnx.load(str(path), load_external_data=False).graph
    names = [x.name for x in graph.input], [x.name for x in graph.output]
    if names != (["images"], list(metadata.outputs)):
        raise GwsssError(f"{path.name} has the inputs and outputs {names}; expected images and {metadata.outputs}")


def quantise(source: Path, path: Path, images: Iterable[Tensor], metadata: Metadata) -> None:
    """Static int8 quantisation of an ONNX file: symmetric, weights by channel, activations by their largest values.

    images: of calibration, each an input of the network. The last convolutions and their sum stay in fp32: classes are
    told apart there, and they cost little. Raises GwsssError when a library is missing or there is no image.
    """
    library = require("onnxruntime.quantization", "export", "int8 is made by ONNX Runtime's quantiser")
    onnx = require("onnx", "export", "int8 is made from an ONNX file")
    given = iter(images)
    first = next(given, None)
    if first is None:
        raise GwsssError("int8 needs images to calibrate with; give --calibration FOLDER")

    class Reader(library.CalibrationDataReader):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            self.rest = itertools.chain([first], given)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.rest, None)
            return None if image is None else {"images": image.numpy()}

    with tempfile.TemporaryDirectory() as folder, quiet():
        plain = Path(folder) / "plain.onnx"
        model = onnx.load(str(source))
        onnx.save(model, str(plain))
        library.quantize_static(
            str(plain),
            str(path),
            Reader(),
            quant_format=library.QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=_left_out(model),
            per_channel=True,
            activation_type=library.QuantType.QInt8,
            weight_type=library.QuantType.QInt8,
            # TensorRT takes biases in floating point alone; ONNX Runtime needs them in whole numbers to be fast.
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": metadata.format == "onnx",
            },
        )
    check_onnx(path, metadata)


def _left_out(model: Any) -> list[str]:
    """Names of the head's last convolutions and all behind them, and of additions of a constant (normalisation)."""
    constants = {x.name for x in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    found = [x.name for x in model.graph.node if x.op_type == "Add" and constants & set(x.input)]
    waiting = [x.name for x in model.graph.output]
    seen = set(waiting)
    while waiting:
        node = makers.get(waiting.pop())
        if node is None:
            continue
        found.append(node.name)
        before = [] if node.op_type == "Conv" else [x for x in node.input if x not in seen]
        waiting += before
        seen.update(before)
    return found
