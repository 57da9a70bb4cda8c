"""A scene of the embedded data set: which things stand where, and the outlines of what is seen of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from gwsss_fast.data.embedded.shapes import TELLING, THINGS


@dataclass(frozen=True)
class Instance:
    """One thing in a scene. Lengths in pixels, angles in radians, colours in 0..1."""

    class_index: int
    jitter: tuple[float, ...]
    x: float
    y: float
    scale: float
    angle: float
    flip: bool
    squash: float
    hue: float
    body: tuple[float, float, float]  # hue, saturation, value
    texture: tuple[float, float, float, float]  # frequency factor, angle, phase, amplitude
    light: float
    cover: tuple[float, float, int] | None = None  # radius in own units, shift, seed of what hides the telling part


@dataclass(frozen=True)
class Scene:
    """One image: its instances in painting order (the last one in front)."""

    width: int
    height: int
    instances: tuple[Instance, ...]
    background: int  # seed of everything behind the things, and of the saliency map


@dataclass(frozen=True)
class Layers:
    """Which instance (1-based, 0 background) and which part (0, BODY, ...) is seen where; `cover`: what hides it."""

    owner: np.ndarray
    parts: np.ndarray
    cover: np.ndarray


def layers(scene: Scene, factor: int = 1) -> Layers:
    """Draw the part and instance numbers of a scene, `factor` times as large; arrays (height, width) uint8."""
    shape = (scene.height * factor, scene.width * factor)
    owner, parts, cover = (np.zeros(shape, np.uint8) for _ in range(3))
    for number, instance in enumerate(scene.instances, 1):
        drawn = draw_parts(instance, shape, factor)
        owner[drawn > 0], cover[drawn > 0] = number, 0
        parts[drawn > 0] = drawn[drawn > 0]
        if instance.cover is not None:
            hidden = draw_cover(instance, shape, factor)
            owner[hidden], parts[hidden], cover[hidden] = 0, 0, number
    return Layers(owner, parts, cover)


def draw_parts(instance: Instance, shape: tuple[int, int], factor: float = 1) -> np.ndarray:
    """Part numbers of one thing alone, uint8 of `shape`."""
    canvas = Image.new("L", shape[::-1])
    draw = ImageDraw.Draw(canvas)
    for part in THINGS[instance.class_index].shape(instance.jitter):
        for outline in part.outlines:
            points = to_image(instance, outline) * factor
            draw.polygon([tuple(p) for p in points.tolist()], fill=part.role)
    return np.array(canvas)


def draw_cover(instance: Instance, shape: tuple[int, int], factor: float) -> np.ndarray:
    """The lump (a stone, a leaf) in front of the telling part, as a boolean array."""
    assert instance.cover is not None
    radius, shift, seed = instance.cover
    telling = next(p for p in THINGS[instance.class_index].shape(instance.jitter) if p.role == TELLING).outlines[0]
    low, high = np.amin(telling, 0), np.amax(telling, 0)
    middle, reach = (low + high) / 2, (high - low) / 2 + 0.06
    outline = middle + shift + lump(np.random.default_rng(seed), reach * radius * 1.05)
    return filled(to_image(instance, outline) * factor, shape)


def filled(outline: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The inside of an outline, a boolean array of `shape`."""
    canvas = Image.new("1", shape[::-1])
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in outline.tolist()], fill=1)
    return np.array(canvas)


def lump(rng: np.random.Generator, radii: np.ndarray | tuple[float, float]) -> np.ndarray:
    """An irregular round outline about the origin."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = 1 + sum(rng.normal(0, 0.16 / n) * np.cos(n * angle + rng.uniform(0, 6.28)) for n in (2, 3, 4, 5))
    return np.stack([radii[0] * radius * np.cos(angle), radii[1] * radius * np.sin(angle)], 1)


def to_image(instance: Instance, points: np.ndarray) -> np.ndarray:
    c, s = np.cos(instance.angle), np.sin(instance.angle)
    u = points[:, 0] * instance.squash * (-1 if instance.flip else 1)
    v = points[:, 1] / instance.squash
    return np.stack([instance.x + instance.scale * (c * u - s * v), instance.y + instance.scale * (s * u + c * v)], 1)


def from_image(instance: Instance, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    c, s = np.cos(instance.angle), np.sin(instance.angle)
    dx, dy = (x - instance.x) / instance.scale, (y - instance.y) / instance.scale
    return (c * dx + s * dy) / instance.squash * (-1 if instance.flip else 1), (c * dy - s * dx) * instance.squash
