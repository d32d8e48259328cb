"""The same two pictures in the layouts and dialects in which annotation tools export COCO."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

SIZE = (40, 30)
"""Width and height of the pictures."""
BOX = [4.0, 5.0, 20.0, 5.0, 20.0, 17.0, 4.0, 17.0]


def _content(names: list[str], **image: Any) -> dict[str, Any]:
    """COCO content with a box of class "crate" in each picture, ids from 1."""
    return {
        "images": [
            {"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1], **image}
            for i, name in enumerate(names, 1)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "segmentation": [BOX],
                "bbox": [4.0, 5.0, 16.0, 12.0],
                "area": 192.0,
                "iscrowd": 0,
            }
            for i in range(1, len(names) + 1)
        ],
        "categories": [{"id": 1, "name": "crate", "supercategory": ""}],
    }


def _write(root: Path, file: str, content: dict[str, Any], pictures: list[str]) -> None:
    """Write the annotations and the pictures, by their paths below the root."""
    for name in pictures:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", SIZE, (90, 120, 60))
        picture.paste((200, 40, 40), (4, 5, 20, 17))
        picture.save(path)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content), encoding="utf-8")


def cvat(root: Path) -> None:
    """CVAT, "COCO 1.0": annotations/instances_default.json and images/, attributes on annotations."""
    content = _content(["a.png", "b.png"], license=0, flickr_url="", coco_url="", date_captured=0)
    for annotation in content["annotations"]:
        annotation["attributes"] = {"occluded": False}
    _write(root, "annotations/instances_default.json", content, ["images/a.png", "images/b.png"])


def label_studio(root: Path) -> None:
    """Label Studio on Windows: result.json with names such as images\\a.png, ids from 0, empty fields of COCO."""
    content = _content(["images\\3f2a-a.png", "images\\9c1b-b.png"])
    for entry in content["images"] + content["annotations"] + content["categories"]:
        entry["id"] -= 1
    for annotation in content["annotations"]:
        annotation |= {"image_id": annotation["image_id"] - 1, "category_id": 0, "ignore": 0}
    _write(root, "result.json", content, ["images/3f2a-a.png", "images/9c1b-b.png"])


def roboflow(root: Path) -> None:
    """Roboflow: a folder for each split with _annotations.coco.json, and a category that names the group of all."""
    for split in ("train", "valid"):
        names = [f"{split}_{letter}_jpg.rf.0a1b.png" for letter in "ab"]
        content = _content(names)
        content["categories"] = [
            {"id": 0, "name": "crates-x1", "supercategory": "none"},
            {"id": 1, "name": "crate", "supercategory": "crates-x1"},
        ]
        _write(root, f"{split}/_annotations.coco.json", content, [f"{split}/{name}" for name in names])


def fiftyone(root: Path) -> None:
    """FiftyOne, COCODetectionDataset: data/ and labels.json."""
    content = {**_content(["a.png", "b.png"]), "info": {}, "licenses": []}
    _write(root, "labels.json", content, ["data/a.png", "data/b.png"])


def labelme(root: Path) -> None:
    """labelme's labelme2coco.py: JPEGImages/ and annotations.json with names that begin with the folder."""
    content = _content(["JPEGImages/a.png", "JPEGImages/b.png"])
    content["categories"].insert(0, {"id": 0, "name": "_background_", "supercategory": None})
    _write(root, "annotations.json", content, ["JPEGImages/a.png", "JPEGImages/b.png"])


def coco_annotator(root: Path) -> None:
    """COCO Annotator: one file named after the data set, pictures with paths on the server, colours and metadata."""
    content = _content(
        ["a.png", "b.png"], dataset_id=1, path="/datasets/crates/a.png", annotated=True, num_annotations=1
    )
    for annotation in content["annotations"]:
        annotation |= {"isbbox": False, "color": "#1f9e2c", "metadata": {}}
    _write(root, "crates-1.json", content, ["a.png", "b.png"])


def via(root: Path) -> None:
    """VIA 2, COCO export: ids of images as text, flat polygons, and a category for each region attribute."""
    content = _content(["a.png", "b.png"])
    for image in content["images"]:
        image["id"] = str(image["id"])
    for annotation in content["annotations"]:
        annotation |= {"image_id": str(annotation["image_id"]), "segmentation": annotation["segmentation"][0]}
    _write(root, "via_export_coco.json", content, ["a.png", "b.png"])


EXPORTS: list[Callable[[Path], None]] = [cvat, label_studio, roboflow, fiftyone, labelme, coco_annotator, via]
