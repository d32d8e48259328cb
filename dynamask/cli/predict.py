"""``dynamask predict``: overlays and COCO results of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamask.cli.common import add_choice, add_mask_nms, check_folder, print_line, write_json
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
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for STEM.png and STEM.json")
    parser.add_argument("--device", default="cpu")
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> None:
    from PIL import Image

    from dynamask.engine.memory import keep_freed_memory
    from dynamask.predict import load
    from dynamask.viz.overlay import draw_prediction

    keep_freed_memory()
    predictor = load(arguments.weights, arguments.device)
    policy = arguments.policy or "learned"
    predictor.check_choice(policy, arguments.budget)
    stems = [path.stem for path in arguments.image]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise DynaMaskError(
            f"two pictures are called {twice[0]}, and their results would overwrite each other; rename one"
        )
    check_folder(arguments.out)
    outputs = []  # everything is computed before anything is written
    for number, path in enumerate(arguments.image, start=1):
        choice = {"policy": policy, "budget": arguments.budget, "mask_nms": arguments.mask_nms}
        prediction = predictor(path, score=arguments.score, **choice)
        outputs.append((_table(path, prediction), draw_prediction(prediction), prediction.to_coco(number)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for stem, (table, overlay, results) in zip(stems, outputs):
        print_line(table)
        with replacing(arguments.out / f"{stem}.png") as stream:
            Image.fromarray(overlay).save(stream, format="PNG")
        write_json(results, str(arguments.out / f"{stem}.json"))


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
