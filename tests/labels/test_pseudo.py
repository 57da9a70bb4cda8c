"""The three background rules, pixel by pixel by hand, and the order of the saliency rule's exceptions."""

import dataclasses

import numpy as np
import pytest

from gwsss_fast.errors import GwsssError
from gwsss_fast.labels.crf import refine, refine_labels
from gwsss_fast.labels.pseudo import PseudoOptions, pseudo_label

KEYS = np.array([4, 1])  # on purpose not in order
# Each map reaches 0 and 1, so stretching to minimum and maximum changes nothing. One column a case.
CASES = [
    # class 4, class 1, saliency, expected
    (0.00, 0.00, 0.00, 0),  # nothing anywhere: background
    (1.00, 0.00, 1.00, 5),  # one map, salient
    (0.00, 1.00, 1.00, 2),
    (0.95, 0.92, 1.00, 255),  # two channels above 0.9
    (0.95, 0.90, 1.00, 5),  # 0.9 is not above 0.9
    (0.95, 0.00, 0.05, 255),  # a map and the background (0.95) both above 0.9
    (0.85, 0.00, 0.10, 255),  # background wins, but the map above 0.8 makes the pixel salient
    (0.80, 0.00, 0.10, 0),  # 0.8 is not above 0.8, and 0.10 < 32 / 255
    (0.30, 0.00, 0.20, 255),  # background wins, salient
    (0.50, 0.50, 0.80, 2),  # a tie goes to the lower class
    (0.50, 0.10, 0.50, 255),  # a tie with the background goes to the background, which is salient
    (0.45, 0.10, 0.60, 5),
]


def test_saliency_rule_case_by_case():
    columns = np.array(CASES, dtype=np.float64)
    cams = columns[:, :2].T[:, None, :]
    label = pseudo_label(cams, KEYS, saliency=columns[None, :, 2])
    assert label.dtype == np.uint8
    assert label.tolist() == [[int(value) for value in columns[:, 3]]]


def test_saliency_rule_against_a_pixel_loop():
    """The rule as published, on saliency in grey levels, written pixel by pixel."""
    rng = np.random.default_rng(0)
    cams = rng.random((3, 20, 24)).astype(np.float32) ** 2 + 0.1
    keys = [0, 3, 5]
    grey = (rng.random((20, 24)) ** 2 * 255).astype(np.uint8)
    expected = np.zeros((20, 24), int)
    low, high = cams.min((1, 2)), cams.max((1, 2))
    for y in range(20):
        for x in range(24):
            channels = [1 - grey[y, x] / 255] + [0] * 6
            for n, key in enumerate(keys):
                channels[key + 1] = (float(cams[n, y, x]) - float(low[n])) / (float(high[n]) - float(low[n]) + 1e-8)
            label = channels.index(max(channels))
            if sum(value > 0.9 for value in channels) > 1:
                label = 255
            salience = max([int(grey[y, x])] + [255 * (value > 0.8) for value in channels[1:]])
            if salience >= 32 and label == 0:
                label = 255
            expected[y, x] = label
    assert {0, 1, 4, 6, 255} <= set(expected.ravel())
    assert np.array_equal(pseudo_label(cams, keys, saliency=grey), expected)
    assert np.array_equal(pseudo_label(cams, keys, saliency=grey / 255), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_grey_level_32_is_salient_and_31_is_not(dtype):
    saliency = np.array([[31, 32, 255, 255]], dtype) / dtype(255)
    cams = np.array([[[0, 0, 1, 1]]])
    assert pseudo_label(cams, [0], saliency=saliency).tolist() == [[0, 255, 1, 1]]


def test_maps_are_stretched_to_their_minimum_and_maximum():
    cams = np.array([[[0.2, 0.3, 0.4]]])  # becomes 0, 0.5, 1
    assert pseudo_label(cams, [0], saliency=np.array([[0.0, 0.51, 1.0]])).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(("pixels", "kept"), [(1, True), (0, False)])
def test_an_image_under_one_percent_foreground_is_left_open(pixels, kept):
    cams = np.zeros((1, 10, 10))
    cams[0, 0, :1] = 1  # one pixel in a hundred is 1 %, which is enough
    saliency = np.zeros((10, 10))
    saliency[0, :pixels] = 1  # without salience the pixel is a conflict with the background
    label = pseudo_label(cams, [2], saliency=saliency)
    assert (label == 255).all() != kept
    if kept:
        assert label[0, 0] == 3
        assert (label.ravel()[1:] == 0).all()


def test_every_constant_is_an_option():
    cams = np.array([[[0.0, 1.0, 0.85, 0.5, 0.3]], [[0.0, 0.6, 0.0, 0.0, 1.0]]])
    saliency = np.array([[0.0, 1.0, 0.1, 0.2, 1.0]])

    def run(**changed):
        return pseudo_label(cams, [0, 1], saliency=saliency, options=PseudoOptions(**changed)).tolist()[0]

    assert run() == [0, 1, 255, 255, 2]
    assert run(conflict=0.55) == [0, 255, 255, 255, 2]
    assert run(raise_above=0.9) == [0, 1, 0, 255, 2]
    assert run(salient=0.3) == [0, 1, 255, 0, 2]
    assert run(min_foreground=0.5) == [255] * 5


def test_threshold_rule():
    cams = np.array([[[0.25, 0.26, 0.9, 0.0]], [[0.1, 0.26, 0.95, 0.0]]])
    assert pseudo_label(cams, [2, 5], background="threshold").tolist() == [[0, 3, 6, 0]]
    options = PseudoOptions(threshold=0.92)
    assert pseudo_label(cams, [2, 5], background="threshold", options=options).tolist() == [[0, 0, 6, 0]]


def test_alpha_rule():
    # (1 - m)^4 = m at m = 0.2755...; (1 - m)^1 = m at 0.5
    cams = np.array([[[0.27, 0.28, 0.5, 0.51, 1.0]]])
    assert pseudo_label(cams, [0], background="alpha").tolist() == [[0, 1, 1, 1, 1]]
    assert pseudo_label(cams, [0], background="alpha", options=PseudoOptions(alpha=1)).tolist() == [[0, 0, 0, 1, 1]]


def test_missing_saliency_is_an_error_or_a_fallback():
    cams = np.array([[[0.2, 0.9]]])
    with pytest.raises(GwsssError, match="2007_000032 has no saliency map"):
        pseudo_label(cams, [0], name="2007_000032")
    options = PseudoOptions(missing_saliency="threshold")
    assert pseudo_label(cams, [0], options=options).tolist() == [[0, 1]]


@pytest.mark.parametrize(("background", "expected"), [("threshold", 0), ("alpha", 0), ("saliency", 255)])
def test_an_image_without_classes(background, expected):
    label = pseudo_label(np.zeros((0, 3, 4)), [], background=background, saliency=np.zeros((3, 4)))
    assert label.tolist() == np.full((3, 4), expected).tolist()


@pytest.fixture(scope="module")
def picture():
    """A bright disc on a dark ground, and a map that covers it badly."""
    y, x = np.mgrid[:40, :44]
    disc = (y - 20) ** 2 + (x - 22) ** 2 < 12**2
    image = np.where(disc[..., None], (220, 180, 40), (30, 40, 60)).astype(np.uint8)
    cam = np.exp(-((y - 16) ** 2 + (x - 18) ** 2) / 120.0)[None]
    return disc, image, cam


def test_crf_on_probabilities(picture):
    disc, image, cam = picture
    label = pseudo_label(cam, [1], background="alpha", crf="psa", image=image)
    channels = np.concatenate([(1 - cam) ** 4, cam])
    expected = np.array([0, 2])[refine(channels / channels.sum(0), image, "psa").argmax(0)]
    assert (label == expected).mean() > 0.999
    plain = pseudo_label(cam, [1], background="alpha")
    assert ((label > 0) == disc).mean() > ((plain > 0) == disc).mean() + 0.02


def test_crf_on_hard_labels(picture):
    _, image, cam = picture
    label = pseudo_label(cam, [1], background="threshold", crf="irn", image=image)
    plain = pseudo_label(cam, [1], background="threshold")
    assert np.array_equal(label, refine_labels(plain > 0, image, 2, "irn", gt_prob=0.7) * 2)


def test_crf_keeps_the_exceptions_of_the_saliency_rule(picture):
    disc, image, cam = picture
    saliency = np.where(disc, 0.9, 0.0)
    saliency[:3] = 0.5  # salient, but neither class nor disc
    label = pseudo_label(cam, [1], saliency=saliency, crf="deeplab", image=image)
    assert (label[:3] == 255).all()
    assert (label[disc] == 2).mean() > 0.5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"background": "otsu"}, "saliency, threshold, alpha"),
        ({"keys": [0, 1]}, "do not fit 2 classes"),
        ({"saliency": np.zeros((3, 3))}, r"saliency map has shape \(3, 3\)"),
        ({"crf": "psa"}, "needs the image"),
        ({"crf": "crf", "image": np.zeros((2, 2, 3), np.uint8)}, "unknown CRF preset"),
        ({"options": PseudoOptions(missing_saliency="skip")}, "error or threshold"),
    ],
)
def test_errors_say_what_is_wrong(changed, message):
    arguments = {"cams": np.ones((1, 2, 2)), "keys": [0], "saliency": np.ones((2, 2)), **changed}
    with pytest.raises(GwsssError, match=message):
        pseudo_label(**arguments)


def test_defaults_are_the_published_constants():
    assert dataclasses.asdict(PseudoOptions()) == {
        "threshold": 0.25,
        "alpha": 4.0,
        "missing_saliency": "error",
        "conflict": 0.9,
        "salient": 32 / 255,
        "raise_above": 0.8,
        "min_foreground": 0.01,
    }
