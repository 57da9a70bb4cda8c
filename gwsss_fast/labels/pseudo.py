"""Pseudo labels from class activation maps: which pixels are background, which class, which are left open (255)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gwsss_fast.data.images import IGNORE
from gwsss_fast.errors import GwsssError
from gwsss_fast.labels.crf import crf_preset, label_probabilities, refine_images

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


@dataclass(frozen=True)
class PseudoInput:
    """What the pseudo label of one image is made from.

    cams: maps (n, H, W) in [0, 1] of the 0-based classes `keys` (n,). saliency: (H, W) in [0, 1], or whole numbers
    0..255. image: (H, W, 3), for a CRF. `name` stands for the image in errors.
    """

    cams: ArrayLike
    keys: ArrayLike
    saliency: ArrayLike | None = None
    image: ArrayLike | None = None
    name: str = "the image"


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
    """The pseudo label of one image: see `pseudo_labels` and `PseudoInput`."""
    given = PseudoInput(cams, keys, saliency, image, name)
    return pseudo_labels([given], background=background, options=options, crf=crf)[0]


def pseudo_labels(
    inputs: Sequence[PseudoInput],
    *,
    background: str = "saliency",
    options: PseudoOptions | None = None,
    crf: str | None = None,
) -> list[NDArray[np.uint8]]:
    """Masks (H, W): 0 background, key + 1 class, 255 open.

    background "saliency": the background's channel is 1 - saliency, maps are stretched to their minimum and maximum;
    open are pixels with more than one channel above `conflict`, pixels that are salient but win background, and the
    whole of an image with too little foreground. "threshold": background where no map exceeds `threshold`. "alpha":
    the background's channel is (1 - largest map)^alpha.

    crf: name of a dense CRF preset applied to the channels (normalised to sum 1; as hard labels where the preset has a
    gt_prob) before the class is chosen; labels that score nowhere in an image are left out of it. Several images
    run by the side of each other.

    Raises GwsssError for an unknown rule, shapes that do not fit, or a missing saliency map or image.
    """
    settings = options or PseudoOptions()
    parts = [_scored(one, background, settings) for one in inputs]
    if crf is None:
        winners = [part.channels.argmax(0) for part in parts]
    else:
        winners = _refined(inputs, [part.channels for part in parts], crf)
    return [_label(part, winner, settings) for part, winner in zip(parts, winners, strict=True)]


@dataclass(frozen=True)
class _Scored:
    """Scores (1 + n, H, W), background first, of the classes (n,); the saliency (H, W) where that rule is in force."""

    channels: NDArray[np.float32]
    classes: NDArray[np.int64]
    salience: NDArray[np.float32] | None


def _scored(one: PseudoInput, background: str, options: PseudoOptions) -> _Scored:
    maps = np.asarray(one.cams, dtype=np.float32)
    classes = np.asarray(one.keys, dtype=np.int64).reshape(-1)
    if maps.ndim != 3 or len(maps) != len(classes):
        raise GwsssError(f"{one.name}: maps of shape {maps.shape} do not fit {len(classes)} classes; pass (n, H, W)")
    order = np.argsort(classes, kind="stable")  # equal channels go to the lowest class, as in an argmax over all
    maps, classes = maps[order], classes[order]
    rule = _rule(background, one.saliency, options, one.name)
    salience = _salience(one.saliency, maps.shape[1:], one.name) if rule == "saliency" else None
    return _Scored(_channels(rule, maps, salience, options), classes, salience)


def _label(part: _Scored, winner: NDArray[np.int64], options: PseudoOptions) -> NDArray[np.uint8]:
    label = np.concatenate([[0], part.classes + 1])[winner].astype(np.uint8)
    return label if part.salience is None else _leave_open(label, part.channels, part.salience, options)


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


def _refined(inputs: Sequence[PseudoInput], scores: Sequence[NDArray[np.float32]], crf: str) -> list[NDArray[np.int64]]:
    """Index of the winning channel at every pixel of each image, after the CRF."""
    for one in inputs:
        if one.image is None:
            raise GwsssError(f"{one.name}: a dense CRF needs the image; pass image=")
    probs = [_probabilities(channels, crf) for channels in scores]
    images = [one.image for one in inputs if one.image is not None]
    return [marginals.argmax(0) for marginals in refine_images(probs, images, crf, prune=True)]


def _probabilities(channels: NDArray[np.float32], crf: str) -> NDArray[np.float32]:
    if crf_preset(crf).gt_prob is not None:
        return label_probabilities(channels.argmax(0), len(channels), crf)
    scores = channels.clip(0)
    scores[:, ~scores.any(0)] = 1  # where all channels are zero the labels are equally likely
    return scores / scores.sum(0)


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
