"""Predictions of the trained segmentation network for images that have none stored (those of the sampled groups)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from gwsss_fast.data.dataset import Record
from gwsss_fast.data.images import read_image
from gwsss_fast.data.transforms import normalise
from gwsss_fast.report.run_folder import RunFolder


def predictor(run: RunFolder, load: Callable[[Path], torch.nn.Module] | None) -> Callable[[Record], np.ndarray] | None:
    """A function giving the label picture (H, W) uint8 of an image at one scale; None without checkpoint or loader."""
    checkpoint = run.path / "segmenter" / "last.pt"
    if load is None or not checkpoint.is_file():
        return None
    model = load(checkpoint).eval()
    device = next(model.parameters()).device

    def predict(record: Record) -> np.ndarray:
        image = normalise(read_image(record.image))[None].to(device)
        with torch.inference_mode():
            logits = F.interpolate(model(image), image.shape[-2:], mode="bilinear", align_corners=False)
        return logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()

    return predict
