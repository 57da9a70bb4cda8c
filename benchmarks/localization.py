"""`python -m benchmarks.localization`: localisation by the group-wise model against the single-image one, three seeds.

Trains both classifiers of each seed on the embedded set with preset `quick` (or takes those that lie in --runs), runs
`localize` on val with each, and writes localization.json and localization.md; what lies in --runs is not done again, so
that it may be broken off. The single-image model is also the
stand-alone classifier that finds the group-wise model's partners, so both predict the same classes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import RESULTS
from gwsss_fast import files, localize, train

MODELS = {"single": "ablation/no-group", "group": "quick"}
SCORES = {
    "top1_classification": "Top-1 Cls",
    "top1_localization": "Top-1 Loc",
    "gt_known_localization": "GT-known Loc",
    "max_box_acc": "MaxBoxAcc",
    "max_box_acc_v2": "MaxBoxAccV2",
}
ROWS = (
    ("single image (`ablation/no-group`)", "single", "ensemble"),
    ("group-wise, ensemble", "group", "ensemble"),
    ("group-wise, initial readout", "group", "initial"),
    ("group-wise, graph readout", "group", "graph"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.localization", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/localization"), help="folder of the trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--readouts", nargs="+", default=["ensemble", "initial", "graph"])
    parser.add_argument("--output", type=Path, default=RESULTS / "tables")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    for seed in options.seeds:
        for model, preset in MODELS.items():
            train_classifier(options.runs / f"{model}-{seed}", preset, seed, options.threads)
    found = {
        name: [scores_of(options.runs, model, seed, readout, options.threads) for seed in options.seeds]
        for name, model, readout in ROWS
        if readout in options.readouts
    }
    record = {"seeds": options.seeds, "rows": found}
    files.write_json(options.output / "localization.json", record)
    files.write_text(options.output / "localization.md", table(record))
    print(table(record))
    return 0


def train_classifier(run: Path, preset: str, seed: int, threads: int) -> None:
    """Train, or go on with, one classifier."""
    if (run / "classifier" / "last.pt").is_file() and json.loads((run / "metrics.json").read_text())["seconds"]:
        return
    options = ["--preset", preset, "--stage", "classifier", "--seed", str(seed), "--threads", str(threads)]
    if train.main([*options, "--output", str(run), "--resume"]) != 0:
        raise SystemExit(f"training of {run} failed")


def scores_of(runs: Path, model: str, seed: int, readout: str, threads: int) -> dict[str, Any]:
    """The metrics of one localisation, with the single-image model of the same seed as stand-alone classifier."""
    output = runs / f"boxes-{model}-{readout}-{seed}"
    options = ["--run", str(runs / f"{model}-{seed}"), "--classifier", str(runs / f"single-{seed}"), "--resume"]
    options += ["--readout", readout, "--overlays", "0", "--threads", str(threads), "--output", str(output)]
    if not (output / "metrics.json").is_file() and localize.main(options) != 0:
        raise SystemExit(f"localisation with {runs / f'{model}-{seed}'} failed")
    metrics = json.loads((output / "metrics.json").read_text())
    chosen = {name: metrics[name] for name in (*SCORES, "tau", "images", "objects", "split")}
    return {name: value["score"] if isinstance(value, dict) else value for name, value in chosen.items()}


def table(record: dict[str, Any]) -> str:
    """Mean and standard deviation of each score, and the differences in Top-1 Loc to the first row, seed by seed."""
    header = ["model", *SCORES.values(), "Top-1 Loc, less the first row, seed by seed"]
    lines = [_row(header), _row(["---"] * len(header))]
    rows = record["rows"]
    first = next(iter(rows.values()))
    for name, found in rows.items():
        cells = [f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" for values in _columns(found)]
        pairs = zip(found, first, strict=True)
        differences = [own["top1_localization"] - base["top1_localization"] for own, base in pairs]
        words = "" if found is first else ", ".join(f"{value:+.1f}" for value in differences)
        lines.append(_row([name, *cells, words]))
    facts = first[0]
    text = (
        f"Percent, mean and standard deviation over seeds {', '.join(map(str, record['seeds']))}. Embedded set, "
        f"{facts['images']} images of {facts['split']} with {facts['objects']} pairs of image and class; tau of Top-1 "
        "Loc chosen on the same images.\n"
    )
    return "\n".join([text, *lines, ""])


def _columns(found: list[dict[str, Any]]) -> list[list[float]]:
    return [[entry[name] for entry in found] for name in SCORES]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
