"""Mask files: colours of PASCAL VOC, exact values, nothing half-written."""

import numpy as np
import pytest
from PIL import Image

from gwsss_fast.errors import GwsssError
from gwsss_fast.labels.masks import save_mask


def test_a_saved_mask_reads_back(tmp_path):
    mask = np.array([[0, 1, 20], [255, 7, 80]], np.uint8)
    save_mask(tmp_path / "deep" / "a.png", mask)
    with Image.open(tmp_path / "deep" / "a.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), mask)
        assert image.convert("RGB").getpixel((1, 0)) == (128, 0, 0)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.png"]


@pytest.mark.parametrize("mask", [np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 300), np.full((2, 2), 0.5)])
def test_what_is_no_mask(tmp_path, mask):
    with pytest.raises(GwsssError, match="whole numbers"):
        save_mask(tmp_path / "a.png", mask)
    assert list(tmp_path.iterdir()) == []
