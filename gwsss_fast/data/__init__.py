"""Data sets, group samplers and transforms; knows nothing of models."""
