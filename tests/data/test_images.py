import numpy as np
import pytest
import scipy.io
from PIL import Image

from gwsss_fast.data.images import read_image, read_mask, read_saliency, read_size
from gwsss_fast.errors import GwsssError


def save(path, array, mode=None):
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    path = save(tmp_path / "x.png", np.full((5, 7, 3), 255, np.uint8), mode)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (7, 5))
    assert np.asarray(image).min() == 255
    assert read_size(path) == (7, 5)


def test_16_bits_of_grey_are_scaled(tmp_path):
    values = np.array([[0, 127 * 257, 65535]], np.uint16)
    image = np.asarray(read_image(save(tmp_path / "deep.png", values)))
    np.testing.assert_array_equal(image, np.repeat([[[0], [127], [255]]], 3, axis=2))


def test_truncated_image_is_named(tmp_path):
    path = save(tmp_path / "cut.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(GwsssError, match=r"cut\.jpg cannot be decoded"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nrubbish", b"plain text"])
@pytest.mark.parametrize("read", [read_image, read_saliency, read_size, lambda path: read_mask(path, 3)])
def test_rubbish_is_named(tmp_path, content, read):
    path = tmp_path / "rubbish.png"
    path.write_bytes(content)
    with pytest.raises(GwsssError, match=r"rubbish\.png cannot be decoded"):
        read(path)


@pytest.mark.parametrize("read", [read_image, read_saliency, read_size, lambda path: read_mask(path, 3)])
def test_missing_file_is_named(tmp_path, read):
    with pytest.raises(GwsssError, match=r"gone\.png does not exist"):
        read(tmp_path / "gone.png")


def test_palette_and_grey_masks(tmp_path):
    values = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)
    grey = save(tmp_path / "grey.png", values)
    palette = Image.fromarray(values, mode="P")
    palette.putpalette([9] * 768)
    palette.save(tmp_path / "palette.png")
    deep = save(tmp_path / "deep.png", values.astype(np.uint16))
    for path in (grey, tmp_path / "palette.png", deep):
        mask = read_mask(path, 3)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, values)


def test_sbd_mask(tmp_path):
    values = np.array([[0, 20], [5, 0]], np.uint8)
    scipy.io.savemat(tmp_path / "x.mat", {"GTcls": {"Segmentation": values, "Boundaries": 0}})
    np.testing.assert_array_equal(read_mask(tmp_path / "x.mat", 20), values)
    with pytest.raises(GwsssError, match=r"x\.mat holds the value 20, but only 0 to 19"):
        read_mask(tmp_path / "x.mat", 19)


def test_broken_sbd_masks(tmp_path):
    scipy.io.savemat(tmp_path / "other.mat", {"GTinst": 1})
    (tmp_path / "text.mat").write_text("rubbish")
    for name in ("other.mat", "text.mat"):
        with pytest.raises(GwsssError, match=rf"{name} is not an SBD file"):
            read_mask(tmp_path / name, 20)
    with pytest.raises(GwsssError, match=r"gone\.mat does not exist"):
        read_mask(tmp_path / "gone.mat", 20)


def test_illegal_mask_values(tmp_path):
    path = save(tmp_path / "m.png", np.array([[0, 4, 254]], np.uint8))
    with pytest.raises(GwsssError, match=r"m\.png holds the value 4, 254, but only 0 to 3 and 255"):
        read_mask(path, 3)
    deep = save(tmp_path / "deep.png", np.array([[0, 300]], np.uint16))
    with pytest.raises(GwsssError, match=r"deep\.png holds the value 300"):
        read_mask(deep, 3)
    colour = save(tmp_path / "c.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(GwsssError, match=r"c\.png is an image of mode RGB"):
        read_mask(colour, 3)


def test_saliency_is_scaled_to_one(tmp_path):
    grey = save(tmp_path / "s.png", np.array([[0, 51, 255]], np.uint8))
    deep = save(tmp_path / "d.png", np.array([[0, 13107, 65535]], np.uint16))
    for path in (grey, deep):
        saliency = read_saliency(path)
        assert saliency.dtype == np.float32
        np.testing.assert_allclose(saliency, [[0, 0.2, 1]], atol=1e-6)
