"""The folder of results: masks, overlays, and what was found in which image as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gwsss_fast import distributed, files
from gwsss_fast.errors import GwsssError
from gwsss_fast.inference.results import Prediction, coco_annotations, coco_categories
from gwsss_fast.labels.masks import save_mask

SUMMARY, COCO = "predictions.json", "coco.json"


class Written:
    """Results by name: NAME.png, NAME_overlay.jpg on request, and predictions.json when `close` is called.

    What a former run has left counts as done. Of several processes each has a summary of its own, predictions-1.json
    and so on, until `join`. Raises GwsssError for a predictions.json that cannot be read or names other classes.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...], overlay: bool = False) -> None:
        self.folder, self.classes, self.overlay = folder, classes, overlay
        self.done = distributed.on_main(self._earlier)
        self.before = tuple(self.done)

    def has(self, name: str) -> bool:
        """Whether this result is there."""
        return name in self.done and self.mask_file(name).is_file()

    def mask_file(self, name: str) -> Path:
        """NAME.png."""
        return self.folder / f"{name}.png"

    def add(self, name: str, facts: dict[str, Any], image: Image.Image | NDArray[np.uint8], found: Prediction) -> None:
        """Write the mask, and the overlay where it is wanted. facts: what else predictions.json says of the image."""
        save_mask(self.mask_file(name), found.mask)
        if self.overlay:
            with files.atomic_path(self.folder / f"{name}_overlay.jpg") as temporary:
                found.overlay(image).save(temporary, format="JPEG", quality=90)
        self.done[name] = {**facts, **found.as_dict()}

    def close(self) -> None:
        """Write this process's summary; nothing where nothing was done."""
        number = f"-{distributed.rank()}" if distributed.rank() else ""
        if self.done:
            path = self.folder / f"{Path(SUMMARY).stem}{number}.json"
            files.write_json(path, {"classes": self.classes, "images": self.done})

    def join(self, order: Sequence[str]) -> None:
        """Make one summary of those of all processes, new images in `order`. All processes have closed theirs."""
        place = {name: number for number, name in enumerate([*self.before, *order])}
        found = {name: facts for done in distributed.gather(self.done) for name, facts in done.items()}
        last = len(place)
        if distributed.size() > 1:
            self.done = {name: found[name] for name in sorted(found, key=lambda name: (place.get(name, last), name))}
        distributed.on_main(self._write_one)

    def _write_one(self) -> None:
        parts = self._parts()
        if parts:  # else the summary of process 0 is the whole one
            self.close()
        for path in parts:
            path.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"{Path(SUMMARY).stem}-[0-9]*.json"))

    def _earlier(self) -> dict[str, Any]:
        files = (self.folder / SUMMARY, *self._parts())
        return {name: facts for path in files for name, facts in _earlier(path, self.classes).items()}

    def write_coco(self) -> None:
        """coco.json: the objects of all results with the run lengths of their masks."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (name, facts) in enumerate(self.done.items(), 1):
            with Image.open(self.mask_file(name)) as stored:
                mask = np.asarray(stored)
            width, height = facts["size"]
            images.append({"id": number, "file_name": facts["image"], "width": width, "height": height})
            annotations += coco_annotations(mask, facts["objects"], self.classes, number, len(annotations) + 1)
        categories = coco_categories(self.classes)
        content = {"images": images, "annotations": annotations, "categories": categories}
        files.write_json(self.folder / COCO, content)


def _earlier(path: Path, classes: tuple[str, ...]) -> dict[str, Any]:
    """What predictions.json says of images that were done before."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, stored = dict(content["images"]), tuple(content["classes"])
    except (ValueError, KeyError, TypeError):
        raise GwsssError(
            f"{path} cannot be read as the summary of a prediction; remove it or use another --output"
        ) from None
    if stored != classes:
        raise GwsssError(
            f"{path} is of a model with other classes ({', '.join(stored[:3])}, ...); use another --output"
        )
    return found
