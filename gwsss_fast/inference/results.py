"""What is found in an image: its mask, its objects, and how both are shown and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from gwsss_fast.data.palette import voc_palette
from gwsss_fast.errors import GwsssError
from gwsss_fast.inference.rle import encode

OPACITY = 0.55
"""Of a class's colour over the image."""


@dataclass(frozen=True)
class Object:
    """All pixels of one class in an image.

    label: its value in the mask. name: of the class. area: pixels. box: x0, y0, x1, y1; the end is outside.
    score: mean probability of the class over its pixels; None where the model gives labels alone.
    """

    label: int
    name: str
    area: int
    box: tuple[int, int, int, int]
    score: float | None

    def as_dict(self) -> dict[str, Any]:
        """As predictions.json has it."""
        return {"class": self.name, "area": self.area, "box": [*self.box], "score": self.score}


@dataclass(frozen=True)
class Prediction:
    """What a segmenter finds in one image.

    mask: (H, W) uint8, 0 background, then the classes from 1. classes: their names, without the background. objects:
    one for each class in the mask, by label. probabilities: (L + 1, H, W) float32, background first; None where they
    were not asked for.
    """

    mask: NDArray[np.uint8]
    classes: tuple[str, ...]
    objects: tuple[Object, ...]
    probabilities: NDArray[np.float32] | None = None

    def overlay(self, image: Image.Image | NDArray[np.uint8]) -> Image.Image:
        """The image with the colours of the mask laid over it. Raises GwsssError for an image of another size."""
        return overlaid(image, self.mask)

    def coco(self, image_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """COCO annotations with run lengths, one for each object; category_id is its label, ids count from first_id."""
        return coco_annotations(self.mask, [item.as_dict() for item in self.objects], self.classes, image_id, first_id)

    def as_dict(self) -> dict[str, Any]:
        """Size and objects, ready for JSON."""
        height, width = self.mask.shape
        return {"size": [width, height], "objects": [item.as_dict() for item in self.objects]}


class Tally:
    """Areas and scores of the classes in a mask that is filled piece by piece."""

    def __init__(self, height: int, width: int, classes: int) -> None:
        self.mask = np.zeros((height, width), np.uint8)
        self.classes = classes
        self.areas, self.certainty = np.zeros(classes, np.int64), np.zeros(classes)

    def add(self, top: int, left: int, labels: NDArray[np.uint8], certainty: NDArray[np.float32] | None) -> None:
        """Put `labels` (h, w) at a place; certainty: the probability of each pixel's label."""
        height, width = labels.shape
        self.mask[top : top + height, left : left + width] = labels
        self.areas += np.bincount(labels.ravel(), minlength=self.classes)
        if certainty is not None:
            self.certainty += np.bincount(labels.ravel(), certainty.ravel(), self.classes)

    def objects(self, names: Sequence[str], scored: bool) -> tuple[Object, ...]:
        """One for each class in the mask but the background."""
        found = []
        for label, place in enumerate(ndimage.find_objects(self.mask), 1):
            if place is not None:
                rows, columns = place
                box = (columns.start, rows.start, columns.stop, rows.stop)
                area = int(self.areas[label])
                score = round(float(self.certainty[label]) / area, 4) if scored else None
                found.append(Object(label, names[label - 1], area, box, score))
        return tuple(found)


def overlaid(image: Image.Image | NDArray[np.uint8], mask: NDArray[np.uint8]) -> Image.Image:
    """The image with the colours of its mask laid over it; background as it is.

    Raises GwsssError where their sizes differ.
    """
    pixels = np.asarray(image)
    if pixels.shape != (*mask.shape, 3):
        raise GwsssError(f"an image of shape {pixels.shape} does not fit a mask of {mask.shape}; pass (H, W, 3)")
    result = pixels.copy()
    colours = voc_palette().astype(np.float32) * np.float32(OPACITY)
    rows = max(1, 2**20 // max(mask.shape[1], 1))  # a strip at a time: float32 needs four times the image's memory
    for start in range(0, len(mask), rows):
        strip = slice(start, start + rows)
        own = mask[strip] > 0
        values = result[strip][own] * np.float32(1 - OPACITY) + colours[mask[strip][own]]
        result[strip][own] = values.round().astype(np.uint8)
    return Image.fromarray(result)


def coco_annotations(
    mask: NDArray[np.uint8], objects: Sequence[dict[str, Any]], classes: Sequence[str], image_id: int, first_id: int
) -> list[dict[str, Any]]:
    """COCO annotations of the objects (as `Object.as_dict`) of a mask."""
    labels, found = {name: number for number, name in enumerate(classes, 1)}, []
    for number, item in enumerate(objects):
        label = labels[item["class"]]
        x0, y0, x1, y1 = item["box"]
        entry = {
            "id": first_id + number,
            "image_id": image_id,
            "category_id": label,
            "segmentation": encode(mask == label),
            "area": item["area"],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
        }
        found.append(entry if item["score"] is None else {**entry, "score": item["score"]})
    return found


def coco_categories(classes: Sequence[str]) -> list[dict[str, Any]]:
    """COCO's list of categories: ids are the labels of the mask."""
    return [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
