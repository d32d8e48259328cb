"""One scene of the shapes world: objects of known complexity on a textured background, with exact masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dynamask.data.shapes import paint
from dynamask.data.shapes.numbers import Stream
from dynamask.data.shapes.outlines import CLASSES, Rings, placed
from dynamask.data.shapes.raster import FULL, coverage, inside, outline_length
from dynamask.structures import DynaMaskError

SCENE_SIZE = (288, 352)
"""Default height and width in pixels."""
EMPTY_EVERY = 10
"""Every tenth scene has no object."""
SIDES = (0.3, 0.66)
"""Smallest and largest side of an object (square root of its box area), as a fraction of the scene's. Below about 0.3
the detail of an outline is finer than the pixels of default scenes, and no mask size can show it."""
MIN_VISIBLE = 0.5
"""Objects with a smaller visible fraction are left out of the scene before it is painted."""
MAX_ROUGHNESS = 32.0
"""Roughness that corresponds to complexity 1."""
_SCAN = 192
"""Cells along the side of the box, for measuring roughness."""


@dataclass(frozen=True)
class Scene:
    """A picture and its ground truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool, the visible part of each object.
        boxes: (N, 4) float32 xyxy in pixels, tight around the visible mask.
        labels: (N,) int64 from 1, in the order of ``CLASSES``.
        complexity: (N,) float64 in 0–1, of the whole outline including hidden parts (see :func:`complexity`).
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    complexity: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def complexity(rings: Rings) -> float:
    """Complexity of an outline in 0–1, independent of its size and position.

    The roughness ρ = P · √(w h) / (4 A) compares the outline's length P with its area A in its box of w × h. On a grid
    of M × M cells about 4 ρ / M of the area lies in cells that the outline cuts, so ρ tells how much a mask gains from
    resolution; a square and a disc have ρ = 1. Complexity is log ρ / log 32, clipped to 0–1, with four decimals.

    Args:
        rings: an outline as :func:`dynamask.data.shapes.outlines.placed` returns it, in a box of area 1 at the origin.
    """
    width, height = np.concatenate(rings).max(axis=0)
    rows, columns = max(1, math.ceil(height * _SCAN)), max(1, math.ceil(width * _SCAN))
    mask = inside([ring * float(_SCAN) for ring in rings], rows, columns)
    roughness = outline_length(mask) * math.sqrt(rows * columns) / (4 * max(1, np.count_nonzero(mask)))
    return round(min(1.0, max(0.0, math.log(roughness) / math.log(MAX_ROUGHNESS))), 4)


@dataclass
class _Object:
    """An object before it is painted: its outline in pixels of the box at (top, left), and its visible part."""

    label: int
    complexity: float
    top: int
    left: int
    alpha: np.ndarray


def _draw_objects(
    stream: Stream, size: tuple[int, int], count: int, detail: float | None, sides: tuple[float, float]
) -> list[_Object]:
    """Objects at free positions, in painting order; side, position and detail are drawn independently."""
    height, width = size
    names, found, boxes = list(CLASSES), [], []
    for _ in range(count):
        label, own = stream.integer(1, len(names)), stream.unit()
        outline = CLASSES[names[label - 1]](stream, own if detail is None else detail)
        rings = placed(outline, stream.between(0, 6.28), stream.between(0.75, 1.35))
        box_width, box_height = np.concatenate(rings).max(axis=0)
        share = sides[0] * (sides[1] / sides[0]) ** stream.unit()
        side = round(math.sqrt(height * width) * share, 3)
        side = min(side, 0.97 * width / box_width, 0.97 * height / box_height)
        place = _free_place(stream, boxes, box_width * side, box_height * side, size)
        if place is None:
            continue
        x, y = place
        boxes.append((x, y, x + box_width * side, y + box_height * side))
        left, top = int(x), int(y)
        rows, columns = int(y + box_height * side) + 1 - top, int(x + box_width * side) + 1 - left
        rows, columns = min(rows, height - top), min(columns, width - left)
        alpha = coverage([ring * side + (x - left, y - top) for ring in rings], rows, columns)
        found.append(_Object(label, complexity(rings), top, left, alpha))
    return found


def _free_place(
    stream: Stream, boxes: list[tuple[float, float, float, float]], width: float, height: float, size: tuple[int, int]
) -> tuple[float, float] | None:
    """Top left corner (x, y) of a box whose overlap with every other is at most 30 % of the smaller one."""
    for _ in range(12):
        x, y = stream.unit() * (size[1] - width), stream.unit() * (size[0] - height)
        for left, top, right, bottom in boxes:
            across = min(right, x + width) - max(left, x)
            down = min(bottom, y + height) - max(top, y)
            smaller = min(width * height, (right - left) * (bottom - top))
            if across > 0 and down > 0 and across * down > 0.3 * smaller:
                break
        else:
            return x, y
    return None


def _visible(objects: list[_Object], size: tuple[int, int]) -> list[np.ndarray]:
    """(H, W) bool for each object: pixels that it covers by at least half and that no later object covers."""
    hidden, masks = np.zeros(size, dtype=bool), []
    for item in reversed(objects):
        mask = np.zeros(size, dtype=bool)
        rows, columns = item.alpha.shape
        mask[item.top : item.top + rows, item.left : item.left + columns] = item.alpha * 2 >= FULL
        masks.append(mask & ~hidden)
        hidden |= mask
    return masks[::-1]


def _paint(stream: Stream, picture: np.ndarray, item: _Object, palette: tuple[paint.Colour, ...]) -> None:
    """Paint one object with its shadow and a lit rim into the picture (H, W, 3) int32."""
    rows, columns = item.alpha.shape
    first, second = stream.choice(palette[2:]), stream.choice(palette)
    surface = paint.texture(stream, rows, columns, first, second)
    lift, depth = stream.integer(1, 4), stream.integer(0, 7)
    rim = paint.shifted(item.alpha, 1, 1) - paint.shifted(item.alpha, -1, -1)
    surface += (rim * stream.integer(0, 3))[:, :, None]
    region = picture[item.top : item.top + rows, item.left : item.left + columns]
    shadow = paint.shifted(item.alpha, lift, lift) * depth
    paint.blend(region, region // 3, shadow, 16 * FULL)
    paint.blend(region, np.clip(surface, 0, 255), item.alpha, FULL)


def make_scene(
    seed: int,
    index: int,
    size: tuple[int, int] = SCENE_SIZE,
    count: int | None = None,
    detail: float | None = None,
    sides: tuple[float, float] = SIDES,
) -> Scene:
    """Make scene ``index`` of the world ``seed``.

    The same arguments give the same bytes on every machine and with every supported version of the libraries.

    Args:
        seed: ≥ 0.
        index: ≥ 0; scenes 9, 19, 29, … are empty unless a count is given.
        size: (height, width) in pixels, each at least 64.
        count: number of objects to place where there is room; drawn from 1–7 by default.
        detail: 0–1 for all objects; drawn for each by default.
        sides: smallest and largest side of an object as a fraction of the scene's, in (0, 0.9].

    Raises:
        DynaMaskError: a number out of range.
    """
    if seed < 0 or index < 0:
        raise DynaMaskError(f"seed {seed} and index {index} name no scene; give whole numbers of at least 0")
    if min(size) < 64 or max(size) > 4096:
        raise DynaMaskError(f"a scene of {size[1]} x {size[0]} pixels cannot be made; give sides from 64 to 4096")
    if detail is not None and not 0 <= detail <= 1:
        raise DynaMaskError(f"detail is {detail}; give a number from 0 to 1")
    if not 0 < sides[0] <= sides[1] <= 0.9:
        raise DynaMaskError(f"sides of {sides[0]} to {sides[1]} cannot be drawn; give fractions of the scene up to 0.9")
    plan, brush = Stream(seed, index, 0), Stream(seed, index, 1)
    if count is None:
        count = 0 if index % EMPTY_EVERY == EMPTY_EVERY - 1 else plan.integer(1, 7)
    objects = _draw_objects(plan, size, count, detail, sides)
    masks = _visible(objects, size)
    whole = [np.count_nonzero(item.alpha * 2 >= FULL) for item in objects]
    kept = [np.count_nonzero(mask) > MIN_VISIBLE * max(1, area) for mask, area in zip(masks, whole, strict=True)]
    objects = [item for item, keep in zip(objects, kept, strict=True) if keep]
    masks = _visible(objects, size)
    palette = brush.choice(paint.PALETTES)
    picture = paint.background(brush, *size, palette)
    for item in objects:
        _paint(brush, picture, item, palette)
    return Scene(_developed(brush, picture), *_truth(objects, masks, size))


def _developed(stream: Stream, picture: np.ndarray) -> np.ndarray:
    """The picture with camera effects: noise, and sometimes blur; (H, W, 3) uint8."""
    if stream.chance(0.3):
        picture = paint.box_blur(picture)
    strength = stream.integer(0, 14)
    noise = stream.bytes(*picture.shape).astype(np.int32) - 128
    return np.clip(picture + (noise * strength >> 7), 0, 255).astype(np.uint8)


def _truth(
    objects: list[_Object], masks: list[np.ndarray], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Masks, boxes, labels and complexity as :class:`Scene` has them."""
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return (
        np.stack(masks) if masks else np.zeros((0, *size), dtype=bool),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array([item.label for item in objects], dtype=np.int64),
        np.array([item.complexity for item in objects], dtype=np.float64),
    )
