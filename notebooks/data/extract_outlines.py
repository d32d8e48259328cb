"""Takes a few outlines out of a COCO annotation file: polygons, box and area, and nothing of the photographs.

For every class and every COCO object size (small, medium, large), the first ``--most`` instances by annotation id that
are no crowd and are given as polygons:

    python notebooks/data/extract_outlines.py --annotations coco-mini/annotations/instances.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dynamask.data.coco_checks import AREA_RANGES
from dynamask.data.coco_format import read_coco

CLASSES = ("giraffe", "bicycle", "person", "book", "tv")
NOTICE = (
    "Instance annotations of the COCO Consortium (https://cocodataset.org), CC BY 4.0, https://creativecommons.org/"
    "licenses/by/4.0/; a selection, polygons unchanged. No photographs."
)


def outlines(coco: dict[str, Any], classes: tuple[str, ...], most: int) -> dict[str, Any]:
    """The COCO dict of the selection, its images reduced to id, name and size."""
    ids = {category["name"]: category["id"] for category in coco["categories"]}
    kept = []
    for name in classes:
        own = [a for a in coco["annotations"] if a["category_id"] == ids[name] and not a["iscrowd"]]
        own = sorted((a for a in own if isinstance(a["segmentation"], list)), key=lambda a: a["id"])
        for low, high in AREA_RANGES.values():
            kept += [a for a in own if low <= a["area"] < high][:most]
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
    used = {annotation["image_id"] for annotation in kept}
    return {
        "info": {"description": NOTICE},
        "images": [
            {key: image[key] for key in ("id", "file_name", "height", "width")}
            for image in coco["images"]
            if image["id"] in used
        ],
        "annotations": [{key: annotation[key] for key in keys} for annotation in kept],
        "categories": [{"id": ids[name], "name": name} for name in classes],
    }


def main() -> None:
    """Read, select, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", required=True, help="COCO JSON file")
    parser.add_argument("--most", type=int, default=10, help="instances of a class and an object size, at most")
    parser.add_argument("--out", default=str(Path(__file__).parent / "coco-outlines.json"))
    arguments = parser.parse_args()
    selection = outlines(read_coco(arguments.annotations).coco, CLASSES, arguments.most)
    Path(arguments.out).write_text(json.dumps(selection, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
