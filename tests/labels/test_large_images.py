"""Maps of images too large for maps of their own size."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gwsss_fast import cam
from gwsss_fast.data.map_files import enlarged, enlarged_bands, read_map_file, strided_shape
from gwsss_fast.data.records import Record, Split
from gwsss_fast.errors import GwsssError
from gwsss_fast.evaluation.segmentation import ThresholdSweep
from gwsss_fast.labels import maps
from gwsss_fast.labels.interchange import load_maps, save_maps
from gwsss_fast.labels.maps import CamSet, generate_maps
from tests.labels.test_maps import OPTIONS, Colours, Groups


@pytest.fixture
def split(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((56, 41), Image.Resampling.BICUBIC).save(tmp_path / "0.png")
    return Split("train", ("red", "green", "blue"), (Record("0", tmp_path / "0.png", labels=(0, 2)),))


def made(split):
    return next(iter(generate_maps(Colours(), split, Groups([[0]]), **OPTIONS)))[1]


def test_maps_of_a_large_image_are_at_stride_4(split, tmp_path, monkeypatch):
    whole = made(split)
    assert (whole.size, whole.initial.shape) == (None, (2, 41, 56))
    monkeypatch.setattr(maps, "MAX_MAP_VALUES", 2 * 41 * 56)
    assert np.array_equal(made(split).ensemble, whole.ensemble)  # up to the limit nothing changes
    monkeypatch.setattr(maps, "MAX_MAP_VALUES", 2 * 41 * 56 - 1)
    small = made(split)
    assert (small.size, small.initial.shape) == ((41, 56), (2, *strided_shape((41, 56))))
    assert small.initial.shape[1:] == (11, 14)
    for name in ("initial", "graph", "ensemble"):
        assert np.abs(enlarged(getattr(small, name), (41, 56)) - getattr(whole, name)).mean() < 0.05
    save_maps(tmp_path / "run.npy", small)
    content = np.load(tmp_path / "run.npy", allow_pickle=True).item()
    assert "high_res" not in content
    assert content["cam"].shape == (2, 11, 14)
    assert load_maps(tmp_path / "run.npy").ensemble.shape == (2, 41, 56)
    save_maps(tmp_path / "irn.npy", small, "irn")  # others know maps of the image's size alone
    assert read_map_file(tmp_path / "irn.npy").maps["ensemble"].shape == (2, 41, 56)


@pytest.mark.parametrize("pixels", [1, 60, 333, 10**6])
def test_bands_are_the_enlarged_maps(pixels):
    planes = np.random.default_rng(0).random((2, 5, 7)).astype(np.float32)
    found = np.zeros((2, 17, 30), np.float32)
    for rows, part in enlarged_bands(planes, (17, 30), pixels):
        assert part.shape[1] * 30 <= max(pixels, 30)
        found[:, rows] = part
    np.testing.assert_allclose(found, enlarged(planes, (17, 30)), atol=1e-6)
    (band,) = enlarged_bands(planes, (5, 7), pixels)
    assert band[1] is planes


def test_scores_of_a_large_image_are_those_of_the_enlarged_maps():
    rng = np.random.default_rng(0)
    planes = rng.random((2, 10, 12)).astype(np.float32)
    target = rng.integers(0, 4, (40, 48)).astype(np.uint8)
    keys = np.array([0, 2])
    banded, whole = ThresholdSweep(4), ThresholdSweep(4)
    cam.update_sweep(banded, CamSet(keys, planes, planes, planes, (40, 48)), "graph", target)
    whole.update(enlarged(planes, (40, 48)).astype(np.float16), keys, target)
    assert np.abs(banded.histogram - whole.histogram).sum() <= 4  # a pixel may lie on a threshold
    with pytest.raises(GwsssError, match="maps for 48x40 pixels do not fit a mask of 48x41"):
        cam.update_sweep(banded, CamSet(keys, planes, planes, planes, (40, 48)), "graph", np.zeros((41, 48), np.uint8))


def test_memory_of_a_very_large_image(tmp_path):
    Image.new("RGB", (6000, 4000), (90, 60, 30)).save(tmp_path / "large.png", compress_level=1)
    split = Split("train", ("red", "green", "blue"), (Record("0", tmp_path / "large.png", labels=(0, 1, 2)),))
    before = new_peak()
    cams = made(split)
    save_maps(tmp_path / "maps.npy", cams)
    taken = peak() - before
    assert (cams.size, cams.initial.shape) == ((4000, 6000), (3, 1000, 1500))
    assert taken < 350  # decoding takes 96; three maps of the image's size would be 275, and there would be nine
    assert (tmp_path / "maps.npy").stat().st_size < 2**25


def new_peak():
    """Megabytes in use; `peak` counts from here on."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the peak of a process's memory cannot be reset here")
    return peak()


def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
