"""Copy-paste augmentation: objects of another picture are pasted over a picture and hide what is below them.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation" (CVPR 2021): a random
subset of the objects of a second picture is pasted without blending; both pictures are augmented independently. The
second picture comes from the same batch, as in torchvision's references, so that no additional picture is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamask.data.batch_augmentation import BatchAugmentation, Sample
from dynamask.data.transforms import is_visible, keep_visible, kept_objects, mask_only, shrink_to_masks
from dynamask.ops.mask_windows import MaskWindows

MIN_VISIBLE = 0.1
"""Objects are dropped if a smaller fraction than this remains visible."""
KEPT_OBJECTS = 0.5
"""Probability with which each object of the second picture is taken."""


class CopyPaste(BatchAugmentation):
    """A data set with copy-paste between its pictures."""

    TITLE = "copy-paste"

    def changed(self, sample: Sample, other: Sample) -> Sample:
        """The picture with about half of the objects of another one, crowds excluded, at a random place."""
        objects = other[1]
        chosen = (torch.rand(len(objects["masks"])) < KEPT_OBJECTS) & (objects["iscrowd"] == 0)
        places = torch.rand(2).tolist()
        return paste(*sample, other[0], kept_objects(objects, chosen), places)


def paste(
    image: Tensor,
    target: dict[str, Any],
    source: Tensor,
    objects: dict[str, Any],
    place: Sequence[float] = (0.0, 0.0),
    min_visible: float = MIN_VISIBLE,
) -> Sample:
    """Paste objects of one picture over another; the arguments are not changed.

    Args:
        image: (3, H, W).
        target: of the image. Its masks lose the covered pixels and its boxes shrink with them; objects with a smaller
            visible fraction than `min_visible`, or without a visible pixel, are dropped.
        source: (3, H', W'), the picture of the objects.
        objects: their targets in the source, with masks (M, H', W'). Those that lie outside the image are left out.
        place: offset of the source in the image, (down, across), each a fraction in 0–1 of the difference of the sides;
            a source that is larger than the image is cropped.
        min_visible: fraction of an object's pixels, 0–1.

    Returns:
        The image with the objects, and the target: its own remaining objects first, then the pasted ones.
    """
    height, width = image.shape[-2:]
    down, here, there_y = _along(height, source.shape[-2], place[0])
    across, at, there_x = _along(width, source.shape[-1], place[1])
    window = (slice(there_y, there_y + down), slice(there_x, there_x + across))
    boxes = objects["boxes"] - torch.tensor([there_x, there_y] * 2)
    masks = MaskWindows.of(objects["masks"])
    moved = keep_visible({**objects, "boxes": boxes, "masks": masks.cropped(*window)}, masks.counts(), 0.0)
    if not len(moved["masks"]):
        return image, target
    moved["boxes"] = moved["boxes"] + torch.tensor([at, here] * 2)
    cover = moved["masks"].union()  # (down, across)
    (top, bottom), (left, right) = (_span(cover.any(axis=axis)) for axis in (1, 0))
    moved["masks"] = moved["masks"].cropped(slice(top, bottom), slice(left, right))  # the rest is not touched
    covered = torch.from_numpy(cover[top:bottom, left:right]).bool()
    inside = (slice(here + top, here + bottom), slice(at + left, at + right))
    seen = image.clone()
    seen[:, *inside] = torch.where(covered, source[:, *window][:, top:bottom, left:right], seen[:, *inside])
    return seen, put_over(target, moved, inside, min_visible)


def put_over(
    target: dict[str, Any], objects: dict[str, Any], window: tuple[slice, slice], min_visible: float = MIN_VISIBLE
) -> dict[str, Any]:
    """The target of a picture after objects were put over it; the arguments are not changed.

    Args:
        target: of the picture, as for :func:`paste`.
        objects: their targets, boxes in the picture's pixels and masks (M, h, w) in the window's, a tensor or windows.
        window: rows and columns of the picture that the objects lie in, as slices with a start and a stop.
        min_visible: as for :func:`paste`.

    Returns:
        The remaining objects of the picture, then the given ones. It has ``mask_only`` if one of the targets has it.
    """
    rows, columns = window
    masks = MaskWindows.of(objects["masks"])
    own = _uncovered({**target, "masks": MaskWindows.of(target["masks"])}, masks.union(), window, min_visible)
    placed = masks.placed(rows.start, columns.start, own["masks"].frame)
    own["masks"] = own["masks"].joined(placed).like(target["masks"])
    both = {key: torch.cat([own[key], objects[key]]) for key in ("boxes", "labels", "area", "iscrowd")}
    if "mask_only" in own or "mask_only" in objects:
        both["mask_only"] = torch.cat([mask_only(own), mask_only(objects)])
    return {**own, **both}


def _uncovered(
    target: dict[str, Any], cover: np.ndarray, inside: tuple[slice, slice], min_visible: float
) -> dict[str, Any]:
    """The visible rest of a picture's own objects below a cover (h, w) at the window ``inside``."""
    left = target["masks"].without(cover, *inside)
    before, after = target["masks"].counts(), left.counts()
    keep = is_visible(before, after, min_visible)
    kept = kept_objects({**target, "masks": left}, keep)
    before, after = before[keep], after[keep]
    boxes = shrink_to_masks(kept["boxes"], kept["masks"], whole=after == before)
    return {**kept, "boxes": boxes, "area": kept["area"] * (after / before)}


def _span(there: np.ndarray) -> tuple[int, int]:
    """First and one past the last index of the true values in a line, which has at least one."""
    places = np.flatnonzero(there)
    return int(places[0]), int(places[-1]) + 1


def _along(side: int, other: int, place: float) -> tuple[int, int, int]:
    """Along one side: number of shared pixels, and where they begin in the image and in the source."""
    shared = min(side, other)
    return shared, int(place * (side - shared + 1)) if place < 1 else side - shared, int(place * (other - shared))
