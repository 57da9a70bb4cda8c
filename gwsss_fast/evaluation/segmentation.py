"""Scores of segmentation masks: streamed confusion matrix, mean IoU, and the background-threshold sweep in one pass.

Masks hold 0 for background, 1..L for the foreground classes and 255 for "unknown". In the ground truth 255 is left out;
in a prediction it is counted by a named policy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gwsss_fast.errors import GwsssError

IGNORE = 255
IGNORED_PREDICTION_POLICIES = ("background", "ignore")


class SegmentationScores(NamedTuple):
    """Fractions in 0..1; `scores["miou"]` reads the same as `scores.miou`.

    For every class iou + its false-positive share + its false-negative share of the union = 1, so miou + fp + fn = 1.
    """

    miou: float  # mean of iou over the classes that occur in the ground truth or the prediction
    iou: NDArray[np.float64]  # (L + 1,), nan for a class that occurs in neither
    accuracy: float  # share of the counted pixels that are right
    fp: float  # mean over the same classes of false positives / union
    fn: float  # mean over the same classes of false negatives / union

    def __getitem__(self, key: Any) -> Any:
        return getattr(self, key) if isinstance(key, str) else tuple.__getitem__(self, key)


def confusion_matrix(
    prediction: ArrayLike,
    target: ArrayLike,
    num_classes_with_background: int,
    *,
    ignored_prediction: str = "background",
) -> NDArray[np.int64]:
    """Pixel counts (L + 1, L + 1), rows = ground truth, columns = prediction, of two masks of one shape.

    Pixels whose ground truth is 255 are left out. Predicted 255 counts as background ("background") or is left out too
    ("ignore"). Sum the matrices of all images. Raises GwsssError for shapes that differ or values out of range.
    """
    classes = num_classes_with_background
    if ignored_prediction not in IGNORED_PREDICTION_POLICIES:
        raise GwsssError(
            f"ignored_prediction is {ignored_prediction!r}; use one of {', '.join(IGNORED_PREDICTION_POLICIES)}"
        )
    predicted, true = np.asarray(prediction), np.asarray(target)
    if predicted.shape != true.shape:
        raise GwsssError(f"prediction has shape {predicted.shape} but the ground truth {true.shape}; resize one to it")
    counted = true != IGNORE
    if ignored_prediction == "ignore":
        counted &= predicted != IGNORE
    true = _class_indices(true[counted], classes, "ground truth")
    predicted = predicted[counted]
    predicted = _class_indices(np.where(predicted == IGNORE, 0, predicted), classes, "prediction")
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def segmentation_scores(confusion: ArrayLike) -> SegmentationScores:
    """Scores of a confusion matrix (L + 1, L + 1) of counts, rows = ground truth, columns = prediction."""
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise GwsssError(f"a confusion matrix is square; got shape {counts.shape}")
    counts = counts.astype(np.float64)
    right = np.diag(counts)
    false_positive = counts.sum(0) - right
    false_negative = counts.sum(1) - right
    union = right + false_positive + false_negative
    occurs = union > 0
    iou = np.full(len(counts), np.nan)
    iou[occurs] = right[occurs] / union[occurs]
    if not occurs.any():
        return SegmentationScores(float("nan"), iou, float("nan"), float("nan"), float("nan"))
    return SegmentationScores(
        miou=float(iou[occurs].mean()),
        iou=iou,
        accuracy=float(right.sum() / counts.sum()),
        fp=float((false_positive[occurs] / union[occurs]).mean()),
        fn=float((false_negative[occurs] / union[occurs]).mean()),
    )


def coverage(prediction: ArrayLike) -> float:
    """Share of pixels with a label, that is, other than 255."""
    labels = np.asarray(prediction)
    return float((labels != IGNORE).mean()) if labels.size else float("nan")


class SweepResult(NamedTuple):
    """Mean IoU (fractions) of the maps at every background threshold; the lowest of equally good ones is the best."""

    best_threshold: float
    best_miou: float
    curve: NDArray[np.float64]  # (T,)
    thresholds: NDArray[np.float64]  # (T,)
    confusion: NDArray[np.int64]  # (L + 1, L + 1) at the best threshold


class ThresholdSweep:
    """mIoU of class activation maps for many background thresholds, each image looked at once.

    At threshold t the prediction is argmax of [t, map_1, ..., map_n]: foreground only where the largest map exceeds t
    strictly, and of equal maps the first. Whether a pixel is foreground depends only on how many thresholds lie below
    its largest map, so a histogram over (ground truth, best class, that number) holds all confusion matrices.
    Thresholds are compared in the maps' own precision (16-bit maps in float32), as when t is stored beside the maps.
    """

    def __init__(self, num_classes_with_background: int, thresholds: ArrayLike | None = None) -> None:
        """thresholds: increasing, default 0, 0.01, ..., 0.59."""
        values = np.arange(0, 0.6, 0.01) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
        if values.ndim != 1 or not len(values) or np.any(np.diff(values) <= 0):
            raise GwsssError("thresholds must be a non-empty list of increasing numbers")
        self.num_classes = num_classes_with_background
        self.thresholds: NDArray[np.float64] = values
        # All that is known of the images added; histograms of two sweeps add up to that of all their images.
        self.histogram = np.zeros((self.num_classes, self.num_classes, len(values) + 1), dtype=np.int64)

    def update(self, cam: ArrayLike, keys: ArrayLike | None, target: ArrayLike) -> None:
        """Add an image: maps (n, H, W), their 0-based foreground classes (n,), ground truth (H, W).

        keys None: all L classes in order. n = 0 (no class present) predicts background everywhere. Raises GwsssError
        for shapes or classes that do not fit and for maps that are not finite.
        """
        maps, true = np.asarray(cam), np.asarray(target)
        classes = np.arange(self.num_classes - 1) if keys is None else np.asarray(keys, dtype=np.int64).reshape(-1)
        if maps.ndim != 3 or maps.shape != (len(classes), *true.shape):
            raise GwsssError(
                f"maps of shape {maps.shape} do not fit {len(classes)} classes and a ground truth of {true.shape}"
            )
        if len(classes) and not (classes.min() >= 0 and classes.max() < self.num_classes - 1):
            raise GwsssError(f"keys {classes.tolist()} are not 0-based foreground classes below {self.num_classes - 1}")
        counted = true != IGNORE
        rows = _class_indices(true[counted], self.num_classes, "ground truth")
        if len(classes):
            best_class, below = self._best(maps[:, counted], classes)
        else:
            best_class = below = np.zeros_like(rows)
        shape = self.histogram.shape
        flat = (rows * shape[1] + best_class) * shape[2] + below
        self.histogram += np.bincount(flat, minlength=self.histogram.size).reshape(shape)

    def _best(self, maps: NDArray[Any], classes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Per pixel of maps (n, pixels): 1-based class of the largest map, and how many thresholds are below it."""
        precise = maps if maps.dtype == np.float64 else maps.astype(np.float32)
        if not np.isfinite(precise).all():
            raise GwsssError("the maps hold NaN or infinite values; check the model that made them")
        winner = precise.argmax(0)
        largest = np.take_along_axis(precise, winner[None], 0)[0]
        below = np.searchsorted(self.thresholds.astype(precise.dtype), largest, side="left")
        return classes[winner] + 1, below

    def confusion_matrices(self) -> NDArray[np.int64]:
        """(T, L + 1, L + 1), one for each threshold."""
        from_above = self.histogram[:, :, ::-1].cumsum(-1)[:, :, ::-1]  # [..., k]: pixels above at least k thresholds
        foreground = from_above[:, :, 1:]
        matrices = np.moveaxis(foreground, -1, 0).copy()
        matrices[:, :, 0] = self.histogram.sum((1, 2))[None] - matrices[:, :, 1:].sum(-1)
        return matrices

    def scores(self) -> SweepResult:
        """Curve and best threshold. Raises GwsssError when no pixel has been counted."""
        if not self.histogram.any():
            raise GwsssError("no pixel was counted; the scored images have no ground-truth masks with known pixels")
        matrices = self.confusion_matrices()
        curve = np.array([segmentation_scores(matrix).miou for matrix in matrices])
        best = int(curve.argmax())
        return SweepResult(float(self.thresholds[best]), float(curve[best]), curve, self.thresholds, matrices[best])


def _class_indices(values: NDArray[Any], classes: int, what: str) -> NDArray[np.int64]:
    indices = values.astype(np.int64)
    if indices.size and not (indices.min() >= 0 and indices.max() < classes):
        wrong = indices.max() if indices.max() >= classes else indices.min()
        raise GwsssError(f"the {what} holds the value {wrong}, but classes run from 0 to {classes - 1} (255 = unknown)")
    return indices
