"""`python -m benchmarks.deployment`: DeepLab-V2 in every format and runtime of deployment that is here, in turn.

The network (ResNet-101, random weights) is exported once in each format for any size and once at a fixed size for
AOTInductor, and runs on a GPU where there is one, else on the CPU. A version has a time after its logits have come as
near to eager float32 as `NEAR` wants; the share of equal pixels stands beside it. On a GPU also torch.compile, and the
engines that can be built for it. Lines are appended to results/deployment.jsonl. It takes some minutes on an idle
machine; the table says how busy it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import RESULTS
from benchmarks.harness import records
from benchmarks.harness.records import Record
from benchmarks.harness.timing import Call, EventTimer, Reading, interleave
from benchmarks.on_cpu import FIRST
from gwsss_fast import DeepLabV2, GwsssError
from gwsss_fast.data.palette import voc_palette
from gwsss_fast.data.transforms import MEAN, STD
from gwsss_fast.export import build_engines, onnx_files, programs
from gwsss_fast.export.deployed import DeployedSegmenter, deployed, least_side
from gwsss_fast.export.metadata import Metadata, weights_checksum
from gwsss_fast.export.runtimes import open_runtime, require

CLASSES = 21
NEAR = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1, "int8": 0.3}
"""How far logits may be from eager float32, as a part of the largest."""
Version = Callable[[Tensor], Tensor]
NUMBERS = {"p50_ms": 1, "cpu_ms": 1, "images_per_second": 2, "faster": 2}
"""Columns of the table and their decimals."""
ON_CPU = (("onnx", "fp32"), ("onnx", "int8"), ("torch-export", "fp32"), ("torch-export", "bf16"))
ON_GPU = (("onnx", "fp32"), ("onnx", "fp16"), ("torch-export", "fp16"), ("tensorrt", "fp16"), ("tensorrt-rtx", "fp16"))
PACKAGES = (("aoti", "fp32"), ("aoti", "bf16"))


def network(body: str) -> DeepLabV2:
    """Random weights, the branches of a ResNet damped so that a hundred layers do not blow up."""
    torch.manual_seed(0)
    model = DeepLabV2(CLASSES, body)
    for name, layer in model.named_modules():
        if name.endswith("bn3"):
            torch.nn.init.constant_(layer.weight, 0.2)  # type: ignore[arg-type]
    return model.eval()


def description(model: DeepLabV2, format: str, precision: str, device: str) -> Metadata:
    """Any size; engines from 33 to 513 pixels, up to 8 images."""
    engine = format.startswith("tensorrt")
    low = least_side(model.body)
    sides = (33, 513) if engine else (low, None)
    return Metadata(
        format=format,
        task="segmentation",
        classes=tuple(f"class {number}" for number in range(1, CLASSES)),
        palette=tuple(tuple(x) for x in voc_palette()[:CLASSES].tolist()),
        mean=MEAN,
        std=STD,
        weights_sha256=weights_checksum(model.state_dict()),
        batch=(1, 8) if engine else (1, None),
        height=sides,
        width=sides,
        precision=precision,
        device="cuda" if engine else device if format == "aoti" else "any",
        versions={"torch": torch.__version__},
    )


def exported(body: str, format: str, precision: str, images: Tensor, folder: Path, device: str) -> Version:
    """The network in one format, opened again. Raises GwsssError when that cannot be had here."""
    model = network(body)
    metadata = description(model, format, precision, device)
    if format == "aoti":
        batch, _, height, width = images.shape
        metadata = replace(metadata, batch=(batch, batch), height=(height, height), width=(width, width))
    path = folder / f"{precision}-{images.shape[-1]}.pt2"
    module = deployed(model, metadata).to(device if format in ("aoti", "torch-export") else "cpu")
    program = programs.export_program(module, metadata)
    if format == "torch-export":
        metadata = programs.traced_ranges(program, metadata)
        programs.save_program(program, path, metadata)
    elif format == "aoti":
        programs.compile_package(program, path, metadata, {})
    else:
        path = folder / f"{'fp32' if precision == 'int8' else precision}-{images.shape[-1]}.onnx"
        if not path.is_file():
            onnx_files.write_onnx(program, path, metadata)
        if precision == "int8":
            plain, path = path, folder / "int8.onnx"
            onnx_files.quantise(plain, path, [images.cpu()[:1]], metadata)
        if format != "onnx":
            engine = folder / f"{format}.engine"
            build_engines.build_engine(path, engine, metadata)
            path = engine
    return open_runtime(path, device)


def versions(body: str, images: Tensor, folder: Path, packages: bool) -> dict[tuple[str, str], Version | str]:
    """By name and precision what runs here, or why it does not; eager float32 comes first."""
    device = images.device.type
    eager = DeployedSegmenter(network(body), description(network(body), "onnx", "fp32", device)).to(device).eval()
    found: dict[tuple[str, str], Version | str] = {(FIRST, "fp32"): eager}
    if device == "cuda":
        half = deployed(network(body), description(network(body), "onnx", "fp16", device)).to(device)
        found[("torch.compile", "fp16")] = torch.compile(half)
    wanted = [*(ON_GPU if device == "cuda" else ON_CPU), *(PACKAGES if packages else ())]
    for format, precision in wanted:
        try:
            if format == "onnx" and device == "cuda":
                require("onnxruntime", "export", "ONNX files are run by ONNX Runtime")
            found[(format, precision)] = exported(body, format, precision, images, folder, device)
        except GwsssError as error:
            found[(format, precision)] = str(error)
    return found


def measure(body: str, side: int, batch: int, rounds: int, packages: bool, device: str) -> list[Record]:
    """Lines of one size. A version that is not there, or too far from eager float32, has a reason and no time."""
    images = torch.randn(batch, 3, side, side, device=device)
    base: Record = {"operation": f"DeepLab-V2 {body}", "batch": batch, "side": side}
    lines, calls = [], {}
    facts: dict[str, Record] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        found = versions(body, images, Path(folder), packages)
        reference = found[(FIRST, "fp32")](images)  # type: ignore[operator]
        for (name, precision), run in found.items():
            version = name if name == FIRST else f"{name} {precision}"
            if isinstance(run, str):
                lines.append({**base, "version": version, "reason": run})
                continue
            logits = run(images)
            far = float((logits - reference).abs().max() / reference.abs().max())
            same = float((logits.argmax(1) == reference.argmax(1)).float().mean())
            facts[version] = {"logit_difference": far, "pixel_agreement": same}
            if far > NEAR[precision]:
                lines.append(
                    {**base, "version": version, **facts[version], "reason": f"wrong: logits differ by {far:.2g}"}
                )
            else:
                calls[version] = [_call(run, images)]
        timer: Any = EventTimer(hide_launches=False) if device == "cuda" else both_clocks
        interleave(calls, timer, 2)  # warms up
        times = interleave(calls, timer, rounds)
    first = times[FIRST].p50
    for version, spread in times.items():
        rate = 1e3 * batch / spread.p50
        line = {**base, "version": version, **records.spread(spread), "cpu_ms": spread.host, **facts[version]}
        lines.append({**line, "images_per_second": rate, "faster": first / spread.p50})
    return lines


def both_clocks(call: Call) -> Reading:
    """The wall clock, and in place of the host's time that of all threads: on a shared machine that says more."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return Reading(1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - busy))


def _call(run: Version, images: Tensor) -> Callable[[], Tensor]:
    return lambda: run(images)


def show(lines: Sequence[Record], load: float) -> None:
    """The lines as a table."""
    table = Table("size", "version", "ms", "CPU ms", "images/s", "faster", "equal pixels", title=f"load {load:.1f}")
    for line in lines:
        words = [f"{line['batch']} x {line['side']}", line["version"]]
        if "reason" in line:
            table.add_row(*words, "-", "-", "-", "-", line["reason"][:60])
            continue
        numbers = (f"{line[name]:.{digits}f}" for name, digits in NUMBERS.items())
        table.add_row(*words, *numbers, f"{100 * line['pixel_agreement']:.2f} %")
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 1 where a version is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deployment", description=__doc__)
    parser.add_argument("--body", default="resnet101")
    parser.add_argument("--sides", type=int, nargs="+", default=[321, 513])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--packages", action="store_true", help="AOTInductor too, which compiles for minutes")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to which deployment.jsonl is appended")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines: list[Record] = []
    for side in options.sides:
        load = os.getloadavg()[0]
        about = {**records.environment(device), "load": load}
        new = measure(options.body, side, options.batch, options.rounds, options.packages, device)
        show(new, load)
        records.append(options.output / "deployment.jsonl", [{**about, **line} for line in new])
        lines += new
    return int(any(line.get("reason", "").startswith("wrong") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
