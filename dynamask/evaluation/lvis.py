"""Average precision on LVIS: federated annotations, 300 detections per image, figures by category frequency.

The rules are those of Gupta et al. (CVPR 2019), section 3: in an image, detections of a category that is neither
positive (annotated there) nor negative (known to be absent) do not count, and where a category is not annotated
exhaustively, detections of it that match no instance count neither for nor against.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from dynamask.evaluation.coco_ap import IOU_TYPES, Comparable, comparable, mean_of_defined, precision_table, slices

MOST_DETECTIONS = 300
"""Detections per image, over all categories: those with the highest scores."""
FREQUENCY_KEYS = {"APr": "r", "APc": "c", "APf": "f"}
"""Rare, common and frequent categories."""


def is_federated(annotations: dict[str, Any]) -> bool:
    """Whether every image says which categories are known to be absent, as in LVIS."""
    images = annotations.get("images")
    return bool(images) and all("neg_category_ids" in image for image in images)


def evaluate_lvis(
    annotations: dict[str, Any],
    results: Sequence[dict[str, Any]],
    iou_types: Sequence[str] = IOU_TYPES,
    image_ids: Iterable[int] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Average precision of COCO results by the rules of LVIS; the inputs are not changed.

    Args:
        annotations: the content of an LVIS file: COCO's lists, each image with ``neg_category_ids`` and
            ``not_exhaustive_category_ids``, each category with its ``frequency``, r, c or f.
        results: as for :func:`dynamask.evaluation.coco_ap.evaluate_coco`.
        iou_types: any of "bbox", "segm" and "boundary".
        image_ids: evaluate these images only. Default: all images.

    Returns:
        For each IoU type the keys of ``evaluate_coco`` and APr, APc and APf (rare, common and frequent categories),
        each in 0–1, or None where there is no true instance to find.

    Raises:
        DynaMaskError: as ``evaluate_coco``.
    """
    given = comparable(annotations, results, iou_types, image_ids)
    given = dataclasses.replace(given, detections=_known(given, _best(given.detections)))
    keys = ("id", "height", "width", "neg_category_ids", "not_exhaustive_category_ids")
    images = [{key: image[key] for key in keys} for image in given.images]
    frequency = {category["id"]: category["frequency"] for category in annotations["categories"]}
    return {iou_type: _evaluate_one(iou_type, given, images, frequency) for iou_type in iou_types}


def _best(detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The :data:`MOST_DETECTIONS` best detections of every image, over all categories; equal scores in their order."""
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for detection in detections:
        by_image[detection["image_id"]].append(detection)
    return [d for found in by_image.values() for d in sorted(found, key=lambda d: -d["score"])[:MOST_DETECTIONS]]


def _known(given: Comparable, detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Detections of categories that are positive or negative on their image.

    The evaluator would leave out the others by itself, but faster-coco-eval 1.8 fails on boundaries where an image
    has no other detection and no instance.
    """
    positive = {(truth["image_id"], truth["category_id"]) for truth in given.truths}
    negative = {(image["id"], category) for image in given.images for category in image["neg_category_ids"]}
    known = positive | negative
    return [d for d in detections if (d["image_id"], d["category_id"]) in known]


def _evaluate_one(
    iou_type: str, given: Comparable, images: list[dict[str, Any]], frequency: dict[int, str]
) -> dict[str, float | None]:
    """The nine figures of one IoU type."""
    categories = [{"id": c, "name": str(c), "frequency": frequency[c]} for c in given.categories]
    precision = precision_table(iou_type, given, images, categories, most=MOST_DETECTIONS, lvis_style=True)
    parts = slices(precision)
    for key, letter in FREQUENCY_KEYS.items():
        rows = [row for row, category in enumerate(given.categories) if frequency[category] == letter]
        parts[key] = precision[:, :, rows, 0]
    return {key: mean_of_defined(values) for key, values in parts.items()}
