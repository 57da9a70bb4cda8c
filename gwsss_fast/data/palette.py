"""The colours of label masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def voc_palette() -> NDArray[np.uint8]:
    """PASCAL VOC's colours, (256, 3) RGB: bit 3 k + c of the index is bit 7 - k of channel c.

    So neighbouring class numbers differ strongly.
    """
    index = np.arange(256)[:, None]
    colours = np.zeros((256, 3), dtype=np.int64)
    for k in range(3):
        colours |= (index >> (3 * k + np.arange(3)) & 1) << (7 - k)
    return colours.astype(np.uint8)
