"""Backgrounds, textures and light of the shapes world, in integers, so that pictures are the same on every machine."""

from __future__ import annotations

import numpy as np

from dynamask.data.shapes.numbers import Stream
from dynamask.data.shapes.raster import FULL, coverage

Colour = tuple[int, int, int]

PALETTES: tuple[tuple[Colour, ...], ...] = (
    ((244, 239, 226), (214, 226, 219), (38, 70, 83), (42, 157, 143), (233, 196, 106), (231, 111, 81), (120, 63, 94)),
    ((20, 33, 61), (44, 62, 94), (252, 163, 17), (229, 229, 229), (131, 197, 190), (226, 109, 92), (190, 149, 196)),
    ((222, 232, 240), (188, 208, 224), (29, 53, 87), (230, 57, 70), (69, 123, 157), (168, 87, 81), (61, 90, 64)),
    ((52, 58, 47), (88, 96, 74), (221, 190, 131), (188, 108, 37), (254, 250, 224), (144, 169, 85), (96, 38, 58)),
    ((250, 228, 217), (240, 200, 190), (109, 89, 122), (53, 80, 112), (181, 101, 118), (86, 130, 89), (234, 172, 100)),
    ((36, 31, 49), (66, 56, 84), (255, 203, 105), (208, 140, 96), (121, 125, 204), (92, 184, 178), (236, 100, 120)),
    ((214, 219, 199), (180, 190, 160), (81, 70, 99), (163, 67, 54), (52, 93, 126), (232, 183, 76), (43, 61, 38)),
    ((198, 214, 222), (230, 226, 214), (120, 80, 50), (30, 90, 80), (196, 90, 40), (90, 60, 120), (240, 190, 60)),
)
"""Two colours of the background, followed by the colours of the objects."""


def _weights(length: int, cells: int) -> np.ndarray:
    """(length, cells + 1) integers that interpolate a row of cells + 1 values; every row adds up to 64."""
    place = np.arange(length) * cells * 64 // max(1, length - 1)
    place = np.minimum(place, cells * 64 - 1)
    cell, part = place // 64, place % 64
    weights = np.zeros((length, cells + 1))
    weights[np.arange(length), cell] = 64 - part
    weights[np.arange(length), cell + 1] = part
    return weights


def mottle(stream: Stream, height: int, width: int, cell: int) -> np.ndarray:
    """Smooth random brightness, (height, width) int32 in −128 to 127, in patches of about ``cell`` pixels."""
    rows, columns = max(1, height // cell), max(1, width // cell)
    values = stream.bytes(rows + 1, columns + 1).astype(np.float64) - 128.0
    # All factors are integers and the sums stay far below 2^53: exact in any order of addition.
    return (_weights(height, rows) @ values @ _weights(width, columns).T).astype(np.int32) >> 12


def _plane(stream: Stream, height: int, width: int, most: int) -> np.ndarray:
    """A slope in a random direction, (height, width) int32 from about −most to most."""
    x, y = stream.integer(-100, 100), stream.integer(-100, 100)
    columns, rows = np.arange(width, dtype=np.int32) * 2 - width, np.arange(height, dtype=np.int32) * 2 - height
    return (x * columns[None, :] * most // (100 * width)) + (y * rows[:, None] * most // (100 * height))


def mixed(first: Colour, second: Colour, share: np.ndarray) -> np.ndarray:
    """(H, W, 3) int32 between two colours; share (H, W) in 0 (the first) to 256."""
    a, b = np.array(first, dtype=np.int32), np.array(second, dtype=np.int32)
    return a + ((b - a) * share[:, :, None] >> 8)


def background(stream: Stream, height: int, width: int, palette: tuple[Colour, ...]) -> np.ndarray:
    """A mottled background with a slope of light and faint strokes and spots, (H, W, 3) int32."""
    share = 128 + _plane(stream, height, width, 110) + mottle(stream, height, width, stream.integer(40, 110))
    picture = mixed(palette[0], palette[1], np.clip(share, 0, 256))
    picture += (mottle(stream, height, width, stream.integer(4, 16)) * stream.integer(0, 26) >> 7)[:, :, None]
    for _ in range(stream.integer(0, 14)):
        _litter(stream, picture, palette)
    return picture


def _litter(stream: Stream, picture: np.ndarray, palette: tuple[Colour, ...]) -> None:
    """Paint one faint stroke or spot, which is not an object, into the picture."""
    height, width = picture.shape[:2]
    x, y = stream.between(0, width), stream.between(0, height)
    reach, half = stream.between(5, 60), stream.between(0.8, 5)
    dx, dy = stream.between(-1, 1) * reach, stream.between(-1, 1) * reach
    strength = stream.integer(2, 7)
    ring = np.array(
        [(x - dy / reach * half, y + half), (x + dx, y + dy), (x + dy / reach * half, y - half), (x - dx / 2, y - dy)]
    )
    left, top = (max(0, int(v)) for v in ring.min(axis=0))
    right, bottom = min(width, int(ring[:, 0].max()) + 1), min(height, int(ring[:, 1].max()) + 1)
    if right - left < 2 or bottom - top < 2:
        return
    alpha = coverage([ring - (left, top)], bottom - top, right - left) * strength
    blend(picture[top:bottom, left:right], np.array(stream.choice(palette), dtype=np.int32), alpha, 16 * FULL)


def blend(region: np.ndarray, colour: np.ndarray, alpha: np.ndarray, full: int) -> None:
    """Blend a colour (3,) or (H, W, 3) into a region (H, W, 3) in place; alpha (H, W) is in 0 to ``full``."""
    region += (colour - region) * alpha[:, :, None] // full


def texture(stream: Stream, height: int, width: int, first: Colour, second: Colour) -> np.ndarray:
    """The surface of an object, (H, W, 3) int32: plain, striped, dotted, checked or mottled, with a slope of light."""
    kind = stream.integer(0, 5)
    rows, columns = np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)[None, :]
    a, b, period = stream.integer(-64, 64), stream.integer(-64, 64), stream.integer(6, 20)
    strength = stream.integer(50, 170)
    if kind == 1:  # stripes
        share = ((columns * a + rows * b) // 64 % period * 2 < period) * strength
    elif kind == 2:  # dots
        dx, dy = columns % period * 2 - period, rows % period * 2 - period
        share = (dx * dx + dy * dy < period * period // 3) * strength
    elif kind == 3:  # checks
        share = ((columns // period + rows // period) % 2) * strength
    elif kind == 4:
        share = 128 + mottle(stream, height, width, period)
    else:
        share = np.full((height, width), stream.integer(0, 60))
    share = np.broadcast_to(share, (height, width))
    return mixed(first, second, share) + _plane(stream, height, width, stream.integer(10, 55))[:, :, None]


def shifted(alpha: np.ndarray, down: int, right: int) -> np.ndarray:
    """An array (H, W) shifted by whole pixels, filled with zeros."""
    height, width = alpha.shape
    out = np.zeros_like(alpha)
    out[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = alpha[
        max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)
    ]
    return out


def box_blur(picture: np.ndarray) -> np.ndarray:
    """Mean over 3×3 pixels with the border repeated; (H, W, 3) int32."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) // 9
