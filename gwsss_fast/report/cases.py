"""The best and worst images of the maps and of the segmentation (failure cases, as in the paper's Figs. 9 and 10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from gwsss_fast.data.dataset import Record, Split
from gwsss_fast.data.images import read_image
from gwsss_fast.evaluation.segmentation import confusion_matrix, segmentation_scores
from gwsss_fast.report.gallery import SIDE, Row
from gwsss_fast.report.images import ImageBudget, heat_overlay, thumbnail
from gwsss_fast.report.run_folder import Maps, Missing, RunFolder

CASES = 4
# More images than this are sampled evenly before their maps are ranked: reading full-size maps takes time.
MAX_RANKED = 400
MISSED, FALSE_OBJECT, WRONG_CLASS = (70, 140, 240), (235, 120, 40), (200, 70, 190)


@dataclass(frozen=True)
class Case:
    """One image's score: mIoU in percent over the classes in its truth or its labels, and its confusion counts."""

    record: Record
    miou: float
    confusion: np.ndarray


def map_cases(run: RunFolder, budget: ImageBudget) -> dict[str, Any]:
    """The images whose ensembled maps score best and worst at the run's best threshold (the paper's Fig. 9)."""
    split = run.data_set.scoring
    if split is None:
        raise Missing("no split has masks to score the maps with")
    threshold = run.metric("cam", "ensemble", "best_threshold")
    if threshold is None:
        raise Missing("the maps were not scored, so no threshold is known")
    records = [record for record in split.records if record.mask is not None and run.has_maps(record)]
    ranked = _evenly(records, MAX_RANKED)

    def labels_of(record: Record) -> np.ndarray:
        return map_labels(run.maps(record), float(threshold))

    def heat_of(row: Row, record: Record) -> None:
        maps = run.maps(record)
        if "ensemble" in maps.readouts and len(maps.keys):
            row.photo("ensemble map", heat_overlay(row.picture, maps.readouts["ensemble"].max(axis=0)))

    shown = _cases(run, budget, ranked, labels_of, f"map label at {float(threshold):.2f}", heat_of)
    return {**shown, "ranked": len(ranked), "of": len(records), "split": split.name}


def segmentation_cases(run: RunFolder, budget: ImageBudget) -> dict[str, Any]:
    """The validation images that the segmentation network gets best and worst (Fig. 10)."""
    split = run.data_set.validation
    if split is None:
        raise Missing("the data set has no validation split")
    records = predicted_records(run, split)
    shown = _cases(run, budget, records, lambda record: run.label("predictions", record), "prediction", None)
    return {**shown, "ranked": len(records), "of": len(records), "split": split.name}


def predicted_records(run: RunFolder, split: Split) -> list[Record]:
    """Records of `split` that have both a mask and a stored prediction."""
    return [r for r in split.records if r.mask is not None and run.label_file("predictions", r).is_file()]


def map_labels(maps: Maps, threshold: float) -> np.ndarray:
    """Label picture (H, W) of the ensembled maps: the strongest class where it exceeds `threshold`, else background."""
    heat = maps.readouts.get("ensemble")
    if heat is None:
        raise Missing("the ensembled maps were not stored")
    if not len(heat):
        return np.zeros(heat.shape[1:], dtype=np.uint8)
    strongest = (maps.keys + 1)[heat.argmax(axis=0)]
    return np.where(heat.max(axis=0) > threshold, strongest, 0).astype(np.uint8)


def _cases(
    run: RunFolder,
    budget: ImageBudget,
    records: Sequence[Record],
    labels_of: Callable[[Record], np.ndarray],
    caption: str,
    extra: Callable[[Row, Record], None] | None,
) -> dict[str, Any]:
    if not records:
        raise Missing("nothing stored to compare with the masks")
    cases = []
    for record in records:
        confusion = np.asarray(confusion_matrix(labels_of(record), run.truth(record), len(run.classes) + 1))
        if confusion.sum():
            cases.append(Case(record, 100 * float(segmentation_scores(confusion).miou), confusion))
    cases.sort(key=lambda case: -case.miou)
    count = min(CASES, max(1, len(cases) // 2))

    def show(case: Case) -> dict[str, Any]:
        record = case.record
        picture = thumbnail(read_image(record.image), SIDE)
        row = Row(budget, picture, record.id)
        row.photo("image", picture)
        if extra is not None:
            extra(row, record)
        labels, truth = labels_of(record), run.truth(record)
        row.label(caption, labels)
        row.label("ground truth", truth)
        row.photo("errors", error_picture(picture, labels, truth))
        return {"id": record.id, "miou": case.miou, "worst": largest_error(case, run.classes), "cells": row.cells}

    best, worst = [show(case) for case in cases[:count]], [show(case) for case in cases[len(cases) - count :][::-1]]
    columns = max((len(row["cells"]) for row in best + worst), default=1)
    return {"best": best, "worst": worst, "columns": columns}


def largest_error(case: Case, classes: Sequence[str]) -> str:
    """The most frequent confusion of one image in words, e.g. "sofa taken for chair (31 % of the image)"."""
    wrong = case.confusion.astype(np.int64).copy()
    np.fill_diagonal(wrong, 0)
    if not wrong.any():
        return "no wrong pixel"
    truth, taken = np.unravel_index(int(wrong.argmax()), wrong.shape)
    names = ("background", *classes)
    share = 100 * wrong.max() / case.confusion.sum()
    amount = f"{share:.0f}" if share >= 1 else "under 1"
    return f"{names[truth]} taken for {names[taken]} ({amount} % of the image)"


def error_picture(picture: Image.Image, labels: np.ndarray, truth: np.ndarray) -> Image.Image:
    """`picture` in faint grey; pixels coloured where an object is missed, where there is none, and of a wrong class."""
    labels, truth = (np.asarray(_nearest(mask, picture.size)) for mask in (labels, truth))
    counted = truth != 255
    labels = np.where(labels == 255, 0, labels)
    faint = np.asarray(picture.convert("L"), dtype=np.float32)[..., None].repeat(3, axis=2) * 0.5 + 64
    for colour, where in (
        (MISSED, (truth > 0) & (labels == 0)),
        (FALSE_OBJECT, (truth == 0) & (labels > 0)),
        (WRONG_CLASS, (truth > 0) & (labels > 0) & (labels != truth)),
    ):
        chosen = where & counted
        faint[chosen] = 0.2 * faint[chosen] + 0.8 * np.array(colour, dtype=np.float32)
    return Image.fromarray(faint.astype(np.uint8))


def _nearest(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.asarray(mask, dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)


def _evenly(records: Sequence[Record], count: int) -> list[Record]:
    if len(records) <= count:
        return list(records)
    return [records[index] for index in np.linspace(0, len(records) - 1, count).round().astype(int)]
