"""Boxes and MaxBoxAcc digit for digit against the published definition, written down again with OpenCV's contours."""

import numpy as np
import pytest

from gwsss_fast.evaluation.localization import THRESHOLDS, best_overlaps, box_accuracy, boxes_above, grey_levels

cv2 = pytest.importorskip("cv2")


def contour_boxes(levels, cut):
    """(box of the contour with the largest contourArea, boxes of all contours) of the pixels strictly above `cut`."""
    _, binary = cv2.threshold(levels[..., None], int(cut), 255, cv2.THRESH_BINARY)
    contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
    if not len(contours):
        return [(0, 0, 0, 0)], [(0, 0, 0, 0)]
    height, width = levels.shape

    def corners(contour):
        x, y, w, h = cv2.boundingRect(contour)
        return x, y, min(x + w, width - 1), min(y + h, height - 1)

    return [corners(max(contours, key=cv2.contourArea))], [corners(contour) for contour in contours]


def iou(a, b):
    """Of two boxes that include both corners, in whole numbers."""
    wide, high = (max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1, 0) for i in (0, 1))
    area = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return wide * high / (area - wide * high)


def published(maps, sizes, boxes):
    """Overlaps (2, n, 1000), of largest contours and of all, by a plain loop over everything."""
    overlaps = np.zeros((2, len(maps), 1000))
    for index, (score_map, (w, h), rows) in enumerate(zip(maps, sizes, boxes, strict=True)):
        truth = [tuple(int(v * 224 / side) for v, side in zip(row, (w, h, w, h), strict=True)) for row in rows]
        levels = (np.asarray(score_map, np.float64) * 255).astype(np.uint8)
        known = {}
        for number, tau in enumerate(np.arange(0, 1, 0.001)):
            cut = int(tau * np.max(levels))
            if cut not in known:
                kinds = contour_boxes(levels, cut)
                known[cut] = [max(iou(box, true) for box in found for true in truth) for found in kinds]
            overlaps[:, index, number] = known[cut]
    return overlaps


def canvas(value=0.0):
    return np.full((224, 224), value)


def adversarial():
    """Maps that a slip in the definition would show on: ties, flat, holes in holes, lines, borders, all grey levels."""
    y, x = np.mgrid[:224, :224]
    maps = [canvas(), canvas(1.0), canvas(0.5), canvas(1 / 255), canvas(np.nextafter(1 / 255, 0))]
    corner = canvas()
    corner[0, 0] = corner[223, 223] = corner[0, 223] = corner[223, 0] = 1
    tied = canvas()  # equal areas, equal maxima
    for top, left in ((10, 100), (10, 10), (120, 40), (120, 150)):
        tied[top : top + 30, left : left + 30] = 0.8
        tied[top + 10, left + 10] = 1
    lines = canvas()  # area zero, however long
    lines[5, :] = 0.6
    lines[:, 200] = 0.6
    lines[100:103, 100:103] = 0.4
    np.fill_diagonal(lines[:90, :90], 0.9)
    rings = ((np.hypot(x - 111.5, y - 111.5) // 12) % 2) * 0.9 * (np.hypot(x - 111.5, y - 111.5) < 111)
    checks = ((x // 7 + y // 7) % 2) * 0.7 + 0.3 * (x > 150)
    frame = canvas()
    frame[:3], frame[-3:], frame[:, :3], frame[:, -3:] = 1, 0.7, 0.5, 0.3
    frame[60:90, 60:90] = 0.2
    touching = canvas()  # 8-connected by a corner; a component within a hole
    touching[20:60, 20:60] = touching[60:90, 60:100] = 0.5
    touching[30:50, 30:50] = 0
    touching[38:42, 38:42] = 0.9
    touching[150:, 200:] = 0.45
    ramp = (np.arange(224 * 224).reshape(224, 224) % 256) / 255
    return [*maps, corner, tied, lines, rings, checks, frame, touching, ramp, x / 223.0, (x + y) / 446.0]


def random_maps(count):
    """Smooth blobs, some cut to few grey levels, some noisy: like activation maps, and worse."""
    rng = np.random.default_rng(7)
    maps = []
    for number in range(count):
        coarse = rng.random((int(rng.integers(3, 15)),) * 2).astype(np.float32)
        smooth = cv2.resize(coarse, (224, 224), interpolation=cv2.INTER_CUBIC).astype(np.float64)
        if number % 3 == 1:
            smooth[60:100, 60:120] += rng.normal(0, 0.1, (40, 60))
        smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
        maps.append(np.round(smooth * 6) / 6 if number % 3 == 2 else smooth)
    return maps


def test_max_box_acc_is_the_published_one():
    rng, maps = np.random.default_rng(3), [*adversarial(), *random_maps(5)]
    sizes = rng.integers(60, 700, (len(maps), 2)).tolist()
    boxes = []
    for number, (w, h) in enumerate(sizes):
        rows = []
        for _ in range(1 + number % 3):
            x0, y0 = int(rng.integers(0, w - 1)), int(rng.integers(0, h - 1))
            rows.append((x0, y0, int(rng.integers(x0, w)), int(rng.integers(y0, h))))
        boxes.append(np.array(rows))
    for overlaps, version, percents in zip(published(maps, sizes, boxes), (1, 2), ((50,), (30, 50, 70)), strict=True):
        found = best_overlaps(maps, sizes, boxes, THRESHOLDS, all_contours=version == 2)
        np.testing.assert_array_equal(found, overlaps)
        assert len(set(overlaps[:, 300].tolist())) > 10
        result = box_accuracy(found, THRESHOLDS, version)
        curves = {percent / 100: (overlaps >= percent / 100).sum(0) * 100.0 / len(maps) for percent in percents}
        assert float(result) == np.mean([curve.max() for curve in curves.values()])
        for percent, curve in curves.items():
            np.testing.assert_array_equal(result.curves[percent], curve)
            assert result.taus[percent] == THRESHOLDS[curve.argmax()]


def test_every_small_mask_has_opencvs_boxes():
    """All boxes of 1,500 random masks of 9 x 8 with room around them, and of all masks of 3 x 3 without any."""
    rng = np.random.default_rng(0)
    masks = [np.array([bits >> i & 1 for i in range(9)], np.uint8).reshape(3, 3) for bits in range(512)]
    for number in range(1500):
        mask = np.zeros((12, 11), np.uint8)
        mask[1:10, 1:9] = rng.random((9, 8)) < (0.3, 0.5, 0.7)[number % 3]
        masks.append(mask)
    for mask in masks:
        largest, every = contour_boxes(mask, 0)
        cut = np.array([0])
        assert [tuple(box) for box in next(boxes_above(mask, cut, all_contours=False)).tolist()] == largest
        assert sorted(map(tuple, next(boxes_above(mask, cut, all_contours=True)).tolist())) == sorted(every)


def test_grey_levels_are_those_of_the_published_normalisation():
    rng = np.random.default_rng(1)
    activation = rng.normal(size=(224, 224))
    shifted = activation - activation.min()
    np.testing.assert_array_equal(grey_levels(activation), (shifted / shifted.max() * 255).astype(np.uint8))
    broken = activation.copy()
    broken[3, 3] = np.nan
    for flat in (np.full((224, 224), 3.7), np.zeros((224, 224)), broken):
        assert not grey_levels(flat).any()
