"""Boxes from class activation maps and their scores: MaxBoxAcc and MaxBoxAccV2 (Choe et al., CVPR 2020; public code
clovaai/wsolevaluation) and the Top-1 and GT-known localisation of older papers.

The published code finds boxes with OpenCV's contours; here they come from connected components, which give the same:
- An outer contour is the border of an 8-connected component, a hole's contour the ring of foreground pixels around a
  4-connected background region that does not reach the image's edge.
- The area of an outer contour is that of the polygon through its pixels' centres, not the pixel count: of the unit
  squares between four pixel centres, those with four foreground corners count 1 and those with three count 1/2, holes
  filled. A line one pixel wide has area 0 whatever its length.
- Of contours of equal area OpenCV's list has the one first whose topmost, leftmost pixel comes last in reading order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from gwsss_fast.errors import GwsssError

MAP_SIZE = 224
THRESHOLDS = np.arange(0, 1, 0.001)
IOU_THRESHOLDS = {1: (0.5,), 2: (0.3, 0.5, 0.7)}
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


class BoxAccuracy(float):
    """MaxBoxAcc in percent, a plain number that also says how it came about."""

    taus: dict[float, float]  # IoU threshold -> the map threshold tau where its accuracy is highest (the lowest such)
    best: dict[float, float]  # IoU threshold -> that accuracy in percent
    thresholds: NDArray[np.float64]  # (T,)
    curves: dict[float, NDArray[np.float64]]  # IoU threshold -> accuracy in percent at every tau (T,)

    @property
    def tau(self) -> float:
        """The tau of IoU 0.5."""
        return self.taus[0.5]


class LocalizationScores(NamedTuple):
    """Percentages; both localisation scores at the one tau given here."""

    top1_classification: float
    top1_localization: float  # class right and IoU > 0.5
    gt_known_localization: float  # IoU > 0.5
    tau: float


def max_box_acc(
    maps: Sequence[ArrayLike] | ArrayLike,
    sizes: ArrayLike,
    boxes: Sequence[ArrayLike] | ArrayLike,
    version: int = 1,
    *,
    thresholds: ArrayLike | None = None,
) -> BoxAccuracy:
    """Share of images, in percent, whose box overlaps the true one, at the best map threshold tau.

    maps: (n, 224, 224) in [0, 1]. sizes: (n, 2) widths and heights of the original images in pixels. boxes: true boxes
    x0, y0, x1, y1 in original pixels, (n, 4), or n arrays (m, 4) where images have several (the best match counts).
    version 1: the box of the largest contour, IoU >= 0.5. version 2: the best of all contours' boxes, the mean of the
    best accuracies at IoU 0.3, 0.5 and 0.7, each at its own tau. tau runs over 0, 0.001, ..., 0.999 unless given.
    Raises GwsssError for maps outside [0, 1] or of another size, and for boxes that do not fit.
    """
    _check_version(version)
    taus = THRESHOLDS if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    return box_accuracy(best_overlaps(maps, sizes, boxes, taus, all_contours=version == 2), taus, version)


def box_accuracy(overlaps: NDArray[np.float64], thresholds: NDArray[np.float64], version: int = 1) -> BoxAccuracy:
    """MaxBoxAcc of overlaps (n, T) from `best_overlaps`: of largest contours for version 1, of all for version 2."""
    _check_version(version)
    curves = {iou: (overlaps >= iou).sum(0) * 100.0 / len(overlaps) for iou in IOU_THRESHOLDS[version]}
    result = BoxAccuracy(np.mean([curve.max() for curve in curves.values()]))
    result.thresholds, result.curves = thresholds, curves
    result.best = {iou: float(curve.max()) for iou, curve in curves.items()}
    result.taus = {iou: float(thresholds[curve.argmax()]) for iou, curve in curves.items()}
    return result


def _check_version(version: int) -> None:
    if version not in IOU_THRESHOLDS:
        raise GwsssError(f"version is {version!r}; use 1 (MaxBoxAcc) or 2 (MaxBoxAccV2)")


def localization_scores(
    maps: Sequence[ArrayLike] | ArrayLike,
    sizes: ArrayLike,
    boxes: Sequence[ArrayLike] | ArrayLike,
    class_right: ArrayLike,
    *,
    tau: float | None = None,
) -> LocalizationScores:
    """Top-1 Cls, Top-1 Loc and GT-known Loc for maps of the predicted class; arguments as in `max_box_acc`.

    class_right: (n,) whether the predicted class is the true one. tau None: the one with the best Top-1 Loc on these
    very images (say so when reporting); otherwise a tau chosen elsewhere.
    """
    taus = THRESHOLDS if tau is None else np.array([tau], dtype=np.float64)
    return top1_scores(best_overlaps(maps, sizes, boxes, taus, all_contours=False), class_right, taus)


def top1_scores(
    overlaps: NDArray[np.float64],
    class_right: ArrayLike,
    thresholds: NDArray[np.float64],
    images: int | None = None,
) -> LocalizationScores:
    """The scores of `localization_scores` from overlaps (n, T) of largest contours, at the best of the thresholds.

    Images of several classes have a row for each of them, which is right where it is the predicted class: then pass the
    number of `images`, of which both Top-1 scores are shares, while GT-known is one of the rows.
    """
    right, hits = np.asarray(class_right, dtype=bool), overlaps > 0.5
    if right.shape != hits.shape[:1]:
        raise GwsssError(f"class_right has shape {right.shape}, but there are {len(hits)} maps")
    count = images or len(hits)
    top1 = 100.0 * (hits & right[:, None]).sum(0) / count
    best = int(top1.argmax())
    return LocalizationScores(
        float(100.0 * right.sum() / count),
        float(top1[best]),
        float(100.0 * hits[:, best].mean()),
        float(thresholds[best]),
    )


def best_overlaps(
    maps: Sequence[ArrayLike] | ArrayLike,
    sizes: ArrayLike,
    boxes: Sequence[ArrayLike] | ArrayLike,
    thresholds: NDArray[np.float64],
    *,
    all_contours: bool,
) -> NDArray[np.float64]:
    """(n, T): at every threshold the highest IoU between an image's predicted and true boxes, arguments as above."""
    size_rows = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    if len(maps) == 0 or not len(maps) == len(size_rows) == len(boxes):  # type: ignore[arg-type]
        raise GwsssError(
            f"{len(maps)} maps, {len(size_rows)} sizes and {len(boxes)} images' boxes; "  # type: ignore[arg-type]
            "there must be one of each for every image, and at least one image"
        )
    overlaps = np.empty((len(size_rows), len(thresholds)))
    for index, (size, true) in enumerate(zip(size_rows, boxes, strict=True)):  # type: ignore[arg-type]
        levels = quantised(maps[index], index)  # type: ignore[index]
        truth = resized(np.asarray(true, dtype=np.float64).reshape(-1, 4), size, index)
        overlaps[index] = map_overlaps(levels, truth, thresholds, (all_contours,))[0]
    return overlaps


def map_overlaps(
    levels: NDArray[np.uint8],
    truth: NDArray[np.int64],
    thresholds: NDArray[np.float64],
    all_contours: Sequence[bool] = (False, True),
) -> list[NDArray[np.float64]]:
    """`best_overlaps` (T,) of one image, one for each entry of `all_contours`.

    levels: its map in grey levels. truth: its true boxes on that map, from `resized`.
    """
    # tau * max is cut to a whole grey level, so at most 256 of the thresholds differ
    cuts, of_cut = np.unique((thresholds * levels.max()).astype(np.int64), return_inverse=True)
    at_cut, euler = np.empty((len(all_contours), len(cuts))), _euler_numbers(levels)
    for column, cut in enumerate(cuts.tolist()):
        contours = _Contours(levels, cut, int(euler[cut]))
        for row, every in enumerate(all_contours):
            at_cut[row, column] = box_iou(contours.every() if every else contours.largest(), truth).max()
    return list(at_cut[:, of_cut])


def grey_levels(activation: ArrayLike) -> NDArray[np.uint8]:
    """An activation map brought to 0..255 by its minimum and maximum, fractions cut off; a flat or broken one is 0."""
    values = np.asarray(activation, dtype=np.float64)
    low, high = values.min(), values.max()
    if not high > low or not np.isfinite(high - low):  # as published
        return np.zeros(values.shape, np.uint8)
    shifted = values - low
    return (shifted / shifted.max() * 255).astype(np.uint8)


def quantised(score_map: ArrayLike, index: int = 0) -> NDArray[np.uint8]:
    """A map in [0, 1] as grey levels 0..255, fractions cut off; `index` names the map in errors."""
    values = np.asarray(score_map, dtype=np.float64)
    if values.shape != (MAP_SIZE, MAP_SIZE):
        raise GwsssError(f"map {index} has shape {values.shape}; resize it to {MAP_SIZE} x {MAP_SIZE}")
    if not (values.min() >= 0 and values.max() <= 1):  # also catches NaN
        raise GwsssError(f"map {index} has values outside [0, 1] or NaN; normalise it by its minimum and maximum")
    return (values * 255).astype(np.uint8)


def boxes_above(
    levels: NDArray[np.uint8], cuts: NDArray[np.int64], *, all_contours: bool
) -> Iterator[NDArray[np.int64]]:
    """For every cut, boxes (m, 4) x0 y0 x1 y1 of the pixels strictly above it, x1 and y1 one past the last pixel.

    x1 and y1 are clipped to the last column and row, and a box 0 0 0 0 stands for an empty mask, as published. With
    all_contours also the boxes of holes' contours, else only the box of the contour with the largest area.
    """
    euler = _euler_numbers(levels)
    for cut in cuts.tolist():
        contours = _Contours(levels, cut, int(euler[cut]))
        yield contours.every() if all_contours else contours.largest()


def box_iou(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, m) IoU of boxes (n, 4) and (m, 4) that include their last pixel: width x1 - x0 + 1."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low + 1, 0).prod(-1)
    areas = [(box[:, 2:] - box[:, :2] + 1).prod(-1) for box in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def resized(boxes: NDArray[np.float64], size: ArrayLike, index: int = 0) -> NDArray[np.int64]:
    """Boxes in pixels of an image of `size` (width, height) on the 224 x 224 map, fractions cut off."""
    size = np.asarray(size, dtype=np.float64)
    if len(boxes) == 0 or (boxes < 0).any() or (boxes[:, 2:] < boxes[:, :2]).any() or (size <= 0).any():
        raise GwsssError(
            f"image {index}: boxes must be non-empty rows x0 y0 x1 y1 with 0 <= x0 <= x1 and 0 <= y0 <= y1, and the "
            f"size positive; got {boxes.tolist()} in {size.tolist()}"
        )
    return (boxes * MAP_SIZE / np.tile(size, 2)).astype(np.int64)


class _Contours:
    """Boxes of the contours of the pixels above `cut`; what both kinds need is computed once.

    euler: the mask's Euler number, which tells how many holes there are to look for.
    """

    def __init__(self, levels: NDArray[np.uint8], cut: int, euler: int) -> None:
        mask, self.euler = levels > cut, euler
        self.most = np.array([mask.shape[1] - 1, mask.shape[0] - 1] * 2)
        self.empty = not mask.any()
        if not self.empty:  # work on the occupied part only: most cuts are high and leave little
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            self.corner = np.array([columns[0], rows[0]] * 2)
            self.mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            self.whole = np.array([[0, 0, *self.mask.shape[::-1]]])

    @cached_property
    def components(self) -> tuple[NDArray[np.int32], int]:
        """8-connected."""
        return ndimage.label(self.mask, _EIGHT_NEIGHBOURS)

    @cached_property
    def background(self) -> NDArray[np.int32]:
        """4-connected regions, with a frame of background around the mask, whose region is the first."""
        return ndimage.label(np.pad(~self.mask, 1, constant_values=True))[0]

    def largest(self) -> NDArray[np.int64]:
        """(1, 4)"""
        if self.empty:
            return np.zeros((1, 4), np.int64)
        components, count = self.components
        if count > max(self.euler, 1):
            # what lies in a hole vanishes: it is smaller than what holds it
            filled = (self.background != 1)[1:-1, 1:-1]
            components, count = ndimage.label(filled, _EIGHT_NEIGHBOURS)
        if count == 1:
            return self._placed(self.whole)
        return self._placed(_largest_box(components, count))

    def every(self) -> NDArray[np.int64]:
        """(m, 4)"""
        if self.empty:
            return np.zeros((1, 4), np.int64)
        components, count = self.components
        boxes = self.whole if count == 1 else _slices_to_boxes(ndimage.find_objects(components))
        if count > self.euler:
            # a hole's contour is the ring around it: one pixel further on every side; the frame shifted all by one
            holes = _slices_to_boxes(ndimage.find_objects(self.background)[1:])
            boxes = np.concatenate([boxes, holes + np.array([-2, -2, 0, 0])])
        return self._placed(boxes)

    def _placed(self, boxes: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.minimum(boxes + self.corner, self.most)


def _euler_numbers(levels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(256,): components less holes of the 8-connected masks levels > 0, > 1, ..., > 255.

    A mask's number is (q1 - q3 - 2 qd) / 4, where q1, q3 and qd count the squares of 2 x 2 pixels with one, three, and
    two diagonal pixels in it (Gray 1971); the k-th largest pixel of a square says for which masks it has k in it.
    """
    padded = np.pad(levels, 1)
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    outer, inner = (np.maximum(a, b), np.maximum(c, d)), (np.minimum(a, b), np.minimum(c, d))
    middle = np.minimum(*outer), np.maximum(*inner)
    one, three = _above(np.maximum(*outer), np.maximum(*middle)), _above(np.minimum(*middle), np.minimum(*inner))
    diagonal = np.zeros(256, np.int64)
    for pair, others in (((a, d), (b, c)), ((b, c), (a, d))):
        low, high = np.maximum(*others), np.minimum(*pair)
        diagonal += _above(high[high > low], low[high > low])
    return (one - three - 2 * diagonal) // 4


def _above(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(256,): for how many pairs the cut lies at low or above, and below high."""
    counts = np.bincount(high.ravel(), minlength=256) - np.bincount(low.ravel(), minlength=256)
    return np.append(counts[::-1].cumsum()[::-1][1:], 0)


def _largest_box(components: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """The box (1, 4) of the component without holes whose outline has the largest area."""
    corners = [components[:-1, :-1], components[1:, :-1], components[:-1, 1:], components[1:, 1:]]
    owner = np.maximum(np.maximum(corners[0], corners[1]), np.maximum(corners[2], corners[3]))
    share = np.array([0, 0, 0, 0.5, 1])[np.add.reduce([corner > 0 for corner in corners], dtype=np.int64)]
    areas = np.bincount(owner.ravel(), weights=share.ravel(), minlength=count + 1)[1:]
    largest = np.flatnonzero(areas == areas.max()) + 1
    last = max(largest, key=lambda label: int((components == label).argmax())) if len(largest) > 1 else largest[0]
    return _slices_to_boxes([ndimage.find_objects(components)[last - 1]])


def _slices_to_boxes(places: Sequence[tuple[slice, ...]]) -> NDArray[np.int64]:
    return np.array([[x.start, y.start, x.stop, y.stop] for y, x in places], dtype=np.int64)
