"""What a data set holds and everything that is broken in it: the report of ``dynamask data check``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dynamask.data.coco import picture_path
from dynamask.data.coco_checks import (
    AGREEMENT_CHECKS,
    ANNOTATION_CHECKS,
    AREA_CHECKS,
    AREA_RANGES,
    Entry,
    Listing,
    clipped_box,
    passes,
)
from dynamask.data.coco_format import CocoSource, Report, annotation_entries, load_coco, read_listing
from dynamask.data.findings import Finding
from dynamask.data.instances import read_in_size
from dynamask.structures import DynaMaskError


@dataclass(frozen=True)
class UsableInstance:
    """A usable annotation: its class, image id, sides of the clipped box and area in pixels, and the crowd flag."""

    class_name: str
    image_id: int
    width: float
    height: float
    area: float
    crowd: bool


def check_data(
    annotations: CocoSource,
    images: str | Path | None = None,
    progress: bool = False,
    found: Sequence[Finding] = (),
) -> dict[str, Any]:
    """Check every entry of a COCO file and, where a folder is given, decode every picture.

    Args:
        annotations: COCO JSON file, or the content of one.
        images: folder that the file names are relative to; None does not read the pictures.
        progress: show progress bars.
        found: findings from the conversion of another format to COCO, reported first.

    Returns:
        ``images``, ``pictures_read`` (None without a folder), ``annotations``, ``instances`` (usable ones that are no
        crowd), ``crowds``, ``categories``, ``classes`` {name: instances}, ``images_without_object``, ``image_sizes``
        and ``box_sizes`` (minimum, quartiles, maximum of width, height and, for boxes, the square root of the area, in
        pixels; None where there is none), ``object_sizes`` {small, medium, large}, ``findings`` (a list of severity,
        kind, where, problem, cure), ``finding_counts`` by kind, ``errors`` and ``warnings`` (how many), and ``usable``:
        False where no picture is left to use, or where there are annotations and none can be used.

    Raises:
        DynaMaskError: the file cannot be read or is not COCO JSON at all, or the folder does not exist.
    """
    coco = load_coco(annotations)
    if images is not None and not Path(images).is_dir():
        raise DynaMaskError(f"picture folder {images} does not exist or is not a folder: check the path")
    findings = list(found)
    listing = read_listing(coco, findings.append)
    instances = _usable_instances(coco, listing, findings.append, progress)
    read = None
    if images is not None:
        read = _check_pictures(list(listing.images.values()), Path(images), findings, progress)
    left = len(listing.images) if read is None else read
    severities = Counter(finding.severity for finding in findings)
    return {
        **_holdings(coco, listing, instances),
        "pictures_read": read,
        "usable": bool(left and listing.categories and (instances or not coco["annotations"])),
        "errors": severities["error"],
        "warnings": severities["warning"],
        "finding_counts": dict(Counter(finding.kind for finding in findings).most_common()),
        "findings": [finding.to_dict() for finding in findings],
    }


def _usable_instances(coco: dict[str, Any], listing: Listing, report: Report, progress: bool) -> list[UsableInstance]:
    """The annotations that training could use; every finding about annotations is reported."""
    instances = []
    entries: Iterable[Entry] = annotation_entries(coco, listing, report)
    total = len(coco["annotations"])
    for entry in tqdm(entries, total=total, unit="annotation", disable=not progress, dynamic_ncols=True):
        sound = passes(entry, ANNOTATION_CHECKS, report)
        if entry.size is None or entry.fields.get("segmentation") is None or entry.mask_problem is not None:
            continue
        passes(entry, AREA_CHECKS, report)
        if not entry.has_area:
            continue
        passes(entry, AGREEMENT_CHECKS, report)
        if sound:
            left, top, right, bottom = clipped_box(entry.box, entry.size)
            name = listing.categories[entry.fields["category_id"]]["name"]
            crowd = bool(entry.fields.get("iscrowd"))
            instances.append(
                UsableInstance(name, entry.fields["image_id"], right - left, bottom - top, entry.area, crowd)
            )
    return instances


def _check_pictures(images: list[dict[str, Any]], folder: Path, findings: list[Finding], progress: bool) -> int:
    """Decode every picture; returns how many can be used."""
    before = len(findings)
    for image in tqdm(images, unit="picture", disable=not progress, dynamic_ncols=True):
        finding = _check_picture(image, folder)
        if finding is not None:
            findings.append(finding)
    return len(images) - (len(findings) - before)


def _check_picture(image: dict[str, Any], folder: Path) -> Finding | None:
    """What is wrong with one picture: its place, its file, or its size in both orientations."""
    where = f"picture {image['file_name']}"
    path = picture_path(folder, image["file_name"])
    if path is None:
        return Finding("picture_outside_folder", where, f"lies outside the folder {folder}")
    if not path.is_file():
        return Finding("picture_missing", where, f"does not exist in {folder}")
    wanted = (image["height"], image["width"])
    try:
        shape = read_in_size(path, wanted).shape[:2]
    except DynaMaskError as error:
        return Finding("picture_unreadable", where, str(error).removeprefix(f"picture {path}").strip())
    if shape != wanted:
        problem = f"is {shape[1]} x {shape[0]} pixels, its entry says {wanted[1]} x {wanted[0]}"
        return Finding("picture_size", where, problem)
    return None


def _holdings(coco: dict[str, Any], listing: Listing, instances: list[UsableInstance]) -> dict[str, Any]:
    """Counts and sizes of what can be used in the data set."""
    objects = [instance for instance in instances if not instance.crowd]
    images = listing.images.values()
    counts = Counter(instance.class_name for instance in objects)
    sizes = Counter(
        next(name for name, (_, high) in AREA_RANGES.items() if instance.area < high) for instance in objects
    )
    widths, heights = [instance.width for instance in objects], [instance.height for instance in objects]
    return {
        "images": len(coco["images"]),
        "annotations": len(coco["annotations"]),
        "instances": len(objects),
        "crowds": len(instances) - len(objects),
        "categories": len(coco["categories"]),
        "classes": {category["name"]: counts[category["name"]] for category in listing.categories.values()},
        "images_without_object": len(set(listing.images) - {instance.image_id for instance in objects}),
        "image_sizes": {key: _five_numbers([image[key] for image in images]) for key in ("width", "height")},
        "box_sizes": {
            "width": _five_numbers(widths),
            "height": _five_numbers(heights),
            "side": _five_numbers(np.sqrt(np.multiply(widths, heights)).tolist()),
        },
        "object_sizes": {name: sizes[name] for name in AREA_RANGES},
    }


def _five_numbers(values: list[float]) -> list[float] | None:
    """Minimum, quartiles and maximum, None without a value."""
    return np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist() if values else None
