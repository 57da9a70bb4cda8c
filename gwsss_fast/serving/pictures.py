"""Images from untrusted bytes, and the pictures in answers."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gwsss_fast.data.images import SIDEWAYS, as_rgb, turn_of
from gwsss_fast.labels.masks import indexed
from gwsss_fast.report.images import heat_palette
from gwsss_fast.serving.limits import Refused

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class Picture(NamedTuple):
    """An RGB image as a person sees it, turned as its EXIF tag says; reduced where `size` (W, H) is larger."""

    image: Image.Image
    size: tuple[int, int]


def check_header(data: bytes, megapixels: float, name: str) -> None:
    """Look at the header alone. Raises Refused for what is no image (415) or has too many pixels (413)."""
    try:
        width, height = _size_of_webp(data) or _size(data)
    except _BOMBS:
        raise Refused(413, f"{name} has more than {megapixels:g} megapixels") from None
    except Exception:  # decoders raise almost anything on broken files
        raise Refused(415, f"{name} is not a JPEG, PNG, WebP or BMP file") from None
    if width * height > megapixels * 1e6:
        raise Refused(413, f"{name} has {width} x {height} pixels, more than {megapixels:g} megapixels")


def _size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.size


def _size_of_webp(data: bytes) -> tuple[int, int] | None:
    """The canvas of a WebP file, or None for another: Pillow allocates 8 bytes a pixel when it opens one."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind, head = data[12:16], data[20:30]
    if len(head) < 10:
        raise ValueError("no header")
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    raise ValueError(f"unknown chunk {kind!r}")


def decode(data: bytes, megapixels: float, name: str) -> Picture:
    """The image, at most `megapixels` of it. Raises Refused (400) when it is broken behind its header."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            share = min(1.0, (megapixels * 1e6 / (width * height)) ** 0.5)
            target = max(1, round(width * share)), max(1, round(height * share))
            if share < 1:
                image.draft(None, target)  # a JPEG is decoded at an eighth, a quarter or half of its size
            rgb = as_rgb(image)
            if share < 1:
                rgb = rgb.resize(target, Image.Resampling.BILINEAR, reducing_gap=2.0)
            turn = turn_of(image)
    except Exception:
        raise Refused(400, f"{name} cannot be decoded") from None
    size = (height, width) if turn in SIDEWAYS else (width, height)
    return Picture(rgb if turn is None else rgb.transpose(turn), size)


def mask_png(mask: NDArray[np.uint8]) -> bytes:
    """An indexed PNG of a mask (H, W) with the colours of PASCAL VOC, as `predict` writes it."""
    return _png(indexed(mask))


def heat_png(values: NDArray[np.float32]) -> bytes:
    """An indexed PNG of a map (h, w) in [0, 1]: the index is 255 times the value, its colour goes from dark to light
    and is the more transparent the smaller the value, so that the file can be laid over the image as it is."""
    image = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8)).convert("P")
    image.putpalette(heat_palette().tobytes())
    alpha = (40 + np.arange(256) * 0.75).round().astype(np.uint8)
    return _png(image, transparency=alpha.tobytes())


def _png(image: Image.Image, **options: bytes) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()
