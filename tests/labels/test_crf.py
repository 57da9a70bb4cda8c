"""The presets' numbers, and both ways to use them against pydensecrf2's own helpers."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from gwsss_fast.errors import GwsssError
from gwsss_fast.labels.crf import PRESETS, refine, refine_images, refine_labels


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(1)
    regions = ndimage.gaussian_filter(rng.standard_normal((4, 40, 48)), (0, 5, 5)).argmax(0)
    noise = ndimage.gaussian_filter(rng.standard_normal((40, 48, 3)), (1, 1, 0)) * 30
    image = (rng.integers(0, 256, (4, 3))[regions] + noise).clip(0, 255).astype(np.uint8)
    return ndimage.shift(regions, (2, 3), order=0, mode="nearest"), image


def reference(unary, image, settings):
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    height, width = image.shape[:2]
    crf = densecrf.DenseCRF2D(width, height, len(unary))
    crf.setUnaryEnergy(np.ascontiguousarray(unary))
    crf.addPairwiseGaussian(sxy=settings[0], compat=settings[1])
    crf.addPairwiseBilateral(sxy=settings[2], srgb=settings[3], rgbim=image, compat=settings[4])
    return np.array(crf.inference(settings[5])).reshape(-1, height, width)


def test_presets_are_the_published_numbers():
    numbers = {name: dataclasses.astuple(preset) for name, preset in PRESETS.items()}
    assert numbers == {
        "psa": (3, 3, 80, 13, 10, 10, None),
        "irn": (3, 3, 50, 5, 10, 10, 0.7),
        "deeplab": (1, 3, 67, 3, 4, 10, None),
        "mcis": (3, 1, 80, 4, 3, 1, None),
        "toco": (1, 1, 121, 5, 4, 10, None),
    }


def test_probabilities_are_refined_as_by_pydensecrf(scene):
    utils = pytest.importorskip("pydensecrf.utils")
    labels, image = scene
    prob = ndimage.gaussian_filter(np.eye(4, dtype=np.float32)[labels], (3, 3, 0)).transpose(2, 0, 1)
    expected = reference(utils.unary_from_softmax(prob), image, (1, 3, 67, 3, 4, 10))
    got = refine(prob, Image.fromarray(image), "deeplab")
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() <= 1e-3


def test_absent_labels_are_left_out_where_asked(scene):
    """As if they were never there; kept, they hold a little probability that shows in the others."""
    labels, image = scene
    prob = ndimage.gaussian_filter(np.eye(4, dtype=np.float32)[labels], (3, 3, 0)).transpose(2, 0, 1)
    wide = np.insert(prob, [1, 3], 0, axis=0)  # labels 1 and 4 of 6
    pruned = refine(wide, image, "psa", prune=True)
    assert not pruned[[1, 4]].any()
    assert np.array_equal(pruned[[0, 2, 3, 5]], refine(prob, image, "psa"))
    kept = refine(wide, image, "psa")
    assert 0 < kept[[1, 4]].max() < 0.01


def test_images_together_are_as_one_by_one(scene):
    labels, image = scene
    prob = ndimage.gaussian_filter(np.eye(4, dtype=np.float32)[labels], (3, 3, 0)).transpose(2, 0, 1)
    probs = [prob[:, : 40 - 7 * i] for i in range(5)]
    images = [image[: 40 - 7 * i] for i in range(5)]
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        together = refine_images(probs, images, "deeplab")
    finally:
        torch.set_num_threads(threads)
    for one, p, pixels in zip(together, probs, images, strict=True):
        assert np.array_equal(one, refine(p, pixels, "deeplab"))
    assert refine_images([], [], "psa") == []


def test_hard_labels_are_refined_as_by_pydensecrf(scene):
    utils = pytest.importorskip("pydensecrf.utils")
    labels, image = scene
    expected = reference(utils.unary_from_labels(labels, 4, 0.7, zero_unsure=False), image, (3, 3, 50, 5, 10, 10))
    got = refine_labels(labels, image, 4)
    assert got.dtype == np.uint8
    assert (got == expected.argmax(0)).mean() >= 0.999
    assert (got != labels).mean() > 0.02


def test_unsure_pixels_are_filled_in(scene):
    utils = pytest.importorskip("pydensecrf.utils")
    labels, image = scene
    unsure = labels.copy()
    unsure[10:20, 10:30] = 255
    shifted = np.where(unsure == 255, 0, unsure + 1)  # pydensecrf's own convention: 0 is unsure
    expected = reference(utils.unary_from_labels(shifted, 4, 0.5), image, (3, 3, 80, 13, 10, 10))
    got = refine_labels(unsure, image, 4, "psa", gt_prob=0.5)
    assert (got == expected.argmax(0)).mean() >= 0.999
    assert got.max() < 4


def test_one_label_stays():
    assert refine_labels(np.full((4, 5), 255), np.zeros((4, 5, 3), np.uint8), 1).tolist() == np.zeros((4, 5)).tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image: refine(np.full((2, 3, 4), 0.5), image, "crf"), "psa, irn, deeplab, mcis, toco"),
        (lambda image: refine(np.full((2, 4, 3), 0.5), image), "do not fit"),
        (lambda image: refine(np.full((2, 3, 4), 0.5), image / 255), "float64; pass raw pixels, whole numbers"),
        (lambda image: refine(np.full((2, 3, 4), 0.5), image.astype(int) + 256), "whole numbers from 0 to 255"),
        (lambda image: refine_labels(np.full((3, 4), 2), image, 300), "300 labels to refine are too many"),
        (lambda image: refine_labels(np.full((3, 4), 2), image, 2), "0 to 1"),
        (lambda image: refine_labels(np.zeros((3, 4)), image, 2, gt_prob=1.0), "between 0 and 1"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(GwsssError, match=message):
        call(np.zeros((3, 4, 3), np.uint8))
