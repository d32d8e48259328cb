"""COCO average precision of boxes, masks and mask boundaries, computed by faster-coco-eval.

Crowd regions are handled as in COCO: a detection that lies in one counts neither for nor against. The area that sorts a
detection into small, medium or large is that of its mask for ``segm`` and ``boundary`` (as torchvision, Detectron2 and
MMDetection evaluate) and of its box for ``bbox``; a result without a box counts with the area of its mask, as in
pycocotools. True instances are sorted by their ``area`` field.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from dynamask.data.coco_checks import MOST_DETECTIONS
from dynamask.data.coco_format import CocoAnnotations, checked_result, load_coco, read_coco, restricted
from dynamask.ops.masks import BOUNDARY_WIDTH_RATIO
from dynamask.ops.rle import rle_area, rle_box
from dynamask.structures import DynaMaskError

IOU_TYPES = ("bbox", "segm", "boundary")
AP_KEYS = ("AP", "AP50", "AP75", "APS", "APM", "APL")


def evaluate_coco(
    annotations: dict[str, Any],
    results: Sequence[dict[str, Any]],
    iou_types: Sequence[str] = IOU_TYPES,
    image_ids: Iterable[int] | None = None,
    at_ious: Sequence[float] = (),
) -> dict[str, dict[str, float | None]]:
    """Average precision of COCO results, at most 100 detections per image and class.

    The inputs are not changed. True instances whose box or mask has no area are left out and counted in one warning.
    Another warning says if images have more objects of a class than are counted.
    The boundary IoU is that of Cheng et al. with a width of 0.02 of the image diagonal (rounded, at least one pixel).

    Args:
        annotations: the content of a COCO file, as for :func:`dynamask.data.coco_format.read_coco`; images need no file
            name.
        results: COCO results, each with ``image_id``, ``category_id``, ``score`` and ``segmentation`` (polygons or
            RLE) or ``bbox`` (xywh in pixels) or both. A missing ``bbox`` is taken from the segmentation.
        iou_types: any of "bbox", "segm" and "boundary".
        image_ids: evaluate these images only; results on others are left out. Default: all images.
        at_ious: thresholds among 0.50, 0.55, … 0.95 whose AP is added as AP60, AP80, … after the other keys.

    Returns:
        For each IoU type a dict with AP (mean over IoU .50:.95), AP50, AP75, APS (area below 32² pixels), APM and
        APL (above 96²), each in 0–1, or None where there is no true instance to find.

    Raises:
        DynaMaskError: for malformed annotations or results, an unknown image, IoU type or threshold.
    """
    rows = threshold_rows(at_ious)
    given = comparable(annotations, results, iou_types, image_ids)
    _warn_of_limit(given.truths)
    figures = {}
    for iou_type in iou_types:
        images = [{key: image[key] for key in ("id", "height", "width")} for image in given.images]
        categories = [{"id": category, "name": str(category)} for category in given.categories]
        precision = precision_table(iou_type, given, images, categories)
        parts = slices(precision) | {key: precision[row, :, :, 0] for key, row in rows.items()}
        figures[iou_type] = {key: mean_of_defined(values) for key, values in parts.items()}
    return figures


def _warn_of_limit(truths: Sequence[dict[str, Any]]) -> None:
    """Warn of images with more objects of a class than detections are counted."""
    counts = Counter((truth["image_id"], truth["category_id"]) for truth in truths if not truth["iscrowd"])
    many = {key: number for key, number in counts.items() if number > MOST_DETECTIONS}
    if many:
        (image_id, _), most = max(many.items(), key=lambda item: item[1])
        images = len({image for image, _ in many})
        warnings.warn(
            f"AP counts at most {MOST_DETECTIONS} detections per image and class, and {images} "
            f"image{'s have' if images > 1 else ' has'} more objects of a class (image {image_id} has {most}), so its "
            "largest possible value is below 1; cut such pictures into tiles",
            stacklevel=3,
        )


def threshold_rows(at_ious: Sequence[float]) -> dict[str, int]:
    """Key ("AP60") and row of each IoU threshold among the ten from 0.50 to 0.95.

    Raises:
        DynaMaskError: a threshold is none of the ten.
    """
    rows = {f"AP{round(100 * iou)}": round(20 * iou) - 10 for iou in at_ious}
    for iou, row in zip(at_ious, rows.values()):
        if not 0 <= row <= 9 or abs(iou - (0.5 + row / 20)) > 1e-9:
            raise DynaMaskError(f"AP at an IoU of {iou:g} is not evaluated; choose among 0.50, 0.55, … 0.95")
    return rows


@dataclass(frozen=True)
class Comparable:
    """True instances and results of the evaluated images, checked and in one form.

    Attributes:
        images: the evaluated images of the annotations, by ascending id.
        categories: sorted ids.
        truths: true instances with id, image_id, category_id, iscrowd, bbox, area and RLE.
        detections: results with the areas of box and mask.
    """

    images: list[dict[str, Any]]
    categories: tuple[int, ...]
    truths: list[dict[str, Any]]
    detections: list[dict[str, Any]]


def comparable(
    annotations: dict[str, Any],
    results: Sequence[dict[str, Any]],
    iou_types: Sequence[str],
    image_ids: Iterable[int] | None,
) -> Comparable:
    """Check the arguments of :func:`evaluate_coco`; raises as it does."""
    for iou_type in iou_types:
        if iou_type not in IOU_TYPES:
            raise DynaMaskError(f"unknown IoU type {iou_type!r}; choose from {', '.join(IOU_TYPES)}")
    content, evaluated = _read_truth(annotations, image_ids)
    needs_masks = any(iou_type != "bbox" for iou_type in iou_types)
    checked = [checked_result(result, index, content.listing) for index, result in enumerate(results)]
    detections = [_with_areas(result) for result in checked if result["image_id"] in evaluated]
    if needs_masks and any("segmentation" not in detection for detection in detections):
        raise DynaMaskError("a result has no segmentation; masks are needed for mask and boundary AP")
    images = [content.listing.images[image_id] for image_id in sorted(evaluated)]
    return Comparable(images, tuple(sorted(content.listing.categories)), _numbered(content), detections)


def true_instances(annotations: dict[str, Any], image_ids: Iterable[int] | None = None) -> list[dict[str, Any]]:
    """The true instances that :func:`evaluate_coco` compares with: image_id, category_id, iscrowd, bbox, area and RLE.

    Raises:
        DynaMaskError: as :func:`evaluate_coco`.
    """
    return _numbered(_read_truth(annotations, image_ids)[0])


def _read_truth(annotations: dict[str, Any], image_ids: Iterable[int] | None) -> tuple[CocoAnnotations, set[int]]:
    """The annotations of the images to evaluate, and their ids; DynaMaskError if one is not in the annotations."""
    if image_ids is None:
        content = read_coco(annotations, need_files=False)
        return content, set(content.listing.images)
    evaluated = {int(image_id) for image_id in image_ids}
    content = read_coco(restricted(load_coco(annotations), evaluated), need_files=False)
    unknown = evaluated - set(content.listing.images)
    if unknown:
        raise DynaMaskError(f"image_id {min(unknown)} is not in the annotations; give ids of its images")
    return content, evaluated


def _numbered(content: CocoAnnotations) -> list[dict[str, Any]]:
    """True instances with ids from 1: COCO's matching takes id 0 for no match."""
    return [
        {
            **{key: truth[key] for key in ("image_id", "category_id", "iscrowd", "area")},
            "id": number,
            "bbox": [float(value) for value in truth["bbox"]],
            "segmentation": rle,
        }
        for number, (truth, rle) in enumerate(zip(content.coco["annotations"], content.rles, strict=True), start=1)
    ]


def _with_areas(result: dict[str, Any]) -> dict[str, Any]:
    """A checked result with its box and the areas that sort it into small, medium and large."""
    wanted = ("image_id", "category_id", "score", "bbox", "segmentation")
    detection = {key: result[key] for key in wanted if key in result}
    if "segmentation" in detection:
        detection["mask_area"] = rle_area(detection["segmentation"])
    if "bbox" in detection:
        detection["box_area"] = detection["bbox"][2] * detection["bbox"][3]
    else:
        detection["bbox"] = rle_box(detection["segmentation"])
        detection["box_area"] = detection["mask_area"]
    return detection


def precision_table(
    iou_type: str,
    given: Comparable,
    images: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    most: int | None = None,
    **options: Any,
) -> np.ndarray:
    """Precision by (10 IoUs, 101 recalls, classes, 4 areas).

    Args:
        iou_type: "bbox", "segm" or "boundary".
        given: true instances and detections.
        images: entries of the evaluated images, with the fields that the evaluator needs.
        categories: entries of the classes, with the fields that the evaluator needs.
        most: largest number of detections per image and class (default: 100).
        options: of the evaluator.
    """
    area_key = "box_area" if iou_type == "bbox" else "mask_area"
    detections = [
        {**detection, "id": index, "iscrowd": 0, "area": detection[area_key]}
        for index, detection in enumerate(given.detections, start=1)
    ]
    header = {"images": images, "categories": categories}
    true_set = COCO({**header, "annotations": [dict(truth) for truth in given.truths]})  # it writes into them
    found_set = COCO({**header, "annotations": detections})
    evaluator = COCOeval_faster(true_set, found_set, iou_type, boundary_dilation_ratio=BOUNDARY_WIDTH_RATIO, **options)
    if most is not None:
        evaluator.params.maxDets = [most]
    evaluator.evaluate()
    evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"])[..., -1]


def slices(precision: np.ndarray) -> dict[str, np.ndarray]:
    """The parts of a :func:`precision_table` whose means are AP, AP50, …"""
    return {
        "AP": precision[:, :, :, 0],
        "AP50": precision[0, :, :, 0],
        "AP75": precision[5, :, :, 0],
        "APS": precision[:, :, :, 1],
        "APM": precision[:, :, :, 2],
        "APL": precision[:, :, :, 3],
    }


def mean_of_defined(precision: np.ndarray) -> float | None:
    """Mean over the classes that have a true instance (the others are marked -1), None if there is none."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None
