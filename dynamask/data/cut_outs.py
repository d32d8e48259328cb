"""Cut-outs: outlines of the shapes world filled with photograph texture and put over photographs.

Their masks are exact to the pixel and more intricate than outlines drawn by hand. They belong to no class: targets mark
them as ``mask_only``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamask.data.batch_augmentation import BatchAugmentation, Sample
from dynamask.data.copy_paste import put_over
from dynamask.data.shapes.numbers import Stream
from dynamask.data.shapes.outlines import CLASSES, Rings, placed
from dynamask.data.shapes.raster import FULL, coverage

MOST = 2
"""Cut-outs per picture, at most."""
SIDES = (0.1, 0.6)
"""Smallest and largest side of a cut-out (square root of its box area), as a fraction of the picture's."""
SMALLEST = 12
"""Smallest side of a cut-out, pixels; pictures with a side below three times this stay as they are."""
DETAIL_SIDE = 96
"""Side in pixels from which on an outline may have all of its detail; below, the detail would be finer than pixels."""
LABEL = 1
"""Label of cut-outs in targets; it has no meaning."""


class CutOuts(BatchAugmentation):
    """A data set with cut-outs over its pictures, filled with texture of other pictures.

    Pictures are (3, H, W) uint8. Targets with cut-outs have ``mask_only``, (N,) bool: objects that train the masks but
    not the detector.
    """

    TITLE = "cut-outs"

    def changed(self, sample: Sample, other: Sample) -> Sample:
        """The picture with one or two cut-outs that have the texture of another picture."""
        image, target = sample
        stream = Stream(int(torch.randint(2**62, ())))
        for _ in range(stream.integer(1, MOST)):
            image, target = put_cut_out(image, target, other[0], stream)
        return image, target


def put_cut_out(image: Tensor, target: dict[str, Any], source: Tensor, stream: Stream) -> Sample:
    """Put one cut-out over a picture; the arguments are not changed.

    Args:
        image: (3, H, W) uint8.
        target: of the image. What the cut-out covers is treated as by :func:`dynamask.data.copy_paste.paste`.
        source: (3, H', W') uint8, the picture whose texture fills the outline.
        stream: draws outline, detail, size, rotation, position and texture.

    Returns:
        The image, and the target with the cut-out as its last object: label ``LABEL``, ``mask_only`` True, and in the
        mask the pixels that the outline covers by at least half. The edge is blended over about a pixel, as photographs
        have it. Very small pictures come back as they are.
    """
    size = (image.shape[-2], image.shape[-1])
    if min(size) < 3 * SMALLEST:
        return image, target
    rings, window = _draw_outline(stream, size)
    alpha = coverage(rings, window[0].stop - window[0].start, window[1].stop - window[1].start)
    mask = alpha * 2 >= FULL
    seen = image.clone()
    region = seen[:, *window].numpy()
    region[:] = _blended(region, _texture(stream, source, region), _feathered(alpha))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = window[0].start, window[1].start
    box = [left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]
    cut_out = {
        "boxes": torch.tensor([box], dtype=torch.float32),
        "labels": torch.tensor([LABEL]),
        "masks": torch.from_numpy(mask.view(np.uint8))[None],
        "area": torch.tensor([np.count_nonzero(mask)], dtype=torch.float32),
        "iscrowd": torch.tensor([0]),
        "mask_only": torch.tensor([True]),
    }
    return seen, put_over(target, cut_out, window)


def _draw_outline(stream: Stream, size: tuple[int, int]) -> tuple[Rings, tuple[slice, slice]]:
    """An outline in pixels of a window, and the rows and columns of the window; it has a margin of a pixel or more."""
    height, width = size
    share = SIDES[0] * (SIDES[1] / SIDES[0]) ** stream.unit()
    side = max(SMALLEST, share * math.sqrt(height * width))
    outline = CLASSES[stream.choice(list(CLASSES))](stream, stream.unit() * min(1.0, side / DETAIL_SIDE))
    rings = placed(outline, stream.between(0, 2 * math.pi), stream.between(0.75, 1.35))
    across, down = np.concatenate(rings).max(axis=0)
    side = min(side, 0.9 * width / across, 0.9 * height / down)
    x, y = 1 + stream.unit() * (width - 3 - across * side), 1 + stream.unit() * (height - 3 - down * side)
    left, top = int(x) - 1, int(y) - 1
    window = (slice(top, int(y + down * side) + 2), slice(left, int(x + across * side) + 2))
    return [ring * side + (x - left, y - top) for ring in rings], window


def _texture(stream: Stream, source: Tensor, region: np.ndarray) -> np.ndarray:
    """A window of the source, mirrored at its borders, in a brightness that differs from the region's.

    Returns:
        float32 of the shape of the region, (3, h, w).
    """
    places = []
    for side, wanted in zip(source.shape[1:], region.shape[1:]):
        at = (stream.integer(0, side - 1) + np.arange(wanted)) % (2 * side)
        places.append(np.minimum(at, 2 * side - 1 - at))
    texture = source.numpy()[:, places[0][:, None], places[1]].astype(np.float32)
    mean, around = texture.mean(axis=(1, 2), keepdims=True), float(region.mean())
    change, old = stream.between(25, 60), float(mean.mean())
    if abs(min(255.0, old + change) - around) < abs(max(0.0, old - change) - around):
        change = -change
    tint = np.array([stream.between(-12, 12) for _ in range(3)], dtype=np.float32).reshape(3, 1, 1)
    texture -= mean
    texture *= np.float32(stream.between(0.7, 1.3))
    texture += mean + np.float32(change) + tint
    return texture


def _feathered(alpha: np.ndarray) -> np.ndarray:
    """Weight (h, w) float32 in 0-1 of the coverage (h, w) in 0 to ``FULL``, smoothed by the kernel [1 2 1] / 4."""
    padded = np.pad(alpha.astype(np.float32), 1)
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / (16 * FULL)


def _blended(below: np.ndarray, above: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(3, h, w) uint8 of a picture below and one above that has a weight (h, w) in 0-1."""
    mixed = above - below
    mixed *= weight
    mixed += below
    return np.rint(mixed, out=mixed).clip(0, 255, out=mixed).astype(np.uint8)
