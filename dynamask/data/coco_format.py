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
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dynamask.data.coco_checks import (
    ANNOTATION_CHECKS,
    ASSUMPTION_CHECKS,
    RESULT_CHECKS,
    Annotation,
    Entry,
    Listing,
    passes,
    short,
    size_problem,
)
from dynamask.data.coco_repair import repaired
from dynamask.data.findings import ASSUMPTIONS, ERRORS, Finding, raise_fatal
from dynamask.data.picture_files import match_pictures
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
        left_out: number of annotations left out because their box or mask has no area in the picture, by reason.
        files: path of the picture by image id, if a picture folder was given.
    """

    coco: dict[str, Any]
    rles: list[Rle]
    listing: Listing
    left_out: Counter[str]
    files: dict[int, Path]

    @property
    def skipped(self) -> int:
        """Number of annotations left out because their box or mask has no area in the picture."""
        return sum(self.left_out.values())

    def require_objects(self, name: object) -> None:
        """Raise :class:`DynaMaskError` if no object that is not a crowd is left; ``name`` is that of the file."""
        crowds = sum(bool(annotation["iscrowd"]) for annotation in self.coco["annotations"])
        if crowds == len(self.coco["annotations"]):
            raise DynaMaskError(f"annotation file {name} has no object that can be used: {no_objects(self, crowds)}")


def no_objects(content: CocoAnnotations, crowds: int) -> str:
    """Why annotations of which so many are crowd regions hold no usable object, with counts by reason and the cure."""
    reasons = [f"{number} {reason}" for reason, number in content.left_out.items()]
    if crowds:
        reasons.append(f"{crowds} are crowd regions (iscrowd 1), which are not trained")
    counts = f"of its annotations {', '.join(reasons)}" if reasons else "it lists no annotation"
    return f"{counts}; {ERRORS['no_objects']}"


def read_coco(source: CocoSource, need_files: bool = True, images: str | Path | None = None) -> CocoAnnotations:
    """Read instance annotations and check everything that the rest of the library relies on.

    Missing ``id``, ``iscrowd``, ``bbox`` and ``area`` of annotations are filled in, and missing file names are taken
    from LVIS' ``coco_url``. Deviations from the format that have one sensible meaning are read as that, see
    :data:`dynamask.data.findings.ASSUMPTIONS`. One warning says what was assumed and how many annotations without area
    were left out.

    Args:
        source: path of a JSON file, or the content of one, which is not changed.
        need_files: refuse images without a ``file_name``.
        images: folder of the pictures, to find each of them and to compare its header with its entry.

    Raises:
        DynaMaskError: the file cannot be read, or the first error in it.
    """
    coco = load_coco(source)
    annotations, rles, left_out = [], [], Counter[str]()
    assumed: list[Finding] = []

    def report(finding: Finding) -> None:
        raise_fatal(finding)
        if finding.assumed:
            assumed.append(finding)

    with _naming(source):
        for key in ("images", "categories"):
            if not coco[key]:
                raise DynaMaskError(f"it lists no {key}")
        coco, joined = repaired(coco, report)
        listing = read_listing(coco, report, need_files, joined)
    files: dict[int, Path] = {}
    if images is not None:
        matched = match_pictures(coco["annotations"], listing, Path(images))
        matched.refuse(source)
        listing, files = matched.listing, matched.files
        assumed += matched.findings
    with _naming(source):
        for entry in annotation_entries(coco, listing, report):
            if passes(entry, ANNOTATION_CHECKS, report) and entry.has_area:
                passes(entry, ASSUMPTION_CHECKS, report)
                annotations.append(entry.completed())
                rles.append(entry.rle)
            else:
                left_out[entry.unusable_because] += 1
    _warn(source, left_out, assumed)
    lists = {"images": list(listing.images.values()), "categories": list(listing.categories.values())}
    content = {**coco, **lists, "annotations": _with_ids(annotations)}
    return CocoAnnotations(content, rles, listing, left_out, files)


def _warn(source: CocoSource, left_out: Counter[str], assumed: Sequence[Finding]) -> None:
    """One warning about annotations that are left out and what was assumed."""
    parts = []
    if left_out:
        total = sum(left_out.values())
        reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
        plural = "s" if total > 1 else ""
        parts.append(f"skipped {total} annotation{plural} whose box or mask has no area ({reasons})")
    for kind, number in Counter(finding.kind for finding in assumed).items():
        first = next(finding for finding in assumed if finding.kind == kind)
        others = f" and {number - 1} more" if number > 1 else ""
        parts.append(f"{ASSUMPTIONS[kind]} ({first.where} {first.problem}{others})")
    if parts:
        name = f" of annotation file {source}" if isinstance(source, str | Path) else ""
        advice = "; `dynamask data check` lists what was assumed" if assumed else ""
        first, *others = parts
        warnings.warn("; ".join([f"{first}{name}", *others]) + advice, stacklevel=3)


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
    if is_int(fields.get("category_id")) and fields["category_id"] in listing.joined:
        fields = {**fields, "category_id": listing.joined[fields["category_id"]]}
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
        if (format_name := foreign_format(coco)) is not None:
            raise DynaMaskError(f"it is {format_name}; export the annotations as COCO")
        if not isinstance(coco, dict):
            raise DynaMaskError(f"it must be an object with the lists {', '.join(LISTS)}")
        for key in LISTS:
            if not isinstance(coco.get(key), list):
                raise DynaMaskError(f"the list {key!r} is missing")
    return coco


def _load_json(path: str | Path, what: str, wanted: str) -> Any:
    """Parse a JSON file; the messages call it ``what`` and ask for ``wanted``."""
    try:
        if Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir():
            raise DynaMaskError(f"{what} {path} is not a regular file: give {wanted}")
        return json.loads(Path(path).read_bytes())
    except json.JSONDecodeError as error:
        cut = not error.doc[error.pos :].strip() and bool(error.doc.strip())
        problem = "it is not valid JSON: " + ("it ends in the middle" if cut else error.msg)
        advice = "copy or export it again" if cut else f"give {wanted}"
        raise DynaMaskError(
            f"{what} {path} cannot be read ({problem} at line {error.lineno}, column {error.colno}): {advice}"
        ) from None
    except UnicodeDecodeError as error:
        raise DynaMaskError(
            f"{what} {path} cannot be read (it is not valid JSON: byte {error.start} is not {error.encoding}): save it "
            "as UTF-8"
        ) from None
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


def foreign_format(content: Any) -> str | None:
    """The name of the format that JSON content of an annotation tool has, None for COCO and unknown content."""
    if isinstance(content, dict):
        if isinstance(content.get("shapes"), list) and "imagePath" in content:
            return "the labelme file of one picture"
        if "_via_img_metadata" in content or "_via_settings" in content:
            return "a project of VIA"
        if content and all(isinstance(value, dict) and "regions" in value for value in content.values()):
            return "an export of VIA in its own format"
        if isinstance(content.get("samples"), list) and "images" not in content:
            return "a data set of FiftyOne in its own format"
    elif isinstance(content, list) and content and isinstance(content[0], dict):
        if "data" in content[0] and ("annotations" in content[0] or "completions" in content[0]):
            return "an export of Label Studio in its own format"
        if "image" in content[0] and "annotations" in content[0]:
            return "an export in the format CreateML"
        if "score" in content[0] and "image_id" in content[0]:
            return "a file of COCO results, which are predictions"
    return None


def _with_ids(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The annotations, those without an id numbered after the largest that is given."""
    free = count(max((a["id"] for a in annotations if "id" in a), default=0) + 1)
    return [a if "id" in a else {**a, "id": next(free)} for a in annotations]


def restricted(coco: dict[str, Any], image_ids: Collection[int]) -> dict[str, Any]:
    """A COCO dict without the annotations of other images; entries that are no annotations stay, to be reported."""
    others = {
        str(image["id"]) for image in coco["images"] if isinstance(image, dict) and image.get("id") not in image_ids
    }
    annotations = [a for a in coco["annotations"] if not isinstance(a, dict) or str(a.get("image_id")) not in others]
    return {**coco, "annotations": annotations}


def read_listing(
    coco: dict[str, Any], report: Report, need_files: bool = True, joined: dict[int, int] | None = None
) -> Listing:
    """The usable images and categories in the order of the file; what is wrong with the others is reported.

    ``joined`` and the content are those of :func:`dynamask.data.coco_repair.repaired`.
    """
    images: dict[int, dict[str, Any]] = {}
    owners: dict[str, str] = {}
    for image, where in _identified(coco["images"], "image", report):
        if "file_name" not in image and (name := _file_name_of(image)) is not None:
            image = {**image, "file_name": name}
        file_name = image.get("file_name")
        if need_files and not _is_text(file_name):
            report(Finding("image_entry", where, "has no file_name"))
        elif (problem := size_problem(image)) is not None:
            report(Finding("image_entry", where, problem))
        else:
            images[image["id"]] = image
            owner = owners.setdefault(os.path.normpath(file_name), where) if need_files else where
            if owner != where:
                report(Finding("duplicate_file_name", where, f"has the file {file_name!r} of {owner}"))
    categories: dict[int, dict[str, Any]] = {}
    for category, where in _identified(coco["categories"], "category", report):
        if _is_text(category.get("name")):
            categories[category["id"]] = category
        else:
            report(Finding("category_entry", where, "has no name"))
    if _is_lvis(coco):
        for finding in _lvis_findings(coco, categories):
            report(finding)
    return Listing(images, categories, joined or {})


def _is_text(value: Any) -> bool:
    """Whether a value is text that can name a file or a class: not empty, without NUL and half characters."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        return bool(value.encode())
    except UnicodeEncodeError:
        return False


def annotation_entries(coco: dict[str, Any], listing: Listing, report: Report) -> Iterator[Annotation]:
    """The annotations of a file that are objects with an id of their own, or without one."""
    for fields, where in _identified(coco["annotations"], "annotation", report, need_id=False):
        yield Annotation(fields, where, listing)


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
