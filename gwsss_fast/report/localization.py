"""Localisation scored and shown: overlaps of all images, boxes as CSV and JSON, overlays."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gwsss_fast import files
from gwsss_fast.data.ahead import read_ahead
from gwsss_fast.data.boxes import COLUMNS, Boxes
from gwsss_fast.data.images import read_image
from gwsss_fast.data.records import Record
from gwsss_fast.errors import GwsssError
from gwsss_fast.evaluation.localization import (
    MAP_SIZE,
    THRESHOLDS,
    BoxAccuracy,
    LocalizationScores,
    box_accuracy,
    boxes_above,
    map_overlaps,
    resized,
    top1_scores,
)
from gwsss_fast.report.images import heat_overlay

TRUE_COLOUR, FOUND_COLOUR = (230, 30, 30), (20, 220, 60)


@dataclass(frozen=True)
class Target:
    """An image with the true boxes (m, 4) of its classes. size: (width, height)."""

    record: Record
    size: tuple[int, int]
    boxes: Boxes


@dataclass(frozen=True)
class TargetScores:
    """Scores of all images. Rows are pairs of an image and one of its classes that has boxes.

    predicted: (images,). row_image, row_class, class_right, iou: (rows,), the last at tau of `top1`.
    """

    targets: Sequence[Target]
    predicted: Sequence[int]
    row_image: NDArray[np.int64]
    row_class: NDArray[np.int64]
    class_right: NDArray[np.bool_]
    iou: NDArray[np.float64]
    top1: LocalizationScores
    max_box_acc: BoxAccuracy
    max_box_acc_v2: BoxAccuracy


def score_targets(
    targets: Sequence[Target],
    predicted: Sequence[int],
    maps: Sequence[Mapping[int, Path]],
    tau: float | None = None,
    advance: Callable[[int], None] = lambda count: None,
    threads: int = 1,
) -> TargetScores:
    """Score the maps in `maps`, class -> file of each image. tau None: the one with the best Top-1 Loc.

    advance(n) is called when n more rows are done, `threads` of them at a time.

    Top-1 scores are shares of images: the predicted class is one of the image's, and its box hits one of that class's.
    GT-known, MaxBoxAcc and MaxBoxAccV2 are shares of rows; in sets of one class an image both are the published scores.
    """
    thresholds = THRESHOLDS if tau is None else np.append(THRESHOLDS, tau)
    rows = [(image, label) for image, target in enumerate(targets) for label in target.boxes]

    def overlaps(row: tuple[int, int]) -> list[NDArray[np.float64]]:
        target, label = targets[row[0]], row[1]
        truth = resized(target.boxes[label], target.size, row[0])
        return map_overlaps(read_levels(maps[row[0]][label]), truth, thresholds)

    largest, every = np.empty((2, len(rows), len(thresholds)))
    for start, batch in zip(count(0, threads), read_ahead(rows, overlaps, threads), strict=False):
        for row, (_, found) in enumerate(batch, start):
            largest[row], every[row] = found
        advance(len(batch))
    image_of, class_of = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    right = np.asarray(predicted)[image_of] == class_of
    chosen = slice(0, None) if tau is None else slice(len(THRESHOLDS), None)
    top1 = top1_scores(largest[:, chosen], right, thresholds[chosen], len(targets))
    # An image may be labelled with a class that it has no box of.
    known = [label in target.record.labels for label, target in zip(predicted, targets, strict=True)]
    top1 = top1._replace(top1_classification=100.0 * float(np.mean(known)))
    at_tau = largest[:, int(np.flatnonzero(thresholds == top1.tau)[-1])]
    return TargetScores(
        targets,
        predicted,
        image_of,
        class_of,
        right,
        at_tau,
        top1,
        box_accuracy(largest[:, : len(THRESHOLDS)], THRESHOLDS, 1),
        box_accuracy(every[:, : len(THRESHOLDS)], THRESHOLDS, 2),
    )


def read_levels(path: Path) -> NDArray[np.uint8]:
    """A map in grey levels (224, 224). Raises GwsssError when the file holds anything else."""
    try:
        with Image.open(path) as picture:
            levels = np.asarray(picture)
    except Exception as error:  # decoders raise almost anything
        raise GwsssError(f"map {path} cannot be read ({error}); delete it and run again with --resume") from error
    if levels.shape != (MAP_SIZE, MAP_SIZE) or levels.dtype != np.uint8:
        raise GwsssError(f"map {path} is no grey picture of {MAP_SIZE} x {MAP_SIZE}; delete it and use --resume")
    return levels


def box_at(levels: NDArray[np.uint8], tau: float, size: tuple[int, int]) -> list[float]:
    """The box x0 y0 x1 y1 of a map's largest contour above tau, in pixels of an image of (width, height)."""
    cut = np.array([int(tau * levels.max())])
    (found,) = boxes_above(levels, cut, all_contours=False)
    scaled = found[0] / MAP_SIZE * np.array([*size, *size])
    return [round(float(value), 2) for value in np.minimum(scaled, np.array([*size, *size]) - 1)]


def write_results(
    output: Path, classes: Sequence[str], scores: TargetScores, maps: Sequence[Mapping[int, Path]], overlays: int
) -> None:
    """Write boxes.csv (a box file), boxes.json, and overlays/ID.jpg of some images."""
    buffer, entries, tau = io.StringIO(), [], scores.top1.tau
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    last = len(scores.targets) - 1
    shown = set(np.linspace(0, last, min(overlays, last + 1)).round().astype(int).tolist())
    for image, (target, label) in enumerate(zip(scores.targets, scores.predicted, strict=True)):
        levels = read_levels(maps[image][label])
        box = box_at(levels, tau, target.size)
        writer.writerow([target.record.id, *box, classes[label]])
        entries.append(_entry(image, box, classes, scores, maps[image]))
        if image in shown:
            with files.atomic_path(output / "overlays" / f"{target.record.id}.jpg") as temporary:
                overlay(target, levels, box).save(temporary, format="JPEG", quality=90)
    files.write_text(output / "boxes.csv", buffer.getvalue())
    files.write_json(output / "boxes.json", {"tau": round(tau, 4), "images": entries})


def _entry(
    image: int, box: list[float], classes: Sequence[str], scores: TargetScores, maps: Mapping[int, Path]
) -> dict[str, Any]:
    target, label = scores.targets[image], scores.predicted[image]
    objects = []
    for row in np.flatnonzero(scores.row_image == image).tolist():
        own = int(scores.row_class[row])
        found = box_at(read_levels(maps[own]), scores.top1.tau, target.size)
        iou = round(float(scores.iou[row]), 4)
        objects.append({"class": classes[own], "true": target.boxes[own].tolist(), "box": found, "iou": iou})
    return {
        "id": target.record.id,
        "image": str(target.record.image),
        "size": list(target.size),
        "classes": [classes[own] for own in target.record.labels],
        "predicted": classes[label],
        "box": box,
        "objects": objects,
    }


def overlay(target: Target, levels: NDArray[np.uint8], box: Sequence[float]) -> Image.Image:
    """The predicted class's map over the image, with the true boxes in red and the found one in green."""
    picture = heat_overlay(read_image(target.record.image), levels / np.float32(255))
    draw, width = ImageDraw.Draw(picture), max(round(max(target.size) / 200), 1)
    for row in (row for rows in target.boxes.values() for row in rows.tolist()):
        draw.rectangle(row, outline=TRUE_COLOUR, width=width)
    draw.rectangle(list(box), outline=FOUND_COLOUR, width=width)
    return picture
