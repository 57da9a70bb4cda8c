"""Training of both stages, checkpoints and logs."""
