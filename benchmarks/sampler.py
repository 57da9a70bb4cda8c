"""`python -m benchmarks.sampler`: the group sampler on 100,000 images of 80 classes: start, draws and memory.

Before anything is timed, partners of some anchors are held against a look at every image. Appends to sampler.jsonl.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS
from benchmarks.harness import records
from benchmarks.harness.memory import growth, in_own_process
from gwsss_fast.data.samplers import GroupSampler, Strategy

IMAGES, CLASSES, GROUP = 100_000, 80, 4
STRATEGIES: tuple[Strategy, ...] = ("greedy", "one-common", "random")
LIMITS = {"start_s": 5.0, "draw_ms": 1.0, "mib": 300.0}


def tags(images: int = IMAGES, classes: int = CLASSES) -> np.ndarray:
    """Multi-hot tags (images, classes): some three an image, frequent and rare classes, 40,000 sets that differ."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, classes + 1) ** 0.8
    counts = 1 + rng.poisson(1.9, images).clip(0, 14)
    found = np.zeros((images, classes), np.uint8)
    for number in range(1, 16):
        rows = np.flatnonzero(counts >= number)
        found[rows, rng.choice(classes, len(rows), p=weights / weights.sum())] = 1
    return found


def check(sampler: GroupSampler, labels: np.ndarray, anchors: int = 20) -> None:
    """Raises ValueError where a group is not what its strategy says, by the labels of all images."""
    rng = np.random.default_rng(1)
    for anchor in rng.integers(len(labels), size=anchors).tolist():
        partners = sampler.partners(anchor, rng)
        shared = labels @ labels[anchor].astype(np.int64)
        right = len({anchor, *partners.tolist()}) == sampler.group_size
        if sampler.strategy == "greedy":
            best = np.sort(np.delete(shared, anchor))[::-1][: sampler.group_size - 1]
            right &= np.array_equal(np.sort(shared[partners])[::-1], best)
        elif sampler.strategy == "one-common" and (labels[:, labels[anchor] > 0].sum(0) >= sampler.group_size).any():
            right &= bool((labels[partners] & labels[anchor]).all(0).any())
        if not right:
            raise ValueError(f"wrong partners of image {anchor} by strategy {sampler.strategy}: {partners}")


def grown(strategy: Strategy) -> float:
    """MiB by which a process grows, tags and one whole epoch included, in the process that `memory` starts (Linux)."""

    def whole() -> None:
        GroupSampler(tags(), GROUP, strategy).epoch(0)

    GroupSampler(tags(100), GROUP, strategy).epoch(0)  # what is loaded in any case
    return growth(whole)


def measure(strategy: Strategy, labels: np.ndarray, draws: int) -> records.Record:
    """One line: seconds of the start, milliseconds a draw over `draws` anchors, MiB of a whole epoch."""
    start = time.perf_counter()
    sampler = GroupSampler(labels, GROUP, strategy)
    started = time.perf_counter() - start
    check(sampler, labels)
    rng = np.random.default_rng(0)
    anchors = rng.integers(len(labels), size=draws).tolist()
    start = time.perf_counter()
    for anchor in anchors:
        sampler.partners(anchor, rng)
    drawn = 1e3 * (time.perf_counter() - start) / draws
    sets = len(np.unique(np.packbits(labels, axis=1), axis=0))
    line = {"operation": "sampler", "strategy": strategy, "images": len(labels), "classes": labels.shape[1]}
    mib = in_own_process(f"grown({strategy!r})", "benchmarks.sampler")
    return {**line, "label_sets": sets, "K": GROUP, "start_s": started, "draw_ms": drawn, "draws": draws, "mib": mib}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status, 1 where a limit is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampler", description=__doc__)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to which sampler.jsonl is appended")
    options = parser.parse_args(arguments)
    labels = tags()
    table = Table("strategy", *LIMITS, title=f"{IMAGES} images, limits {', '.join(map(str, LIMITS.values()))}")
    load = {"load": os.getloadavg()[0]}
    lines = [{**records.environment("cpu"), **load, **measure(name, labels, options.draws)} for name in STRATEGIES]
    for line in lines:
        table.add_row(str(line["strategy"]), *(f"{line[name]:.3f}" for name in LIMITS))
    Console().print(table)
    records.append(options.output / "sampler.jsonl", lines)
    return int(any(line[name] > limit for line in lines for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
