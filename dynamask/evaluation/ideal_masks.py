"""What a mask resolution can keep at best: the true masks themselves, squeezed into M×M cells and pasted back.

No model takes part. The ideal M×M mask of an instance is the area-sampled crop of its true mask in its box; pasted back
and cut at 0.5, it shows what the resolution alone costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from tqdm import tqdm

from dynamask.evaluation.mask_quality import quality_by_size
from dynamask.ops.masks import BOUNDARY_WIDTH_RATIO, crop_masks, paste_mask
from dynamask.structures import MASK_SIZES, DynaMaskError

AREA_RANGES: dict[str, tuple[float, float]] = {
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, math.inf),
}
"""COCO's object sizes as half-open ranges of the ``area`` field, pixels²."""

KEPT = 0.95
"""The mean IoU with the true mask that counts as keeping it."""

METRICS = ("mask_iou", "boundary_iou")
NEEDS = {"mask_iou": "needed_size_mask", "boundary_iou": "needed_size_boundary"}
"""Key of the smallest size that keeps 95 % by each metric."""


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
    """The ideal masks of one instance: area-sampled to M×M in its box, pasted bilinearly, cut at ≥ 0.5.

    Args:
        truth: (H, W) bool or 0/1, the true mask in its whole picture.
        box: xyxy in continuous pixels.
        sizes: the sides M.

    Returns:
        One (H, W) bool array per size.
    """
    mask = torch.from_numpy(np.ascontiguousarray(truth, dtype=np.float32))[None]  # (1, H, W)
    edges = torch.tensor([list(box)], dtype=torch.float32)  # (1, 4)
    return [
        paste_mask(crop_masks(mask, edges, size)[0], edges[0], (mask.shape[1], mask.shape[2])).numpy() for size in sizes
    ]


def ideal_quality(
    coco: dict[str, Any], rles: Sequence[dict[str, Any]], min_area: float = 0.0, progress: bool = False
) -> IdealQuality:
    """Measure the ideal masks of every instance: ``iscrowd`` 0 and ``area`` (the field) ≥ ``min_area``.

    Args:
        coco: a checked COCO dict without annotations that have no area.
        rles: the compressed run-length mask of each annotation, in their order.
        min_area: pixels².
        progress: show a bar.

    The box of an instance is its annotation's, cut to the picture, as everywhere else.

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
    bar: Iterable[tuple[dict, dict]] = tqdm(chosen, unit="instance", disable=not progress, dynamic_ncols=True)
    for i, (annotation, rle) in enumerate(bar):
        height, width = sizes[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        box = (max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height)))
        truth = coco_mask.decode(rle).astype(bool)  # (H, W)
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
        ``mask_sizes``, ``kept`` (0.95), ``all`` and ``classes`` (by name, those with instances, in the order of the
        alphabet). Each entry holds ``instances``; ``mask_iou`` and ``boundary_iou`` {"14": mean, …}, None where there
        is no instance; ``needed_size_mask`` and ``needed_size_boundary``, the smallest size whose mean is ≥ 0.95 (None:
        none is); and ``by_area``, the same for small, medium and large instances.
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
    """The smallest mask size whose mean IoU (by size, 0–1) is ≥ ``kept``; None if none is, or none is known."""
    return next((int(size) for size, mean in means.items() if mean is not None and mean >= kept), None)


def by_loss(summary: dict[str, Any], metric: str = "boundary_iou") -> list[str]:
    """Class names of a summary, the one whose 14×14 mask loses most first; equal ones by name."""
    smallest = str(MASK_SIZES[0])
    return sorted(summary["classes"], key=lambda name: (summary["classes"][name][metric][smallest], name))


def markdown_table(summary: dict[str, Any]) -> str:
    """A summary as Markdown: how to read it, then all, the object sizes, and the classes from the neediest down."""
    header = "| what | instances |" + "".join(
        f" {title} {size} |" for title in ("mask", "boundary") for size in MASK_SIZES
    )
    header += " needs (mask) | needs (boundary) |"
    rule = "|---|" + "---:|" * (2 * len(MASK_SIZES) + 3)
    rows = [("all", summary["all"])]
    rows += [(f"{key} objects", entry) for key, entry in summary["all"]["by_area"].items()]
    rows += [(name.replace("|", "\\|"), summary["classes"][name]) for name in by_loss(summary)]
    note = (
        "Mean IoU of the ideal M×M mask with the true mask: of the whole masks (mask) and of their boundaries "
        f"(boundary, {BOUNDARY_WIDTH_RATIO} of the image diagonal wide). “Needs” is the smallest M whose mean is at "
        f"least {summary['kept']}; “> {MASK_SIZES[-1]}” means that none is. Classes are sorted by the boundary IoU at "
        f"{MASK_SIZES[0]}. Small objects have less than 32² pixels, large ones 96² or more."
    )
    lines = ["# What each class needs", "", note, "", header, rule]
    return "\n".join(lines + [_markdown_row(name, entry) for name, entry in rows]) + "\n"


def _markdown_row(name: str, entry: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [_text(entry[metric][str(size)], "{:.3f}") for metric in METRICS for size in MASK_SIZES]
    cells += [need_text(entry, metric) for metric in METRICS]
    return f"| {name} | {entry['instances']} | " + " | ".join(cells) + " |"


def need_text(entry: dict[str, Any], metric: str) -> str:
    """The needed size of an entry by a metric, for people: "28", "> 112" or "–" where there is no instance."""
    if not entry["instances"]:
        return "–"
    return _text(entry[NEEDS[metric]], "{}", f"> {MASK_SIZES[-1]}")


def _text(value: float | None, pattern: str, missing: str = "–") -> str:
    """A number in a pattern, or what stands for none."""
    return missing if value is None else pattern.format(value)


def table_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A summary as flat rows for CSV: ``class`` ("" for all), ``object_size`` (all, small, …), counts, means, needs.

    Groups without an instance are left out, but for the row of all.
    """
    rows = []
    for name, entry in [("", summary["all"]), *((name, summary["classes"][name]) for name in by_loss(summary))]:
        for size_name, part in [("all", entry), *entry["by_area"].items()]:
            if not part["instances"] and (name or size_name != "all"):
                continue
            row: dict[str, Any] = {"class": name, "object_size": size_name, "instances": part["instances"]}
            row |= {f"{metric}_{size}": part[metric][str(size)] for metric in METRICS for size in MASK_SIZES}
            rows.append(row | {key: part[key] for key in NEEDS.values()})
    return rows
