"""LVIS v1: COCO JSON whose pictures say which categories were looked for, and whose categories say how rare they are.

Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation" (CVPR 2019), section 3: annotations are
federated. On a picture a category is positive (it has instances there), negative (`neg_category_ids`: it is not there)
or unknown; of a positive one in `not_exhaustive_category_ids` not every instance is outlined.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from dynamask.structures import DynaMaskError

FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
"""Lists of category ids that every LVIS picture has."""
FREQUENCIES = ("r", "c", "f")
"""Rare, common and frequent categories: in 1–10, 11–100 and more than 100 training pictures."""


def is_lvis(coco: dict[str, Any]) -> bool:
    """Whether parsed COCO JSON has the federated lists of LVIS on any picture, or the frequencies on all categories."""
    images, categories = coco.get("images") or [], coco.get("categories") or []
    if any(isinstance(image, dict) and any(key in image for key in FEDERATED_KEYS) for image in images):
        return True
    return bool(categories) and all(isinstance(c, dict) and c.get("frequency") in FREQUENCIES for c in categories)


def name_files(coco: dict[str, Any]) -> None:
    """Give pictures without a `file_name` the last folder and name of their `coco_url`, in place.

    "http://images.cocodataset.org/train2017/000000391895.jpg" becomes "train2017/000000391895.jpg": LVIS draws its
    splits from both of COCO's picture folders.
    """
    for image in coco["images"]:
        if isinstance(image, dict) and "file_name" not in image and isinstance(image.get("coco_url"), str):
            parts = [part for part in urlsplit(image["coco_url"]).path.split("/") if part]
            if len(parts) >= 2:
                image["file_name"] = "/".join(parts[-2:])


def problems(coco: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What LVIS evaluation needs and the file lacks: ("images" or "categories", the entry, the problem)."""
    known = {category.get("id") for category in coco["categories"] if isinstance(category, dict)}
    for image in coco["images"]:
        if not isinstance(image, dict):
            continue
        for key in FEDERATED_KEYS:
            ids = image.get(key)
            if not isinstance(ids, list):
                yield "images", f"image {image.get('id')}", f"has no list {key}, which LVIS needs"
            elif not all(isinstance(value, int) and value in known for value in ids):
                yield "images", f"image {image.get('id')}", f"has in {key} a category that the file does not list"
    for category in coco["categories"]:
        if isinstance(category, dict) and category.get("frequency") not in FREQUENCIES:
            yield "categories", f"category {category.get('id')}", "has no frequency r, c or f, which LVIS needs"


def check_lvis(coco: dict[str, Any]) -> None:
    """Refuse an LVIS file that cannot be evaluated as one; DynaMaskError names the first problem."""
    for _, where, problem in problems(coco):
        raise DynaMaskError(f"{where} {problem}")
