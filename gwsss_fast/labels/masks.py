"""Label masks as indexed PNG files with the colours of PASCAL VOC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from gwsss_fast.data.palette import voc_palette
from gwsss_fast.errors import GwsssError
from gwsss_fast.files import atomic_path


def save_mask(path: str | Path, mask: ArrayLike) -> None:
    """Write a mask (H, W), values 0..255, as an indexed PNG, atomically. Raises GwsssError for anything else."""
    values = np.asarray(mask)
    if (
        values.ndim != 2
        or values.dtype.kind not in "bui"
        or (values.size and not 0 <= values.min() <= values.max() < 256)
    ):
        raise GwsssError(
            f"{path}: a mask is a plane of whole numbers 0..255, not {values.dtype} of shape {values.shape}"
        )
    image = indexed(values.astype(np.uint8))
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def indexed(mask: NDArray[np.uint8]) -> Image.Image:
    """A mask (H, W) as an image of mode P with the colours of PASCAL VOC."""
    image = Image.fromarray(mask).convert("P")
    image.putpalette(voc_palette().tobytes())
    return image
