"""Scenes of the embedded data set: what stands where (`plan_split`, plain numbers), and the pictures (`render`)."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from gwsss_fast.data.embedded_shapes import BODY, COMPANIONS, JITTERS, LIMB, TELLING, THINGS, TRIM

SPLITS = ("train", "val")
FACTOR = 2  # everything is drawn at twice the size and averaged: smooth edges
HIDDEN_SHARE = 0.15  # things whose telling part stands behind something

_OBJECTS_PER_IMAGE = ((1, 0.42), (2, 0.46), (3, 0.12))
_AREAS = {1: (0.28, 0.48), 2: (0.18, 0.28), 3: (0.12, 0.18)}  # share of the image, one thing
_SIZES = ((128, 112), (128, 128), (144, 112), (112, 128), (136, 112), (120, 128))  # (width, height) at size 128
_COMPANION = {a: b for pair in COMPANIONS for a, b in (pair, pair[::-1])}


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


def layers(scene: Scene, factor: int = 1) -> Layers:
    """Draw the part and instance numbers of a scene, `factor` times as large; arrays (height, width) uint8."""
    shape = (scene.height * factor, scene.width * factor)
    owner, parts, cover = (np.zeros(shape, np.uint8) for _ in range(3))
    for number, instance in enumerate(scene.instances, 1):
        drawn = draw_parts(instance, shape, factor)
        owner[drawn > 0], cover[drawn > 0] = number, 0
        parts[drawn > 0] = drawn[drawn > 0]
        if instance.cover is not None:
            hidden = _draw_cover(instance, shape, factor)
            owner[hidden], parts[hidden], cover[hidden] = 0, 0, number
    return Layers(owner, parts, cover)


def draw_parts(instance: Instance, shape: tuple[int, int], factor: float = 1) -> np.ndarray:
    """Part numbers of one thing alone, uint8 of `shape`."""
    canvas = Image.new("L", shape[::-1])
    draw = ImageDraw.Draw(canvas)
    for part in THINGS[instance.class_index].shape(instance.jitter):
        for outline in part.outlines:
            points = _to_image(instance, outline) * factor
            draw.polygon([tuple(p) for p in points.tolist()], fill=part.role)
    return np.array(canvas)


# --- planning ---------------------------------------------------------------------------------------------------------


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
    points = np.concatenate([_to_image(instance, o) for part in thing.shape(instance.jitter) for o in part.outlines])
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
                seen[_draw_cover(other, shape, factor)] = 0
        worst = min(worst, _share(seen > 0, drawn > 0) / 0.8)
        if instance.cover is None:
            worst = min(worst, _share(seen == TELLING, drawn == TELLING) / 0.8)
    return worst


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return int(part.sum()) / max(1, int(whole.sum()))


def _to_image(instance: Instance, points: np.ndarray) -> np.ndarray:
    c, s = np.cos(instance.angle), np.sin(instance.angle)
    u = points[:, 0] * instance.squash * (-1 if instance.flip else 1)
    v = points[:, 1] / instance.squash
    return np.stack([instance.x + instance.scale * (c * u - s * v), instance.y + instance.scale * (s * u + c * v)], 1)


def _from_image(instance: Instance, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    c, s = np.cos(instance.angle), np.sin(instance.angle)
    dx, dy = (x - instance.x) / instance.scale, (y - instance.y) / instance.scale
    return (c * dx + s * dy) / instance.squash * (-1 if instance.flip else 1), (c * dy - s * dx) * instance.squash


def _draw_cover(instance: Instance, shape: tuple[int, int], factor: float) -> np.ndarray:
    """The lump (a stone, a leaf) in front of the telling part, as a boolean array."""
    assert instance.cover is not None
    radius, shift, seed = instance.cover
    telling = next(p for p in THINGS[instance.class_index].shape(instance.jitter) if p.role == TELLING).outlines[0]
    low, high = np.amin(telling, 0), np.amax(telling, 0)
    middle, reach = (low + high) / 2, (high - low) / 2 + 0.06
    outline = middle + shift + _lump(np.random.default_rng(seed), reach * radius * 1.05)
    return _filled(_to_image(instance, outline) * factor, shape)


def _filled(outline: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The inside of an outline, a boolean array of `shape`."""
    canvas = Image.new("1", shape[::-1])
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in outline.tolist()], fill=1)
    return np.array(canvas)


def _lump(rng: np.random.Generator, radii: np.ndarray | tuple[float, float]) -> np.ndarray:
    """An irregular round outline about the origin."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = 1 + sum(rng.normal(0, 0.16 / n) * np.cos(n * angle + rng.uniform(0, 6.28)) for n in (2, 3, 4, 5))
    return np.stack([radii[0] * radius * np.cos(angle), radii[1] * radius * np.sin(angle)], 1)


# --- painting ---------------------------------------------------------------------------------------------------------


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
        _paint_lump(rng, colour, _filled(outline, shape))
    return colour.astype(np.float32)


def _clutter(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Outline of a distractor: a lump, a slab or a shard."""
    kind = rng.integers(3)
    if kind == 0:
        return _lump(rng, (radius, radius * rng.uniform(0.6, 1.1)))
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
    u, v = _from_image(instance, x, y)
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
        strength = np.maximum(strength, _filled(outline, shape) * np.float32(rng.uniform(0.2, 0.75)))
    soft = _blur(strength, rng.uniform(1.2, 3.0))
    soft = soft + 0.025 * np.abs(_noise(rng, shape, 6)) + 0.012 * np.abs(rng.normal(0, 1, shape))
    return (np.clip(soft, 0, 1) * 255 + 0.5).astype(np.uint8)
