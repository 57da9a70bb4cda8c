"""The segmentation's numbers: intersection over union of every class, and what is taken for what."""

from __future__ import annotations

from typing import Any

import numpy as np

from gwsss_fast.evaluation.segmentation import confusion_matrix
from gwsss_fast.report.cases import predicted_records
from gwsss_fast.report.run_folder import Missing, RunFolder


def class_table(run: RunFolder) -> dict[str, Any]:
    """Rows of metrics["segmentation"]["iou"], in percent, with the mean."""
    iou = run.metric("segmentation", "iou")
    if not isinstance(iou, dict) or not iou:
        raise Missing("the segmentation was not scored: no masks on val, or the stage was not run")
    rows = [{"name": name, "iou": None if value is None else float(value)} for name, value in iou.items()]
    return {"rows": rows, "miou": run.metric("segmentation", "miou")}


def confusion_table(run: RunFolder) -> dict[str, Any]:
    """Confusion of the stored predictions on val, each row (a class of the ground truth) in percent of its pixels."""
    split = run.data_set.validation
    if split is None:
        raise Missing("the data set has no validation split")
    records = predicted_records(run, split)
    if not records:
        raise Missing("no predictions on val were stored")
    names = ("background", *run.classes)
    total = np.zeros((len(names), len(names)), dtype=np.int64)
    for record in records:
        total += np.asarray(confusion_matrix(run.label("predictions", record), run.truth(record), len(names)))
    pixels = total.sum(axis=1)
    shares = 100 * total / np.maximum(pixels, 1)[:, None]
    rows = [
        {"name": name, "pixels": int(pixels[index]), "cells": [float(value) for value in shares[index]]}
        for index, name in enumerate(names)
    ]
    return {"names": names, "rows": rows, "images": len(records), "of": len(split)}
