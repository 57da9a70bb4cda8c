"""The field's dense CRF settings, applied to label probabilities or to hard labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from gwsss_fast import ops
from gwsss_fast.errors import GwsssError


@dataclass(frozen=True)
class CrfPreset:
    """Widths in pixels (sxy) and grey levels (srgb), Potts weights w, mean-field iterations.

    gt_prob is the probability given to a hard label; with it the preset refines hard labels, without it probabilities.
    """

    sxy_gaussian: float
    w_gaussian: float
    sxy_bilateral: float
    srgb: float
    w_bilateral: float
    iterations: int
    gt_prob: float | None = None


PRESETS = {
    "psa": CrfPreset(3, 3, 80, 13, 10, 10),
    "irn": CrfPreset(3, 3, 50, 5, 10, 10, gt_prob=0.7),
    "deeplab": CrfPreset(1, 3, 67, 3, 4, 10),
    "mcis": CrfPreset(3, 1, 80, 4, 3, 1),
    "toco": CrfPreset(1, 1, 121, 5, 4, 10),
}


def crf_preset(preset: str | CrfPreset) -> CrfPreset:
    """The settings by name. Raises GwsssError for an unknown name."""
    if isinstance(preset, CrfPreset):
        return preset
    if preset not in PRESETS:
        raise GwsssError(f"unknown CRF preset {preset!r}; use one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def refine(
    prob: ArrayLike, image: ArrayLike, preset: str | CrfPreset = "psa", *, prune: bool = False
) -> NDArray[np.float32]:
    """Marginals (L, H, W) from label probabilities (L, H, W) and the RGB image (H, W, 3), raw pixels 0..255.

    prune: leave out labels that have probability zero at every pixel, whose marginals are then zero. It saves their
    time; without it they keep a share of 1e-5, which is what the probabilities are clipped to.
    Raises GwsssError for an unknown preset or shapes that do not agree.
    """
    return refine_images([prob], [image], preset, prune=prune)[0]


def refine_images(
    probs: Sequence[ArrayLike], images: Sequence[ArrayLike], preset: str | CrfPreset = "psa", *, prune: bool = False
) -> list[NDArray[np.float32]]:
    """`refine` of several images, of any sizes; on the CPU they run by the side of each other."""
    settings = crf_preset(preset)
    given = [np.ascontiguousarray(prob, dtype=np.float32) for prob in probs]
    pixels = [_pixels(image) for image in images]
    for prob, image in zip(given, pixels, strict=True):
        if prob.ndim != 3 or image.shape != (*prob.shape[1:], 3):
            raise GwsssError(
                f"probabilities of shape {prob.shape} and an image of shape {image.shape} do not fit; pass (L, H, W) "
                "and (H, W, 3)"
            )
    present = [np.asarray(prob.any((1, 2)) if prune else np.ones(len(prob), bool)) for prob in given]
    kept = [prob[some] if some.any() and not some.all() else prob for prob, some in zip(given, present, strict=True)]
    options = {name: value for name, value in asdict(settings).items() if name != "gt_prob"}
    marginals = ops.dense_crf_images([*map(torch.from_numpy, kept)], [*map(torch.from_numpy, pixels)], **options)
    return [_with_absent(x.numpy(), some) for x, some in zip(marginals, present, strict=True)]


def _pixels(image: ArrayLike) -> NDArray[np.uint8]:
    """A copy as bytes (arrays of Pillow images are read-only). Raises GwsssError where that would change a value."""
    values = np.asarray(image)
    if values.dtype != np.uint8 and not (
        np.issubdtype(values.dtype, np.integer) and (not values.size or (values.min() >= 0 and values.max() <= 255))
    ):
        raise GwsssError(f"the image holds {values.dtype}; pass raw pixels, whole numbers from 0 to 255")
    return values.astype(np.uint8)


def _with_absent(marginals: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The marginals of all labels: zero for those that were left out."""
    if len(marginals) == len(present):
        return marginals
    whole = np.zeros((len(present), *marginals.shape[1:]), np.float32)
    whole[present] = marginals
    return whole


def refine_labels(
    labels: ArrayLike,
    image: ArrayLike,
    num_labels: int,
    preset: str | CrfPreset = "irn",
    *,
    gt_prob: float | None = None,
) -> NDArray[np.uint8]:
    """Refine hard labels (H, W), 0..num_labels-1 or 255 = "could be anything"; returns labels (H, W).

    Each pixel's own label has probability `gt_prob` (default: the preset's, else 0.7), the others share the rest.
    Raises GwsssError for a probability outside (0, 1) or a label out of range.
    """
    prob = label_probabilities(labels, num_labels, preset, gt_prob=gt_prob)
    return refine(prob, image, preset).argmax(0).astype(np.uint8)


def label_probabilities(
    labels: ArrayLike, num_labels: int, preset: str | CrfPreset = "irn", *, gt_prob: float | None = None
) -> NDArray[np.float32]:
    """The probabilities (num_labels, H, W) from which `refine_labels` starts. Raises GwsssError as it does."""
    settings = crf_preset(preset)
    certainty = gt_prob if gt_prob is not None else settings.gt_prob if settings.gt_prob is not None else 0.7
    if not 0 < certainty < 1:
        raise GwsssError(f"gt_prob is {certainty}; it must lie between 0 and 1")
    hard = np.asarray(labels).astype(np.int64)
    unsure = hard == 255
    if num_labels > 255:
        raise GwsssError(f"{num_labels} labels to refine are too many; hard labels are bytes, and 255 means unsure")
    if num_labels < 1 or np.any((hard[~unsure] < 0) | (hard[~unsure] >= num_labels)):
        raise GwsssError(f"the labels to refine must be 0 to {num_labels - 1}, or 255")
    if num_labels == 1:
        return np.ones((1, *hard.shape), np.float32)
    prob = np.full((num_labels, *hard.shape), (1 - certainty) / (num_labels - 1), np.float32)
    np.put_along_axis(prob, np.where(unsure, 0, hard)[None], certainty, 0)
    prob[:, unsure] = 1 / num_labels
    return prob
