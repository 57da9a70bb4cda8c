"""How well an exported model agrees with eager fp32 and how fast it is: the report that every export writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gwsss_fast.evaluation.segmentation import confusion_matrix, segmentation_scores
from gwsss_fast.export.deployed import example_images
from gwsss_fast.export.metadata import Metadata, within
from gwsss_fast.export.runtimes import Runtime, labels_of
from gwsss_fast.export.samples import Sample, network_inputs

BOUNDS = {"fp32": 0.999, "bf16": 0.98, "fp16": 0.99, "int8": 0.95}
"""Least pixel agreement with eager fp32 that passes."""
EAGER = "eager fp32"
Model = Callable[[Tensor], Tensor]


def compare(eager: Model, runtimes: Sequence[Runtime], samples: Sequence[Sample], metadata: Metadata) -> dict[str, Any]:
    """Agreement of each runtime with eager fp32 on `samples`, by the runtime's name.

    Each: pixels, pixel_agreement (share of equal labels), logit_difference (largest, where there are logits) and
    logit_scale (largest of eager's), and where samples have masks miou, miou_eager and miou_difference, in percent.
    Labels are those at the size of the input. Where an output is not finite none of its pixels counts as equal, and
    the difference is not a number.
    """
    tallies = [_Tally(len(metadata.labels)) for _ in runtimes]
    for images, masks in network_inputs(samples, metadata):
        size = tuple(images.shape[-2:])
        with torch.inference_mode():
            wanted = eager(images).float()
        expected = labels_of(wanted, size)  # type: ignore[arg-type]
        for runtime, tally in zip(runtimes, tallies, strict=True):
            found = maps_of(runtime, images)
            tally.add(wanted, found, expected, labels_of(found, size), masks)  # type: ignore[arg-type]
    return {runtime.name: tally.result() for runtime, tally in zip(runtimes, tallies, strict=True)}


def maps_of(runtime: Runtime, images: Tensor) -> Tensor:
    """What is compared by pixels: logits or labels of a segmenter, the final maps (B K, L, h, w) of a group."""
    found = runtime.outputs(images)
    return found["maps"].flatten(0, 1) if "maps" in found else next(iter(found.values()))


class _Tally:
    """Sums over the images that one runtime has seen."""

    def __init__(self, labels: int) -> None:
        self.labels, self.equal, self.pixels = labels, 0, 0
        self.difference, self.scale = 0.0, 0.0
        self.with_logits, self.masked = True, 0
        self.confusions = np.zeros((2, labels, labels), np.int64)

    def add(self, wanted: Tensor, found: Tensor, expected: Tensor, labels: Tensor, masks: list[Any]) -> None:
        finite = bool(found.isfinite().all())  # the largest of numbers that are none has an index like any other
        self.equal += int((expected == labels).sum()) * finite
        self.pixels += expected.numel()
        self.scale = max(self.scale, float(wanted.abs().max()))
        if found.shape == wanted.shape and found.is_floating_point():
            difference = float((found - wanted).abs().max()) if finite else float("nan")
            self.difference = float(np.maximum(self.difference, difference))  # nan stays
        else:
            self.with_logits = False
        for mask, first, second in zip(masks, expected, labels, strict=False):
            if mask is not None:
                self.masked += 1
                self.confusions[0] += confusion_matrix(first.numpy(), mask, self.labels)
                self.confusions[1] += confusion_matrix(second.numpy(), mask, self.labels)

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = {"pixels": self.pixels, "pixel_agreement": self.equal / max(self.pixels, 1)}
        if self.with_logits:
            found |= {"logit_difference": self.difference, "logit_scale": self.scale}
        if self.masked:
            eager, own = (100 * segmentation_scores(matrix).miou for matrix in self.confusions)
            found |= {"masks": self.masked, "miou_eager": eager, "miou": own, "miou_difference": own - eager}
        return found


def measure(
    eager: Model,
    runtimes: Sequence[Runtime],
    metadata: Metadata,
    batches: Sequence[int],
    side: int,
    repeats: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Latency p50 and p90 (ms) and throughput (images/s) of eager fp32 and each runtime, for each batch size.

    All take turns within a repeat, so that whatever else the machine does hits them alike; after `seconds` for a batch
    size no further repeat begins, at least two are done. Sizes that the model does not take are left out.
    """
    low, high = metadata.batch
    fitting = [x for x in dict.fromkeys(batches) if low <= x and (high is None or x <= high)] or [low]
    rows = []
    for batch in fitting:
        height, width = within(side, metadata.height), within(side, metadata.width)
        images = example_images(metadata, height, width, batch)
        runners: list[tuple[str, Callable[[Tensor], Any]]] = [(EAGER, eager)]
        runners += [(runtime.name, runtime.outputs) for runtime in runtimes]
        times = _take_turns([run for _, run in runners], images, repeats, seconds)
        for (name, _), own in zip(runners, times, strict=True):
            middle, late = (float(np.percentile(own, share)) for share in (50, 90))
            row = {"runtime": name, "batch": batch, "height": images.shape[-2], "width": images.shape[-1]}
            images_each = batch * (metadata.group_size or 1)
            rate = images_each / middle
            row |= {"p50_ms": 1e3 * middle, "p90_ms": 1e3 * late, "images_per_second": rate, "repeats": len(own)}
            rows.append(row)
    return rows


def _take_turns(
    runners: Sequence[Callable[[Tensor], Any]], images: Tensor, repeats: int, seconds: float
) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in runners]
    began = time.perf_counter()
    with torch.inference_mode():
        for repeat in range(repeats + 1):  # the first warms up
            for number, run in enumerate(runners):
                start = time.perf_counter()
                run(images)
                if repeat:
                    times[number].append(time.perf_counter() - start)
            if repeat >= 2 and time.perf_counter() - began > seconds:
                break
    return times
