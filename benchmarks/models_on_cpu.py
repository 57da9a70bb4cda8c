"""`python -m benchmarks.models_on_cpu`: whole models on the CPU, and the memory of a GroupGNN step of many positions.

A training step of the group classifier (VGG16, one group of 4 images at 224 pixels) and DeepLab-V2 (ResNet-101, 321
pixels) with random weights: plain PyTorch in float32 against what this package does, one call of each in turn, each
checked before it is timed. The memory is what a process grows by at its peak in one step of 4 images of 56x56
positions, 512 channels. Lines are appended to results/cpu.jsonl. It takes some minutes on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import RESULTS
from benchmarks.harness import group_step, records
from benchmarks.harness.checking import Expected
from benchmarks.harness.memory import growth, in_own_process
from benchmarks.harness.records import Record
from benchmarks.harness.sizes import Size
from benchmarks.harness.timing import interleave, wall_clock
from benchmarks.on_cpu import FIRST, timed_lines
from gwsss_fast import DeepLabV2, GroupClassifier, GroupGNN, group_loss, ops
from gwsss_fast.models.backbones import build_backbone

MANY = Size("many positions", 1, 4, 56, 56, 512, 128)
VERSIONS = {
    FIRST: (True, torch.float32),
    "auto float32": (False, torch.float32),
    "auto bfloat16": (False, torch.bfloat16),
}
"""Whether the equations run in plain PyTorch, and the dtype of autocast."""
COMPILED = "compiled float32"


def classifier_step(
    eager: bool, dtype: torch.dtype, backbone: str = "vgg16", size: int = 224, compiled: bool = False
) -> Callable[[], list[Tensor]]:
    """Loss and gradients of a step; every draw of graph dropout takes the importance map, so that all do the same.

    compiled: model and loss by torch.compile.
    """
    torch.manual_seed(0)
    body = build_backbone(backbone, "none")
    gnn = GroupGNN(512, 20, drop_rate=group_step.DROP_RATE, graph_gradient="full")
    images, labels = torch.randn(1, 4, 3, size, size), torch.randint(0, 2, (1, 4, 20)).float()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    model, images = GroupClassifier(body, gnn).to(wide).train(), images.to(wide)
    mixed = dtype == torch.bfloat16

    def forward() -> Tensor:
        return group_loss(model(images), labels)

    measured = torch.compile(forward) if compiled else forward

    def run() -> list[Tensor]:
        with group_step.functions(group_step.EAGER) if eager else nullcontext():
            with torch.autocast("cpu", dtype=torch.bfloat16) if mixed else nullcontext():
                loss = measured()
            # What the loss hangs on least indirectly and most: the graph's readout and the first convolution.
            inputs = [*model.gnn.parameters(), next(model.backbone.parameters())]
            return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    return run


def segmenter(eager: bool, dtype: torch.dtype, body: str = "resnet101", size: int = 321) -> Callable[[], list[Tensor]]:
    """The logits of an image. eager: in PyTorch's usual memory format."""
    torch.manual_seed(0)
    model, image = DeepLabV2(21, body).eval(), torch.randn(1, 3, size, size)
    if dtype == torch.float64:
        model, image = model.double(), image.double()
    if eager:
        model = model.to(memory_format=torch.contiguous_format)
    mixed = dtype == torch.bfloat16

    def run() -> list[Tensor]:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16) if mixed else nullcontext():
            features = image if eager else image.contiguous(memory_format=torch.channels_last)
            return [model.aspp(model.body(features)).float()]

    return run


def measure(
    name: str, build: Callable[..., Callable[[], list[Tensor]]], rounds: int, compiled: bool = False, **options: object
) -> list[Record]:
    """Lines of one model. One that is wrong has no time but a reason. compiled: also the equations by torch.compile."""
    with ops.backend("reference"):
        exact = build(False, torch.float64, **options)()
    calls, lines = {}, []
    for version, (eager, dtype) in VERSIONS.items():
        plain = build(True, dtype, **options)()
        function = build(eager, dtype, **options)
        failures = Expected(exact, plain, 1, dtype).failures(function(), group_step.STEP_FACTOR)
        if failures:
            lines.append({"operation": name, "version": version, "ours": not eager, "reason": f"wrong: {failures[0]}"})
        else:
            calls[version] = [function]
    if compiled:
        calls[COMPILED] = [build(True, torch.float32, compiled=True, **options)]
        calls[COMPILED][0]()  # compiles
    times = interleave(calls, wall_clock, rounds)
    return lines + [
        {**line, "ours": line["version"] not in (FIRST, COMPILED)} for line in timed_lines({"operation": name}, times)
    ]


def memory(version: str, size: Size = MANY) -> float:
    """MiB that a process grows by in a GroupGNN step."""
    return in_own_process(f"grown({version!r}, {size!r})", "benchmarks.models_on_cpu")


def grown(version: str, size: Size) -> float:
    """What `memory` measures, in the process that it starts (Linux)."""
    eager, dtype = VERSIONS[version]
    with group_step.functions(group_step.EAGER) if eager else nullcontext():
        group_step.build(Size("warm", 1, 2, 4, 4, 64, 16, steps=1), dtype, "cpu").run()  # what is loaded in any case
        return growth(group_step.build(size, dtype, "cpu").run)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 1 where one of our versions is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models_on_cpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to which cpu.jsonl is appended")
    options = parser.parse_args(arguments)
    console, load = Console(), os.getloadavg()[0]
    lines = measure("classifier step, VGG16, 4 x 224", classifier_step, options.rounds, compiled=True)
    lines += measure("DeepLab-V2 ResNet-101, 321", segmenter, options.rounds)
    needed = {version: memory(version) for version in VERSIONS}
    lines += [{"operation": "GroupGNN step, N=3136, memory", "version": x, "mib": mib} for x, mib in needed.items()]
    table = Table("model", "version", "ms", "faster than eager float32", "MiB", title=f"load {load:.1f}")
    for line in lines:
        words = (line.get("reason", "")[:40] or f"{line['p50_ms']:.0f}") if "mib" not in line else "-"
        faster, mib = line.get("faster"), line.get("mib")
        table.add_row(
            *(line["operation"], line["version"], words, "-" if faster is None else f"{faster:.2f}"),
            "-" if mib is None else f"{mib:.0f}",
        )
    console.print(table)
    about = {**records.environment("cpu"), "load": load}
    records.append(options.output / "cpu.jsonl", [{**about, **line} for line in lines])
    return int(any(line.get("ours") and "reason" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
