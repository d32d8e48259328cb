"""The reader of COCO and LVIS JSON files, of annotations and of results.

:func:`read_coco` and :func:`read_results` raise the first error in a file; :func:`dynamask.data.check.check_data` goes
through the same functions and collects every finding. Polygons become masks in :mod:`dynamask.data.segmentation`.

LVIS v1 (Gupta et al., CVPR 2019, section 3) is COCO JSON with federated annotations: in an image a category is positive
(it has annotations), negative (listed in ``neg_category_ids``: known to be absent) or unknown, and for those in
``not_exhaustive_category_ids`` some instances may not be annotated. Categories have a ``frequency``.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Collection, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dynamask.data.coco_checks import ANNOTATION_CHECKS, RESULT_CHECKS, Entry, Listing, image_size, passes, short
from dynamask.data.findings import Finding, raise_fatal
from dynamask.data.segmentation import is_int
from dynamask.ops.rle import Rle
from dynamask.structures import DynaMaskError

LISTS = ("images", "annotations", "categories")
FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
"""Lists of category ids that every LVIS image has."""
FREQUENCIES = ("r", "c", "f")
"""Rare, common and frequent categories: annotated in 1–10, 11–100 and more than 100 training images."""
CocoSource = str | Path | dict[str, Any]
Report = Callable[[Finding], None]


@dataclass(frozen=True)
class CocoAnnotations:
    """The usable content of a COCO or LVIS file.

    Attributes:
        coco: dict with the lists ``images`` (``id``, ``file_name``, ``width``, ``height`` in pixels), ``categories``
            (``id``, ``name``) and ``annotations`` (``id``, ``image_id``, ``category_id``, ``iscrowd``, ``bbox`` xywh in
            pixels, ``area`` in pixels², ``segmentation``); other fields are kept.
        rles: the compressed run-length mask of each annotation.
        listing: images and categories by id.
        skipped: number of annotations left out because their box or mask has no area in the picture.
    """

    coco: dict[str, Any]
    rles: list[Rle]
    listing: Listing
    skipped: int


def read_coco(source: CocoSource, need_files: bool = True) -> CocoAnnotations:
    """Read instance annotations and check everything that the rest of the library relies on.

    Missing ``id``, ``iscrowd``, ``bbox`` and ``area`` of annotations are filled in, and missing file names are taken
    from LVIS' ``coco_url``. Annotations without area are left out and counted in one warning.

    Args:
        source: path of a JSON file, or the content of one, which is not changed.
        need_files: refuse images without a ``file_name``.

    Raises:
        DynaMaskError: the file cannot be read, or the first error in it.
    """
    coco = load_coco(source)
    annotations, rles = [], []
    with _naming(source):
        for key in ("images", "categories"):
            if not coco[key]:
                raise DynaMaskError(f"it lists no {key}")
        listing = read_listing(coco, raise_fatal, need_files)
        for entry in annotation_entries(coco, listing, raise_fatal):
            if passes(entry, ANNOTATION_CHECKS, raise_fatal) and entry.has_area:
                annotations.append(entry.completed())
                rles.append(entry.rle)
    skipped = len(coco["annotations"]) - len(annotations)
    if skipped:
        plural = "s" if skipped > 1 else ""
        warnings.warn(f"skipped {skipped} annotation{plural} whose box or mask has no area", stacklevel=2)
    content = {**coco, "images": list(listing.images.values()), "annotations": _with_ids(annotations)}
    return CocoAnnotations(content, rles, listing, skipped)


def read_results(path: str | Path, listing: Listing) -> list[dict[str, Any]]:
    """Read and check a COCO results file of instance masks.

    Args:
        path: JSON file, a list of results with ``image_id``, ``category_id``, ``score`` (finite), ``segmentation``
            (polygons, or run lengths of the image's size) and, optionally, ``bbox`` (xywh in pixels).
        listing: images and categories that the results refer to.

    Returns:
        The results in the file's order, with every segmentation as compressed run lengths; other keys are kept.

    Raises:
        DynaMaskError: the file cannot be read, or a result is malformed or refers to an unknown image or category.
    """
    content = _load_json(path, "results file", "a JSON list of COCO results")
    if not isinstance(content, list):
        raise DynaMaskError(
            f"results file {path} holds no list of COCO results: give a JSON list of objects with image_id, "
            "category_id, score and segmentation (an annotation file is not a results file)"
        )
    try:
        results = [checked_result(fields, index, listing) for index, fields in enumerate(content)]
        for index, result in enumerate(results):
            if "segmentation" not in result:
                raise_fatal(Finding("bad_result", f"result {index}", "has no segmentation"))
    except DynaMaskError as error:
        raise DynaMaskError(f"results file {path} is malformed: {error}") from None
    return results


def checked_result(fields: Any, index: int, listing: Listing) -> dict[str, Any]:
    """A copy of one result with plain numbers and its mask, if it has one, as compressed run lengths.

    Raises:
        DynaMaskError: anything is wrong with it.
    """
    where = f"result {index}"
    if not isinstance(fields, dict):
        raise_fatal(Finding("bad_result", where, "is no JSON object"))
    if isinstance(fields.get("bbox"), list) and not fields["bbox"]:  # some writers put an empty list for no box
        fields = {key: value for key, value in fields.items() if key != "bbox"}
    entry = Entry(fields, where, listing)
    passes(entry, RESULT_CHECKS, raise_fatal)
    result = {**fields, "score": float(fields["score"])}
    result |= {key: int(fields[key]) for key in ("image_id", "category_id")}
    if "bbox" in fields:
        result["bbox"] = entry.box
    if entry.rle is not None:
        result["segmentation"] = entry.rle
    return result


def load_coco(source: CocoSource) -> dict[str, Any]:
    """The content of a COCO file, checked to have the three lists; what is in them is not checked."""
    is_file = isinstance(source, str | Path)
    coco = _load_json(source, "annotation file", "a COCO JSON file") if is_file else source
    with _naming(source):
        if not isinstance(coco, dict):
            raise DynaMaskError(f"it must be an object with the lists {', '.join(LISTS)}")
        for key in LISTS:
            if not isinstance(coco.get(key), list):
                raise DynaMaskError(f"the list {key!r} is missing")
    return coco


def _load_json(path: str | Path, what: str, wanted: str) -> Any:
    """Parse a JSON file; the messages call it ``what`` and ask for ``wanted``."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise DynaMaskError(f"{what} {path} does not exist: check the path") from None
    except IsADirectoryError:
        raise DynaMaskError(f"{what} {path} is a folder: give {wanted}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not valid JSON"
        raise DynaMaskError(f"{what} {path} cannot be read ({reason}): give {wanted}") from None


@contextmanager
def _naming(source: CocoSource) -> Iterator[None]:
    """Put the name of the annotation file before errors about its content."""
    try:
        yield
    except DynaMaskError as error:
        name = f"annotation file {source} is" if isinstance(source, str | Path) else "the annotations are"
        raise DynaMaskError(f"{name} not usable COCO JSON: {error}") from None


def _with_ids(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The annotations, those without an id numbered after the largest that is given."""
    free = iter(range(max((a["id"] for a in annotations if "id" in a), default=0) + 1, 2**53))
    return [a if "id" in a else {**a, "id": next(free)} for a in annotations]


def restricted(coco: dict[str, Any], image_ids: Collection[int]) -> dict[str, Any]:
    """A COCO dict without the annotations of other images; entries that are no annotations stay, to be reported."""
    others = {
        str(image["id"]) for image in coco["images"] if isinstance(image, dict) and image.get("id") not in image_ids
    }
    annotations = [a for a in coco["annotations"] if not isinstance(a, dict) or str(a.get("image_id")) not in others]
    return {**coco, "annotations": annotations}


def read_listing(coco: dict[str, Any], report: Report, need_files: bool = True) -> Listing:
    """The usable images and categories in the order of the file; what is wrong with the others is reported."""
    images: dict[int, dict[str, Any]] = {}
    owners: dict[str, str] = {}
    for image, where in _identified(coco["images"], "image", report):
        if "file_name" not in image and (name := _file_name_of(image)) is not None:
            image = {**image, "file_name": name}
        file_name = image.get("file_name")
        if need_files and (not isinstance(file_name, str) or not file_name):
            report(Finding("image_entry", where, "has no file_name"))
        elif image_size(image) is None:
            report(Finding("image_entry", where, "needs a positive integer width and height"))
        else:
            images[image["id"]] = image
            owner = owners.setdefault(os.path.normpath(file_name), where) if need_files else where
            if owner != where:
                report(Finding("duplicate_file_name", where, f"has the file {file_name!r} of {owner}"))
    categories: dict[int, dict[str, Any]] = {}
    names: set[str] = set()
    for category, where in _identified(coco["categories"], "category", report):
        name = category.get("name")
        if not isinstance(name, str):
            report(Finding("category_entry", where, "has no name"))
            continue
        if name in names:
            report(Finding("duplicate_class_name", where, f"has the name {name!r} of another category"))
        names.add(name)
        categories[category["id"]] = category
    if _is_lvis(coco):
        for finding in _lvis_findings(coco, categories):
            report(finding)
    return Listing(images, categories)


def annotation_entries(coco: dict[str, Any], listing: Listing, report: Report) -> Iterator[Entry]:
    """The annotations of a file that are objects with an id of their own, or without one."""
    for fields, where in _identified(coco["annotations"], "annotation", report, need_id=False):
        yield Entry(fields, where, listing)


def _identified(
    entries: list[Any], what: str, report: Report, need_id: bool = True
) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects in a list that have an id of their own (or none, where none is needed), each with its name."""
    seen: set[int] = set()
    for position, entry in enumerate(entries):
        place = f"{what} at position {position}"
        if not isinstance(entry, dict):
            report(Finding(f"{what}_entry", place, "is no JSON object"))
        elif "id" not in entry and not need_id:
            yield entry, place
        elif not is_int(entry.get("id")):
            report(Finding(f"{what}_entry", place, f"has the id {short(entry.get('id'))}, which is no integer"))
        elif entry["id"] in seen:
            report(Finding("duplicate_id", place, f"has the id {entry['id']}, which another {what} has"))
        else:
            seen.add(entry["id"])
            yield entry, f"{what} {entry['id']}"


def _is_lvis(coco: dict[str, Any]) -> bool:
    """Whether COCO JSON has a federated list of LVIS in any image, or a frequency in every category."""
    images, categories = coco["images"], coco["categories"]
    if any(isinstance(image, dict) and any(key in image for key in FEDERATED_KEYS) for image in images):
        return True
    return bool(categories) and all(isinstance(c, dict) and c.get("frequency") in FREQUENCIES for c in categories)


def _file_name_of(image: dict[str, Any]) -> str | None:
    """The last folder and name of an image's ``coco_url``, None without one.

    "http://images.cocodataset.org/train2017/000000391895.jpg" becomes "train2017/000000391895.jpg": the splits of LVIS
    mix images of COCO's folders.
    """
    url = image.get("coco_url")
    parts = [part for part in urlsplit(url).path.split("/") if part] if isinstance(url, str) else []
    return "/".join(parts[-2:]) if len(parts) >= 2 else None


def _lvis_findings(coco: dict[str, Any], category_ids: Container[int]) -> Iterator[Finding]:
    """Fields that LVIS evaluation needs and an LVIS file lacks."""
    for image in coco["images"]:
        if not isinstance(image, dict):
            continue
        where = f"image {image.get('id')}"
        for key in FEDERATED_KEYS:
            ids = image.get(key)
            if not isinstance(ids, list):
                yield Finding("image_entry", where, f"has no list {key}, which LVIS needs")
            elif not all(isinstance(value, int) and value in category_ids for value in ids):
                yield Finding("image_entry", where, f"has in {key} a category that the file does not list")
    for category in coco["categories"]:
        if isinstance(category, dict) and category.get("frequency") not in FREQUENCIES:
            where = f"category {category.get('id')}"
            yield Finding("category_entry", where, "has no frequency r, c or f, which LVIS needs")
