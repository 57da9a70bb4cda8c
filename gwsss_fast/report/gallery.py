"""Sampled groups of images beside their maps, labels and predictions (as in the paper's Fig. 8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from gwsss_fast.data.dataset import Record, Split
from gwsss_fast.data.images import read_image
from gwsss_fast.data.samplers import GroupSampler
from gwsss_fast.report.images import ImageBudget, heat_overlay, label_picture, thumbnail
from gwsss_fast.report.run_folder import Missing, RunFolder

SIDE = 240
GROUPS = 4
READOUTS = ("initial", "graph", "ensemble")
Predict = Callable[[Record], np.ndarray]


@dataclass(frozen=True)
class Cell:
    """One picture of a row, its caption under it."""

    caption: str
    uri: str
    alt: str


def sample_groups(run: RunFolder, split: Split, count: int = GROUPS) -> list[np.ndarray]:
    """Up to `count` groups (K,) of indices into `split`, drawn by the run's sampler, with different shared classes.

    Images without stored maps are left out of the draw when any have maps. Raises Missing when there are too few
    images for one group.
    """
    size = int(run.option("classifier", "group_size", default=run.option("model", "group_size", default=4)))
    strategy = run.option("classifier", "sampling", default="greedy")
    usable = np.array([run.has_maps(record) for record in split.records])
    indices = np.flatnonzero(usable) if usable.any() else np.arange(len(split))
    if len(indices) < size:
        raise Missing(f"fewer than {size} images: no group can be sampled")
    labels = np.asarray(split.labels)[indices]
    groups = list(indices[np.asarray(GroupSampler(labels, size, strategy, seed=0).cover(0))])
    # How many earlier groups share the class: groups of a class not yet shown come first.
    before: Counter[int] = Counter()
    ranks = []
    for group in groups:
        label = shared_class(split, group)
        ranks.append(before[label])
        before[label] += 1
    return [groups[index] for index in np.argsort(ranks, kind="stable")[:count]]


def shared_class(split: Split, group: Sequence[int] | np.ndarray) -> int:
    """The foreground class that most images of `group` have; among equals one of the anchor (the first image)."""
    labels = np.asarray(split.labels)[np.asarray(group)].astype(np.int64)
    return int(np.argmax(labels.sum(axis=0) * 2 + labels[0]))


def group_gallery(run: RunFolder, budget: ImageBudget, predict: Predict | None) -> dict[str, Any]:
    """Rows of pictures for some sampled groups: image, maps of the shared class, pseudo label, truth, prediction."""
    split = run.map_split
    groups: list[dict[str, Any]] = []
    for group in sample_groups(run, split):
        label = shared_class(split, group)
        rows = [_group_row(run, budget, split.records[index], label, predict) for index in group]
        groups.append({"title": run.classes[label], "rows": [row for row in rows if row["cells"]]})
    groups = [group for group in groups if group["rows"]]
    if not groups:
        raise Missing("no picture could be shown")
    fullest: list[Cell] = max((row["cells"] for group in groups for row in group["rows"]), key=len)
    captions = [cell.caption for cell in fullest]
    everything = ["image", *READOUTS, "pseudo label", "ground truth", "prediction"]
    left_out = [name for name in everything if not any(caption.startswith(name) for caption in captions)]
    return {"groups": groups, "columns": len(captions), "left_out": left_out, "split": split.name}


def _group_row(
    run: RunFolder, budget: ImageBudget, record: Record, label: int, predict: Predict | None
) -> dict[str, Any]:
    picture = thumbnail(read_image(record.image), SIDE)
    row = Row(budget, picture, record.id)
    row.photo("image", picture)
    label = label if label in record.labels else record.labels[0] if record.labels else label
    maps = _or_none(lambda: run.maps(record))
    for readout in READOUTS:
        heat = maps.of_class(readout, label) if maps else None
        if heat is not None:
            row.photo(readout, heat_overlay(picture, heat), f"{readout} map of {run.classes[label]}")
    row.label("pseudo label", _or_none(lambda: run.label("pseudo", record)))
    row.label("ground truth", _or_none(lambda: run.truth(record)))
    prediction = _or_none(lambda: run.label("predictions", record))
    if prediction is None and predict is not None:
        prediction = predict(record)
    row.label("prediction", prediction)
    return {"id": record.id, "labels": [run.classes[index] for index in record.labels], "cells": row.cells}


class Row:
    """Collects the cells of one image; a picture that no longer fits the budget is left out."""

    def __init__(self, budget: ImageBudget, picture: Image.Image, name: str) -> None:
        self.budget, self.picture, self.name = budget, picture, name
        self.cells: list[Cell] = []

    def photo(self, caption: str, picture: Image.Image, detail: str = "") -> None:
        self._add(caption, self.budget.data_uri(picture), detail or caption)

    def label(self, caption: str, mask: np.ndarray | None) -> None:
        if mask is not None:
            self._add(caption, self.budget.data_uri(label_picture(mask, self.picture.size), lossless=True), caption)

    def _add(self, caption: str, uri: str | None, detail: str) -> None:
        if uri is not None:
            self.cells.append(Cell(caption, uri, f"{detail} of {self.name}" if detail == caption else detail))


def _or_none(read: Callable[[], Any]) -> Any:
    """What `read` gives; None when that piece of the run is not there."""
    try:
        return read()
    except Missing:
        return None
