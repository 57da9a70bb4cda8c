"""Sections made of plots: losses and scores by step, the threshold sweep, seconds a stage."""

from __future__ import annotations

from typing import Any

import numpy as np

from gwsss_fast.report.plots import bar_plot, line_plot
from gwsss_fast.report.run_folder import Log, Missing, RunFolder

READOUTS = ("initial", "graph", "ensemble")
# Maps on val, scored to compare the segmentation network with: key in metrics["cam_val"] -> name.
ON_VAL = {"tags": "ensemble on val, true tags", "predicted": "ensemble on val, predicted tags"}
THRESHOLD_STEP = 0.01
# Columns that only say where a row stands.
POSITIONS = {"step", "epoch", "iteration", "time", "seconds"}


def training_curves(run: RunFolder, name: str) -> dict[str, Any]:
    """Plots of OUTPUT/logs/NAME.csv: all losses in one, the learning rates in one, every other column alone.

    Raises Missing without that log.
    """
    log = run.log(name)
    steps = log.get("step", np.arange(1, len(next(iter(log.values()))) + 1, dtype=float))
    plots = [
        {"title": title, "svg": line_plot(lines, x_label="step", y_label=title, salt=f"{name}-{title}", smooth=True)}
        for title, lines in _panels(log, steps)
    ]
    if not plots:
        raise Missing(f"the log of the {name} holds no numbers")
    return {"plots": plots, "rows": len(steps)}


def _panels(log: Log, steps: np.ndarray) -> list[tuple[str, dict[str, tuple[Any, Any]]]]:
    panels: dict[str, dict[str, tuple[Any, Any]]] = {}
    for column, values in log.items():
        known = np.isfinite(values)
        if column in POSITIONS or not known.any():
            continue
        if "loss" in column:
            panel = "loss"
        elif column == "lr" or column.startswith(("lr_", "learning_rate")):
            panel = "learning rate"
        else:
            panel = column.replace("_", " ")
        panels.setdefault(panel, {})[column.replace("_", " ")] = (steps[known], values[known])
    return sorted(panels.items(), key=lambda item: item[0] != "loss")


def threshold_sweep(run: RunFolder) -> dict[str, Any]:
    """The map mIoU at every background threshold, of each readout scored, its best point circled."""
    lines: dict[str, tuple[Any, Any]] = {}
    marks: dict[str, tuple[float, float]] = {}
    rows = []
    for readout in READOUTS:
        scores = run.metric("cam", readout)
        if not isinstance(scores, dict) or not scores.get("curve"):
            continue
        curve = np.array([np.nan if value is None else value for value in scores["curve"]], dtype=float)
        lines[readout] = (np.arange(len(curve)) * THRESHOLD_STEP, curve)
        miou, threshold = scores["miou"], scores["best_threshold"]
        if miou is not None and threshold is not None:
            marks[readout] = (float(threshold), float(miou))
        rows.append({"readout": readout, "miou": miou, "threshold": threshold})
    for key, name in ON_VAL.items():
        scores = run.metric("cam_val", key)
        if isinstance(scores, dict):
            rows.append({"readout": name, "miou": scores.get("miou"), "threshold": scores.get("best_threshold")})
    if not lines:
        raise Missing("the maps were not scored: the scoring split has no masks, or the stage was not run")
    svg = line_plot(
        lines, x_label="background threshold", y_label="mIoU (%)", salt="sweep", marks=marks, size=(5.6, 3.4)
    )
    return {"svg": svg, "rows": rows}


def stage_seconds(run: RunFolder) -> dict[str, float]:
    """metrics["seconds"], seconds a stage. Raises Missing when there are none."""
    seconds = run.metric("seconds")
    known = {str(k): float(v) for k, v in seconds.items() if v is not None} if isinstance(seconds, dict) else {}
    if not known:
        raise Missing("no times were stored")
    return known


def stage_times(run: RunFolder) -> dict[str, Any]:
    """Bars of metrics["seconds"]."""
    known = stage_seconds(run)
    texts = [duration(value) for value in known.values()]
    svg = bar_plot(known, x_label="seconds", texts=texts, salt="times")
    return {"svg": svg, "total": duration(sum(known.values()))}


def duration(seconds: float) -> str:
    """`seconds` as people say it: 4.2 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
