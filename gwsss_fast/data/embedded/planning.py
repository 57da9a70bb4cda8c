"""What stands where in the scenes of the embedded data set: plain numbers, which follow from the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gwsss_fast.data.embedded.scenes import Instance, Scene, draw_cover, draw_parts, to_image
from gwsss_fast.data.embedded.shapes import COMPANIONS, JITTERS, TELLING, THINGS

SPLITS = ("train", "val")
HIDDEN_SHARE = 0.15  # things whose telling part stands behind something

_OBJECTS_PER_IMAGE = ((1, 0.42), (2, 0.46), (3, 0.12))
_AREAS = {1: (0.28, 0.48), 2: (0.18, 0.28), 3: (0.12, 0.18)}  # share of the image, one thing
_SIZES = ((128, 112), (128, 128), (144, 112), (112, 128), (136, 112), (120, 128))  # (width, height) at size 128
_COMPANION = {a: b for pair in COMPANIONS for a, b in (pair, pair[::-1])}


def plan_split(split: str, count: int, seed: int, size: int) -> list[Scene]:
    """The scenes of one split. Each split has a random stream of its own: no instance or background is shared."""
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    return [_plan_scene(rng, classes, size) for classes in plan_classes(rng, count)]


def plan_classes(rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    """Classes of the things in each image: every class leads equally often, half of the seconds are companions."""
    counts = np.ceil([share * count for _, share in _OBJECTS_PER_IMAGE]).astype(int)
    numbers = np.repeat([number for number, _ in _OBJECTS_PER_IMAGE], counts)
    numbers = rng.permutation(numbers)[:count]
    leaders = np.concatenate([rng.permutation(len(THINGS)) for _ in range(-(-count // len(THINGS)))])[:count]
    images = []
    for number, leader in zip(numbers.tolist(), leaders.tolist(), strict=True):
        classes = [leader]
        if number > 1:
            strangers = [c for c in range(len(THINGS)) if c not in (leader, _COMPANION[leader])]
            classes.append(_COMPANION[leader] if rng.random() < 0.52 else int(rng.choice(strangers)))
        if number > 2:
            classes.append(int(rng.choice(classes if rng.random() < 0.3 else len(THINGS))))
        images.append(tuple(classes))
    return images


def _plan_scene(rng: np.random.Generator, classes: Sequence[int], size: int) -> Scene:
    """Place the things so that enough of each can be seen; the best of some tries."""
    width, height = (round(side * size / 128) for side in _SIZES[rng.integers(len(_SIZES))])
    best: tuple[float, Scene] | None = None
    for _ in range(8):
        instances = tuple(_plan_instance(rng, c, len(classes), width, height) for c in classes)
        scene = Scene(width, height, instances, int(rng.integers(2**31)))
        quality = _visibility(scene)
        if best is None or quality > best[0]:
            best = quality, scene
        if quality >= 1:
            break
    assert best is not None
    return best[1]


def _plan_instance(rng: np.random.Generator, class_index: int, number: int, width: int, height: int) -> Instance:
    thing = THINGS[class_index]
    instance = Instance(
        class_index,
        jitter=tuple(rng.uniform(-1, 1, JITTERS).tolist()),
        x=0.0,
        y=0.0,
        scale=1.0,
        angle=float(np.radians(rng.normal(0, 13))),
        flip=bool(rng.random() < 0.5),
        squash=float(rng.uniform(0.9, 1.12)),
        hue=float((thing.hue + rng.normal(0, 0.008)) % 1),
        body=(
            float((thing.body_hue + rng.normal(0, 0.06)) % 1),
            float(rng.uniform(0.14, 0.41)),
            float(rng.uniform(0.42, 0.82)),
        ),
        texture=(
            float(rng.uniform(0.92, 1.09)),
            float(rng.normal(0, 0.09)),
            float(rng.random()),
            float(rng.uniform(0.09, 0.15)),
        ),
        light=float(rng.uniform(0, 2 * np.pi)),
    )
    if rng.random() < HIDDEN_SHARE:
        instance = replace(
            instance, cover=(float(rng.uniform(0.85, 1.15)), float(rng.normal(0, 0.06)), int(rng.integers(2**31)))
        )
    points = np.concatenate([to_image(instance, o) for part in thing.shape(instance.jitter) for o in part.outlines])
    low, high = points.min(0), points.max(0)
    unit = 24.0
    drawn = draw_parts(
        replace(instance, x=-low[0], y=-low[1]), tuple(np.ceil((high - low) * unit + 1).astype(int)[::-1]), unit
    )
    share = rng.uniform(*_AREAS[number])
    scale = float(np.sqrt(share * width * height / (np.count_nonzero(drawn) / unit**2)))
    extent = high - low
    scale = min(scale, float(0.97 * width / extent[0]), float(0.97 * height / extent[1]))
    free = np.array([width, height]) - extent * scale
    corner = rng.uniform(0.01, 0.99, 2) * free
    x, y = (corner - low * scale).tolist()
    return replace(instance, x=x, y=y, scale=scale)


def _visibility(scene: Scene) -> float:
    """1 when 80 % of every thing, and of every telling part not hidden on purpose, can be seen; less otherwise."""
    shape, factor = (scene.height // 2, scene.width // 2), 0.5
    alone = [draw_parts(instance, shape, factor) for instance in scene.instances]
    worst = 1.0
    for number, (instance, drawn) in enumerate(zip(scene.instances, alone, strict=True)):
        seen = drawn.copy()
        for other, front in zip(scene.instances[number + 1 :], alone[number + 1 :], strict=True):
            seen[front > 0] = 0
            if other.cover is not None:
                seen[draw_cover(other, shape, factor)] = 0
        worst = min(worst, _share(seen > 0, drawn > 0) / 0.8)
        if instance.cover is None:
            worst = min(worst, _share(seen == TELLING, drawn == TELLING) / 0.8)
    return worst


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return int(part.sum()) / max(1, int(whole.sum()))
