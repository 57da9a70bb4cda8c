"""torch.export and AOTInductor: one graph for every size that was asked for, as a program or as compiled code."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from gwsss_fast import ops
from gwsss_fast.errors import GwsssError, first_line
from gwsss_fast.export.deployed import Deployed, example_images
from gwsss_fast.export.metadata import KEY, Metadata, Range
from gwsss_fast.ops import dispatch

_ENDLESS = 1 << 30  # PyTorch writes an open end as a very large number


def export_program(module: Deployed, metadata: Metadata) -> ExportedProgram:
    """The graph of `module` in ATen operations, with the sizes of `metadata` fixed or symbolic.

    The graph network's own operations are replaced by what they mean in plain PyTorch, so that any machine with torch
    runs the program, and other formats know every operation. Raises GwsssError when PyTorch cannot trace the backbone.
    """
    device = next(module.parameters()).device
    images = example_images(metadata).to(device)
    spans = {0: metadata.batch, images.ndim - 2: metadata.height, images.ndim - 1: metadata.width}
    dims: dict[int, Any] = {axis: Dim.DYNAMIC for axis, span in spans.items() if span[0] != span[1]}
    if 0 in dims:
        dims[0] = Dim("batch", min=metadata.batch[0], max=metadata.batch[1])
    try:
        with torch.no_grad(), ops.backend("reference"), quiet():
            program = torch.export.export(module, (images,), dynamic_shapes={"images": dims}, strict=False)
            return program if metadata.task == "segmentation" else program.run_decompositions(_plain_operations())
    except Exception as error:
        raise GwsssError(
            f"torch.export cannot trace this network for batch {span_words(metadata.batch)}, height "
            f"{span_words(metadata.height)}, width {span_words(metadata.width)} ({first_line(error)}); "
            "try fixed sizes"
        ) from error


def save_program(program: ExportedProgram, path: Path, metadata: Metadata) -> None:
    """Write a .pt2 of torch.export, the metadata in it."""
    with quiet():
        torch.export.save(program, path, extra_files={f"{KEY}.json": metadata.to_json()})


def compile_package(program: ExportedProgram, path: Path, metadata: Metadata, options: dict[str, Any]) -> None:
    """Compile with AOTInductor for the device of the program's weights and write a .pt2 with the metadata in it.

    options: of torch._inductor, beside those that make a package. Raises GwsssError when the compiler fails, such as
    for lack of g++.
    """
    from torch.export.pt2_archive._package import package_pt2

    settings = {"aot_inductor.package": True, "freezing": True, **options}
    images = program.example_inputs[0] if program.example_inputs else ()
    try:
        with torch.no_grad(), quiet():
            made = torch._inductor.aot_compile(program.module(), images, options=settings)
    except Exception as error:
        raise GwsssError(
            f"AOTInductor cannot compile this network ({first_line(error)}); it needs a C++ compiler, see "
            "`gwsss-fast doctor`, or use --format torch-export"
        ) from error
    package_pt2(path, aoti_files=made, extra_files={f"{KEY}.json": metadata.to_json()})  # type: ignore[arg-type]


def span_words(span: Range) -> str:
    """A range of sizes in words."""
    low, high = span
    return str(low) if low == high else f"{low} to {'any' if high is None else high}"


@contextmanager
def quiet() -> Iterator[None]:
    """Without PyTorch's warnings and log lines about its own insides."""
    names = ["torch.export", "torch.onnx", "torch._inductor", "torch._dynamo", "torch.utils.cpp_extension"]
    names += ["onnxscript", "onnx_ir", "root"]
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def traced_ranges(program: ExportedProgram, metadata: Metadata) -> Metadata:
    """`metadata` with the ranges of sizes that the program itself checks its input for."""
    entry = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == "images")
    shape = entry.meta["val"].shape
    found: dict[str, Any] = {}
    for name, axis in (("batch", 0), ("height", len(shape) - 2), ("width", len(shape) - 1)):
        low, high = getattr(metadata, name)
        if isinstance(shape[axis], torch.SymInt):
            limits = program.range_constraints[shape[axis].node.expr]
            low = max(low, int(limits.lower))
            largest = None if limits.upper >= _ENDLESS else int(limits.upper)
            high = min((x for x in (high, largest) if x is not None), default=None)
        found[name] = (low, high)
    return replace(metadata, **found)


def _plain_operations() -> dict[Any, Any]:
    """Decompositions of this package's operations, for `run_decompositions`; all others stay as they are."""
    own = torch.ops.gwsss_fast

    def co_attention(p: Tensor, q: Tensor, g: Tensor, reverse: str, backend: str) -> tuple[Tensor, Tensor]:
        """As in `reference`, without writing into tensors; nobody reads the second output without a backward pass."""
        nodes, messages = range(g.shape[1]), []
        for i in nodes:
            message = torch.zeros_like(g[:, i], dtype=torch.float32)
            for j in nodes:
                if i != j:
                    message = message + ops.edge_scores(p, q, i, j, reverse).softmax(-1) @ g[:, j].float()
            messages.append(message.to(g.dtype))
        return torch.stack(messages, 1), g.new_zeros(g.shape[0], g.shape[1], g.shape[1], g.shape[2])

    def conv_gru(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor, backend: str, keep: bool = True) -> Any:
        out, *gates = dispatch.kernel("conv_gru", "reference").forward(m, h, weight, bias, keep)
        return out.contiguous(memory_format=torch.channels_last), *gates

    def attention(*arguments: Any) -> Any:
        return dispatch.kernel("attention", "reference").forward(*arguments[:-1])

    def graph_dropout(*arguments: Any) -> Any:
        return dispatch.kernel("graph_dropout", "reference").forward(*arguments[:-1])

    return {
        own.co_attention.default: co_attention,
        own.attention.default: attention,
        own.conv_gru.default: conv_gru,
        own.graph_dropout.default: graph_dropout,
    }
