"""Scores of masks and boxes; knows nothing of models."""
