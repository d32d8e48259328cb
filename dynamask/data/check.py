"""What a data set holds and what is broken in it: every finding, where loading stops at the first.

A finding is an "error" where the other commands refuse the file or the picture, and a "warning" where they go on
(without the annotation, if it has no area).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from tqdm import tqdm

from dynamask.data.coco import is_int, is_number, segmentation_to_rle
from dynamask.data.instances import clipped_box
from dynamask.data.lvis import is_lvis, name_files, problems
from dynamask.data.pictures import read_picture
from dynamask.structures import DynaMaskError

KINDS: dict[str, str] = {
    "image_entry": "error",
    "category_entry": "error",
    "annotation_entry": "error",
    "duplicate_id": "error",
    "unknown_image": "error",
    "unknown_category": "error",
    "bad_segmentation": "error",
    "picture_outside_folder": "error",
    "picture_missing": "error",
    "picture_unreadable": "error",
    "picture_size": "error",
    "labels_missing": "error",
    "labels_unreadable": "error",
    "unknown_label": "error",
    "duplicate_file_name": "warning",
    "duplicate_class_name": "warning",
    "short_polygon": "warning",
    "zero_area_box": "warning",
    "zero_area_mask": "warning",
    "box_outside_picture": "warning",
    "box_misses_mask": "warning",
    "area_mismatch": "warning",
}
"""Every kind of finding, with how grave it is; the kinds about labels are Cityscapes'."""

ENTRY_KINDS = {"images": "image_entry", "annotations": "annotation_entry", "categories": "category_entry"}
LISTS = ("images", "annotations", "categories")
BOX_SLACK = 2.0
"""Pixels by which a box may miss its mask, or leave the picture, before that is a finding."""
AREA_SLACK = 0.25
"""Share by which the ``area`` field may differ from the mask's before that is a finding (and half the box's extent
plus eight pixels beyond it, since a drawn outline covers its rim by chance)."""
AREA_NAMES = ("small", "medium", "large")
AREA_LIMITS = (32.0**2, 96.0**2)
"""Where COCO's medium and large objects begin, pixels² of the ``area`` field."""


@dataclass(frozen=True)
class Finding:
    """One thing that is broken.

    Attributes:
        kind: a key of `KINDS`.
        where: the entry or picture it is about.
        problem: what is wrong with it.
    """

    kind: str
    where: str
    problem: str

    def to_dict(self) -> dict[str, str]:
        """The finding with its ``severity``, for JSON."""
        return {"severity": KINDS[self.kind], **asdict(self)}


@dataclass(frozen=True)
class Instance:
    """What is known of a usable annotation: its class, image id, box sides and area in pixels, and the crowd flag."""

    class_name: str
    image_id: int
    width: float
    height: float
    area: float
    crowd: bool


def check_data(
    annotations: str | Path | dict[str, Any],
    images: str | Path | None = None,
    progress: bool = False,
    found: Sequence[Finding] | None = None,
) -> dict[str, Any]:
    """Look at every entry of a COCO file and, where a folder is given, decode every picture.

    Args:
        annotations: COCO JSON file, or what one holds.
        images: folder that the file names are relative to; None leaves the pictures alone.
        progress: show bars.
        found: what was found before, while other files were turned into COCO's lists.

    Returns:
        ``images``, ``pictures_read`` (None without a folder), ``annotations``, ``instances`` (usable ones that are no
        crowd), ``crowds``, ``categories``, ``classes`` {name: instances}, ``images_without_object``, ``image_sizes``
        and ``box_sizes`` (minimum, quartiles, maximum of width, height and, for boxes, the square root of the area, in
        pixels; None where there is none), ``object_sizes`` {small, medium, large}, ``findings`` (a list of severity,
        kind, where, problem), ``finding_counts`` by kind, ``errors`` and ``warnings`` (how many), and ``usable``: False
        where no picture is left to use, or where there are annotations and none can be used.

    Raises:
        DynaMaskError: the file cannot be read or is not COCO JSON at all, or the folder does not exist.
    """
    coco = annotations if isinstance(annotations, dict) else _read(Path(annotations))
    name_files(coco)
    if images is not None and not Path(images).is_dir():
        raise DynaMaskError(f"picture folder {images} does not exist or is not a folder: check the path")
    findings: list[Finding] = list(found or [])
    if is_lvis(coco):
        findings += [Finding(ENTRY_KINDS[part], where, problem) for part, where, problem in problems(coco)]
    found_images = _check_images(coco["images"], findings)
    categories = _check_categories(coco["categories"], findings)
    instances = _check_annotations(coco["annotations"], found_images, categories, findings, progress)
    read = None
    if images is not None:
        read = _check_pictures(list(found_images.values()), Path(images), findings, progress)
    left = len(found_images) if read is None else read
    return {
        **_holdings(coco, found_images, categories, instances),
        "pictures_read": read,
        "usable": bool(left and categories and (instances or not coco["annotations"])),
        "errors": sum(KINDS[finding.kind] == "error" for finding in findings),
        "warnings": sum(KINDS[finding.kind] == "warning" for finding in findings),
        "finding_counts": dict(Counter(finding.kind for finding in findings).most_common()),
        "findings": [finding.to_dict() for finding in findings],
    }


def _read(path: Path) -> dict[str, Any]:
    """Parse a file and make sure that it holds COCO's three lists; what is in them is looked at later."""
    try:
        coco = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DynaMaskError(f"annotation file {path} does not exist: check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not valid JSON"
        raise DynaMaskError(f"annotation file {path} cannot be read ({reason}): give a COCO JSON file") from None
    if not isinstance(coco, dict) or not all(isinstance(coco.get(key), list) for key in LISTS):
        raise DynaMaskError(f"annotation file {path} is not COCO JSON: it needs the lists {', '.join(LISTS)}")
    return coco


def _entries(
    entries: list[Any], what: str, findings: list[Finding], need_id: bool = True
) -> Iterator[tuple[dict, str]]:
    """The objects of a list whose id is a new integer (or absent, where ids are not needed), each with its name."""
    seen: set[int] = set()
    for position, entry in enumerate(entries):
        place = f"{what} at position {position}"
        if not isinstance(entry, dict):
            findings.append(Finding(f"{what}_entry", place, "is no JSON object"))
        elif "id" not in entry and not need_id:
            yield entry, place
        elif not is_int(entry.get("id")):
            findings.append(Finding(f"{what}_entry", place, f"has the id {_short(entry.get('id'))}, no integer"))
        elif entry["id"] in seen:
            findings.append(Finding("duplicate_id", place, f"has the id {entry['id']}, which another {what} has"))
        else:
            seen.add(entry["id"])
            yield entry, f"{what} {entry['id']}"


def _check_images(entries: list[Any], findings: list[Finding]) -> dict[int, dict[str, Any]]:
    """The usable entries of the images by id."""
    usable: dict[int, dict[str, Any]] = {}
    owner: dict[str, str] = {}
    for image, name in _entries(entries, "image", findings):
        file_name = image.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            findings.append(Finding("image_entry", name, "has no file_name"))
        elif not all(is_int(image.get(key)) and image[key] > 0 for key in ("width", "height")):
            findings.append(Finding("image_entry", name, "needs a positive integer width and height"))
        else:
            usable[image["id"]] = image
            first = owner.setdefault(os.path.normpath(file_name), name)
            if first != name:
                findings.append(Finding("duplicate_file_name", name, f"has the file {file_name!r} of {first}"))
    return usable


def _check_categories(entries: list[Any], findings: list[Finding]) -> dict[int, str]:
    """Names of the usable categories by id."""
    usable: dict[int, str] = {}
    for category, name in _entries(entries, "category", findings):
        if not isinstance(category.get("name"), str):
            findings.append(Finding("category_entry", name, "has no name"))
            continue
        if category["name"] in usable.values():
            findings.append(Finding("duplicate_class_name", name, f"has the name {category['name']!r} of another"))
        usable[category["id"]] = category["name"]
    return usable


def _check_annotations(
    entries: list[Any],
    images: dict[int, dict[str, Any]],
    categories: dict[int, str],
    findings: list[Finding],
    progress: bool,
) -> list[Instance]:
    """What can be used of the annotations."""
    instances = []
    checked = _entries(entries, "annotation", findings, need_id=False)
    for annotation, name in tqdm(
        checked, total=len(entries), unit="annotation", disable=not progress, dynamic_ncols=True
    ):
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        before = len(findings)
        if not is_int(image_id) or image_id not in images:
            problem = f"belongs to image {_short(image_id)}, which is not listed or not usable"
            findings.append(Finding("unknown_image", name, problem))
        if not is_int(category_id) or category_id not in categories:
            problem = f"has the category {_short(category_id)}, which is not listed or not usable"
            findings.append(Finding("unknown_category", name, problem))
        if annotation.get("iscrowd", 0) not in (0, 1):
            findings.append(Finding("annotation_entry", name, "has an iscrowd that is neither 0 nor 1"))
        for key, problem in _bad_numbers(annotation):
            findings.append(Finding("annotation_entry", name, f"has {problem} as its {key}"))
        if is_int(image_id) and image_id in images:
            image = images[image_id]
            shape = _check_shape(annotation, (image["height"], image["width"]), name, findings)
            if shape is not None and not any(KINDS[f.kind] == "error" for f in findings[before:]):
                instances.append(
                    Instance(categories[category_id], image_id, *shape, bool(annotation.get("iscrowd", 0)))
                )
    return instances


def _bad_numbers(annotation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields `bbox` and `area` that are given and are not what they must be, with what they are."""
    if "bbox" in annotation and not _is_box(annotation["bbox"]):
        yield "bbox", f"{_short(annotation['bbox'])}, no four finite numbers,"
    if "area" in annotation and not is_number(annotation["area"]):
        yield "area", f"{_short(annotation['area'])}, no finite number,"


def _is_box(box: Any) -> bool:
    """Whether this is a list of four finite numbers."""
    return isinstance(box, list) and len(box) == 4 and all(is_number(value) for value in box)


def _check_shape(
    annotation: dict[str, Any], size: tuple[int, int], name: str, findings: list[Finding]
) -> tuple[float, float, float] | None:
    """Check mask, box and area against each other; size is (height, width).

    Returns (box width, box height, area) in pixels, or None where the annotation has no area or no readable mask.
    """
    if "segmentation" not in annotation:
        findings.append(Finding("bad_segmentation", name, "has no segmentation"))
        return None
    segmentation = annotation["segmentation"]
    try:
        rle = segmentation_to_rle(segmentation, size, name)
    except DynaMaskError as error:
        findings.append(Finding("bad_segmentation", name, str(error).removeprefix(name).strip()))
        return None
    if isinstance(segmentation, list):
        short = sum(len(polygon) < 6 for polygon in segmentation)
        if short:
            findings.append(Finding("short_polygon", name, f"has {short} of {len(segmentation)} polygons without area"))
    mask_area = 0.0 if rle is None else float(coco_mask.area(rle))
    if not mask_area:
        findings.append(Finding("zero_area_mask", name, "has a mask without a pixel in its picture"))
    mask_box = coco_mask.toBbox(rle).tolist() if mask_area else [0.0] * 4
    box = annotation["bbox"] if _is_box(annotation.get("bbox")) else mask_box
    x0, y0, x1, y1 = clipped_box(box, size)
    if x1 <= x0 or y1 <= y0:
        if "bbox" in annotation:
            findings.append(Finding("zero_area_box", name, f"has the box {_short(box)}, without area in its picture"))
        return None
    if not mask_area:
        return None
    area = float(annotation["area"]) if is_number(annotation.get("area")) else mask_area
    findings.extend(_disagreements(name, box, mask_box, mask_area, area, size, bool(annotation.get("iscrowd"))))
    return x1 - x0, y1 - y0, area


def _disagreements(
    name: str,
    box: list[float],
    mask_box: list[float],
    mask_area: float,
    area: float,
    size: tuple[int, int],
    crowd: bool,
) -> Iterator[Finding]:
    """Where box (xywh), mask and area of one annotation contradict each other or the picture's (height, width)."""
    height, width = size
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    outside = max(-left, -top, right - width, bottom - height)
    if outside > BOX_SLACK:
        problem = f"has a box that leaves its picture of {width} x {height} by {outside:.1f} pixels"
        yield Finding("box_outside_picture", name, problem)
    mask_right, mask_bottom = mask_box[0] + mask_box[2], mask_box[1] + mask_box[3]
    missed = max(left - mask_box[0], top - mask_box[1], mask_right - right, mask_bottom - bottom)
    if missed > BOX_SLACK:
        yield Finding("box_misses_mask", name, f"has a mask that reaches {missed:.1f} pixels beyond its box")
    slack = AREA_SLACK * max(area, mask_area) + 0.5 * (mask_box[2] + mask_box[3]) + 8
    if not crowd and abs(area - mask_area) > slack:
        yield Finding("area_mismatch", name, f"has the area {area:.0f}, its mask {mask_area:.0f} pixels")


def _check_pictures(images: list[dict[str, Any]], folder: Path, findings: list[Finding], progress: bool) -> int:
    """Decode every picture; returns how many can be used."""
    good = 0
    bar: Iterable[dict[str, Any]] = tqdm(images, unit="picture", disable=not progress, dynamic_ncols=True)
    for image in bar:
        finding = _check_picture(image, folder)
        if finding is None:
            good += 1
        else:
            findings.append(finding)
    return good


def _check_picture(image: dict[str, Any], folder: Path) -> Finding | None:
    """What is wrong with one picture: its place, its file, or its size in both orientations."""
    where = f"picture {image['file_name']}"
    name = os.path.normpath(image["file_name"])
    if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir:
        return Finding("picture_outside_folder", where, f"lies outside the folder {folder}")
    path = folder / name
    if not path.is_file():
        return Finding("picture_missing", where, f"does not exist in {folder}")
    wanted = (image["height"], image["width"])
    try:
        shape = read_picture(path).shape[:2]
        if shape != wanted:  # annotated on the stored rows, without regard to EXIF
            shape = read_picture(path, upright=False).shape[:2]
    except DynaMaskError as error:
        return Finding("picture_unreadable", where, str(error).removeprefix(f"picture {path}").strip())
    if shape != wanted:
        problem = f"is {shape[1]} x {shape[0]} pixels, its entry says {wanted[1]} x {wanted[0]}"
        return Finding("picture_size", where, problem)
    return None


def _holdings(
    coco: dict[str, Any], images: dict[int, dict[str, Any]], categories: dict[int, str], instances: list[Instance]
) -> dict[str, Any]:
    """What the data set holds, of what can be used."""
    objects = [instance for instance in instances if not instance.crowd]
    counts = Counter(instance.class_name for instance in objects)
    kinds = Counter(AREA_NAMES[sum(instance.area >= limit for limit in AREA_LIMITS)] for instance in objects)
    widths, heights = [i.width for i in objects], [i.height for i in objects]
    return {
        "images": len(coco["images"]),
        "annotations": len(coco["annotations"]),
        "instances": len(objects),
        "crowds": len(instances) - len(objects),
        "categories": len(coco["categories"]),
        "classes": {name: counts.get(name, 0) for name in dict.fromkeys(categories.values())},
        "images_without_object": len(set(images) - {instance.image_id for instance in objects}),
        "image_sizes": {
            "width": _five_numbers([image["width"] for image in images.values()]),
            "height": _five_numbers([image["height"] for image in images.values()]),
        },
        "box_sizes": {
            "width": _five_numbers(widths),
            "height": _five_numbers(heights),
            "side": _five_numbers(np.sqrt(np.multiply(widths, heights)).tolist()),
        },
        "object_sizes": {name: kinds.get(name, 0) for name in AREA_NAMES},
    }


def _five_numbers(values: list[float]) -> list[float] | None:
    """Minimum, quartiles and maximum."""
    return [float(v) for v in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])] if values else None


def _short(value: Any) -> str:
    """A value from the file in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
