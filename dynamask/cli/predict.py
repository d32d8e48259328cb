"""``dynamask predict``: pictures to overlays and COCO results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamask.cli.common import add_choice, check_folder, drawn, say, write_json
from dynamask.files import replacing
from dynamask.structures import DynaMaskError

if TYPE_CHECKING:
    from dynamask.predict import Prediction
    from dynamask.solo_predictor import SoloPrediction


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "predict", help="masks for pictures", description="Overlays and COCO results of pictures."
    )
    parser.add_argument("--weights", default="people", help="bundled name or .safetensors file (default: people)")
    parser.add_argument("--image", nargs="+", required=True, type=Path, metavar="P", help="pictures")
    add_choice(parser, "learned, size, fixed:S")
    parser.add_argument("--score", type=float, default=0.5, help="score threshold, 0-1 (default: 0.5)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for STEM.png and STEM.json")
    parser.add_argument("--device", default="cpu")
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> None:
    from PIL import Image

    from dynamask.data.pictures import read_picture
    from dynamask.engine.memory import keep_freed_memory
    from dynamask.predict import load

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
    results = []
    for path in arguments.image:
        results.append((path, predictor(path, policy=policy, budget=arguments.budget, score=arguments.score)))
        results[-1][1].paste()  # now, so that nothing is written if anything fails
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number, (path, prediction) in enumerate(results, start=1):
        _print_table(path, prediction)
        overlay = drawn(read_picture(path), prediction, named=False)
        with replacing(arguments.out / f"{path.stem}.png") as stream:
            Image.fromarray(overlay).save(stream, format="PNG")
        write_json(prediction.to_coco(number), str(arguments.out / f"{path.stem}.json"))


def _print_table(path: Path, prediction: Prediction | SoloPrediction) -> None:
    macs = prediction.macs.double()
    mean = f", mean {macs.mean() / 1e9:.4f} GMACs an instance" if len(prediction) else ""
    say(f"{path}: {len(prediction)} instances{mean}")
    rows = zip(
        prediction.labels.tolist(),
        prediction.scores.tolist(),
        _origins(prediction),
        prediction.macs.tolist(),
        prediction.boxes.tolist(),
    )
    for label, score, origin, cost, box in rows:
        say(
            f"  {prediction.class_names[label]:<16} {score:.2f}  {origin}  {cost / 1e9:.4f} GMACs  "
            f"box {' '.join(f'{v:.0f}' for v in box)}"
        )


def _origins(prediction: Prediction | SoloPrediction) -> list[str]:
    """Of each instance its mask size, or the level and cell of the grid that it comes from."""
    from dynamask.solo_predictor import SoloPrediction

    if isinstance(prediction, SoloPrediction):
        return [f"level {level} cell {cell:>4}" for level, cell in zip(prediction.level, prediction.cell)]
    return [f"mask {size:>3}" for size in prediction.mask_size.tolist()]
