"""Scores of masks and boxes; knows nothing of models."""

from gwsss_fast.evaluation.localization import BoxAccuracy, LocalizationScores, localization_scores, max_box_acc
from gwsss_fast.evaluation.segmentation import (
    SegmentationScores,
    SweepResult,
    ThresholdSweep,
    confusion_matrix,
    coverage,
    segmentation_scores,
)

__all__ = [
    "BoxAccuracy",
    "LocalizationScores",
    "SegmentationScores",
    "SweepResult",
    "ThresholdSweep",
    "confusion_matrix",
    "coverage",
    "localization_scores",
    "max_box_acc",
    "segmentation_scores",
]
