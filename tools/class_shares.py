"""Write the table of the app's Classes tab for bundled weights: which sizes each class gets, and which it needs.

    python tools/class_shares.py --weights shapes --data shapes:1001:150 --out checkpoints/shapes.classes.json
    python tools/class_shares.py --weights people --images DIR --annotations JSON --holdout 8 \
        --out checkpoints/people.classes.json
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from pathlib import Path

from tqdm import tqdm

from app.class_table import ideal, make_table, own_rows, predicted
from dynamask.cli.common import add_data, opened_data
from dynamask.engine.memory import keep_freed_memory
from dynamask.files import write_text
from dynamask.predict import load
from dynamask.structures import DynaMaskError


def own_classes(coco: dict) -> dict:
    """Annotations under the names of their own classes, where all were served as one."""
    names = sorted({annotation["class_name"] for annotation in coco["annotations"] if "class_name" in annotation})
    if not names:
        return coco
    ids = {name: i for i, name in enumerate(names, start=1)}
    annotations = [{**a, "category_id": ids[a["class_name"]]} for a in coco["annotations"]]
    categories = [{"id": i, "name": name} for name, i in ids.items()]
    return {**coco, "annotations": annotations, "categories": categories}


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="W", help="bundled name or .safetensors file")
    parser.add_argument("--name", help="what the table calls the weights; their name without it")
    parser.add_argument("--words", help="what the table says about the data; the flags without it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    add_data(parser)
    return parser


def main() -> None:
    """Measure in the true boxes of every chosen picture and write the table atomically."""
    parser = build_parser()
    arguments = parser.parse_args()
    try:
        keep_freed_memory()
        predictor = load(arguments.weights, device=arguments.device)
        predictor.check_switch("counting its choices")
        dataset, indices = opened_data(arguments, predictor.class_names)
        chosen = {dataset.image_ids[i] for i in indices}
        coco = own_classes(dataset.coco)
        coco = {**coco, "images": [image for image in coco["images"] if image["id"] in chosen],
                "annotations": [a for a in coco["annotations"] if a["image_id"] in chosen]}  # fmt: skip
        (_, needs) = deque(tqdm(ideal(coco), total=len(coco["images"]), unit="picture", desc="ideal"), 1).pop()
        steps = predicted(predictor, dataset, indices)
        (_, found) = deque(tqdm(steps, total=len(indices), unit="picture", desc="masks"), 1).pop()
        name = arguments.name or Path(arguments.weights).stem
        words = arguments.words or arguments.data or f"{arguments.annotations.name}, pictures kept back"
        table = make_table(own_rows(found, dataset), needs, name, words, len(indices), "gt",
                           predictor.costs.macs_per_instance)  # fmt: skip
    except DynaMaskError as error:
        parser.error(str(error))
    write_text(arguments.out, json.dumps(table, indent=1, allow_nan=False) + "\n")
    print(f"{arguments.out}: {len(table['classes'])} classes, {table['instances']} instances")


if __name__ == "__main__":
    main()
