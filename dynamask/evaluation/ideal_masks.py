"""Upper bound on mask quality by mask size: the true masks themselves, sampled to M×M cells and pasted back.

No model is involved. The ideal M×M mask of an instance is the area-sampled crop of its true mask in its box; pasted
back and thresholded at 0.5, it shows the loss that the resolution alone causes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dynamask.data.coco_checks import AREA_RANGES, clipped_box
from dynamask.evaluation.mask_quality import quality_by_size
from dynamask.ops.masks import BOUNDARY_WIDTH_RATIO, crop_masks, paste_mask
from dynamask.ops.rle import Rle, decode_rle
from dynamask.structures import MASK_SIZES, DynaMaskError

KEPT = 0.95
"""Mean IoU with the true mask from which a mask size is sufficient."""

METRICS = ("mask_iou", "boundary_iou")
NEEDS = {"mask_iou": "needed_size_mask", "boundary_iou": "needed_size_boundary"}
"""Key in summaries of the smallest sufficient mask size by each metric."""


@dataclass(frozen=True)
class IdealQuality:
    """Quality of the ideal masks of N instances at the K = 4 mask sizes.

    Attributes:
        class_names: N names.
        areas: (N,) float64, the ``area`` field, pixels².
        mask_iou: (N, K) float64 in 0–1.
        boundary_iou: (N, K) float64 in 0–1.
    """

    class_names: tuple[str, ...]
    areas: np.ndarray
    mask_iou: np.ndarray
    boundary_iou: np.ndarray


def ideal_masks(truth: np.ndarray, box: Sequence[float], sizes: Sequence[int] = MASK_SIZES) -> list[np.ndarray]:
    """The ideal masks of one instance: area-sampled to M×M in its box, pasted bilinearly, thresholded at ≥ 0.5.

    Args:
        truth: (H, W) bool or 0/1, the true mask in the whole picture.
        box: xyxy in continuous pixels.
        sizes: sides M of the masks.

    Returns:
        One (H, W) bool array per size.
    """
    mask = torch.from_numpy(np.ascontiguousarray(truth, dtype=np.float32))[None]  # (1, H, W)
    edges = torch.tensor([list(box)], dtype=torch.float32)  # (1, 4)
    return [
        paste_mask(crop_masks(mask, edges, size)[0], edges[0], (mask.shape[1], mask.shape[2])).numpy() for size in sizes
    ]


def ideal_quality(
    coco: dict[str, Any], rles: Sequence[Rle], min_area: float = 0.0, progress: bool = False
) -> IdealQuality:
    """Measure the ideal masks of every instance with ``iscrowd`` 0 and an ``area`` (the field) ≥ ``min_area``.

    The box of an instance is its annotation's, clipped to the picture.

    Args:
        coco: COCO dict as :func:`dynamask.data.coco_format.read_coco` returns it.
        rles: the compressed run-length mask of each annotation, in the same order.
        min_area: pixels².
        progress: show a progress bar.

    Raises:
        DynaMaskError: ``min_area`` is no finite number or negative.
    """
    if not math.isfinite(min_area) or min_area < 0:
        raise DynaMaskError(f"the smallest area is {min_area}; give a number of pixels of at least 0")
    names = {category["id"]: category["name"] for category in coco["categories"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    chosen = [
        (annotation, rle)
        for annotation, rle in zip(coco["annotations"], rles, strict=True)
        if not annotation["iscrowd"] and annotation["area"] >= min_area
    ]
    scores = np.zeros((2, len(chosen), len(MASK_SIZES)))
    bar: Iterable[tuple[dict[str, Any], Rle]] = tqdm(chosen, unit="instance", disable=not progress, dynamic_ncols=True)
    for i, (annotation, rle) in enumerate(bar):
        box = clipped_box(annotation["bbox"], sizes[annotation["image_id"]])
        truth = decode_rle(rle)  # (H, W)
        pasted = [mask[None] for mask in ideal_masks(truth, box)]
        mask_iou, boundary_iou = quality_by_size(truth[None], pasted, BOUNDARY_WIDTH_RATIO)
        scores[0, i], scores[1, i] = mask_iou[0], boundary_iou[0]
    return IdealQuality(
        tuple(names[annotation["category_id"]] for annotation, _ in chosen),
        np.array([annotation["area"] for annotation, _ in chosen], dtype=np.float64),
        *scores,
    )


def summarise(quality: IdealQuality) -> dict[str, Any]:
    """Plain means over all instances, per class, and per COCO object size.

    Returns:
        ``mask_sizes``, ``kept`` (0.95), ``all`` and ``classes`` (those with instances, sorted by name). Each entry has
        ``instances``; ``mask_iou`` and ``boundary_iou`` {"14": mean, …}, None where there is no instance;
        ``needed_size_mask`` and ``needed_size_boundary``, the smallest size whose mean is ≥ 0.95, None if none is; and
        ``by_area``, the same for small, medium and large instances.
    """
    everything = np.ones(len(quality.class_names), dtype=bool)
    names = np.array(quality.class_names, dtype=object)
    return {
        "mask_sizes": list(MASK_SIZES),
        "kept": KEPT,
        "all": _entry_with_areas(quality, everything),
        "classes": {name: _entry_with_areas(quality, names == name) for name in sorted(set(quality.class_names))},
    }


def _entry_with_areas(quality: IdealQuality, chosen: np.ndarray) -> dict[str, Any]:
    """The entry of the chosen (N,) bool instances, with those of its small, medium and large ones."""
    by_area = {
        key: _entry(quality, chosen & (quality.areas >= low) & (quality.areas < high))
        for key, (low, high) in AREA_RANGES.items()
    }
    return {**_entry(quality, chosen), "by_area": by_area}


def _entry(quality: IdealQuality, chosen: np.ndarray) -> dict[str, Any]:
    """Count, means by mask size and needed sizes of the chosen (N,) bool instances."""
    count = int(chosen.sum())
    entry: dict[str, Any] = {"instances": count}
    for metric in METRICS:
        values = getattr(quality, metric)[chosen]  # (n, K)
        means = values.mean(axis=0).tolist() if count else [None] * len(MASK_SIZES)
        entry[metric] = dict(zip(map(str, MASK_SIZES), means))
    return {**entry, **{key: needed_size(entry[metric]) for metric, key in NEEDS.items()}}


def needed_size(means: dict[str, float | None], kept: float = KEPT) -> int | None:
    """The smallest mask size whose mean IoU (by size, 0–1) is ≥ ``kept``; None if none is, or there is no mean."""
    return next((int(size) for size, mean in means.items() if mean is not None and mean >= kept), None)


def by_loss(summary: dict[str, Any], metric: str = "boundary_iou") -> list[str]:
    """Class names of a summary, sorted from the largest loss of the 14×14 mask to the smallest, then by name."""
    smallest = str(MASK_SIZES[0])
    return sorted(summary["classes"], key=lambda name: (summary["classes"][name][metric][smallest], name))
