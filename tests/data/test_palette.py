"""The colours of masks against those of PASCAL VOC's development kit."""

import numpy as np

from gwsss_fast.data.palette import voc_palette

# Background and the 20 classes.
VOC = [
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
    (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128), (192, 128, 128),
    (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
]  # fmt: skip


def test_palette_is_vocs():
    palette = voc_palette()
    assert [tuple(map(int, colour)) for colour in palette[:21]] == VOC
    assert palette[255].tolist() == [224, 224, 192]  # the border of the objects
    assert len(np.unique(palette, axis=0)) == 256
