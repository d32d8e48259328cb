"""``dynamask predict``: overlays and COCO results of images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamask.cli.common import add_backend, add_choice, add_mask_nms, add_refine, check_folder, print_line, write_json
from dynamask.files import replacing
from dynamask.structures import DynaMaskError

if TYPE_CHECKING:
    from dynamask.predict import Prediction


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "predict", help="masks for pictures", description="Overlays and COCO results of pictures."
    )
    parser.add_argument("--weights", default="things", help="bundled name or .safetensors file (default: things)")
    parser.add_argument("--image", nargs="+", required=True, type=Path, metavar="P", help="pictures")
    add_choice(parser, "learned, size, fixed:S")
    parser.add_argument("--score", type=float, help="score threshold, 0-1 (default: that of the weights)")
    add_mask_nms(parser)
    add_refine(parser)
    parser.add_argument(
        "--detections",
        type=Path,
        metavar="RESULTS.json",
        help="COCO results of another detector: masks in their boxes instead of detecting; for several pictures each "
        "result names its file_name",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for STEM.png and STEM.json")
    parser.add_argument("--device", default="cpu")
    add_backend(parser)
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> None:
    from PIL import Image

    from dynamask.engine.memory import keep_freed_memory
    from dynamask.predict import load
    from dynamask.viz.overlay import draw_prediction

    keep_freed_memory()
    predictor = load(arguments.weights, arguments.device, refine=arguments.refine, backend=arguments.backend)
    predictor.check_choice(arguments.policy, arguments.budget)
    stems = [path.stem for path in arguments.image]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise DynaMaskError(
            f"two pictures are called {twice[0]}, and their results would overwrite each other; rename one"
        )
    check_folder(arguments.out)
    given = None if arguments.detections is None else _read_detections(arguments.detections, arguments.image)
    outputs = []  # everything is computed before anything is written
    for number, path in enumerate(arguments.image, start=1):
        choice = {"policy": arguments.policy, "budget": arguments.budget, "mask_nms": arguments.mask_nms}
        detections = None if given is None else given[path.name]
        prediction = predictor(path, score=arguments.score, detections=detections, **choice)
        outputs.append((_table(path, prediction), draw_prediction(prediction), prediction.to_coco(number)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for stem, (table, overlay, results) in zip(stems, outputs):
        print_line(table)
        with replacing(arguments.out / f"{stem}.png") as stream:
            Image.fromarray(overlay).save(stream, format="PNG")
        write_json(results, str(arguments.out / f"{stem}.json"))


def _read_detections(path: Path, pictures: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """COCO results by the name of their picture; results of other pictures are left out."""
    try:
        results = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DynaMaskError(f"detections {path} cannot be read; give a JSON file of COCO results") from error
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise DynaMaskError(f"detections {path} are not COCO results; give a JSON list of objects with bbox and score")
    names = [picture.name for picture in pictures]
    if len(names) > 1 and not all(isinstance(result.get("file_name"), str) for result in results):
        raise DynaMaskError(f"a result in {path} names no file_name; add it, or predict one picture at a time")
    given = {name: [result for result in results if result.get("file_name", name) == name] for name in names}
    if results and not any(given.values()):
        raise DynaMaskError(f"no result in {path} is of these pictures; give the file_name of a picture to its results")
    return given


def _table(path: Path, prediction: Prediction) -> str:
    """One line for the image and one for each instance."""
    mean = f", mean {prediction.macs.double().mean() / 1e9:.4f} GMACs an instance" if len(prediction) else ""
    lines = [f"{path}: {len(prediction)} instances{mean}"]
    for i, label in enumerate(prediction.labels.tolist()):
        if prediction.cells is not None:
            origin = f"level {prediction.cells.level[i]} cell {prediction.cells.cell[i]:>4}"
        else:
            origin = f"mask {prediction.mask_size[i]:>3}"
        box = " ".join(f"{value:.0f}" for value in prediction.boxes[i].tolist())
        lines.append(
            f"  {prediction.class_names[label]:<16} {prediction.scores[i]:.2f}  {origin}  "
            f"{prediction.macs[i] / 1e9:.4f} GMACs  box {box}"
        )
    return "\n".join(lines)
