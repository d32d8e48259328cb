"""LVIS v1: COCO JSON whose images list the categories that were searched for, and whose categories have a frequency.

Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation" (CVPR 2019), section 3: annotations are
federated. In an image a category is positive (it has annotations), negative (listed in ``neg_category_ids``: known to
be absent) or unknown; for those in ``not_exhaustive_category_ids`` some instances may not be annotated.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any
from urllib.parse import urlsplit

from dynamask.data.findings import Finding

FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
"""Lists of category ids that every LVIS image has."""
FREQUENCIES = ("r", "c", "f")
"""Rare, common and frequent categories: annotated in 1–10, 11–100 and more than 100 training images."""


def is_lvis(coco: dict[str, Any]) -> bool:
    """Whether COCO JSON has a federated list of LVIS in any image, or a frequency in every category."""
    images, categories = coco["images"], coco["categories"]
    if any(isinstance(image, dict) and any(key in image for key in FEDERATED_KEYS) for image in images):
        return True
    return bool(categories) and all(isinstance(c, dict) and c.get("frequency") in FREQUENCIES for c in categories)


def file_name_of(image: dict[str, Any]) -> str | None:
    """The last folder and name of an image's ``coco_url``, None without one.

    "http://images.cocodataset.org/train2017/000000391895.jpg" becomes "train2017/000000391895.jpg": the splits of LVIS
    mix images of COCO's folders.
    """
    url = image.get("coco_url")
    parts = [part for part in urlsplit(url).path.split("/") if part] if isinstance(url, str) else []
    return "/".join(parts[-2:]) if len(parts) >= 2 else None


def lvis_findings(coco: dict[str, Any], category_ids: Container[int]) -> Iterator[Finding]:
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
