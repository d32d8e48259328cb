"""Write the table of the app's Classes tab: the mask sizes that each class gets from bundled weights, and needs.

    python tools/class_shares.py --weights shapes --data shapes:1001:150 --out checkpoints/shapes.classes.json
    python tools/class_shares.py --weights things --images DIR --annotations JSON --holdout 8 --boxes detected \
        --out checkpoints/things.classes.json

Annotations give the sizes that each class needs, and with ``--boxes gt`` also the boxes and classes of the instances.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from app.class_table import ideal, make_table, rows_in_true_boxes, rows_of_detections
from dynamask.cli.common import add_data, open_selected_data, run_command
from dynamask.engine.memory import keep_freed_memory
from dynamask.files import write_text
from dynamask.predict import load


def own_classes(coco: dict) -> dict:
    """Annotations under the names of their own classes, where all were served as one."""
    names = sorted({annotation["class_name"] for annotation in coco["annotations"] if "class_name" in annotation})
    if not names:
        return coco
    ids = {name: i for i, name in enumerate(names, start=1)}
    annotations = [{**a, "category_id": ids[a["class_name"]]} for a in coco["annotations"]]
    categories = [{"id": i, "name": name} for name, i in ids.items()]
    return {**coco, "annotations": annotations, "categories": categories}


def measure(arguments: argparse.Namespace) -> None:
    """Measure the chosen pictures and write the table."""
    keep_freed_memory()
    predictor = load(arguments.weights, device=arguments.device)
    predictor.check_switch("counting its choices")
    detected = arguments.boxes == "detected"
    dataset, indices = open_selected_data(arguments, predictor.class_names)
    chosen = {dataset.image_ids[i] for i in indices}
    coco = own_classes(dataset.coco)
    images = [image for image in coco["images"] if image["id"] in chosen]
    annotations = [annotation for annotation in coco["annotations"] if annotation["image_id"] in chosen]
    coco = {**coco, "images": images, "annotations": annotations}
    (_, needs) = deque(tqdm(ideal(coco), total=len(images), unit="picture", desc="ideal"), 1).pop()
    if detected:
        steps = rows_of_detections(predictor, (dataset[index][0] for index in indices), len(indices))
    else:
        steps = rows_in_true_boxes(predictor, dataset, indices)
    (_, rows) = deque(tqdm(steps, total=len(indices), unit="picture", desc="masks"), 1).pop()
    name = arguments.name or Path(arguments.weights).stem
    about = arguments.words or arguments.data or f"{arguments.annotations.name}, held-out pictures"
    macs = predictor.costs.macs_per_instance
    score = predictor.default_score if detected else None
    table = make_table(rows, needs, name, about, len(indices), arguments.boxes, macs, score)
    write_text(arguments.out, json.dumps(table, indent=1, allow_nan=False) + "\n")
    print(f"{arguments.out}: {len(table['classes'])} classes, {table['instances']} instances")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the tool."""
    parser = argparse.ArgumentParser(prog="class_shares", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--weights", required=True, metavar="W", help="bundled name or .safetensors file")
    text = "count the sizes in true boxes or of the weights' own detections (default: %(default)s)"
    parser.add_argument("--boxes", default="gt", choices=("gt", "detected"), help=text)
    parser.add_argument("--name", help="name of the weights in the table (default: that of the file)")
    parser.add_argument("--words", help="description of the data in the table (default: the flags)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    add_data(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("class_shares", lambda: measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
