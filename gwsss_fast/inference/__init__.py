"""Masks of one's own images from a trained segmenter: what `gwsss_fast.Predictor` and the commands are made of."""

from gwsss_fast.inference.predictor import Predictor
from gwsss_fast.inference.results import Object, Prediction

__all__ = ["Object", "Prediction", "Predictor"]
