"""What a data set holds and everything that is broken in it: the report of ``dynamask data check``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dynamask.data.coco_checks import (
    AGREEMENT_CHECKS,
    ANNOTATION_CHECKS,
    AREA_CHECKS,
    AREA_RANGES,
    ASSUMPTION_CHECKS,
    MOST_DETECTIONS,
    Annotation,
    Listing,
    clipped_box,
    image_size,
    passes,
)
from dynamask.data.coco_format import CocoSource, Report, annotation_entries, load_coco, read_listing
from dynamask.data.coco_repair import repaired
from dynamask.data.findings import Finding
from dynamask.data.instances import read_in_size
from dynamask.data.picture_files import match_pictures
from dynamask.structures import DynaMaskError


@dataclass(frozen=True)
class UsableInstance:
    """A usable object: its class, image id, sides of the clipped box and area in pixels."""

    class_name: str
    image_id: int
    width: float
    height: float
    area: float


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
        kind, where, problem, cure and assumed), ``finding_counts`` by kind, ``errors`` and ``warnings`` (how many), and
        ``usable``: False where no picture or no object is left to use.

    Raises:
        DynaMaskError: the file cannot be read or is not COCO JSON at all, or the folder does not exist.
    """
    return examine(annotations, images, progress, found)[0]


def examine(
    annotations: CocoSource,
    images: str | Path | None = None,
    progress: bool = False,
    found: Sequence[Finding] = (),
) -> tuple[dict[str, Any], dict[str, Any], dict[int, Path]]:
    """:func:`check_data` with what it was found in: the report, the COCO dict as it is read, and files by image id."""
    findings = list(found)
    coco, joined = repaired(load_coco(annotations), findings.append)
    listing = read_listing(coco, findings.append, joined=joined)
    read, files = None, {}
    if images is not None:
        matched = match_pictures(coco["annotations"], listing, Path(images), progress)
        listing, files = matched.listing, matched.files
        findings += matched.findings
        read = _check_pictures(listing, files, findings, progress)
    instances, crowds, reasons = _usable_instances(coco, listing, findings.append, progress)
    if not instances:
        findings.append(_no_objects(crowds, reasons, len(coco["annotations"])))
    left = len(listing.images) if read is None else read
    severities = Counter(finding.severity for finding in findings)
    report = {
        **_holdings(coco, listing, instances, crowds),
        "pictures_read": read,
        "usable": bool(left and listing.categories and instances),
        "errors": severities["error"],
        "warnings": severities["warning"],
        "finding_counts": dict(Counter(finding.kind for finding in findings).most_common()),
        "findings": [finding.to_dict() for finding in findings],
    }
    coco = {**coco, "images": list(listing.images.values()), "categories": list(listing.categories.values())}
    return report, coco, files


def _usable_instances(
    coco: dict[str, Any], listing: Listing, report: Report, progress: bool
) -> tuple[list[UsableInstance], int, Counter[str]]:
    """The annotations that training could use; every finding about annotations is reported.

    Returns:
        The objects, the number of crowd regions, and how many annotations are left out, by reason.
    """
    instances: list[UsableInstance] = []
    crowds, reasons = 0, Counter[str]()
    seen: dict[tuple[int, int, str], str] = {}
    entries: Iterable[Annotation] = annotation_entries(coco, listing, report)
    total = len(coco["annotations"])
    for entry in tqdm(entries, total=total, unit="annotation", disable=not progress, dynamic_ncols=True):
        sound = passes(entry, ANNOTATION_CHECKS, report)
        if entry.size is None or entry.fields.get("segmentation") is None or entry.mask_problem is not None:
            reasons["cannot be read"] += 1
            continue
        passes(entry, AREA_CHECKS, report)
        if not entry.has_area:
            reasons[entry.unusable_because] += 1
            continue
        passes(entry, ASSUMPTION_CHECKS, report)
        passes(entry, AGREEMENT_CHECKS, report)
        if not sound:
            reasons["cannot be read"] += 1
            continue
        fields = entry.fields
        if fields.get("iscrowd"):
            crowds += 1
            continue
        first = seen.setdefault((fields["image_id"], fields["category_id"], entry.rle["counts"]), entry.where)
        if first != entry.where:
            report(Finding("identical_annotations", entry.where, f"has image, class and mask of {first}"))
        left, top, right, bottom = clipped_box(entry.box, entry.size)
        name = listing.categories[fields["category_id"]]["name"]
        instances.append(UsableInstance(name, fields["image_id"], right - left, bottom - top, entry.area))
    for (image_id, name), count in Counter((one.image_id, one.class_name) for one in instances).items():
        if count > MOST_DETECTIONS:
            report(Finding("many_objects", f"image {image_id}", f"has {count} objects of the class {name}"))
    return instances, crowds, reasons


def _no_objects(crowds: int, reasons: Counter[str], annotations: int) -> Finding:
    """The finding that no object is left, with the counts by reason."""
    parts = [f"{count} {reason}" for reason, count in reasons.items()]
    if crowds:
        parts.append(f"{crowds} are crowd regions (iscrowd 1), which are not trained")
    counts = f": of its {annotations} annotations {', '.join(parts)}" if annotations else ": it lists no annotation"
    return Finding("no_objects", "the file", f"has no object that can be used{counts}")


def _check_pictures(listing: Listing, files: dict[int, Path], findings: list[Finding], progress: bool) -> int:
    """Decode every picture that was found; returns how many can be used."""
    before = len(findings)
    for image_id, path in tqdm(files.items(), unit="picture", disable=not progress, dynamic_ncols=True):
        image = listing.images[image_id]
        try:
            read_in_size(path, image_size(image))
        except DynaMaskError as error:
            problem = str(error).removeprefix(f"picture {path}").strip()
            findings.append(Finding("picture_unreadable", f"picture {image['file_name']}", problem))
    return len(files) - (len(findings) - before)


def _holdings(coco: dict[str, Any], listing: Listing, objects: list[UsableInstance], crowds: int) -> dict[str, Any]:
    """Counts and sizes of what can be used in the data set."""
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
        "crowds": crowds,
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
