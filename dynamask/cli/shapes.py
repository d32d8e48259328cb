"""``dynamask shapes``: scenes of known difficulty, as pictures with COCO annotations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dynamask.cli.common import number_in, print_line


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "shapes",
        help="make scenes of known difficulty",
        description="Make procedural scenes: DIR/images/*.png and DIR/annotations.json (COCO, with the complexity of "
        "each instance in 0-1). The same seed gives the same bytes.",
    )
    parser.add_argument(
        "--images", type=number_in(1, 10**6), required=True, metavar="N", help="how many scenes; every tenth is empty"
    )
    parser.add_argument(
        "--seed", type=number_in(0, 2**63 - 1), required=True, metavar="S", help="of the world, at least 0"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--size",
        type=number_in(1, 25_000),
        nargs=2,
        default=(288, 352),
        metavar=("H", "W"),
        help="pixels (default: 288 352)",
    )
    parser.set_defaults(run=_shapes)


def _shapes(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dynamask.data.shapes import export

    def progress(scenes: Iterable[int]) -> Iterable[int]:
        return tqdm(scenes, unit="scene", disable=not sys.stderr.isatty(), dynamic_ncols=True)

    records = export(arguments.out, arguments.images, arguments.seed, tuple(arguments.size), progress)
    print_line(f"{len(records['images'])} scenes with {len(records['annotations'])} instances in {arguments.out}")
