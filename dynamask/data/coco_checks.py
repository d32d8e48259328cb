"""Checks of COCO annotations and results.

A check is a small function that yields what is wrong with an :class:`Entry`, each problem as a predicate to the entry's
name. The tables below say which checks an annotation and a result have to pass, by the kind of the findings they make.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dynamask.data.findings import Finding
from dynamask.data.pictures import MAX_PIXELS
from dynamask.data.segmentation import is_int, is_number, segmentation_to_rle
from dynamask.ops.rle import Rle, rle_area, rle_box
from dynamask.structures import DynaMaskError

AREA_RANGES: dict[str, tuple[float, float]] = {
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, math.inf),
}
"""COCO's object sizes as half-open ranges of the ``area`` field, pixels²."""
BOX_SLACK = 2.0
"""Pixels by which a mask may extend beyond its box, or a box beyond its picture, before that is a finding."""
AREA_SLACK = 0.25
"""Relative difference of the ``area`` field from the mask's area before that is a finding; half the extent of the box
and eight pixels are granted in addition, since drawn outlines differ by their rim."""
MOST_DETECTIONS = 100
"""Detections per image and class that COCO's AP counts."""
LARGE_BOX = 4.0
"""Ratio of the areas of a box and of the box around its mask from which on that is a finding."""


@dataclass(frozen=True)
class Listing:
    """The images and categories of a COCO file by id.

    Attributes:
        images: entries of usable images.
        categories: entries of usable categories.
        joined: ids of categories that were joined to another one of the same name, with the id of that.
    """

    images: dict[int, dict[str, Any]]
    categories: dict[int, dict[str, Any]]
    joined: dict[int, int] = field(default_factory=dict)


class Entry:
    """An annotation or a result of a file; its mask is decoded on first use.

    Attributes:
        fields: the JSON object.
        where: its name in findings, such as "annotation 12".
        listing: images and categories of the file.
    """

    def __init__(self, fields: dict[str, Any], where: str, listing: Listing) -> None:
        self.fields, self.where, self.listing = fields, where, listing

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of its image in pixels, None where the image is unknown."""
        image_id = self.fields.get("image_id")
        return image_size(self.listing.images.get(image_id, {})) if is_int(image_id) else None

    @cached_property
    def _decoded(self) -> tuple[Rle | None, str | None]:
        """The mask, or what is wrong with the segmentation."""
        if self.size is None or self.fields.get("segmentation") is None:
            return None, None
        try:
            return segmentation_to_rle(self.fields["segmentation"], self.size), None
        except DynaMaskError as error:
            return None, str(error)

    @property
    def rle(self) -> Rle | None:
        """The mask as compressed run lengths, None where there is none that can be read."""
        return self._decoded[0]

    @property
    def mask_problem(self) -> str | None:
        """Why the segmentation cannot be read."""
        return self._decoded[1]

    @cached_property
    def mask_area(self) -> int:
        """Pixels of the mask."""
        return 0 if self.rle is None else rle_area(self.rle)

    @cached_property
    def mask_box(self) -> list[float]:
        """xywh around the mask in pixels, all zero without one."""
        return [0.0] * 4 if self.rle is None else rle_box(self.rle)

    @cached_property
    def given_box(self) -> list[float] | None:
        """The field ``bbox`` (xywh in pixels), None where it is not four finite numbers."""
        box = self.fields.get("bbox")
        values = box.tolist() if isinstance(box, np.ndarray) else box
        if not isinstance(values, list | tuple) or len(values) != 4 or not all(is_number(value) for value in values):
            return None
        return [float(value) for value in values]

    @property
    def box(self) -> list[float]:
        """The given box, xywh in pixels, else the mask's."""
        return self.given_box or self.mask_box


class Annotation(Entry):
    """An annotation, whose mask takes precedence over a box and an area that cannot be true."""

    @cached_property
    def box_is_empty(self) -> bool:
        """Whether the given box has neither width nor height, as some tools write boxes that they do not know."""
        return self.given_box is not None and self.given_box[2] == 0 == self.given_box[3] and self.mask_area > 0

    @cached_property
    def box_has_corners(self) -> bool:
        """Whether the given box fits the mask as [x0, y0, x1, y1] and not as [x, y, width, height]."""
        if self.given_box is None or not self.mask_area or self.fields.get("iscrowd"):
            return False
        x, y, width, height = self.mask_box
        left, top, *far = self.given_box
        if max(abs(left - x), abs(top - y)) > BOX_SLACK:
            return False
        as_corners = max(abs(far[0] - x - width), abs(far[1] - y - height))
        return as_corners <= BOX_SLACK and max(abs(far[0] - width), abs(far[1] - height)) > 2 * BOX_SLACK

    @property
    def box(self) -> list[float]:
        """The given box, xywh in pixels; the mask's where there is none, or one that cannot be true."""
        if self.given_box is None or self.box_is_empty or self.box_has_corners:
            return self.mask_box
        return self.given_box

    @property
    def area_is_wrong(self) -> bool:
        """Whether the given area is zero or negative, although the mask has pixels."""
        return is_number(self.fields.get("area")) and self.fields["area"] <= 0 < self.mask_area

    @property
    def area(self) -> float:
        """The given area, else the mask's, in pixels²."""
        given = is_number(self.fields.get("area")) and not self.area_is_wrong
        return float(self.fields["area"]) if given else float(self.mask_area)

    @property
    def has_area(self) -> bool:
        """Whether box and mask have an area inside the picture."""
        return self.mask_area > 0 and not any(_zero_area_box(self))

    @property
    def unusable_because(self) -> str:
        """Why an annotation without area cannot be used, as a predicate to several annotations."""
        if not self.fields.get("segmentation"):
            return "have no segmentation"
        if self.rle is None:
            return "have no polygon of at least three points"
        return "have a box without area in the picture" if self.mask_area else "have no pixel in their picture"

    def completed(self) -> dict[str, Any]:
        """The fields, with those filled in that an annotation may leave out, and those replaced that cannot be true."""
        complete = all(key in self.fields for key in ("iscrowd", "bbox", "area"))
        if complete and not (self.box_is_empty or self.box_has_corners or self.area_is_wrong):
            return self.fields
        return {"iscrowd": 0, **self.fields, "bbox": self.box, "area": self.area}


def image_size(image: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) of an entry of ``images`` in pixels, None where they are not positive integers."""
    height, width = image.get("height"), image.get("width")
    return (int(height), int(width)) if is_int(height) and is_int(width) and height > 0 and width > 0 else None


def size_problem(image: dict[str, Any]) -> str | None:
    """What is wrong with the size in an entry of ``images``, as a predicate; None for a usable size."""
    size = image_size(image)
    if size is None:
        return "needs a positive integer width and height"
    if size[0] * size[1] > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        return f"has {short(size[1])} x {short(size[0])} pixels, more than the {limit} million that are accepted"
    return None


def clipped_box(box: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """xywh to xyxy in pixels, clipped to a picture of ``size`` (height, width)."""
    x, y, box_width, box_height = box
    height, width = size
    return max(x, 0.0), max(y, 0.0), min(x + box_width, float(width)), min(y + box_height, float(height))


def short(value: Any) -> str:
    """A value from a file in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown_image(entry: Entry) -> Iterator[str]:
    yield from _unknown(entry, "image", entry.listing.images)


def _unknown_category(entry: Entry) -> Iterator[str]:
    yield from _unknown(entry, "category", entry.listing.categories)


def _unknown(entry: Entry, what: str, known: dict[int, dict[str, Any]]) -> Iterator[str]:
    if f"{what}_id" not in entry.fields:
        yield f"has no {what}_id"
    elif not is_int(value := entry.fields[f"{what}_id"]) or value not in known:
        yield f"belongs to {what} {short(value)}, which the file does not list or lists incompletely"


def _annotation_fields(entry: Entry) -> Iterator[str]:
    if entry.fields.get("iscrowd", 0) not in (0, 1):
        yield "has an iscrowd that is neither 0 nor 1"
    yield from _bad_box(entry)
    if "area" in entry.fields and not is_number(entry.fields["area"]):
        yield f"has the area {short(entry.fields['area'])}, which is no finite number"


def _result_fields(entry: Entry) -> Iterator[str]:
    if not is_number(entry.fields.get("score")):
        yield "has no finite number as score"
    yield from _bad_box(entry)
    if min(entry.box[2:]) < 0:
        yield f"has the bbox {short(entry.box)} of negative size"


def _bad_box(entry: Entry) -> Iterator[str]:
    if "bbox" in entry.fields and entry.given_box is None:
        yield f"has the bbox {short(entry.fields['bbox'])}, which is not four finite numbers (x, y, width, height)"


def _bad_segmentation(entry: Entry) -> Iterator[str]:
    if entry.size is not None and entry.fields.get("segmentation") is None:
        yield "has no segmentation"
    elif entry.mask_problem is not None:
        yield entry.mask_problem


def _bad_result_mask(entry: Entry) -> Iterator[str]:
    if "segmentation" in entry.fields or "bbox" not in entry.fields:
        yield from _bad_segmentation(entry)
        yield from _short_polygon(entry)
        if entry.rle is None:
            yield "has a segmentation without a polygon"


def _short_polygon(entry: Entry) -> Iterator[str]:
    polygons = entry.fields.get("segmentation")
    few = sum(len(polygon) < 6 for polygon in polygons) if isinstance(polygons, list | tuple) else 0
    if few:
        yield f"has {few} of {len(polygons)} polygons with fewer than three points"


def _no_segmentation(entry: Entry) -> Iterator[str]:
    if not entry.fields["segmentation"]:
        yield "has an empty segmentation"


def _zero_area_mask(entry: Entry) -> Iterator[str]:
    if entry.fields["segmentation"] and not entry.mask_area:
        yield "has a mask without a pixel in its picture"


def _zero_area_box(entry: Entry) -> Iterator[str]:
    left, top, right, bottom = clipped_box(entry.box, entry.size)
    if "bbox" in entry.fields and (right <= left or bottom <= top):
        yield f"has the box {short(entry.fields['bbox'])}, without area in its picture"


def _box_outside_picture(entry: Entry) -> Iterator[str]:
    x, y, box_width, box_height = entry.box
    height, width = entry.size
    outside = max(-x, -y, x + box_width - width, y + box_height - height)
    if outside > BOX_SLACK:
        yield f"has a box that leaves its picture of {width} x {height} by {outside:.1f} pixels"


def _box_misses_mask(entry: Entry) -> Iterator[str]:
    x, y, width, height = entry.box
    mask_x, mask_y, mask_width, mask_height = entry.mask_box
    beyond = max(x - mask_x, y - mask_y, mask_x + mask_width - x - width, mask_y + mask_height - y - height)
    if beyond > BOX_SLACK:
        yield f"has a mask that reaches {beyond:.1f} pixels beyond its box"


def _box_far_larger(entry: Entry) -> Iterator[str]:
    left, top, right, bottom = clipped_box(entry.box, entry.size)
    width, height = entry.mask_box[2:]
    larger = (right - left) * (bottom - top) > LARGE_BOX * max(width, BOX_SLACK) * max(height, BOX_SLACK)
    if larger and not entry.fields.get("iscrowd"):
        yield (
            f"has a box far larger than its mask: {right - left:.0f} x {bottom - top:.0f} pixels around "
            f"{width:.0f} x {height:.0f}"
        )


def _box_from_mask(entry: Annotation) -> Iterator[str]:
    if entry.box_is_empty:
        yield f"has the empty bbox {short(entry.fields['bbox'])}"


def _corner_box(entry: Annotation) -> Iterator[str]:
    if entry.box_has_corners:
        yield f"has a box far larger than its mask, {short(entry.fields['bbox'])}, that fits it as [x0, y0, x1, y1]"


def _area_from_mask(entry: Annotation) -> Iterator[str]:
    if entry.area_is_wrong:
        yield f"has the area {entry.fields['area']:g}, its mask {entry.mask_area} pixels"


def _area_mismatch(entry: Entry) -> Iterator[str]:
    slack = AREA_SLACK * max(entry.area, entry.mask_area) + 0.5 * sum(entry.mask_box[2:]) + 8
    if not entry.fields.get("iscrowd") and abs(entry.area - entry.mask_area) > slack:
        yield f"has the area {entry.area:.0f}, its mask {entry.mask_area} pixels"


Checks = dict[str, Callable[[Any], Iterator[str]]]

REFERENCE_CHECKS: Checks = {"unknown_image": _unknown_image, "unknown_category": _unknown_category}
ANNOTATION_CHECKS: Checks = {
    **REFERENCE_CHECKS,
    "annotation_entry": _annotation_fields,
    "bad_segmentation": _bad_segmentation,
}
"""Errors of annotations."""
AREA_CHECKS: Checks = {
    "no_segmentation": _no_segmentation,
    "short_polygon": _short_polygon,
    "zero_area_mask": _zero_area_mask,
    "zero_area_box": _zero_area_box,
}
"""Warnings about annotations with a segmentation that can be read."""
AGREEMENT_CHECKS: Checks = {
    "box_outside_picture": _box_outside_picture,
    "box_misses_mask": _box_misses_mask,
    "box_far_larger": _box_far_larger,
    "area_mismatch": _area_mismatch,
}
"""Warnings about annotations that have an area."""
ASSUMPTION_CHECKS: Checks = {
    "box_from_mask": _box_from_mask,
    "corner_box": _corner_box,
    "area_from_mask": _area_from_mask,
}
"""Warnings about annotations with an area whose box or area is replaced by that of the mask."""
RESULT_CHECKS: Checks = {**REFERENCE_CHECKS, "bad_result": _result_fields, "bad_segmentation": _bad_result_mask}
"""Errors of results."""


def passes(entry: Entry, checks: Checks, report: Callable[[Finding], None]) -> bool:
    """Report every finding of the checks; whether none of them is an error."""
    sound = True
    for kind, check in checks.items():
        for problem in check(entry):
            finding = Finding(kind, entry.where, problem)
            report(finding)
            sound = sound and finding.severity != "error"
    return sound
