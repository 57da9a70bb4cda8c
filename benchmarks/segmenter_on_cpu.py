"""`python -m benchmarks.segmenter_on_cpu`: DeepLab-V2 (ResNet-101) on the CPU as `Predictor` runs it, and its peers.

One image of 321 pixels a call: plain PyTorch in float32 ("eager", its usual memory format), ONNX Runtime in float32 on
as many threads, PyTorch's autocast to bfloat16, and the network prepared by `gwsss_fast.inference.fast_cpu` in float32
and bfloat16; with --compile torch.compile too. One call of each in turn. A version is timed after its labels on
photographs: at least 99.5 % of their pixels must be those of eager float32. Lines are appended to results/cpu.jsonl. It
takes three minutes on an idle machine.

There are no trained weights here, and random ones amplify roundings as trained ones do not: through 33 residual blocks
float32's own grow a thousandfold. So the blocks' branches are made small beside what they are added to (BRANCHES),
batch norm gets its statistics from photographs, and the head learns some of them; half of the images that are compared
and timed are others.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from benchmarks import RESULTS
from benchmarks.harness import records
from benchmarks.harness.records import Record
from benchmarks.harness.timing import interleave, wall_clock
from gwsss_fast import DeepLabV2
from gwsss_fast.data.dataset import open_dataset
from gwsss_fast.data.images import read_image, read_mask
from gwsss_fast.data.transforms import normalise
from gwsss_fast.inference.fast_cpu import FastSegmenter
from gwsss_fast.models.base import freeze_batch_norm
from gwsss_fast.models.deeplab import segmentation_loss

OPERATION = "DeepLab-V2 ResNet-101, 321, one image"
FIRST = "eager float32"
LEAST_AGREEMENT = 0.995
TRAINED, HELD_OUT = 6, 6
BRANCHES = 0.2
Network = Callable[[Tensor], Tensor]


def photographs(root: str, size: int) -> list[tuple[Tensor, Tensor]]:
    """(image (1, 3, size, size), mask (1, size, size)) of a data set's images that have masks, squeezed to a square."""
    data = open_dataset(root)
    found = []
    for split in data.splits.values():
        for record in split.records:
            if record.mask is not None and len(found) < TRAINED + HELD_OUT:
                image = read_image(record.image).resize((size, size), Image.Resampling.BILINEAR)
                mask = Image.fromarray(read_mask(record.mask, len(data.classes)))
                labels = torch.from_numpy(np.array(mask.resize((size, size), Image.Resampling.NEAREST))).long()
                found.append((normalise(image)[None], labels[None]))
    return found


def fitted(body: str, pairs: Sequence[tuple[Tensor, Tensor]], steps: int = 60) -> DeepLabV2:
    """A DeepLabV2 of 21 classes whose batch norm knows its inputs and whose head has learnt `pairs`."""
    torch.manual_seed(0)
    model = DeepLabV2(21, body)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
        if isinstance(layer, Bottleneck):
            nn.init.constant_(layer.bn3.weight, BRANCHES)
    with torch.no_grad():
        model.train()(torch.cat([image for image, _ in pairs[:4]]))
        freeze_batch_norm(model.body)
        features = [model.eval().body(image.contiguous(memory_format=torch.channels_last)) for image, _ in pairs]
    optimiser = torch.optim.Adam(model.aspp.parameters(), 5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for step in range(steps):
        number = step % len(pairs)
        loss = segmentation_loss(model.aspp(features[number]), pairs[number][1])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def eager(model: DeepLabV2) -> Network:
    """As anyone would run it in PyTorch."""
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return torch.inference_mode()(lambda images: plain.aspp(plain.body(images)))


def onnx_runtime(model: DeepLabV2, example: Tensor) -> Network:
    """The network in ONNX Runtime, on as many threads as PyTorch has."""
    import onnxruntime

    class Bare(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return model.aspp(model.body(images))

    bare = Bare()
    bare.network = model  # its weights are the program's
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(bare.eval(), (example,), path, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def autocast(model: DeepLabV2) -> Network:
    """Channels last, autocast to bfloat16."""
    return torch.autocast("cpu", dtype=torch.bfloat16)(torch.inference_mode()(model))


def compiled(model: DeepLabV2, example: Tensor) -> tuple[Network, float]:
    """torch.compile with frozen weights under autocast to bfloat16, and the seconds that it takes to compile."""
    from torch._inductor import config

    config.freezing = True
    start = time.perf_counter()
    function = torch.compile(model)
    run = torch.autocast("cpu", dtype=torch.bfloat16)(torch.no_grad()(lambda images: function(images)))
    run(example)
    return run, time.perf_counter() - start


def labels(network: Network, images: Sequence[Tensor]) -> Tensor:
    """Labels of all pixels of images of one size."""
    logits = torch.cat([network(image).float() for image in images])
    return F.interpolate(logits, size=images[0].shape[-2:], mode="bilinear", align_corners=False).argmax(1)


def measure(networks: Mapping[str, Network], images: Sequence[Tensor], rounds: int) -> list[Record]:
    """A line for each version; those that disagree with the first have a reason and no time."""
    wanted = labels(networks[FIRST], images)
    lines, calls, agreements = [], {}, {}
    for version, network in networks.items():
        agreements[version] = float((labels(network, images) == wanted).float().mean())
        base = {"operation": OPERATION, "version": version, "ours": version.startswith("prepared")}
        if agreements[version] < LEAST_AGREEMENT:
            reason = f"wrong: {100 * agreements[version]:.2f} % of the pixels agree"
            lines.append({**base, "agreement": agreements[version], "reason": reason})
        else:
            calls[version] = [lambda network=network, image=image: network(image) for image in images]
    times = interleave(calls, wall_clock, rounds)
    for version, found in times.items():
        numbers = {"p20_ms": found.p20, "p50_ms": found.p50, "p80_ms": found.p80, "count": found.count}
        base = {"operation": OPERATION, "version": version, "ours": version.startswith("prepared"), **numbers}
        lines.append({**base, "agreement": agreements[version], "faster": times[FIRST].p50 / found.p50})
    return lines


def networks_of(model: DeepLabV2, example: Tensor, with_compile: bool) -> tuple[dict[str, Network], dict[str, float]]:
    """All versions, and the seconds that it takes to make those that take long."""
    start = time.perf_counter()
    found: dict[str, Network] = {FIRST: eager(model), "prepared float32": FastSegmenter(model, "fp32")}
    seconds = {"prepared float32": time.perf_counter() - start}
    found["prepared bfloat16"] = FastSegmenter(model, "bf16")
    found["autocast bfloat16"] = autocast(model)
    try:
        found["ONNX Runtime float32"] = onnx_runtime(model, example)
    except ImportError as error:
        print(f"without ONNX Runtime: {error}", file=sys.stderr)
    if with_compile:
        found["compiled bfloat16"], seconds["compiled bfloat16"] = compiled(model, example)
    return found, seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 1 where one of our versions is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segmenter_on_cpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=321)
    parser.add_argument("--data", default=os.environ.get("GWSSS_TEST_DATA", "embedded"), help="photographs with masks")
    parser.add_argument("--compile", action="store_true", help="torch.compile too; it takes a minute or more")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to which cpu.jsonl is appended")
    options = parser.parse_args(arguments)
    console, load = Console(), os.getloadavg()[0]
    pairs = photographs(options.data, options.size)
    model = fitted("resnet101", pairs[:TRAINED])
    images = [image for image, _ in pairs]
    networks, seconds = networks_of(model, images[0], options.compile)
    lines = measure(networks, images, options.rounds)
    table = Table("version", "ms", "faster than eager", "% pixels as eager", title=f"{OPERATION}, load {load:.1f}")
    for line in lines:
        ms, faster = (f"{line[x]:.{n}f}" if x in line else "-" for x, n in (("p50_ms", 0), ("faster", 2)))
        table.add_row(line["version"], ms, faster, f"{100 * line['agreement']:.2f}")
        if line["version"] in seconds:
            line["seconds_to_make"] = seconds[line["version"]]
    console.print(table)
    console.print("seconds to make: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    about = {**records.environment("cpu"), "load": load}
    records.append(options.output / "cpu.jsonl", [{**about, **line} for line in lines])
    return int(any(line["ours"] and "reason" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
