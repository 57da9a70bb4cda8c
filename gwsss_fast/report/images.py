"""Pictures for the report: heat overlays and label pictures as data URIs, with one limit on their total size."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gwsss_fast.data.images import IGNORE
from gwsss_fast.data.palette import voc_palette

JPEG_QUALITY = 82
IGNORE_COLOUR = (228, 222, 205)


@dataclass
class ImageBudget:
    """Counts the bytes of the pictures put into one report, so that its size has a bound.

    `data_uri` gives None once `limit` bytes (of the encoded text) are used; whatever would have shown the picture
    is then left out, and `dropped` says how often that happened.
    """

    limit: int = 6_000_000
    used: int = 0
    dropped: int = 0

    def data_uri(self, picture: Image.Image, *, lossless: bool = False) -> str | None:
        """`picture` as a JPEG data URI, or PNG when `lossless` (flat colours); None when over the limit."""
        buffer = io.BytesIO()
        if lossless:
            picture.save(buffer, "PNG", optimize=True)
        else:
            picture.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
        kind = "png" if lossless else "jpeg"
        uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
        return self.text(uri)

    def text(self, encoded: str) -> str | None:
        """Count `encoded` and give it back, or None when it does not fit."""
        if self.used + len(encoded) > self.limit:
            self.dropped += 1
            return None
        self.used += len(encoded)
        return encoded


def thumbnail(picture: Image.Image, side: int) -> Image.Image:
    """`picture` as RGB, its longer side at most `side` pixels."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def heat_palette(entries: int = 256) -> np.ndarray:
    """The colours of a map from 0 to 1: (entries, 3) uint8, dark to light (matplotlib's inferno)."""
    from matplotlib import colormaps

    return (colormaps["inferno"](np.linspace(0, 1, entries))[:, :3] * 255).round().astype(np.uint8)


def heat_overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Lay `heat` (H, W), values in [0, 1], over `picture`; it is resized to the picture.

    The picture is greyed and the colour's weight grows with the heat, so that the object stays recognisable under
    a hot map and the background readable under a cold one.
    """
    values = np.nan_to_num(np.asarray(heat, dtype=np.float32), nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
    resized = Image.fromarray(values).resize(picture.size, Image.Resampling.BILINEAR)
    value = np.asarray(resized, dtype=np.float32).clip(0, 1)[..., None]
    rgb = np.asarray(picture.convert("RGB"), dtype=np.float32)
    grey = rgb.mean(axis=2, keepdims=True)
    base = 0.35 * rgb + 0.45 * grey
    colours = heat_palette()[(value[..., 0] * 255).round().astype(np.int64)].astype(np.float32)
    weight = 0.15 + 0.70 * value
    return Image.fromarray((base * (1 - weight) + colours * weight).clip(0, 255).astype(np.uint8))


def label_picture(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A palette picture of `mask` (H, W) uint8, nearest-resized to `size` (W, H); ignored pixels (255) in pale grey."""
    palette = voc_palette()
    palette[IGNORE] = IGNORE_COLOUR
    picture = Image.fromarray(np.asarray(mask, dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)
    picture.putpalette(palette.reshape(-1).tolist())
    return picture
