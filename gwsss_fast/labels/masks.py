"""Label masks as indexed PNG files with the colours of PASCAL VOC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from gwsss_fast.errors import GwsssError
from gwsss_fast.files import atomic_path


def voc_palette() -> NDArray[np.uint8]:
    """(256, 3) RGB: bit 3 k + c of the index is bit 7 - k of channel c, so neighbouring classes differ strongly."""
    index = np.arange(256)[:, None]
    colours = np.zeros((256, 3), dtype=np.int64)
    for k in range(3):
        colours |= (index >> (3 * k + np.arange(3)) & 1) << (7 - k)
    return colours.astype(np.uint8)


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
    image = Image.fromarray(values.astype(np.uint8)).convert("P")
    image.putpalette(voc_palette().tobytes())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
