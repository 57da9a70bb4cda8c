"""The pictures of a scene of the embedded data set: image, mask and saliency map."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageFilter

from gwsss_fast.data.embedded.scenes import Instance, Scene, draw_parts, filled, from_image, layers, lump
from gwsss_fast.data.embedded.shapes import BODY, LIMB, TELLING, THINGS, TRIM

FACTOR = 2  # everything is drawn at twice the size and averaged: smooth edges


def render(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (height, width, 3), mask (height, width; class + 1, 255 on borders) and saliency, all uint8."""
    large = layers(scene, FACTOR)
    shape = (scene.height * FACTOR, scene.width * FACTOR)
    rng = np.random.default_rng(scene.background)
    colour = _paint_background(rng, shape)
    for number, instance in enumerate(scene.instances, 1):
        _paint_instance(colour, instance, large.owner == number, large.parts)
        if instance.cover is not None:
            _paint_lump(np.random.default_rng([instance.cover[2], 1]), colour, large.cover == number)
    height, width = scene.height, scene.width
    small = colour.reshape(height, FACTOR, width, FACTOR, 3).mean((1, 3))
    small += rng.normal(0, 0.012, small.shape)
    image = (np.clip(small, 0, 1) * 255 + 0.5).astype(np.uint8)
    return image, mask_of(scene), _saliency(rng, scene, large.owner[::FACTOR, ::FACTOR])


def mask_of(scene: Scene) -> np.ndarray:
    """Class numbers + 1, and 255 on a border about 2 pixels wide where a thing meets another or the background."""
    owner = layers(scene, FACTOR).owner[1::FACTOR, 1::FACTOR]
    table = np.array([0] + [instance.class_index + 1 for instance in scene.instances], np.uint8)
    padded = np.pad(owner, 1, mode="edge")
    around = [padded[dy : dy + owner.shape[0], dx : dx + owner.shape[1]] for dy in range(3) for dx in range(3)]
    border = np.maximum.reduce(around) != np.minimum.reduce(around)
    return np.where(border, np.uint8(255), table[owner])


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, min(1, max(0, saturation)), min(1, max(0, value))), np.float32)


def _blur(array: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of a 0..1 array (8-bit steps)."""
    picture = Image.fromarray((np.clip(array, 0, 1) * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth noise of unit variance or so, with structures about `cell` pixels across."""
    grid = rng.normal(0, 1, (int(shape[0] / cell) + 3, int(shape[1] / cell) + 3)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _paint_background(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Two muted colours mixed by noise, gratings and a gradient, with blobs and some shapes that mean nothing."""
    y, x = (axis.astype(np.float32) for axis in np.ogrid[: shape[0], : shape[1]])
    hue, value = rng.random(), rng.uniform(0.25, 0.8)
    first = _rgb(hue, rng.uniform(0.05, 0.42), value)
    second = _rgb(
        hue + rng.normal(0, 0.1), rng.uniform(0.05, 0.42), value + rng.choice([-1, 1]) * rng.uniform(0.08, 0.25)
    )
    slope = rng.uniform(0, 2 * np.pi)
    mix = rng.uniform(0, 0.5) * (np.cos(slope) * (x / shape[1] - 0.5) + np.sin(slope) * (y / shape[0] - 0.5)) * 2
    for cell in (90, 40, 18, 9, 4):
        mix = mix + rng.uniform(0, 0.26) * rng.random() * _noise(rng, shape, cell * rng.uniform(0.8, 1.25))
    for _ in range(rng.integers(0, 3)):
        angle, period = rng.uniform(0, np.pi), rng.uniform(8, 50)
        bend = rng.uniform(0, 2) * _noise(rng, shape, 60)
        mix = mix + rng.uniform(0.04, 0.2) * np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + bend)
    mix = np.clip(mix + 0.5, 0, 1)[..., None]
    colour: np.ndarray = first * (1 - mix) + second * mix
    for _ in range(rng.integers(0, 5)):
        radius = rng.uniform(0.05, 0.2) * shape[1]
        distance = ((x - rng.uniform(0, shape[1])) ** 2 + (y - rng.uniform(0, shape[0])) ** 2) / radius**2
        colour += (np.exp(-distance) * rng.uniform(-0.15, 0.15))[..., None]
    for _ in range(rng.integers(1, 5)):
        outline = _clutter(rng, rng.uniform(0.05, 0.15) * shape[1]) + rng.uniform(0, 1, 2) * (shape[1], shape[0])
        _paint_lump(rng, colour, filled(outline, shape))
    return colour.astype(np.float32)


def _clutter(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Outline of a distractor: a lump, a slab or a shard."""
    kind = rng.integers(3)
    if kind == 0:
        return lump(rng, (radius, radius * rng.uniform(0.6, 1.1)))
    angle = rng.uniform(0, 2 * np.pi)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]][: 4 if kind == 1 else 3]) * (
        radius,
        radius * rng.uniform(0.25, 0.8),
    )
    c, s = np.cos(angle), np.sin(angle)
    return (corners + rng.normal(0, 0.12 * radius, corners.shape)) @ np.array([[c, s], [-s, c]])


def _paint_lump(rng: np.random.Generator, colour: np.ndarray, where: np.ndarray) -> None:
    """Paint something dull: one muted colour with noise and a little shading."""
    base = _rgb(rng.random(), rng.uniform(0.05, 0.32), rng.uniform(0.28, 0.78))
    mottle = 1 + rng.uniform(0.02, 0.1) * _noise(rng, (where.shape[0], where.shape[1]), rng.uniform(5, 20))
    shade = 0.8 + 0.25 * _blur(where, 6)
    colour[where] = np.clip(base * (mottle * shade)[where][:, None], 0, 1)


def _paint_instance(colour: np.ndarray, instance: Instance, where: np.ndarray, parts: np.ndarray) -> None:
    """Paint the visible pixels of one thing: colours, patterns of its class, shading, lines between parts."""
    alone = draw_parts(instance, (where.shape[0], where.shape[1]), FACTOR)
    rows, columns = np.flatnonzero(alone.any(1)), np.flatnonzero(alone.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alone, visible, part, target = alone[box], where[box], parts[box], colour[box]
    y, x = np.mgrid[box[0], box[1]].astype(np.float32) / FACTOR
    u, v = from_image(instance, x, y)
    thing = THINGS[instance.class_index]
    frequency, turn, phase, amplitude = instance.texture
    c, s = frequency * np.cos(turn), frequency * np.sin(turn)
    texture = thing.texture(c * u - s * v + 0.3 * phase, s * u + c * v + 0.3 * phase)
    hue, saturation, value = instance.body
    bright, dark = _rgb(instance.hue, 0.9, 0.95), _rgb(instance.hue + 0.02, 0.95, 0.38)
    pattern = thing.pattern(u, v)[..., None]
    paint = np.zeros_like(target)
    for role, base, strength in (
        (BODY, _rgb(hue, saturation, value), 1.0),
        (LIMB, _rgb(hue + 0.06, saturation * 0.8, value * 0.68), 0.6),
        (TRIM, _rgb(hue - 0.05, saturation * 1.2, 0.35 + 0.6 * value), 0.8),
    ):
        paint[part == role] = (base * (1 + strength * amplitude * texture)[..., None])[part == role]
    paint[part == TELLING] = (bright * pattern + dark * (1 - pattern))[part == TELLING]
    paint *= _shading(instance, alone)[..., None]
    target[visible] = np.clip(paint, 0, 1)[visible]


def _shading(instance: Instance, alone: np.ndarray) -> np.ndarray:
    """Brightness of a thing: rounded towards its outline, lit from one side, dark lines where two parts meet."""
    solid = np.pad((alone > 0).astype(np.float32), 12)
    soft = _blur(solid, 0.16 * instance.scale * FACTOR)
    dy, dx = np.gradient(soft)
    lit = (dx * np.cos(instance.light) + dy * np.sin(instance.light)) * instance.scale * FACTOR
    shade = (0.74 + 0.3 * soft + 0.12 * lit)[12:-12, 12:-12]
    line = np.zeros(alone.shape, np.float32)
    line[:, 1:] = np.maximum(line[:, 1:], alone[:, 1:] != alone[:, :-1])
    line[1:] = np.maximum(line[1:], alone[1:] != alone[:-1])
    return shade * (1 - 0.55 * np.clip(2 * _blur(line, 0.8), 0, 1))


def _saliency(rng: np.random.Generator, scene: Scene, owner: np.ndarray) -> np.ndarray:
    """A soft, imperfect foreground map: uneven, some things nearly missed, some background taken for a thing."""
    shape = (scene.height, scene.width)
    strength = np.zeros(shape, np.float32)
    for number in range(1, len(scene.instances) + 1):
        level = rng.uniform(0.02, 0.2) if rng.random() < 0.08 else rng.uniform(0.7, 1.0)
        strength[owner == number] = level
    strength *= np.clip(1.05 + 0.28 * _noise(rng, shape, 22), 0.15, 1)
    if rng.random() < 0.3:
        outline = _clutter(rng, rng.uniform(0.06, 0.13) * scene.width)
        outline += rng.uniform(0, 1, 2) * (scene.width, scene.height)
        strength = np.maximum(strength, filled(outline, shape) * np.float32(rng.uniform(0.2, 0.75)))
    soft = _blur(strength, rng.uniform(1.2, 3.0))
    soft = soft + 0.025 * np.abs(_noise(rng, shape, 6)) + 0.012 * np.abs(rng.normal(0, 1, shape))
    return (np.clip(soft, 0, 1) * 255 + 0.5).astype(np.uint8)
