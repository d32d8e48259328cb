"""COCO segmentations (polygons or run lengths) to masks, with the checks that the C code underneath does not make."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dynamask.ops.rle import Rle, compress, is_compressed, polygons_to_rle, run_lengths
from dynamask.structures import DynaMaskError

LONGEST_OUTLINE = 4_000_000
"""Longest outline of a polygon in pixels: drawing needs about 100 bytes for each."""
MANY_NUMBERS = 200
"""Polygons of at most so many numbers are drawn without measuring their outline: the pictures are limited in size."""


def segmentation_to_rle(segmentation: Any, size: tuple[int, int]) -> Rle | None:
    """Turn a COCO segmentation into one compressed run-length mask.

    :func:`dynamask.ops.rle.decode_rle` gives its pixels.

    Args:
        segmentation: polygons (a list of [x0, y0, x1, y1, …] in pixels) or run lengths, compressed or not.
        size: (height, width) of the picture in pixels.

    Returns:
        The mask, or None for polygons of which none has three points.

    Raises:
        DynaMaskError: neither polygons nor run lengths, or not of this picture; the message is a predicate to the name
            of the annotation, such as "has a polygon far outside …".
    """
    if isinstance(segmentation, dict):
        return _checked_run_lengths(segmentation, size)
    if not isinstance(segmentation, list | tuple) or not all(isinstance(part, list | tuple) for part in segmentation):
        raise DynaMaskError("has a segmentation that is neither polygons nor run lengths")
    height, width = size
    polygons, reach = [], 10 * max(height, width)
    for polygon in segmentation:
        plain = set(map(type, polygon)) <= {int, float} and not any(value != value for value in polygon)
        if len(polygon) % 2 or not (plain or all(is_number(value) for value in polygon)):
            raise DynaMaskError("has a polygon that is not a flat list of finite x, y pairs")
        if polygon and (max(polygon) > reach or min(polygon) < -reach):
            raise DynaMaskError(f"has a polygon far outside its picture of {width} x {height} pixels")
        if len(polygon) > MANY_NUMBERS and _length(polygon) > LONGEST_OUTLINE:
            raise DynaMaskError(f"has a polygon of {len(polygon) // 2} points whose outline is too long to be drawn")
        if len(polygon) >= 6:
            polygons.append(polygon)
    return polygons_to_rle(polygons, size) if polygons else None


def _checked_run_lengths(segmentation: dict[str, Any], size: tuple[int, int]) -> Rle:
    """Compressed run lengths, after checking that their runs fill the picture exactly."""
    height, width = size
    given, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(given, list | tuple) or list(given) != [height, width]:
        raise DynaMaskError(f"has run lengths of another size than its picture of {width} x {height} pixels")
    if isinstance(counts, str | bytes) and is_compressed(counts):
        runs = run_lengths(counts)
        fits = runs.min() >= 0 and runs.sum() == height * width
    elif isinstance(counts, list | tuple):
        fits = all(is_int(run) and run >= 0 for run in counts) and sum(counts) == height * width
    else:
        raise DynaMaskError("has run lengths that cannot be read")
    if not fits:
        raise DynaMaskError(f"has run lengths that do not add up to its {width} x {height} pixels")
    if isinstance(counts, list | tuple):
        return compress(counts, size)
    return {"size": [height, width], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _length(polygon: list[float]) -> float:
    """Length of a closed outline in pixels, by the longer of the two sides of each step."""
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def is_int(value: Any) -> bool:
    """Whether a value is an integer of at most 63 bits and no boolean."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and abs(value) < 2**63


def is_number(value: Any) -> bool:
    """Whether a value is a finite number and no boolean; integers have at most 63 bits."""
    return is_int(value) or (isinstance(value, float | np.floating) and math.isfinite(value))
