"""`python -m benchmarks.training_on_cpu`: steps and images a second of both stages, and where a step's time goes.

Each case is a training of its own on the embedded set with `--profile`: preset quick as it is, and VGG16 at 224 pixels
with one group of 4 images a step. Lines are appended to results/training.jsonl. It takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS
from benchmarks.harness import records
from benchmarks.harness.records import Record
from gwsss_fast import train
from gwsss_fast.training.profiling import WARM_UP

GRAPH = ("--classifier.plain-epochs", "0")  # every step with the graph
VGG16 = ("--backbone", "vgg16", "--model.weights", "none", "--classifier.size", "224", *GRAPH)
# name -> (stage, images a step, options)
CASES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "classifier, tiny, 1 group of 4 x 112": ("classifier", 4, GRAPH),
    "classifier, tiny, 1 group of 4 x 112, bf16": ("classifier", 4, (*GRAPH, "--precision", "bf16")),
    "classifier, VGG16, 1 group of 4 x 224": ("classifier", 4, VGG16),
    "classifier, VGG16, 1 group of 4 x 224, bf16": ("classifier", 4, (*VGG16, "--precision", "bf16")),
    "classifier, VGG16, 1 group of 4 x 224, reference": ("classifier", 4, (*VGG16, "--backend", "reference")),
    "segmenter, tiny, 8 x 113": ("segmenter", 8, ()),
    "segmenter, tiny, 8 x 113, bf16": ("segmenter", 8, ("--precision", "bf16")),
}


def measure(name: str, folder: Path, steps: int, limit: int = 60) -> Record:
    """The line of one case. Raises RuntimeError where its training fails."""
    stage, images, options = CASES[name]
    length = ("--max-steps", str(WARM_UP + 1 + steps), "--data.train-limit", str(limit), "--data.val-limit", "2")
    stages = ("classifier",) if stage == "classifier" else ("classifier", "cam", "pseudo", "segmenter")
    for one in stages:
        profile = ("--profile", str(steps)) if one == stage else ()
        resume = ("--resume",) if one != stages[0] else ()
        if train.main(["--output", str(folder), "--stage", one, *length, *options, *profile, *resume]) != 0:
            raise RuntimeError(f"{name}: the training failed")
    seconds = json.loads((folder / "logs" / f"{stage}.profile.json").read_text())
    total = sum(seconds.values())
    shares = {phase: round(value / total, 4) for phase, value in seconds.items()}
    return {"case": name, "steps": steps, "steps_a_second": 1 / total, "images_a_second": images / total, **shares}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_on_cpu", description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to which training.jsonl is appended")
    options = parser.parse_args(arguments)
    load, lines = os.getloadavg()[0], []
    for number, name in enumerate(CASES):
        with tempfile.TemporaryDirectory() as folder:
            lines.append(measure(name, Path(folder) / str(number), options.steps))
    table = Table("training", "steps/s", "images/s", "time", title=f"load {load:.1f}")
    for line in lines:
        phases = [
            f"{key} {100 * line[key]:.0f} %" for key in line if key not in ("case", "steps") and "second" not in key
        ]
        table.add_row(
            line["case"], f"{line['steps_a_second']:.2f}", f"{line['images_a_second']:.1f}", ", ".join(phases)
        )
    Console(width=150).print(table)
    about = {**records.environment("cpu"), "load": load}
    records.append(options.output / "training.jsonl", [{**about, **line} for line in lines])
    return 0


if __name__ == "__main__":
    sys.exit(main())
