"""Rasterisation of polygons: anti-aliased coverage, in arithmetic that rounds equally on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SUBPIXELS = 4
"""Samples along each side of a pixel; coverage is counted in SUBPIXELS² steps."""
FULL = SUBPIXELS * SUBPIXELS
"""Coverage of a pixel that is entirely inside."""


def inside(rings: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The cells of a grid whose centres lie inside the outline, by the non-zero winding rule.

    Args:
        rings: arrays (k, 2) of x, y in cells, closed by their first point; the grid spans [0, width] × [0, height].
            Rings of one orientation form a union; a ring of the other orientation cuts a hole.
        height: cells.
        width: cells.

    Returns:
        (height, width) bool.
    """
    start, end = np.concatenate(rings), np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    down = end[:, 1] > start[:, 1]
    upper, lower = np.where(down[:, None], start, end), np.where(down[:, None], end, start)
    first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)  # rows whose centre lies in [upper, lower)
    last = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64)
    count = last - first
    crossing = count > 0
    upper, lower, first, count = upper[crossing], lower[crossing], first[crossing], count[crossing]
    sign = np.where(down[crossing], 1, -1)
    slope = (lower[:, 0] - upper[:, 0]) / (lower[:, 1] - upper[:, 1])
    offset = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    row = np.repeat(first, count) + offset
    x = np.repeat(upper[:, 0], count) + (row + 0.5 - np.repeat(upper[:, 1], count)) * np.repeat(slope, count)
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)  # the first centre on or right of the crossing
    steps = np.bincount(row * (width + 1) + column, weights=np.repeat(sign, count), minlength=height * (width + 1))
    winding = np.cumsum(steps.astype(np.int16).reshape(height, width + 1)[:, :width], axis=1, dtype=np.int16)
    return winding != 0


def coverage(rings: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Coverage of each pixel by the outline.

    Args:
        rings: as for :func:`inside`, in pixels.
        height: pixels.
        width: pixels.

    Returns:
        (height, width) int32 in 0 to ``FULL``.
    """
    fine = inside([ring * float(SUBPIXELS) for ring in rings], height * SUBPIXELS, width * SUBPIXELS).view(np.uint8)
    columns = sum((fine[:, k::SUBPIXELS] for k in range(1, SUBPIXELS)), start=fine[:, ::SUBPIXELS])
    return columns.reshape(height, SUBPIXELS, width).sum(axis=1, dtype=np.int32)


def outline_length(mask: np.ndarray) -> float:
    """Length of the outline of a (H, W) bool mask in cells, by Cauchy–Crofton: π/4 of the cell sides along it."""
    padded = np.pad(mask, 1)
    sides = np.count_nonzero(padded[1:] != padded[:-1]) + np.count_nonzero(padded[:, 1:] != padded[:, :-1])
    return 0.25 * 3.141592653589793 * sides
