"""COCO average precision of boxes, masks and mask boundaries (faster-coco-eval underneath).

Crowd regions are handled as COCO does: a detection that lies in one counts neither for nor against. The area that
sorts a detection into small, medium or large is the area of what is judged: its mask for ``segm`` and ``boundary``
(as torchvision, Detectron2 and MMDetection evaluate), its box for ``bbox``; a result without a box brings the area of
its mask, as in pycocotools. True instances are sorted by their ``area`` field.
"""

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask

from dynamask.ops.masks import BOUNDARY_WIDTH_RATIO
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
    The boundary IoU is Cheng et al.'s, with a width of 0.02 of the image diagonal (rounded, at least one pixel).

    Args:
        annotations: the content of a COCO file: ``images`` (with ``id``, ``height``, ``width``), ``annotations`` and
            ``categories``. Segmentations are polygons, uncompressed or compressed RLE.
        results: COCO results, each with ``image_id``, ``category_id``, ``score`` and ``segmentation`` (polygons or
            RLE) or ``bbox`` (xywh in pixels) or both. A missing ``bbox`` is taken from the segmentation.
        iou_types: any of "bbox", "segm" and "boundary".
        image_ids: judge these images only; results on others are left out. Default: all images.
        at_ious: thresholds of 0.50, 0.55, … 0.95 whose AP is wanted besides, as AP60, AP80, … after the other keys.

    Returns:
        For each IoU type a dict with AP (mean over IoU .50:.95), AP50, AP75, APS (area below 32² pixels), APM and
        APL (above 96²), each in 0–1, or None where there is no true instance to find.

    Raises:
        DynaMaskError: for malformed annotations or results, an unknown image, IoU type or threshold.
    """
    rows = threshold_rows(at_ious)
    given = comparable(annotations, results, iou_types, image_ids)
    return {iou_type: _evaluate_one(iou_type, given, rows) for iou_type in iou_types}


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
    """True instances and results of the judged images, checked and in one form.

    Attributes:
        images: of the annotations, by id.
        judged: ids of the images to judge.
        categories: sorted ids.
        truths: with id, image_id, category_id, iscrowd, bbox, area and, where masks are judged, RLE.
        detections: results with box and mask area beside them.
    """

    images: dict[int, dict[str, Any]]
    judged: set[int]
    categories: tuple[int, ...]
    truths: list[dict[str, Any]]
    detections: list[dict[str, Any]]


def comparable(
    annotations: dict[str, Any],
    results: Sequence[dict[str, Any]],
    iou_types: Sequence[str],
    image_ids: Iterable[int] | None,
) -> Comparable:
    """Check what :func:`evaluate_coco` was given; raises as it does."""
    for iou_type in iou_types:
        if iou_type not in IOU_TYPES:
            raise DynaMaskError(f"unknown IoU type {iou_type!r}; choose from {', '.join(IOU_TYPES)}")
    images, categories = _images_by_id(annotations), _category_ids(annotations)
    judged = _judged(images, image_ids)
    needs_masks = any(iou_type != "bbox" for iou_type in iou_types)
    truths = _true_instances(annotations, images, categories, judged, needs_masks)
    checked = [_checked_result(r, i, images, categories) for i, r in enumerate(results)]
    detections = [_with_box(r) for r in checked if r["image_id"] in judged]
    if needs_masks and any("segmentation" not in r for r in detections):
        raise DynaMaskError("a result has no segmentation; masks are needed for mask and boundary AP")
    return Comparable(images, judged, categories, truths, detections)


def load_results(path: str | Path, annotations: dict[str, Any]) -> list[dict[str, Any]]:
    """Read and check a COCO results file of instance masks.

    Args:
        path: JSON file, a list of results with ``image_id``, ``category_id``, ``score`` (finite), ``segmentation``
            (polygons, compressed or uncompressed RLE of the image's size) and, optionally, ``bbox`` (xywh in pixels).
        annotations: the content of the COCO file that the results belong to.

    Returns:
        The results in the file's order, with every segmentation as compressed RLE; other keys are kept.

    Raises:
        DynaMaskError: if the file cannot be read or anything in it is malformed or foreign to ``annotations``.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DynaMaskError(f"the results file {path} {what}; give a JSON file of COCO results")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DynaMaskError(f"the results file {path} cannot be read ({error.strerror}); check its rights") from error
    except (ValueError, RecursionError) as error:
        raise DynaMaskError(f"the results file {path} is not valid JSON; give a JSON list of COCO results") from error
    if not isinstance(content, list):
        raise DynaMaskError(
            f"the results file {path} holds no list of COCO results; give a JSON list of objects with image_id, "
            "category_id, score and segmentation (an annotation file is not a results file)"
        )
    images, categories = _images_by_id(annotations), _category_ids(annotations)
    try:
        results = [_checked_result(result, index, images, categories) for index, result in enumerate(content)]
        for index, result in enumerate(results):
            if "segmentation" not in result:
                raise DynaMaskError(f"result {index} has no segmentation; give polygons or RLE")
    except DynaMaskError as error:
        raise DynaMaskError(f"the results file {path} is malformed: {error}") from error
    return results


def true_instances(annotations: dict[str, Any], image_ids: Iterable[int] | None = None) -> list[dict[str, Any]]:
    """What :func:`evaluate_coco` compares with: image_id, category_id, iscrowd, bbox, area and RLE of true instances.

    Raises:
        DynaMaskError: as :func:`evaluate_coco`.
    """
    images = _images_by_id(annotations)
    return _true_instances(annotations, images, _category_ids(annotations), _judged(images, image_ids), True)


def _judged(images: dict[int, dict[str, Any]], image_ids: Iterable[int] | None) -> set[int]:
    """Ids of the images to judge; DynaMaskError if one is not in the annotations."""
    judged = set(images) if image_ids is None else {int(i) for i in image_ids}
    if not judged <= set(images):
        raise DynaMaskError(f"image_id {min(judged - set(images))} is not in the annotations; give ids of its images")
    return judged


def _evaluate_one(iou_type: str, given: Comparable, rows: dict[str, int]) -> dict[str, float | None]:
    """The six figures of one IoU type, and those of single thresholds by their row."""
    images = [{k: given.images[i][k] for k in ("id", "height", "width") if k in given.images[i]}
              for i in sorted(given.judged)]  # fmt: skip
    categories = [{"id": category, "name": str(category)} for category in given.categories]
    precision = precision_table(iou_type, given, images, categories)
    parts = slices(precision) | {key: precision[row, :, :, 0] for key, row in rows.items()}
    return {key: mean_of_defined(values) for key, values in parts.items()}


def precision_table(
    iou_type: str,
    given: Comparable,
    images: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    **options: Any,
) -> np.ndarray:
    """Precision by (10 IoUs, 101 recalls, classes, 4 areas) for the most detections an image and class may have.

    Args:
        images, categories: entries of the judged images and of the classes, as the evaluator needs them.
        options: of the evaluator; "most" is how many detections of a class an image may have (default: 100).
    """
    most = options.pop("most", None)
    area_key = "box_area" if iou_type == "bbox" else "mask_area"
    header = {"images": images, "categories": categories}
    true_set = COCO({**header, "annotations": [dict(truth) for truth in given.truths]})  # it writes into them
    found_set = COCO({**header, "annotations": [
        {**detection, "id": index, "iscrowd": 0, "area": detection[area_key]}
        for index, detection in enumerate(given.detections, start=1)
    ]})  # fmt: skip
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


def _images_by_id(annotations: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The images of a COCO dict by id; DynaMaskError where it is no such dict."""
    images = annotations.get("images") if isinstance(annotations, dict) else None
    if not isinstance(images, list) or not all(isinstance(i, dict) and _is_integer(i.get("id")) for i in images):
        raise DynaMaskError("the annotations are not in COCO format; they need images, each with an integer id")
    return {int(image["id"]): {**image, "id": int(image["id"])} for image in images}


def _category_ids(annotations: dict[str, Any]) -> tuple[int, ...]:
    """Sorted category ids of a COCO dict; DynaMaskError where it has none."""
    categories = annotations.get("categories")
    well_formed = isinstance(categories, list) and all(isinstance(c, dict) for c in categories)
    if not well_formed or not all(_is_integer(category.get("id")) for category in categories):
        raise DynaMaskError("the annotations are not in COCO format; they need categories, each with an integer id")
    return tuple(sorted({int(category["id"]) for category in categories}))


def _true_instances(
    annotations: dict[str, Any],
    images: dict[int, dict[str, Any]],
    categories: tuple[int, ...],
    judged: set[int],
    needs_masks: bool,
) -> list[dict[str, Any]]:
    """Annotations of the judged images, masks as RLE, numbered anew from 1 (COCO's matching reads id 0 as no match)."""
    truths, skipped, known = [], 0, set(categories)
    entries = annotations.get("annotations")
    if not isinstance(entries, list):
        raise DynaMaskError("the annotations are not in COCO format; they need a list of annotations (it may be empty)")
    for index, entry in enumerate(entries):
        where = f"annotation {entry.get('id', index) if isinstance(entry, dict) else index}"
        if not isinstance(entry, dict) or not all(_is_integer(entry.get(k)) for k in ("image_id", "category_id")):
            raise DynaMaskError(f"{where} has no integer image_id and category_id; mend the annotation file")
        if entry["image_id"] not in images or entry["category_id"] not in known:
            raise DynaMaskError(f"{where} has an image_id or category_id that the file does not list; mend the file")
        if entry["image_id"] not in judged:
            continue
        truth = {key: entry[key] for key in ("image_id", "category_id")}
        truth["iscrowd"] = int(bool(entry.get("iscrowd")))
        if entry.get("segmentation") is None and (needs_masks or "bbox" not in entry):
            raise DynaMaskError(f"{where} has no segmentation; give polygons or RLE")
        if entry.get("segmentation") is not None:
            truth["segmentation"] = _to_rle(entry["segmentation"], images[entry["image_id"]], where, lenient=True)
        truth["bbox"] = _checked_box(entry["bbox"], where) if "bbox" in entry else _box_of(truth["segmentation"])
        pixels = _mask_area(truth["segmentation"]) if "segmentation" in truth else None
        if pixels == 0 or truth["bbox"][2] <= 0 or truth["bbox"][3] <= 0:
            skipped += 1
            continue
        truth["area"] = entry.get("area", truth["bbox"][2] * truth["bbox"][3] if pixels is None else pixels)
        if not is_number(truth["area"]):
            raise DynaMaskError(f"{where} has an area that is no finite number; mend the annotation file")
        truths.append({**truth, "id": len(truths) + 1})
    if skipped:
        plural = "s" if skipped > 1 else ""
        warnings.warn(f"skipped {skipped} annotation{plural} whose box or mask has no area", stacklevel=3)
    return truths


def _checked_result(
    result: Any, index: int, images: dict[int, dict[str, Any]], categories: tuple[int, ...]
) -> dict[str, Any]:
    """A copy of one result with plain numbers and compressed RLE; DynaMaskError if it is malformed."""
    where = f"result {index}"
    if not isinstance(result, dict):
        raise DynaMaskError(f"{where} is no JSON object; give objects with image_id, category_id, score, segmentation")
    for key, known in (("image_id", images), ("category_id", categories)):
        if not _is_integer(result.get(key)):
            raise DynaMaskError(f"{where} has no integer {key}; use the ids of the annotation file")
        if result[key] not in known:
            raise DynaMaskError(f"{where} has the {key} {result[key]}, which is not in the annotations; use its ids")
    if not is_number(result.get("score")):
        raise DynaMaskError(f"{where} has no finite number as score; give the detector's confidence, 0-1")
    checked = {**result, "image_id": int(result["image_id"]), "category_id": int(result["category_id"])}
    checked["score"] = float(result["score"])
    if "bbox" in result:
        if isinstance(result["bbox"], list) and not result["bbox"]:
            del checked["bbox"]  # some writers put an empty list where there is no box
        else:
            checked["bbox"] = _checked_box(result["bbox"], where)
    if "segmentation" in result:
        checked["segmentation"] = _to_rle(result["segmentation"], images[checked["image_id"]], where)
    elif "bbox" not in checked:
        raise DynaMaskError(f"{where} has neither segmentation nor bbox; give polygons or RLE")
    return checked


def _with_box(result: dict[str, Any]) -> dict[str, Any]:
    """A checked result with its box and the areas by which it is small, medium or large."""
    wanted = ("image_id", "category_id", "score", "bbox", "segmentation")
    detection = {key: result[key] for key in wanted if key in result}
    if "segmentation" in detection:
        detection["mask_area"] = _mask_area(detection["segmentation"])
    if "bbox" in detection:
        detection["box_area"] = detection["bbox"][2] * detection["bbox"][3]
    else:
        detection["bbox"] = _box_of(detection["segmentation"])
        detection["box_area"] = detection["mask_area"]
    return detection


def _checked_box(box: Any, where: str) -> list[float]:
    """xywh as four floats; DynaMaskError if it is anything else or of negative size."""
    values = box.tolist() if isinstance(box, np.ndarray) else box
    if not isinstance(values, list | tuple) or len(values) != 4 or not all(is_number(v) for v in values):
        raise DynaMaskError(f"{where} has a bbox that is not four finite numbers; give [x, y, width, height] in pixels")
    if values[2] < 0 or values[3] < 0:
        raise DynaMaskError(f"{where} has a bbox of negative size; give [x, y, width, height] in pixels")
    return [float(v) for v in values]


def _to_rle(segmentation: Any, image: dict[str, Any], where: str, lenient: bool = False) -> dict[str, Any]:
    """Compressed RLE (str counts) of polygons or RLE in an image; ``lenient`` lets polygons without area be empty."""
    height, width = image.get("height"), image.get("width")
    if not (_is_integer(height) and _is_integer(width) and height > 0 and width > 0):
        raise DynaMaskError(f"image {image['id']} has no height and width; masks need both in the annotation file")
    if isinstance(segmentation, dict):
        rle = _checked_rle(segmentation, int(height), int(width), where)
    else:
        polygons = _checked_polygons(segmentation, 10 * max(height, width), where, lenient)
        if polygons:
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, int(height), int(width)))
        else:
            rle = coco_mask.encode(np.zeros((height, width), np.uint8, order="F"))
    counts = rle["counts"].decode("ascii") if isinstance(rle["counts"], bytes) else rle["counts"]
    return {"size": [int(height), int(width)], "counts": counts}


def _checked_polygons(segmentation: Any, reach: int, where: str, lenient: bool) -> list[list[float]]:
    """Polygons of at least three points, as floats; DynaMaskError if malformed or beyond ``reach`` pixels."""
    if not isinstance(segmentation, list | tuple) or not (segmentation or lenient):
        raise DynaMaskError(f"{where} has a segmentation that is neither polygons nor RLE; give one of them")
    polygons = []
    for polygon in segmentation:
        if not isinstance(polygon, list | tuple) or len(polygon) % 2 or not all(is_number(v) for v in polygon):
            raise DynaMaskError(f"{where} has a polygon that is no list of finite x, y pairs; give [x0, y0, x1, y1, …]")
        if any(abs(v) > reach for v in polygon):
            raise DynaMaskError(f"{where} has a polygon far outside its image; give coordinates in its pixels")
        if len(polygon) >= 6:
            polygons.append([float(v) for v in polygon])
        elif not lenient:
            raise DynaMaskError(f"{where} has a polygon of fewer than three points; give at least six numbers")
    return polygons


def _checked_rle(segmentation: dict[str, Any], height: int, width: int, where: str) -> dict[str, Any]:
    """RLE whose runs fill the image exactly, compressed; DynaMaskError otherwise."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise DynaMaskError(
            f"{where} has an RLE of size {size}, but its image is [{height}, {width}]; give masks of the image's size"
        )
    if isinstance(counts, str | bytes):
        runs = _decoded_counts(counts)
    elif isinstance(counts, list | tuple) and all(_is_integer(run) for run in counts):
        runs = list(counts)
    else:
        runs = None
    if runs is None or min(runs, default=-1) < 0 or sum(runs) != height * width:
        raise DynaMaskError(f"{where} has RLE counts that do not fill its image; write them with a COCO mask library")
    if isinstance(counts, str | bytes):
        return {"size": [height, width], "counts": counts}
    return coco_mask.frPyObjects({"size": [height, width], "counts": [int(run) for run in runs]}, height, width)


def _decoded_counts(counts: str | bytes) -> list[int] | None:
    """Run lengths of a compressed RLE string, None if it is not one (the C decoder would read it unchecked).

    Each run is a little-endian number in base 32 with a continuation bit (32) and a sign bit (16) per character;
    from the fourth run on it is the difference to the run two before.
    """
    try:
        characters = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, dtype=np.uint8)
    except UnicodeEncodeError:
        return None
    codes = characters.astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: more pixels than any image has
        return None
    digit = np.arange(codes.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * digit), starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs.tolist()


def _mask_area(rle: dict[str, Any]) -> int:
    """Pixels of an RLE mask."""
    return int(np.asarray(coco_mask.area([rle])).reshape(-1)[0])


def _box_of(rle: dict[str, Any]) -> list[float]:
    """xywh box around an RLE mask, all zero if it is empty."""
    return [float(v) for v in np.asarray(coco_mask.toBbox([rle])).reshape(-1)]


def _is_integer(value: Any) -> bool:
    """Whether a value is a whole number, bool excluded."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, bool excluded."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
