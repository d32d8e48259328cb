"""Draw the predictions of weights on many photographs into one picture.

python tools/contact_sheet.py --weights things --out docs/things.jpg PHOTOGRAPH …
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image
from tqdm import tqdm

from dynamask.cli.common import run_command
from dynamask.engine.memory import keep_freed_memory
from dynamask.files import replacing
from dynamask.predict import Predictor, load
from dynamask.viz.overlay import draw_prediction

TILE = (400, 300)
"""Width and height that each photograph is fitted into, pixels."""
LONGEST = 800
"""Longer side of a photograph when it is drawn, pixels, so that lines and labels are equally large on all."""


def tile(predictor: Predictor, path: Path, policy: str, budget: float | None, score: float | None) -> Image.Image:
    """A photograph with its predictions, on a white tile."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    factor = LONGEST / max(picture.size)
    picture = picture.resize([max(1, round(side * factor)) for side in picture.size], Image.Resampling.LANCZOS)
    prediction = predictor(np.asarray(picture), policy=policy, budget=budget, score=score)
    drawn = Image.fromarray(draw_prediction(prediction, named=True))
    drawn.thumbnail(TILE, Image.Resampling.LANCZOS)
    out = Image.new("RGB", TILE, "white")
    out.paste(drawn, ((TILE[0] - drawn.width) // 2, (TILE[1] - drawn.height) // 2))
    return out


def draw(arguments: argparse.Namespace) -> None:
    """Predict on all photographs and write the sheet."""
    keep_freed_memory()
    predictor = load(arguments.weights, device="cpu")
    choice = arguments.policy, arguments.budget, arguments.score
    tiles = [tile(predictor, path, *choice) for path in tqdm(arguments.photographs, unit="photograph")]
    rows = -(-len(tiles) // arguments.columns)
    sheet = Image.new("RGB", (arguments.columns * TILE[0], rows * TILE[1]), "white")
    for number, each in enumerate(tiles):
        row, column = divmod(number, arguments.columns)
        sheet.paste(each, (column * TILE[0], row * TILE[1]))
    with replacing(arguments.out) as stream:
        sheet.save(stream, format="JPEG", quality=82)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the tool."""
    parser = argparse.ArgumentParser(prog="contact_sheet", description=__doc__.split("\n", 1)[0])
    parser.add_argument("photographs", nargs="+", type=Path)
    parser.add_argument("--weights", required=True, help="a bundled name or a .safetensors file")
    parser.add_argument("--out", type=Path, required=True, metavar="JPEG")
    parser.add_argument("--policy", default="learned")
    parser.add_argument("--budget", type=float, help="mean GMACs per instance")
    parser.add_argument("--score", type=float, help="score from which detections are drawn")
    parser.add_argument("--columns", type=int, default=4)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the sheet; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("contact_sheet", lambda: draw(arguments))


if __name__ == "__main__":
    sys.exit(main())
