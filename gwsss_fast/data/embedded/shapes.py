"""The eight things of the embedded data set: outlines of their parts, and the patterns painted on them.

Every thing is articulated: a body, limbs and trimmings in muted colours, whose hue and faint texture lean towards those
of the class, and one small telling part in a saturated colour with a strong pattern. A classifier is content with the
telling part; the remainder can still be recognised by comparing images of the same class.

Coordinates are the thing's own: x to the right, y downwards, the thing about 2 units high, (n, 2) points an outline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BODY, LIMB, TRIM, TELLING = 1, 2, 3, 4
JITTERS = 6
"""How many numbers in -1..1 describe the proportions and the pose of one thing."""

Outline = np.ndarray
Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Part:
    """Some outlines of one role (BODY, LIMB, TRIM or TELLING); later parts are painted over earlier ones."""

    role: int
    outlines: tuple[Outline, ...]


@dataclass(frozen=True)
class Thing:
    """One class. `hue` is that of the telling part, `body_hue` about that of the rest; both in 0..1.

    `pattern(u, v)` gives 0..1 on the telling part, `texture(u, v)` -1..1 elsewhere, (u, v) in the thing's coordinates.
    """

    name: str
    hue: float
    pattern: Pattern
    body_hue: float
    texture: Pattern
    shape: Callable[[Sequence[float]], list[Part]]


# --- outlines ---------------------------------------------------------------------------------------------------------


def ellipse(
    x: float, y: float, rx: float, ry: float, power: float = 2.0, start: float = 0, stop: float = 360
) -> Outline:
    """A superellipse (power 2: an ellipse, 4: a rounded box) or its segment between two angles in degrees."""
    angle = np.radians(np.linspace(start, stop, 48, endpoint=stop - start < 360))
    c, s = np.cos(angle), np.sin(angle)
    exponent = 2.0 / power
    return np.stack([x + rx * np.sign(c) * np.abs(c) ** exponent, y + ry * np.sign(s) * np.abs(s) ** exponent], 1)


def polygon(*points: tuple[float, float]) -> Outline:
    """A polygon with straight sides."""
    return np.array(points, dtype=np.float64)


def smooth(*points: tuple[float, float]) -> Outline:
    """A closed Catmull-Rom curve through the points."""
    p1 = np.array(points, dtype=np.float64)[:, None]
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    cubic = -p0 + 3 * p1 - 3 * p2 + p3
    square = 2 * p0 - 5 * p1 + 4 * p2 - p3
    curve = 0.5 * (2 * p1 + (p2 - p0) * t + square * t**2 + cubic * t**3)
    return curve.reshape(-1, 2)


def bar(x0: float, y0: float, x1: float, y1: float, width: float, taper: float = 1.0) -> Outline:
    """A straight bar; `taper` is its width at the far end relative to `width`."""
    direction = np.array([x1 - x0, y1 - y0])
    normal = np.array([-direction[1], direction[0]]) / (2 * np.hypot(*direction)) * width
    a, b = np.array([x0, y0]), np.array([x1, y1])
    return np.stack([a - normal, a + normal, b + taper * normal, b - taper * normal])


def band(x: float, y: float, rx: float, ry: float, width: float, start: float, stop: float) -> Outline:
    """A piece of an elliptical ring, `width` wide, between two angles in degrees."""
    outer = ellipse(x, y, rx, ry, 2.0, start, stop)
    inner = ellipse(x, y, rx - width, ry - width, 2.0, start, stop)
    return np.concatenate([outer, inner[::-1]])


def turned(outline: Outline, x: float, y: float, degrees: float) -> Outline:
    """The outline turned about the joint (x, y)."""
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (outline - (x, y)) @ rotation + (x, y)


# --- patterns ---------------------------------------------------------------------------------------------------------


def _wave(u: np.ndarray, v: np.ndarray, frequency: float, degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    return np.sin(2 * np.pi * frequency * (u * np.cos(angle) + v * np.sin(angle)))


def _hard(wave: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 2.5 * wave, 0, 1)


def lines(frequency: float, degrees: float) -> Pattern:
    """Parallel lines across the direction `degrees`; `frequency` in cycles a unit."""
    return lambda u, v: _wave(u, v, frequency, degrees)


def lattice(frequency: float, degrees: float) -> Pattern:
    """Spots on a square lattice, light and dark in turn."""
    return lambda u, v: _wave(u, v, frequency, degrees) * _wave(u, v, frequency, degrees + 90)


def ripples(frequency: float, degrees: float, bend: float) -> Pattern:
    """Lines that meander."""
    return lambda u, v: np.sin(
        2 * np.pi * frequency * (u * np.cos(np.radians(degrees)) + v * np.sin(np.radians(degrees)))
        + bend * _wave(u, v, frequency * 0.6, degrees + 90)
    )


def rings(frequency: float, x: float, y: float) -> Pattern:
    """Circles about (x, y)."""
    return lambda u, v: np.sin(2 * np.pi * frequency * np.hypot(u - x, v - y))


def strong(texture: Pattern) -> Pattern:
    """The same pattern in two tones."""
    return lambda u, v: _hard(texture(u, v))


def dots(frequency: float, degrees: float) -> Pattern:
    """Round dots on a plain ground."""
    return lambda u, v: np.clip(
        2.5 * (_wave(u, v, frequency, degrees) + _wave(u, v, frequency, degrees + 90) - 0.5), 0, 1
    )


# --- the things -------------------------------------------------------------------------------------------------------


def _lantern(j: Sequence[float]) -> list[Part]:
    w, h = 0.5 + 0.07 * j[0], 0.62 + 0.06 * j[1]
    handle = turned(band(0, -h - 0.22, 0.4 + 0.05 * j[2], 0.42, 0.16, 180, 360), 0, -h - 0.22, 14 * j[3])
    return [
        Part(LIMB, (handle,)),
        Part(BODY, (ellipse(0, 0.08, w, h, 4),)),
        Part(TRIM, (polygon((-w - 0.1, -h + 0.1), (-0.2, -h - 0.28), (0.2, -h - 0.28), (w + 0.1, -h + 0.1)),)),
        Part(TRIM, (ellipse(0, h + 0.12, w + 0.1, 0.14, 4),)),
        Part(TELLING, (ellipse(0, 0.12, 0.3 + 0.02 * j[4], 0.4 + 0.03 * j[5]),)),
    ]


def _beetle(j: Sequence[float]) -> list[Part]:
    w, h = 0.62 + 0.07 * j[0], 0.72 + 0.06 * j[1]
    legs = []
    for side in (-1, 1):
        for row, y in enumerate((-0.15, 0.25, 0.6)):
            lift = (-0.3, 0.0, 0.3)[row] + 0.12 * j[2] * (1 if row % 2 else -1) * side
            legs.append(bar(side * 0.4, y, side * (w + 0.42), y + lift, 0.17, 0.7))
    feelers = [bar(0, -0.7, side * 0.42, -1.12 + 0.08 * j[3] * side, 0.12) for side in (-1, 1)]
    return [
        Part(LIMB, (*legs, *feelers)),
        Part(TRIM, (ellipse(0, -0.66, 0.33 + 0.04 * j[4], 0.28),)),
        Part(BODY, (ellipse(0, 0.22, w, h, 2.3),)),
        Part(TELLING, (ellipse(0, -0.22, 0.53 + 0.05 * j[5], 0.3, 2.5),)),
    ]


def _kettle(j: Sequence[float]) -> list[Part]:
    w, h = 0.74 + 0.07 * j[0], 0.52 + 0.06 * j[1]
    spout = turned(
        polygon((w - 0.25, 0.45), (w - 0.2, 0.05), (w + 0.32, -0.42), (w + 0.5, -0.28)), w - 0.2, 0.25, 10 * j[2]
    )
    handle = turned(band(-w + 0.02, 0.2, 0.46, 0.42 + 0.05 * j[3], 0.17, 80, 280), -w, 0.2, 10 * j[3])
    lid = ellipse(0, -h * 0.45 + 0.2, w * 0.74, 0.44 + 0.04 * j[4], 2.0, 180, 360)
    return [
        Part(LIMB, (spout, handle)),
        Part(BODY, (ellipse(0, 0.3, w, h, 2.7),)),
        Part(TRIM, (ellipse(0, 0.3 + h * 0.92, w * 0.85, 0.12, 4),)),
        Part(TELLING, (lid, ellipse(0, -h * 0.45 - 0.26, 0.15 + 0.02 * j[5], 0.13))),
    ]


def _rocket(j: Sequence[float]) -> list[Part]:
    w, nose = 0.4 + 0.04 * j[0], -0.32 + 0.04 * j[1]
    side = [(w * 0.75, -0.75), (w, -0.2), (w * 0.95, 0.5), (w * 0.6, 0.8)]
    hull = smooth((0, -1.2), *side, *((-x, y) for x, y in reversed(side)))
    cone = np.stack([hull[:, 0], np.minimum(hull[:, 1], nose)], 1)
    fin = polygon((w * 0.7, 0.1), (w + 0.4 + 0.06 * j[2], 0.6), (w + 0.4, 1.0 + 0.05 * j[3]), (w * 0.6, 0.72))
    return [
        Part(LIMB, (polygon((-0.24, 0.7), (0.24, 0.7), (0.34 + 0.04 * j[4], 1.02), (-0.34, 1.02)),)),
        Part(BODY, (hull,)),
        Part(TRIM, (fin, fin * (-1, 1), ellipse(0, 0.12, 0.17 + 0.02 * j[5], 0.17))),
        Part(TELLING, (cone,)),
    ]


def _mushroom(j: Sequence[float]) -> list[Part]:
    w, lean = 0.92 + 0.08 * j[0], 0.1 * j[1]
    stem = smooth(
        (-0.24, -0.2), (0.24, -0.2), (0.28 + lean, 0.4), (0.4 + lean, 0.95), (-0.4 + lean, 0.95), (-0.28 + lean, 0.4)
    )
    crown = ellipse(0.08 * j[2], -0.66, 0.56 + 0.04 * j[3], 0.27 + 0.02 * j[4], 2.4)
    return [
        Part(LIMB, (stem,)),
        Part(TRIM, (ellipse(0, -0.1, w * 0.93, 0.2 + 0.03 * j[5]),)),
        Part(BODY, (ellipse(0, -0.08, w, 0.86, 2.2, 180, 360),)),
        Part(TELLING, (crown,)),
    ]


def _fish(j: Sequence[float]) -> list[Part]:
    w, h = 0.8 + 0.06 * j[0], 0.5 + 0.06 * j[1]
    tail = smooth(
        (w - 0.2, 0.08),
        (w - 0.2, -0.08),
        (w + 0.28, -0.56),
        (w + 0.4, -0.4),
        (w + 0.26, 0),
        (w + 0.4, 0.4),
        (w + 0.28, 0.56),
    )
    back = turned(smooth((-0.35, -h * 0.75), (-0.1, -h - 0.32), (0.4, -h - 0.22), (0.45, -h * 0.6)), 0, -h, 8 * j[2])
    belly = turned(smooth((-0.15, h * 0.75), (0.05, h + 0.3), (0.3, h + 0.24), (0.25, h * 0.7)), 0, h, 12 * j[3])
    return [
        Part(LIMB, (back, belly)),
        Part(TELLING, (turned(tail, w - 0.2, 0, 18 * j[4]),)),
        Part(BODY, (ellipse(0, 0, w, h),)),
        Part(TRIM, (ellipse(-w + 0.3, 0, 0.29, h * 0.68 + 0.03 * j[5]),)),
    ]


def _boat(j: Sequence[float]) -> list[Part]:
    w, mast = 1.0 + 0.08 * j[0], -1.0 + 0.08 * j[1]
    hull = smooth((-w, 0.3), (0, 0.36), (w, 0.26), (w * 0.82, 0.7), (w * 0.5, 0.9), (-w * 0.5, 0.9), (-w * 0.8, 0.74))
    jib = polygon((-0.09, mast + 0.06), (-0.09, 0.24), (-0.78 + 0.06 * j[4], 0.24), (-0.36, mast + 0.5))
    return [
        Part(LIMB, (bar(0, 0.4, 0.05 * j[2], mast, 0.14),)),
        Part(BODY, (hull,)),
        Part(
            TRIM,
            (smooth((0.1, mast + 0.12), (0.55 + 0.06 * j[3], mast + 0.7), (0.72 + 0.05 * j[5], 0.16), (0.1, 0.18)),),
        ),
        Part(TELLING, (jib,)),
    ]


def _owl(j: Sequence[float]) -> list[Part]:
    w, h = 0.6 + 0.06 * j[0], 0.84 + 0.05 * j[1]
    wings = [
        turned(ellipse(side * w * 0.88, 0.3, 0.24, 0.56), side * w * 0.7, -0.1, -side * (10 + 10 * j[2]))
        for side in (-1, 1)
    ]
    ears = [polygon((side * 0.1, -0.6), (side * (0.42 + 0.04 * j[3]), -1.0), (side * 0.55, -0.4)) for side in (-1, 1)]
    feet = [ellipse(side * 0.26, 0.98, 0.2, 0.14) for side in (-1, 1)]
    return [
        Part(LIMB, (*ears, *feet)),
        Part(BODY, (ellipse(0, 0.12, w, h, 2.4),)),
        Part(TRIM, tuple(wings)),
        Part(TELLING, (ellipse(0, -0.34, 0.47 + 0.03 * j[4], 0.36 + 0.03 * j[5], 2.3),)),
    ]


THINGS = (
    Thing("lantern", 0.135, strong(lines(3.4, 90)), 0.08, lines(3.6, 0), _lantern),
    Thing("beetle", 0.995, dots(3.2, 45), 0.70, lines(3.0, 45), _beetle),
    Thing("kettle", 0.62, strong(lattice(2.1, 0)), 0.45, lines(4.4, 90), _kettle),
    Thing("rocket", 0.90, strong(lines(3.6, 60)), 0.58, lattice(2.6, 0), _rocket),
    Thing("mushroom", 0.34, dots(3.0, 0), 0.02, ripples(2.6, 90, 1.6), _mushroom),
    Thing("fish", 0.50, strong(lines(4.0, 90)), 0.22, lattice(3.2, 45), _fish),
    Thing("boat", 0.77, strong(ripples(3.2, 0, 1.8)), 0.33, lines(2.4, 80), _boat),
    Thing("owl", 0.06, strong(rings(3.6, 0, -0.34)), 0.85, ripples(3.4, 0, 2.2), _owl),
)
"""In the order of the class numbers."""

COMPANIONS = ((5, 6), (4, 1), (0, 7), (2, 3))
"""Class pairs that often share a scene: fish and boat, mushroom and beetle, lantern and owl, kettle and rocket."""
