"""From the bytes of images to the bytes of an answer; everything here runs in the computing thread."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from gwsss_fast.data.palette import voc_palette
from gwsss_fast.inference import Prediction
from gwsss_fast.labels.maps import CamSet
from gwsss_fast.serving.limits import Limits
from gwsss_fast.serving.pictures import Picture, decode, heat_png, mask_png

READOUTS = ("initial", "graph", "ensemble")
MAP_SIDE = 320  # most of the longer side of the maps of a group


@dataclass(frozen=True)
class Models:
    """What computes: `segment` one Prediction an image, `maps` the maps of one group's images.

    classes, map_classes: names without background. maps: None where there is no classifier.
    """

    classes: tuple[str, ...]
    segment: Callable[[Sequence[Image.Image]], Sequence[Prediction]]
    device: str = "cpu"
    maps: Callable[[Sequence[Image.Image]], list[CamSet]] | None = None
    map_classes: tuple[str, ...] = ()


class Answer(NamedTuple):
    body: bytes
    media_type: str


def segmented(models: Models, limits: Limits, images: Sequence[bytes], as_png: bool = False) -> Answer:
    """The mask of one image: as a PNG file, or as JSON with its classes and the file in base64."""
    start = time.perf_counter()
    picture = decode(images[0], limits.network_megapixels, "the image")
    (found,) = models.segment([picture.image])
    mask = _enlarged(found.mask, picture)
    png = mask_png(mask)
    if as_png:
        return Answer(png, "image/png")
    scores = {item.label: item.score for item in found.objects}
    return _json(
        size=picture.size,
        objects=_objects(mask, models.classes, scores),
        mask=_base64(png),
        seconds=round(time.perf_counter() - start, 3),
    )


def grouped(models: Models, limits: Limits, images: Sequence[bytes]) -> Answer:
    """The maps of the images of a group, by predicted class, as JSON with PNG files in base64."""
    start = time.perf_counter()
    assert models.maps is not None
    pictures = [_small(data, limits, f"image {number}") for number, data in enumerate(images, 1)]
    found = models.maps([picture.image for picture in pictures])
    classes = []
    for key in sorted({int(key) for cams in found for key in cams.keys}):
        rows = []
        for number, cams in enumerate(found):
            for place in np.flatnonzero(cams.keys == key):
                files = {name: _base64(heat_png(getattr(cams, name)[place])) for name in READOUTS}
                rows.append({"image": number, **files})
        classes.append({**_named(key + 1, models.map_classes), "images": rows})
    sizes = [{"size": picture.size} for picture in pictures]
    return _json(images=sizes, classes=classes, seconds=round(time.perf_counter() - start, 3))


def warm_up(models: Models) -> None:
    """Compute once with each model, so that what is built or tuned on first use is there when a client comes."""
    image = Image.new("RGB", (65, 65))
    models.segment([image])
    if models.maps is not None:
        models.maps([image, image])


def _small(data: bytes, limits: Limits, name: str) -> Picture:
    picture = decode(data, limits.network_megapixels, name)
    picture.image.thumbnail((MAP_SIDE, MAP_SIDE))
    return picture


def _enlarged(mask: NDArray[np.uint8], picture: Picture) -> NDArray[np.uint8]:
    if mask.shape == picture.size[::-1]:
        return mask
    return np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))


def _objects(mask: NDArray[np.uint8], classes: Sequence[str], scores: dict[int, float | None]) -> list[dict[str, Any]]:
    """Of each class in the mask, the largest first: area in pixels and as a share of the image, box and score."""
    areas, found = np.bincount(mask.ravel(), minlength=len(classes) + 1), []
    for label, place in enumerate(ndimage.find_objects(mask), 1):
        if place is not None:
            rows, columns = place
            found.append(
                {
                    **_named(label, classes),
                    "area": int(areas[label]),
                    "share": round(float(areas[label]) / mask.size, 6),
                    "box": [columns.start, rows.start, columns.stop, rows.stop],
                    "score": scores.get(label),
                }
            )
    return sorted(found, key=lambda item: -int(item["area"]))


def _named(label: int, classes: Sequence[str]) -> dict[str, Any]:
    return {"class": classes[label - 1], "label": label, "color": "#" + bytes(voc_palette()[label]).hex()}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _json(**content: Any) -> Answer:
    return Answer(json.dumps(content, allow_nan=False).encode(), "application/json")
