"""Untrusted images: their headers, their orientation, and what is made of them."""

import io

import numpy as np
import pytest
from PIL import Image

from gwsss_fast.serving.limits import Refused
from gwsss_fast.serving.pictures import _size_of_webp, check_header, decode, heat_png, mask_png
from gwsss_fast.serving.uploads import Intake
from tests.serving.clients import encoded

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_a_browser_shows_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode(encoded(PHOTO, "PNG", exif=exif), 1.0, "the image")
    square = [[0, 1], [2, 3]]  # corners of the file: top left, top right, bottom left, bottom right
    expected = {
        **{1: square, 2: [[1, 0], [3, 2]], 3: [[3, 2], [1, 0]], 4: [[2, 3], [0, 1]]},
        **{5: [[0, 2], [1, 3]], 6: [[2, 0], [3, 1]], 7: [[3, 1], [2, 0]], 8: [[1, 3], [0, 2]]},
    }[orientation]
    file, seen = np.asarray(PHOTO), np.asarray(picture.image)
    corners = [file[y, x] for y in (0, -1) for x in (0, -1)]
    found = [[next(n for n, c in enumerate(corners) if (seen[y, x] == c).all()) for x in (0, -1)] for y in (0, -1)]
    assert found == expected
    assert picture.size == picture.image.size == ((50, 30) if orientation < 5 else (30, 50))


def test_a_large_photograph_is_reduced() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    large = Image.new("RGB", (1200, 800), (10, 200, 30))
    picture = decode(encoded(large, "JPEG", exif=exif), 0.01, "the image")
    assert picture.size == (800, 1200)
    assert picture.image.size == (82, 122)
    assert np.abs(np.asarray(picture.image).astype(int) - (10, 200, 30)).max() < 4


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16", "1", "CMYK"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(np.full((4, 4), 0x8080, np.uint16)) if mode == "I;16" else PHOTO.convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    data = encoded(image.convert("CMYK"), "JPEG") if kind == "TIFF" else encoded(image, kind)
    picture = decode(data, 1.0, "the image")
    assert picture.image.mode == "RGB"
    if mode == "I;16":
        assert (np.asarray(picture.image) == 0x80).all()


@pytest.mark.parametrize("size", [(1, 1), (50, 30), (1999, 3)])
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0" + bytes(16)}])
def test_the_canvas_of_a_webp_file(size: tuple[int, int], options: dict) -> None:
    assert _size_of_webp(encoded(Image.new("RGB", size), "WEBP", **options)) == size


def test_a_webp_file_that_says_it_is_huge_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(encoded(PHOTO, "WEBP", exif=b"Exif\0\0" + bytes(16)))
    data[24:30] = b"\xfe\x3f\x00" * 2
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(Refused, match="16383 x 16383") as refusal:
        check_header(bytes(data), 50, "the image")
    assert refusal.value.status == 413


def test_the_files_hold_what_they_show() -> None:
    mask = np.random.default_rng(0).integers(0, 21, (7, 9), np.uint8)
    heat = np.linspace(-0.1, 1.1, 63, dtype=np.float32).reshape(7, 9)
    for data, expected in ((mask_png(mask), mask), (heat_png(heat), np.rint(heat.clip(0, 1) * 255))):
        image = Image.open(io.BytesIO(data))
        assert image.mode == "P"
        assert (np.asarray(image) == expected).all()


def test_bodies_in_memory_are_counted() -> None:
    intake = Intake(100)
    with intake.share() as one, intake.share() as other:
        one.take(60)
        other.take(40)
        with pytest.raises(Refused) as refusal:
            other.take(1)
        assert (refusal.value.status, refusal.value.retry_after) == (503, 1)
    assert intake.held == 0
