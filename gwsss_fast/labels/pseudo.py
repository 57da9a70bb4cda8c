"""Pseudo labels from class activation maps: which pixels are background, which class, which are left open (255)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gwsss_fast.data.images import IGNORE
from gwsss_fast.errors import GwsssError
from gwsss_fast.labels.crf import crf_preset, refine, refine_labels

BACKGROUNDS = ("saliency", "threshold", "alpha")


@dataclass(frozen=True)
class PseudoOptions:
    """Every constant of the three rules."""

    threshold: float = 0.25  # threshold rule: background score
    alpha: float = 4.0  # alpha rule: background score (1 - largest map)^alpha
    missing_saliency: str = "error"  # saliency rule without a saliency map: "error", or fall back to "threshold"
    conflict: float = 0.9  # saliency rule: two channels above this leave a pixel open
    salient: float = 32 / 255  # saliency rule: a pixel is salient from here
    raise_above: float = 0.8  # saliency rule: a map above this makes a pixel salient too
    min_foreground: float = 0.01  # saliency rule: an image with a smaller share of foreground is left open


def pseudo_label(
    cams: ArrayLike,
    keys: ArrayLike,
    *,
    background: str = "saliency",
    saliency: ArrayLike | None = None,
    options: PseudoOptions | None = None,
    crf: str | None = None,
    image: ArrayLike | None = None,
    name: str = "the image",
) -> NDArray[np.uint8]:
    """Mask (H, W): 0 background, key + 1 class, 255 open, from maps (n, H, W) in [0, 1] of the 0-based `keys` (n,).

    background "saliency": the background's channel is 1 - saliency, maps are stretched to their minimum and maximum;
    open are pixels with more than one channel above `conflict`, pixels that are salient but win background, and the
    whole of an image with too little foreground. "threshold": background where no map exceeds `threshold`. "alpha":
    the background's channel is (1 - largest map)^alpha.

    saliency: (H, W) in [0, 1], or whole numbers 0..255. crf: name of a dense CRF preset applied to the channels
    (normalised to sum 1; as hard labels where the preset has a gt_prob) before the class is chosen; needs `image`
    (H, W, 3). `name` stands for the image in errors.

    Raises GwsssError for an unknown rule, shapes that do not fit, or a missing saliency map or image.
    """
    settings = options or PseudoOptions()
    maps = np.asarray(cams, dtype=np.float32)
    classes = np.asarray(keys, dtype=np.int64).reshape(-1)
    if maps.ndim != 3 or len(maps) != len(classes):
        raise GwsssError(f"{name}: maps of shape {maps.shape} do not fit {len(classes)} classes; pass (n, H, W)")
    order = np.argsort(classes, kind="stable")  # equal channels go to the lowest class, as in an argmax over all
    maps, classes = maps[order], classes[order]
    rule = _rule(background, saliency, settings, name)
    salience = _salience(saliency, maps.shape[1:], name) if rule == "saliency" else None
    channels = _channels(rule, maps, salience, settings)
    winner = _winner(channels, crf, image, name)
    label = np.concatenate([[0], classes + 1])[winner].astype(np.uint8)
    if salience is None:
        return label
    return _leave_open(label, channels, salience, settings)


def _rule(background: str, saliency: ArrayLike | None, options: PseudoOptions, name: str) -> str:
    """The rule in force for this image."""
    if background not in BACKGROUNDS:
        raise GwsssError(f"background is {background!r}; use one of {', '.join(BACKGROUNDS)}")
    if options.missing_saliency not in ("error", "threshold"):
        raise GwsssError(f"missing_saliency is {options.missing_saliency!r}; use error or threshold")
    if background != "saliency" or saliency is not None:
        return background
    if options.missing_saliency == "threshold":
        return "threshold"
    raise GwsssError(
        f"{name} has no saliency map; add one, choose the background rule threshold or alpha, or set "
        "missing_saliency to threshold"
    )


def _salience(saliency: ArrayLike | None, shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    values = np.asarray(saliency)
    if values.shape != shape:
        raise GwsssError(f"{name}: the saliency map has shape {values.shape} but the maps {shape}; resize one to it")
    return (values / np.float32(255) if values.dtype.kind in "ui" else values).astype(np.float32)


def _channels(
    rule: str, maps: NDArray[np.float32], salience: NDArray[np.float32] | None, options: PseudoOptions
) -> NDArray[np.float32]:
    """Scores (1 + n, H, W), background first."""
    if salience is not None:
        low = maps.min((1, 2), keepdims=True) if maps.size else maps
        high = maps.max((1, 2), keepdims=True) if maps.size else maps
        return np.concatenate([1 - salience[None], (maps - low) / (high - low + np.float32(1e-8))])
    if rule == "alpha":
        largest = maps.max(0, initial=0)
        return np.concatenate([((1 - largest) ** np.float32(options.alpha))[None], maps])
    return np.concatenate([np.full((1, *maps.shape[1:]), options.threshold, np.float32), maps])


def _winner(channels: NDArray[np.float32], crf: str | None, image: ArrayLike | None, name: str) -> NDArray[np.int64]:
    """Index of the winning channel at every pixel, after the CRF where one is asked for."""
    if crf is None:
        return channels.argmax(0)
    if image is None:
        raise GwsssError(f"{name}: a dense CRF needs the image; pass image=")
    if crf_preset(crf).gt_prob is not None:
        return refine_labels(channels.argmax(0), image, len(channels), crf).astype(np.int64)
    scores = channels.clip(0) + np.float32(1e-8)  # where all channels are zero the labels are equally likely
    return refine(scores / scores.sum(0), image, crf).argmax(0)


def _leave_open(
    label: NDArray[np.uint8],
    channels: NDArray[np.float32],
    salience: NDArray[np.float32],
    options: PseudoOptions,
) -> NDArray[np.uint8]:
    """Set to 255 what the saliency rule does not trust."""
    label = np.where((channels > np.float32(options.conflict)).sum(0) > 1, np.uint8(IGNORE), label)
    salient = salience >= np.float32(options.salient)
    salient |= (channels[1:] > np.float32(options.raise_above)).any(0)
    label = np.where(salient & (label == 0), np.uint8(IGNORE), label)
    foreground = (label > 0) & (label < IGNORE)
    return label if foreground.mean() >= options.min_foreground else np.full_like(label, IGNORE)
