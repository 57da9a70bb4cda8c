"""MaxBoxAcc against numbers from the published evaluation code run with OpenCV 5.0, and small cases by hand."""

import numpy as np
import pytest
import torch

from gwsss_fast.errors import GwsssError
from gwsss_fast.evaluation import localization_scores, max_box_acc
from gwsss_fast.evaluation.localization import best_overlaps, box_iou, boxes_above

TENTHS = np.arange(0, 1, 0.2)

# 8 x 8 masks, a bit a pixel; OpenCV's bounding box of the contour of largest contourArea; the boxes of all contours
OPENCV = [
    (0x1A7E7FC7C7FE7F01, (0, 0, 8, 8), [(0, 0, 8, 8), (1, 2, 6, 6)]),
    (
        0xAA4320C16001490D,
        (0, 0, 3, 5),
        [(0, 0, 3, 5), (1, 6, 2, 7), (4, 0, 5, 1), (4, 6, 6, 8), (6, 0, 8, 2), (7, 3, 8, 4), (7, 5, 8, 8)],
    ),
    (
        0x0000800E401841CA,
        (0, 6, 2, 8),
        [(0, 2, 1, 3), (0, 6, 2, 8), (1, 4, 2, 5), (3, 5, 5, 6), (4, 3, 7, 4), (4, 7, 5, 8), (6, 6, 8, 8)],
    ),
    (0xBD9A87730147BA64, (0, 0, 8, 8), [(0, 0, 4, 4), (0, 0, 8, 8), (0, 5, 3, 8), (4, 0, 7, 3), (4, 5, 7, 8)]),
    (0xDAAFB1F6D44E51B8, (0, 0, 8, 8), [(0, 0, 3, 4), (0, 0, 8, 8), (1, 3, 5, 8), (2, 0, 5, 3), (3, 1, 8, 6)]),
    (
        0x04A53088A3508008,
        (2, 1, 5, 4),
        [(0, 1, 1, 2), (0, 3, 4, 7), (2, 1, 5, 4), (4, 7, 5, 8), (5, 0, 6, 2), (6, 4, 8, 5), (7, 1, 8, 2)],
    ),
    (
        0xE2204410004A8090,
        (0, 0, 3, 3),
        [
            (0, 0, 3, 3),
            (0, 5, 2, 8),
            (3, 3, 4, 4),
            (3, 7, 4, 8),
            (4, 5, 5, 6),
            (5, 2, 6, 3),
            (6, 0, 7, 1),
            (6, 5, 7, 6),
        ],
    ),
    (
        0x26084214000A8A94,
        (0, 6, 1, 8),
        [(0, 6, 1, 8), (1, 2, 2, 3), (2, 0, 3, 1), (3, 3, 4, 4), (3, 5, 7, 8), (4, 0, 7, 2), (5, 2, 7, 4)],
    ),
    (0x40768702DCA02F09, (0, 1, 8, 7), [(0, 0, 4, 3), (0, 1, 8, 7), (4, 6, 8, 8)]),
    (0x41020062200A0600, (4, 5, 7, 7), [(1, 0, 2, 1), (1, 3, 3, 5), (4, 5, 7, 7), (6, 0, 8, 2), (6, 3, 7, 4)]),
]


@pytest.mark.parametrize(("bits", "largest", "contours"), OPENCV)
def test_boxes_are_opencvs(bits, largest, contours):
    mask = np.unpackbits(np.frombuffer(bits.to_bytes(8, "big"), np.uint8)).reshape(8, 8)
    canvas = np.zeros((12, 12), np.uint8)  # room below and to the right, so that nothing is clipped
    canvas[:8, :8] = mask
    cut = np.array([0])
    (found,) = boxes_above(canvas, cut, all_contours=False)
    assert found.tolist() == [list(largest)]
    (found,) = boxes_above(canvas, cut, all_contours=True)
    assert sorted(map(tuple, found.tolist())) == contours


def published_boxes(score_map):
    levels = (np.array(score_map) * 255).astype(np.uint8)
    cuts = (TENTHS * levels.max()).astype(np.int64)
    return [found[0].tolist() for found in boxes_above(levels, cuts, all_contours=False)]


def test_boxes_of_the_published_tests():
    """The three score maps of the published code's own test file and their boxes."""
    assert published_boxes(np.zeros((3, 3))) == [[0, 0, 0, 0]] * 5
    unimodal = [
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.4, 0.4, 0.4, 0.6],
        [0.0, 0.4, 1.0, 0.8, 0.6],
        [0.0, 0.4, 0.4, 0.4, 0.6],
    ]
    assert published_boxes(unimodal) == [[1, 1, 4, 3], [1, 1, 4, 3], [2, 1, 4, 3], [2, 2, 4, 3], [2, 2, 3, 3]]
    # at 0.2 three pixels with area 1/2 beat a line of five with area 0; at 0.6 two single pixels tie
    multimodal = [
        [0.4, 0.0, 0.2, 0.2, 0.2],
        [0.4, 0.4, 0.0, 0.4, 0.0],
        [0.0, 0.0, 0.0, 0.4, 0.0],
        [1.0, 0.6, 0.8, 0.2, 0.2],
    ]
    assert published_boxes(multimodal) == [[0, 0, 4, 3], [0, 0, 2, 2], [0, 3, 3, 3], [2, 3, 3, 3], [0, 3, 1, 3]]


def test_iou_counts_both_ends():
    assert box_iou(np.array([[1, 2, 5, 6]]), np.array([[3, 1, 4, 5]]))[0, 0] == 8 / 27
    assert box_iou(np.zeros((1, 4), np.int64), np.zeros((1, 4), np.int64))[0, 0] == 1
    assert box_iou(np.array([[1, 1, 3, 3]]), np.array([[4, 4, 5, 5]]))[0, 0] == 0


@pytest.fixture(scope="module")
def scene():
    """Twelve maps made of waves and bumps, with boxes; formulas, so that no random stream has to stay the same."""
    y, x = np.mgrid[:224, :224] / 224.0
    maps, sizes, boxes = [], [], []
    for k in range(12):
        cx, cy = 0.3 + 0.035 * k, 0.65 - 0.03 * k
        m = np.exp(-((x - cx) ** 2 / (0.02 + 0.004 * k) + (y - cy) ** 2 / 0.03))
        m = m + 0.35 * np.sin(9 * x + k) * np.sin(7 * y - k) + 0.2 * np.sin(40 * x * (1 + k / 9)) * np.cos(31 * y)
        if k % 3 == 0:
            m = m + 0.9 * np.exp(-((x - 1 + cx) ** 2 + (y - 1 + cy) ** 2) / 0.05)
        maps.append((m - m.min()) / (m.max() - m.min()))
        w, h = 300 + 37 * k, 420 - 11 * k
        sizes.append((w, h))
        x0, y0 = int(w * max(cx - 0.2, 0)), int(h * max(cy - 0.25, 0))
        boxes.append((x0, y0, int(w * min(cx + 0.2 + 0.01 * k, 1)) - 1, int(h * min(cy + 0.25, 1)) - 1))
    return np.array(maps), np.array(sizes), np.array(boxes)


def test_version_1_equals_the_published_code(scene):
    result = max_box_acc(*scene, version=1)
    assert result == pytest.approx(100 * 10 / 12)
    assert result.tau == pytest.approx(0.557)
    assert (result.curves[0.5] * 12 / 100).sum() == pytest.approx(1848)


def test_version_2_equals_the_published_code(scene):
    result = max_box_acc(*scene, version=2)
    assert result == pytest.approx(72.22222222222221)
    assert result.best == pytest.approx({0.3: 100, 0.5: 83.33333333333333, 0.7: 33.333333333333336})
    assert result.taus == pytest.approx({0.3: 0.6, 0.5: 0.557, 0.7: 0.416})
    right = {iou: (curve * 12 / 100).sum() for iou, curve in result.curves.items()}
    assert right == pytest.approx({0.3: 4463, 0.5: 1848, 0.7: 369})


def square(x0, y0, x1, y1, value=1.0):
    score_map = np.zeros((224, 224))
    score_map[y0:y1, x0:x1] = value
    return score_map


def test_a_square_by_hand():
    """A map that is 1 on columns 56..111 and rows 112..167: box 56 112 112 168 in a picture of twice the size."""
    score_map = square(56, 112, 112, 168)
    overlaps = best_overlaps([score_map], [(448, 448)], [(112, 224, 225, 337)], TENTHS, all_contours=False)
    assert overlaps.tolist() == [[1.0] * 5]  # 225 * 224 / 448 = 112.5 is cut to 112
    overlaps = best_overlaps([score_map], [(448, 448)], [(112, 224, 224, 559)], TENTHS, all_contours=False)
    assert overlaps[0, 0] == 57 * 57 / (57 * 168)  # true box 56 112 112 279
    assert max_box_acc([score_map], [(448, 448)], [(112, 224, 224, 336)]) == 100
    assert max_box_acc([score_map], [(448, 448)], [(0, 0, 100, 100)]) == 0


def test_several_true_boxes_and_tensors():
    maps = torch.tensor(np.stack([square(10, 10, 60, 60), square(100, 100, 200, 200)]))
    two_for_the_first = [np.array([[0, 0, 5, 5], [10, 10, 60, 60]]), np.array([[0, 0, 50, 50]])]
    assert max_box_acc(maps, [(224, 224)] * 2, two_for_the_first) == 50


def test_an_empty_map_has_a_box_of_one_pixel():
    nothing = np.zeros((1, 224, 224))
    assert max_box_acc(nothing, [(224, 224)], [(0, 0, 0, 0)]) == 100
    assert max_box_acc(nothing, [(224, 224)], [(5, 5, 20, 20)], 2) == 0


def test_top1_and_gt_known_localisation_by_hand():
    maps = np.stack([square(0, 0, 100, 100, 0.5) + square(0, 0, 50, 50, 0.5)] * 4)
    small, large = (0, 0, 50, 50), (0, 0, 100, 100)
    # tau below 0.498 gives the large box, above the small one; classes right for images 0, 1 and 3
    scores = localization_scores(maps, [(224, 224)] * 4, [large, large, large, small], [True, True, False, True])
    assert scores == (75, 50, 75, 0)
    scores = localization_scores(maps, [(224, 224)] * 4, [large, large, large, small], [1, 1, 0, 1], tau=0.9)
    assert scores == (75, 25, 25, 0.9)


def test_errors_say_what_is_wrong():
    good, size, box = square(0, 0, 9, 9), (10, 10), (0, 0, 5, 5)
    for arguments, message in (
        (([good * 2], [size], [box]), r"outside \[0, 1\]"),
        (([good * np.nan], [size], [box]), "NaN"),
        (([good[:100]], [size], [box]), "resize it to 224"),
        (([good], [size, size], [box]), "one of each"),
        (([good], [size], [(5, 5, 0, 0)]), "x0 <= x1"),
        (([good], [size], [box], 3), "version is 3"),
    ):
        with pytest.raises(GwsssError, match=message):
            max_box_acc(*arguments)
