"""Deviations from COCO JSON that have one sensible meaning: they are read as that and reported.

:func:`repaired` works on the parsed file, before anything in it is checked; what it cannot make sense of stays as it is
and fails the checks of :mod:`dynamask.data.coco_checks`. Annotation tools and scripts write all of these forms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dynamask.data.findings import Finding
from dynamask.data.segmentation import is_int, is_number

Report = Callable[[Finding], None]
Fields = dict[str, Any]

INTEGERS = {"image": ("id", "width", "height"), "category": ("id",)}
"""Fields of entries that hold integers."""
ANNOTATION_INTEGERS = ("id", "image_id", "category_id", "iscrowd")
OPTIONAL = ("id", "bbox", "area", "iscrowd")
"""Fields of annotations that may be missing."""
BACKGROUND = ("_background_", "__background__", "__ignore__")
"""Names of categories of labelme and others that are no classes."""
SMALLEST_SCALED = 3
"""Pictures with a side below this many pixels are too small to tell coordinates in pixels from shares of a side."""


def repaired(coco: dict[str, Any], report: Report) -> tuple[dict[str, Any], dict[int, int]]:
    """Read the deviations of a COCO file in their one meaning.

    Args:
        coco: with the three lists of COCO; it is not changed.
        report: gets a finding for each deviation, all of them kinds of :data:`dynamask.data.findings.ASSUMPTIONS`.

    Returns:
        The content in COCO's form, and the ids of categories that were joined to another one of the same name, with the
        id of that.
    """
    images = [_with_integers(entry, "image", place, report) for place, entry in enumerate(coco["images"])]
    categories = [_with_integers(entry, "category", place, report) for place, entry in enumerate(coco["categories"])]
    annotations = _numbered_apart(
        [_annotation(a, place, report) for place, a in enumerate(coco["annotations"])], report
    )
    categories, joined = _joined_classes(categories, report)
    if joined:
        annotations = [_of_joined_class(annotation, joined) for annotation in annotations]
    categories = _without_placeholder(categories, annotations, report)
    if _is_normalised(annotations):
        annotations = _in_pixels(annotations, images, report)
    return {**coco, "images": images, "categories": categories, "annotations": annotations}, joined


def as_integer(value: Any) -> Any:
    """The integer that a whole decimal number or a text of digits stands for; other values come back as they are."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    if isinstance(value, str) and len(value) <= 19 and value.isascii() and value.removeprefix("-").isdigit():
        return int(value)
    return value


def _name(entry: Fields, what: str, place: int) -> str:
    """The name of an entry in findings."""
    return f"{what} {entry['id']}" if is_int(entry.get("id")) else f"{what} at position {place}"


def _with_integers(entry: Any, what: str, place: int, report: Report) -> Any:
    """An image or category with integers where they were written as decimals or text."""
    if not isinstance(entry, dict):
        return entry
    changed = {key: as_integer(entry[key]) for key in INTEGERS[what] if type(entry.get(key)) in (float, str)}
    changed = {key: value for key, value in changed.items() if is_int(value)}
    if not changed:
        return entry
    fixed = {**entry, **changed}
    key = next(iter(changed))
    report(Finding("number_format", _name(fixed, what, place), f"has the {key} {entry[key]!r}"))
    return fixed


def _annotation(entry: Any, place: int, report: Report) -> Any:
    """An annotation with plain numbers, polygons as COCO has them, and without fields that are null."""
    if not isinstance(entry, dict):
        return entry
    null = [key for key in OPTIONAL if key in entry and (entry[key] is None or (key == "bbox" and entry[key] == []))]
    numbers = _numbers(entry)
    polygons = as_polygons(entry.get("segmentation"))
    if not null and not numbers and polygons is None:
        return entry
    fixed = {key: value for key, value in {**entry, **numbers}.items() if key not in null}
    where = _name(fixed, "annotation", place)
    if null:
        report(Finding("null_field", where, f"has no value in {', '.join(null)}"))
    if numbers:
        key = next(iter(numbers))
        report(Finding("number_format", where, f"has the {key} {str(entry[key])[:60]!r}"))
    if polygons is not None:
        report(Finding("polygon_format", where, "has polygons that are not flat lists in a list"))
        fixed["segmentation"] = polygons
    return fixed


def _numbers(entry: Fields) -> Fields:
    """The fields of an annotation that hold numbers in another form, as plain numbers."""
    found = {
        key: number
        for key in ANNOTATION_INTEGERS
        if type(value := entry.get(key)) in (float, str) and is_int(number := as_integer(value))
    }
    if isinstance(entry.get("area"), str) and (number := _as_number(entry["area"])) is not None:
        found["area"] = number
    box = entry.get("bbox")
    if isinstance(box, list) and any(isinstance(value, str) for value in box):
        values = [_as_number(value) for value in box]
        if None not in values:
            found["bbox"] = values
    return found


def _as_number(value: Any) -> float | None:
    """A finite number, also where it is written as text; None for everything else."""
    try:
        number = float(value) if isinstance(value, str) and len(value) <= 32 else value
    except ValueError:
        return None
    return number if is_number(number) else None


def as_polygons(segmentation: Any) -> list[list[float]] | None:
    """The polygons of a segmentation that is a list of points in another form than COCO's.

    Read are one flat polygon [x0, y0, x1, …], one polygon of points [[x, y], …] or [{"x": x, "y": y}, …], and lists of
    polygons of points. None for all other values, among them those in COCO's form.
    """
    if not isinstance(segmentation, list) or not segmentation:
        return None
    first = segmentation[0]
    if isinstance(first, list) and len(first) > 2 and not isinstance(first[0], list | dict):
        return None  # COCO's form
    if (flat := _flat(segmentation)) is not None:
        return [flat]
    parts = [part[0] if isinstance(part, list) and len(part) == 1 and _flat(part[0]) else part for part in segmentation]
    polygons = [_flat(part) for part in parts]
    return None if any(polygon is None for polygon in polygons) else polygons  # type: ignore[return-value]


def _flat(points: Any) -> list[float] | None:
    """At least three points as [x0, y0, x1, …]; None for anything else."""
    if not isinstance(points, list) or len(points) < 3:
        return None
    if all(is_number(value) for value in points):
        return points if len(points) >= 6 and len(points) % 2 == 0 else None
    found: list[float] = []
    for point in points:
        pair = [point.get("x"), point.get("y")] if isinstance(point, dict) else point
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(is_number(value) for value in pair):
            return None
        found += pair
    return found


def _numbered_apart(annotations: list[Any], report: Report) -> list[Any]:
    """The annotations without the ids that are no integers or that an earlier one has."""
    seen: set[int] = set()
    found = []
    for place, entry in enumerate(annotations):
        if isinstance(entry, dict) and "id" in entry:
            given = entry["id"]
            if not is_int(given) or given in seen:
                problem = f"has the id {str(given)[:60]}, which " + (
                    "another annotation has" if is_int(given) else "is no integer"
                )
                report(Finding("annotation_id", f"annotation at position {place}", problem))
                entry = {key: value for key, value in entry.items() if key != "id"}
            else:
                seen.add(given)
        found.append(entry)
    return found


def _joined_classes(categories: list[Any], report: Report) -> tuple[list[Any], dict[int, int]]:
    """Categories with names of their own, and the ids of those that were joined to another one."""
    first: dict[str, int] = {}
    folded: dict[str, str] = {}
    ids: set[int] = set()
    found, joined = [], {}
    for place, category in enumerate(categories):
        name = category.get("name") if isinstance(category, dict) else None
        if not isinstance(name, str) or not is_int(category.get("id")) or category["id"] in ids:
            found.append(category)
            continue
        where = _name(category, "category", place)
        if name != name.strip():
            report(Finding("class_name_spaces", where, f"has the name {name!r}"))
            name = name.strip()
            category = {**category, "name": name}
        ids.add(category["id"])
        if name in first:
            report(Finding("duplicate_class_name", where, f"has the name {name!r} of category {first[name]}"))
            joined[category["id"]] = first[name]
            continue
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            report(Finding("similar_class_name", where, f"has the name {name!r}, another one {other!r}"))
        first[name] = category["id"]
        found.append(category)
    return found, joined


def _of_joined_class(annotation: Any, joined: dict[int, int]) -> Any:
    """The annotation with the category that its own was joined to."""
    old = annotation.get("category_id") if isinstance(annotation, dict) else None
    return {**annotation, "category_id": joined[old]} if is_int(old) and old in joined else annotation


def _without_placeholder(categories: list[Any], annotations: list[Any], report: Report) -> list[Any]:
    """The categories without one that no annotation has and that stands for no class.

    Roboflow puts one first that names the group of all others, labelme the background and what is ignored.
    """
    if len(categories) < 2 or not all(isinstance(category, dict) for category in categories):
        return categories
    top, others = categories[0], categories[1:]
    group = all(other.get("supercategory") == top.get("name") for other in others)
    group = group and top.get("supercategory") in ("none", "", None)
    spare = [c for c in categories if c.get("name") in BACKGROUND] + ([top] if group else [])
    ids = [category.get("id") for category in spare if is_int(category.get("id"))]
    used = {a["category_id"] for a in annotations if isinstance(a, dict) and is_int(a.get("category_id"))}
    spare = [category for category in spare if category.get("id") in ids and category["id"] not in used]
    for category in spare:
        where = _name(category, "category", 0)
        report(Finding("placeholder_class", where, f"({category['name']!r}) has no annotation and stands for no class"))
    return [category for category in categories if category not in spare]


def _is_normalised(annotations: list[Any]) -> bool:
    """Whether there are polygons and all of their coordinates lie between 0 and 1."""
    some = False
    for polygon in _polygons(annotations):
        if not all(is_number(value) for value in polygon) or max(polygon) > 1 or min(polygon) < 0:
            return False
        some = some or any(0 < value < 1 for value in polygon)
    return some


def _polygons(annotations: list[Any]) -> Iterator[list[Any]]:
    """All polygons with a coordinate; a run-length mask yields one that is not normalised."""
    for annotation in annotations:
        segmentation = annotation.get("segmentation") if isinstance(annotation, dict) else None
        if isinstance(segmentation, dict):
            yield [2]
        for polygon in segmentation if isinstance(segmentation, list) else ():
            yield polygon if isinstance(polygon, list) and polygon else [2]


def _in_pixels(annotations: list[Any], images: list[Any], report: Report) -> list[Any]:
    """Annotations whose coordinates are shares of the sides of their pictures, in pixels, without box and area."""
    sizes = {
        image["id"]: (image["width"], image["height"])
        for image in images
        if isinstance(image, dict) and all(is_int(image.get(key)) for key in ("id", "width", "height"))
    }
    found = []
    for place, annotation in enumerate(annotations):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        size = sizes.get(image_id) if is_int(image_id) else None
        if size is None or min(size) < SMALLEST_SCALED or not annotation.get("segmentation"):
            found.append(annotation)
            continue
        polygons = [[value * size[i % 2] for i, value in enumerate(polygon)] for polygon in annotation["segmentation"]]
        kept = {key: value for key, value in annotation.items() if key not in ("bbox", "area")}
        found.append({**kept, "segmentation": polygons})
        report(Finding("normalised_coordinates", _name(annotation, "annotation", place), "has coordinates from 0 to 1"))
    return found
