"""COCO JSON in, tensors out: reading, checking and serving instance annotations.

The conversions of the file format happen here and nowhere else: xywh to xyxy, category ids to contiguous labels,
polygons and run lengths to masks.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from faster_coco_eval.core import mask as coco_mask

from dynamask.data.instances import OBJECT, InstanceDataset, Transforms, clipped_box
from dynamask.data.lvis import FEDERATED_KEYS, check_lvis, is_lvis, name_files
from dynamask.structures import DynaMaskError

_COMPRESSED_COUNTS = re.compile(r"[0-o]+")


def read_coco_json(path: str | Path) -> dict[str, Any]:
    """Read a COCO or LVIS instance annotation file and check what the rest of the code relies on.

    Returns the dict with the lists `images`, `annotations` and `categories`. Every image has an integer `id`, a
    `file_name` and a positive integer `width` and `height` in pixels; every category an integer `id` and a `name`;
    every annotation points to one image and one category and has a `segmentation`. Annotations without `id`,
    `iscrowd`, `bbox` (xywh, pixels) or `area` (pixels²) get them. A file of LVIS keeps its federated lists and gets its
    file names from the pictures' addresses (see :mod:`dynamask.data.lvis`).

    Raises:
        DynaMaskError: the file cannot be read or is not COCO JSON; the message names it.
    """
    path = Path(path)
    try:
        coco = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DynaMaskError(f"annotation file {path} does not exist: check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not valid JSON"
        raise DynaMaskError(f"annotation file {path} cannot be read ({reason}): give a COCO JSON file") from None
    with _naming(path):
        _check_coco(coco)
        if is_lvis(coco):
            check_lvis(coco)
    return coco


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Put the name of the annotation file before errors about what is in it."""
    try:
        yield
    except DynaMaskError as error:
        raise DynaMaskError(f"annotation file {path} is not usable COCO JSON: {error}") from None


def _check_coco(coco: Any) -> None:
    """Check the three lists of a parsed COCO file and fill in what annotations may leave out."""
    if not isinstance(coco, dict):
        raise DynaMaskError("it must be an object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco.get(key), list) or not all(isinstance(entry, dict) for entry in coco[key]):
            raise DynaMaskError(f"the list {key!r} is missing or holds something other than objects")
    if not coco["images"]:
        raise DynaMaskError("it lists no images")
    if not coco["categories"]:
        raise DynaMaskError("it lists no categories")
    for key in ("images", "categories"):
        ids = [entry.get("id") for entry in coco[key]]
        if not all(is_int(value) for value in ids) or len(set(ids)) < len(ids):
            raise DynaMaskError(f"the ids of {key} must be different integers")
    name_files(coco)
    for image in coco["images"]:
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            raise DynaMaskError(f"image {image['id']} has no file_name")
        if not all(is_int(image.get(key)) and image[key] > 0 for key in ("width", "height")):
            raise DynaMaskError(f"image {image['id']} needs a positive integer width and height")
    for category in coco["categories"]:
        if not isinstance(category.get("name"), str):
            raise DynaMaskError(f"category {category['id']} has no name")
    _check_annotations(coco)


def _check_annotations(coco: dict[str, Any]) -> None:
    """Check every annotation against its image and category; derive missing ids, boxes and areas in place."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    categories = {category["id"] for category in coco["categories"]}
    given = [entry["id"] for entry in coco["annotations"] if "id" in entry]
    if not all(is_int(value) for value in given) or len(set(given)) < len(given):
        raise DynaMaskError("the ids of annotations must be different integers")
    next_id = max(given, default=0) + 1
    for annotation in coco["annotations"]:
        if "id" not in annotation:
            annotation["id"], next_id = next_id, next_id + 1
        name = f"annotation {annotation['id']}"
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        if not is_int(image_id) or image_id not in sizes:
            raise DynaMaskError(f"{name} belongs to image {image_id!r}, which the file does not list")
        if not is_int(category_id) or category_id not in categories:
            raise DynaMaskError(f"{name} has the category {category_id!r}, which the file does not list")
        if annotation.setdefault("iscrowd", 0) not in (0, 1):
            raise DynaMaskError(f"{name} has an iscrowd that is neither 0 nor 1")
        if "segmentation" not in annotation:
            raise DynaMaskError(f"{name} has no segmentation, and masks are what is needed here")
        _check_box_and_area(annotation, sizes[image_id], name)


def _check_box_and_area(annotation: dict[str, Any], size: tuple[int, int], name: str) -> None:
    """Check `bbox` and `area`, or derive them from the mask; size is (height, width)."""
    rle = None
    if "bbox" not in annotation or "area" not in annotation:
        rle = segmentation_to_rle(annotation["segmentation"], size, name)
    if "bbox" not in annotation:
        annotation["bbox"] = [0.0] * 4 if rle is None else coco_mask.toBbox(rle).tolist()
    if "area" not in annotation:
        annotation["area"] = 0.0 if rle is None else float(coco_mask.area(rle))
    box = annotation["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        raise DynaMaskError(f"{name} needs a bbox of four finite numbers (x, y, width, height)")
    if not is_number(annotation["area"]):
        raise DynaMaskError(f"{name} needs an area that is a finite number")


def segmentation_to_rle(segmentation: Any, size: tuple[int, int], name: str = "an annotation") -> dict | None:
    """Turn a COCO segmentation into one compressed run-length mask of `size` (height, width) pixels.

    Polygons (a list of flat x, y lists in pixels), uncompressed and compressed run lengths are read. None stands for
    a segmentation without a polygon of three points. The result is {"size": [h, w], "counts": bytes}.

    Raises:
        DynaMaskError: neither polygons nor run lengths, or they do not fit the picture; the message starts with `name`.
    """
    if isinstance(segmentation, dict):
        return _run_lengths_to_rle(segmentation, size, name)
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise DynaMaskError(f"{name} has a segmentation that is neither polygons nor run lengths")
    height, width = size
    polygons, reach = [], 10 * max(height, width)
    for polygon in segmentation:
        plain = set(map(type, polygon)) <= {int, float} and not any(value != value for value in polygon)
        if len(polygon) % 2 or not (plain or all(is_number(value) for value in polygon)):
            raise DynaMaskError(f"{name} has a polygon that is not a flat list of finite x, y pairs")
        if polygon and (max(polygon) > reach or min(polygon) < -reach):
            raise DynaMaskError(f"{name} has a polygon far outside its picture of {width} x {height} pixels")
        if len(polygon) >= 6:
            polygons.append(polygon)
    if not polygons:
        return None
    rles = coco_mask.frPyObjects(polygons, height, width)
    return coco_mask.merge(rles) if len(rles) > 1 else rles[0]


def _run_lengths_to_rle(segmentation: dict[str, Any], size: tuple[int, int], name: str) -> dict[str, Any]:
    """Check run lengths, compressed or not, and return them compressed."""
    height, width = size
    counts = segmentation.get("counts")
    if segmentation.get("size") != [height, width]:
        raise DynaMaskError(f"{name} has run lengths of another size than its picture of {width} x {height} pixels")
    if isinstance(counts, list):
        if not all(is_int(value) and value >= 0 for value in counts) or sum(counts) != height * width:
            raise DynaMaskError(f"{name} has run lengths that do not add up to its {width} x {height} pixels")
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    if not isinstance(counts, str) or not _COMPRESSED_COUNTS.fullmatch(counts):
        raise DynaMaskError(f"{name} has run lengths that cannot be read")
    rle = {"size": [height, width], "counts": counts.encode("ascii")}
    try:
        coco_mask.decode(rle)
    except (ValueError, RuntimeError):
        raise DynaMaskError(f"{name} has run lengths that do not add up to its {width} x {height} pixels") from None
    return rle


def drop_degenerate(coco: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Leave out annotations whose box or mask has no area inside the picture.

    Takes a checked COCO dict and leaves it as it is. Returns (a dict that shares everything but the shorter
    `annotations` list, the compressed run-length mask of each annotation kept, the number left out). Says so in one
    warning when any was left out.

    Raises:
        DynaMaskError: a segmentation that cannot be read.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    annotations, rles = [], []
    for annotation in coco["annotations"]:
        size = sizes[annotation["image_id"]]
        rle = segmentation_to_rle(annotation["segmentation"], size, f"annotation {annotation['id']}")
        x0, y0, x1, y1 = clipped_box(annotation["bbox"], size)
        if rle is not None and x1 > x0 and y1 > y0 and coco_mask.area(rle) > 0:
            annotations.append(annotation)
            rles.append(rle)
    skipped = len(coco["annotations"]) - len(annotations)
    if skipped:
        warnings.warn(
            f"skipped {skipped} annotation{'s' if skipped > 1 else ''} whose box or mask has no area", stacklevel=2
        )
    return {**coco, "annotations": annotations}, rles, skipped


def merged(coco: dict[str, Any]) -> dict[str, Any]:
    """The same pictures and instances with one class, "object" (category id 1), in place of all classes.

    Takes a checked COCO dict and leaves it as it is. Every annotation of the result keeps the name of its own class
    under "class_name".
    """
    names = {category["id"]: category["name"] for category in coco["categories"]}
    annotations = [
        {**annotation, "category_id": 1, "class_name": names[annotation["category_id"]]}
        for annotation in coco["annotations"]
    ]
    images = [{key: value for key, value in image.items() if key not in FEDERATED_KEYS} for image in coco["images"]]
    return {**coco, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": OBJECT}]}


class CocoDataset(InstanceDataset):
    """Pictures and instance masks of a COCO or LVIS annotation file, in the order of its `images`.

    `coco` is the checked COCO dict without the annotations that have no area. For items and attributes see
    :class:`InstanceDataset`.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        transforms: Transforms | None = None,
        include_crowd: bool = False,
        merge_classes: bool | Literal["missing"] = False,
    ) -> None:
        """Read and check the annotations, and check that every picture is there.

        Args:
            images: folder that the file names are relative to.
            annotations: COCO JSON file.
            transforms: called as transforms(image, target) on every item.
            include_crowd: keep crowd regions in the targets; training leaves them out.
            merge_classes: serve every class as the one class "object" (see `merged`); "missing" does so only where
                the file has no class of that name.

        Raises:
            DynaMaskError: no such folder, not COCO JSON, or pictures that are missing or outside the folder.
        """
        self.folder = Path(images)
        if not self.folder.is_dir():
            raise DynaMaskError(f"picture folder {images} does not exist or is not a folder: check the path")
        coco = read_coco_json(annotations)
        if merge_classes == "missing":
            merge_classes = all(category["name"] != OBJECT for category in coco["categories"])
        with _naming(annotations):
            self.coco, rles, self.skipped = drop_degenerate(merged(coco) if merge_classes else coco)
        super().__init__(self.coco["categories"], transforms)
        self._images = self.coco["images"]
        self.image_ids: list[int] = [image["id"] for image in self._images]
        self.files = self._find_files(annotations)
        self._objects: dict[int, list[tuple[dict, dict]]] = {image_id: [] for image_id in self.image_ids}
        for annotation, rle in zip(self.coco["annotations"], rles, strict=True):
            if include_crowd or not annotation["iscrowd"]:
                self._objects[annotation["image_id"]].append((annotation, rle))

    def _find_files(self, annotations: str | Path) -> list[Path]:
        """Path of every picture, checked to lie inside the folder and to exist."""
        files = []
        for image in self._images:
            name = os.path.normpath(image["file_name"])
            if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir:
                raise DynaMaskError(
                    f"annotation file {annotations} names the picture {image['file_name']!r}, which lies outside the "
                    f"folder {self.folder}: use file names relative to it"
                )
            files.append(self.folder / name)
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise DynaMaskError(
                f"picture {missing[0]} of annotation file {annotations} does not exist "
                f"({len(missing)} of {len(files)} are missing): check the picture folder"
            )
        return files

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels of the picture at `index`, as the file says."""
        return self._images[index]["height"], self._images[index]["width"]

    def instances(self, index: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The annotations of the targets at `index`, each with its compressed run-length mask."""
        return self._objects[self.image_ids[index]]


def dataset_for(
    class_names: Sequence[str], images: str | Path, annotations: str | Path, transforms: Transforms | None = None
) -> CocoDataset:
    """The data set as a model with these class names (index 0 the background) sees it.

    A class-agnostic model, whose one class is "object", sees all classes merged unless the file has that class itself.

    Raises:
        DynaMaskError: as :class:`CocoDataset`.
    """
    merge = "missing" if tuple(class_names[1:]) == (OBJECT,) else False
    return CocoDataset(images, annotations, transforms, merge_classes=merge)


class HasImageIds(Protocol):
    """A data set that knows the image id of each index."""

    image_ids: list[int]


def split_by_image_id(dataset: HasImageIds, validation: bool, modulus: int = 8) -> list[int]:
    """Indices of one side of the published split, ascending.

    A picture belongs to validation if and only if the SHA-256 of its decimal image id, read as an integer, is
    divisible by `modulus`; the rule looks at nothing but the id.
    """
    return [
        index for index, image_id in enumerate(dataset.image_ids) if _in_validation(image_id, modulus) == validation
    ]


def _in_validation(image_id: int, modulus: int) -> bool:
    """Whether the published rule puts this image id into validation."""
    return int(hashlib.sha256(str(image_id).encode()).hexdigest(), 16) % modulus == 0


def is_int(value: Any) -> bool:
    """An integer of at most 53 bits (exact in every JSON reader) that is no boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53


def is_number(value: Any) -> bool:
    """A finite number that is no boolean."""
    return is_int(value) or (isinstance(value, float) and math.isfinite(value))
