"""Test-time inference of weakly supervised object localisation (paper, section V).

A classifier predicts one class for each test image, the group of an image is drawn among those with the same predicted
class, and the group classifier makes the maps of the whole group. A map becomes grey levels by its minimum and maximum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from gwsss_fast.data.records import Record, Split
from gwsss_fast.data.samplers import GroupSampler, Strategy
from gwsss_fast.evaluation.localization import MAP_SIZE, grey_levels
from gwsss_fast.labels.maps import generate_maps, predict_logits
from gwsss_fast.models.group_classifier import GroupClassifier


@dataclass(frozen=True)
class MapOptions:
    """How maps are made: the sides the images are squashed to, and the groups they are looked at in."""

    size: int = 224
    scales: tuple[float, ...] = (1.0,)
    flip: bool = True
    rounds: int = 1
    group_size: int = 4
    groups: int = 4
    sampling: Strategy = "greedy"
    seed: int = 0
    readout: str = "ensemble"
    precision: str = "fp32"
    workers: int = 0


def predicted_classes(
    model: GroupClassifier, split: Split, options: MapOptions, device: torch.device
) -> Iterator[list[int]]:
    """The most likely class of every image by itself, batch after batch."""
    found = predict_logits(
        model, split, size=options.size, device=device, precision=options.precision, workers=options.workers
    )
    for logits in found:
        yield logits.argmax(1).tolist()


def localization_maps(
    model: GroupClassifier,
    split: Split,
    predicted: Sequence[int],
    options: MapOptions,
    device: torch.device,
    skip: Collection[str] = (),
) -> Iterator[tuple[Record, Mapping[int, NDArray[np.uint8]]]]:
    """Each record of `split` that is not in `skip`, with the maps (224, 224) of its true and its predicted classes.

    Groups depend on `predicted` alone, the labels on nothing: they only say which maps are wanted for scores.
    """
    marks = np.zeros((len(split), len(split.classes)), np.uint8)
    marks[np.arange(len(split)), predicted] = 1
    sampler = GroupSampler(marks, min(options.group_size, len(split)), options.sampling, options.seed)
    records = tuple(
        replace(record, labels=tuple(sorted({*record.labels, label})))
        for record, label in zip(split.records, predicted, strict=True)
    )
    made = generate_maps(
        model,
        replace(split, records=records),
        sampler,
        size=options.size,
        scales=options.scales,
        flip=options.flip,
        rounds=options.rounds,
        groups=options.groups,
        device=device,
        precision=options.precision,
        workers=options.workers,
        skip=skip,
        shape=(MAP_SIZE, MAP_SIZE),
    )
    for record, cams in made:
        planes = getattr(cams, options.readout)
        yield record, {int(key): grey_levels(plane) for key, plane in zip(cams.keys, planes, strict=True)}
