"""Outlines of the ten classes of the shapes world, from simple to complex.

Each class draws an outline for a detail in 0-1; more detail means more and thinner teeth, lobes, leaflets or legs. An
outline is a list of rings (k, 2) float64 of x, y around the origin; rings of positive orientation form a union, rings
of negative orientation are holes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from dynamask.data.shapes.numbers import Stream

Rings = list[np.ndarray]
_GRID = 2.0**16
"""Points are rounded to 1/2^16, far coarser than the last bits in which implementations of sine differ."""


def _rounded(points: Sequence[tuple[float, float]] | np.ndarray) -> np.ndarray:
    return np.round(np.asarray(points, dtype=np.float64) * _GRID) / _GRID


def _oriented(points: Sequence[tuple[float, float]] | np.ndarray, hole: bool = False) -> np.ndarray:
    """The ring with positive orientation, or negative for a hole."""
    ring = _rounded(points)
    following = np.roll(ring, -1, axis=0)
    area = (ring[:, 0] * following[:, 1] - ring[:, 1] * following[:, 0]).sum()
    return ring[::-1].copy() if (area < 0) != hole else ring


def polar(radius: Callable[[float], float], points: int) -> list[tuple[float, float]]:
    """Closed curve of a radius given by the angle in radians."""
    angles = [2 * math.pi * i / points for i in range(points)]
    return [(radius(a) * math.cos(a), radius(a) * math.sin(a)) for a in angles]


def circle(x: float, y: float, radius: float, points: int = 32, hole: bool = False) -> np.ndarray:
    """A disc, or a round hole."""
    return _oriented([(x + px * radius, y + py * radius) for px, py in polar(lambda _: 1.0, points)], hole)


def stroke(path: Sequence[tuple[float, float]], widths: Sequence[float]) -> Rings:
    """A line of varying width: one quadrilateral per segment, with round joints and ends."""
    rings = []
    for (x0, y0), (x1, y1), w0, w1 in zip(path[:-1], path[1:], widths[:-1], widths[1:], strict=True):
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        nx, ny = (y0 - y1) / length, (x1 - x0) / length
        rings.append(
            _oriented(
                [
                    (x0 + nx * w0 / 2, y0 + ny * w0 / 2),
                    (x0 - nx * w0 / 2, y0 - ny * w0 / 2),
                    (x1 - nx * w1 / 2, y1 - ny * w1 / 2),
                    (x1 + nx * w1 / 2, y1 + ny * w1 / 2),
                ]
            )
        )
    rings.extend(circle(x, y, w / 2, 10) for (x, y), w in zip(path, widths, strict=True))
    return rings


def disc(stream: Stream, detail: float) -> Rings:
    """A pebble; detail ripples its rim."""
    lobes, phase = stream.integer(2, 4), stream.between(0, 6.28)
    ripples, depth = 6 + int(12 * detail), 0.09 * detail
    return [_oriented(polar(lambda a: 1 + 0.06 * math.sin(lobes * a + phase) + depth * math.sin(ripples * a), 120))]


def book(stream: Stream, detail: float) -> Rings:
    """A slab with straight sides; detail frays one side and adds tabs."""
    aspect = stream.between(0.6, 0.95)
    teeth = 2 + int(12 * detail)
    depth = 0.22 * detail
    side = []
    for i in range(teeth):
        low, high = -1 + 2 * i / teeth, -1 + 2 * (i + 0.5) / teeth
        reach = aspect + depth * (0.6 + 0.4 * stream.unit())
        side += [(aspect, low), (reach, low), (reach, high), (aspect, high)]
    return [_oriented([(-aspect, 1), (-aspect, -1), *side, (aspect, 1)])]


def splash(stream: Stream, detail: float) -> Rings:
    """A blot with round arms; detail makes more and longer ones."""
    arms = 5 + int(9 * detail)
    rings = [_oriented([(x, 0.7 * y) for x, y in polar(lambda _: 0.8 - 0.36 * detail, 48)])]
    for i in range(arms):
        angle = 2 * math.pi * (i + 0.5 * stream.unit()) / arms
        width, reach = stream.between(3.4, 4.6) / (arms + 3), stream.between(0.7, 1.0)
        tip = (reach * math.cos(angle), 0.7 * reach * math.sin(angle))
        rings += stroke([(0.3 * tip[0], 0.3 * tip[1]), tip], [width * (1 - 0.3 * detail), width * (1 - 0.5 * detail)])
    return rings


def ring(stream: Stream, detail: float) -> Rings:
    """A ring; detail makes it thinner and scallops both rims."""
    inner, waves, depth = 0.45 + 0.33 * detail, 6 + int(14 * detail), 0.08 * detail
    phase = stream.between(0, 6.28)
    outer = polar(lambda a: 1 + depth * math.sin(waves * a), 120)
    hole = polar(lambda a: inner + depth * math.sin(waves * a + phase), 120)
    return [_oriented(outer), _oriented(hole, hole=True)]


def star(stream: Stream, detail: float) -> Rings:
    """A star; detail adds points and deepens the notches."""
    points, inner = 5 + int(9 * detail), 0.62 - 0.36 * detail
    corners = [
        ((1.0 if i % 2 == 0 else inner), math.pi * i / points + stream.between(-0.08, 0.08) / points)
        for i in range(2 * points)
    ]
    return [_oriented([(r * math.cos(a), r * math.sin(a)) for r, a in corners])]


def gear(stream: Stream, detail: float) -> Rings:
    """A toothed wheel; detail adds teeth and holes between spokes."""
    teeth, root = 8 + int(20 * detail), 0.86 - 0.22 * detail
    rim = []
    for i in range(teeth):
        for share, radius in ((0.0, root), (0.12, 1.0), (0.45, 1.0), (0.57, root)):
            angle = 2 * math.pi * (i + share) / teeth
            rim.append((radius * math.cos(angle), radius * math.sin(angle)))
    rings = [_oriented(rim), circle(0, 0, 0.14, 20, hole=True)]
    holes = int(7 * detail) if detail > 0.25 else 0
    offset = stream.between(0, 6.28)
    for i in range(holes):
        angle = offset + 2 * math.pi * i / holes
        size = min(0.15, 0.9 * math.sin(math.pi / holes) * 0.42) if holes > 1 else 0.15
        rings.append(circle(0.42 * math.cos(angle), 0.42 * math.sin(angle), size, 16, hole=True))
    return rings


def leaf(stream: Stream, detail: float) -> Rings:
    """A leaf with a stalk; detail saws its edge and cuts lobes into it."""
    lobes, saws = 3 + int(3 * detail), 10 + int(26 * detail)
    cut, bite, width = 0.55 * detail, 0.09 * detail, stream.between(0.42, 0.6)
    left, right = [], []
    steps = 160
    for i in range(steps + 1):
        t = i / steps
        swell = math.sin(math.pi * t**0.8)
        lobe = 1 - cut * (0.5 + 0.5 * math.cos(2 * math.pi * lobes * t))
        saw = bite * ((saws * t) % 1.0) * (1 if 0.04 < t < 0.96 else 0)
        half = width * swell * lobe + saw
        left.append((-half, 1 - 2 * t))
        right.append((half, 1 - 2 * t))
    return [_oriented(left + right[::-1]), *stroke([(0, 0.9), (0.05, 1.35)], [0.07, 0.05])]


def fern(stream: Stream, detail: float) -> Rings:
    """A curved frond; detail adds leaflets and makes them slimmer."""
    pairs, bend = 6 + int(10 * detail), stream.between(-0.5, 0.5)
    spine = [(bend * (t / 12) ** 2, 1 - 2 * t / 12) for t in range(13)]
    rings = stroke(spine, [0.09 - 0.005 * t for t in range(13)])
    slim = 0.78 - 0.3 * detail
    for i in range(pairs):
        t = (i + 0.6) / pairs
        x, y = bend * t * t, 1 - 2 * t
        length = 0.75 * math.sin(math.pi * (0.16 + 0.8 * t)) ** 0.9
        for side in (-1, 1):
            angle = -0.45 - 0.15 * stream.unit()
            dx, dy = side * math.cos(angle) * length, math.sin(angle) * length
            half = slim / pairs
            nx, ny = -dy / length * half, dx / length * half
            rings.append(
                _oriented(
                    [
                        (x, y),
                        (x + 0.35 * dx + nx, y + 0.35 * dy + ny),
                        (x + 0.75 * dx + 0.7 * nx, y + 0.75 * dy + 0.7 * ny),
                        (x + dx, y + dy),
                        (x + 0.75 * dx - 0.7 * nx, y + 0.75 * dy - 0.7 * ny),
                        (x + 0.35 * dx - nx, y + 0.35 * dy - ny),
                    ]
                )
            )
    return rings


def snowflake(stream: Stream, detail: float) -> Rings:
    """A six-armed crystal; detail adds side branches and makes all of them thinner."""
    branches, width = 1 + int(4 * detail), 0.2 - 0.11 * detail
    lean = math.radians(stream.between(50, 65))
    rings = [circle(0, 0, 0.2, 6)]
    lengths = [stream.between(0.3, 0.5) for _ in range(branches)]
    for arm in range(6):
        angle = math.pi * arm / 3
        cos, sin = math.cos(angle), math.sin(angle)
        rings += stroke([(0, 0), (cos, sin)], [width, width * 0.8])
        for i, length in enumerate(lengths):
            at = 0.35 + 0.5 * (i + 0.5) / branches
            reach = length * (1.15 - 0.5 * at)
            for side in (-1, 1):
                a = angle + side * lean
                tip = (at * cos + reach * math.cos(a), at * sin + reach * math.sin(a))
                rings += stroke([(at * cos, at * sin), tip], [width * 0.8, width * 0.6])
    return rings


def creature(stream: Stream, detail: float) -> Rings:
    """A body with jointed legs and feelers; detail adds legs and makes them thinner."""
    pairs, width = 2 + int(4 * detail), 0.16 - 0.09 * detail
    rings = [_oriented([(0.3 * x, 0.62 * y) for x, y in polar(lambda _: 1.0, 40)]), circle(0, -0.72, 0.2, 24)]
    for side in (-1, 1):
        for i in range(pairs):
            y = -0.45 + 0.95 * i / max(1, pairs - 1)
            lift, reach = stream.between(-0.4, 0.25), stream.between(0.35, 0.55)
            knee = (side * (0.25 + reach), y + lift)
            foot = (side * (0.25 + reach + stream.between(0.1, 0.45)), knee[1] + stream.between(0.2, 0.55))
            rings += stroke([(side * 0.15, y), knee, foot], [width * 1.3, width, width * 0.7])
        feeler = [
            (side * 0.08, -0.85),
            (side * stream.between(0.15, 0.35), -1.1),
            (side * stream.between(0.3, 0.5), -1.2),
        ]
        rings += stroke(feeler, [width * 0.8, width * 0.6, width * 0.5])
    tail = [(0, 0.55), (stream.between(-0.3, 0.3), 0.85), (stream.between(-0.5, 0.5), 1.15)]
    return rings + stroke(tail, [0.2, 0.1, width * 0.6])


CLASSES: dict[str, Callable[[Stream, float], Rings]] = {
    "disc": disc,
    "book": book,
    "splash": splash,
    "ring": ring,
    "star": star,
    "gear": gear,
    "leaf": leaf,
    "fern": fern,
    "snowflake": snowflake,
    "creature": creature,
}
"""Outline by class name, in the order of their labels (1, 2, …)."""


def placed(rings: Rings, turn: float, stretch: float) -> Rings:
    """The outline rotated, stretched, and moved and scaled so that its box starts at the origin and has an area of 1.

    Args:
        rings: the outline.
        turn: angle in radians.
        stretch: factor along x, before the rotation.
    """
    cos, sin = round(math.cos(turn) * _GRID) / _GRID, round(math.sin(turn) * _GRID) / _GRID
    turned = [
        np.stack([ring[:, 0] * stretch * cos - ring[:, 1] * sin, ring[:, 0] * stretch * sin + ring[:, 1] * cos], axis=1)
        for ring in rings
    ]
    points = np.concatenate(turned)
    low, span = points.min(axis=0), points.max(axis=0) - points.min(axis=0)
    scale = 1.0 / math.sqrt(span[0] * span[1])
    return [(ring - low) * scale for ring in turned]
