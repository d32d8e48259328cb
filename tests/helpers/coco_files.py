"""COCO and LVIS annotations, and data sets of them, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynamask.ops.rle import encode_rle


def rectangle(size: tuple[int, int], x: int, y: int, width: int, height: int) -> dict[str, Any]:
    """Segmentation and box of a rectangle in a picture of ``size`` (height, width)."""
    mask = np.zeros(size, dtype=np.uint8)
    mask[y : y + height, x : x + width] = 1
    return {"segmentation": encode_rle(mask), "bbox": [x, y, width, height]}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed COCO run lengths of a mask, from the definition of the format."""
    flat = mask.astype(np.uint8).ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + runs}


def coco_file(path: Path, names: list[str], lvis: bool = False) -> None:
    """Write pictures beside a COCO or LVIS file of squares, one class."""
    images = []
    folder = path.parent if lvis else path.parent.parent
    for image_id, name in enumerate(names, start=1):
        more = {"neg_category_ids": [], "not_exhaustive_category_ids": []} if lvis else {}
        place = {"coco_url": f"http://x.org/{name}"} if lvis else {"file_name": name.split("/")[-1]}
        images.append({"id": image_id, "width": 20, "height": 16, **place, **more})
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16)).save(folder / name)
    square = {"category_id": 5, "bbox": [2, 2, 8, 8], "area": 64, "segmentation": [[2, 2, 10, 2, 10, 10, 2, 10]]}
    annotations = [{"id": i, "image_id": i, **square} for i in range(1, len(names) + 1)]
    category = {"id": 5, "name": "cat", **({"frequency": "c"} if lvis else {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [category]}))
