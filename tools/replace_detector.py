"""Give masks the detector of other weights with the same architecture, and write weights of both.

Training all layers helps the masks but can cost box AP. The masks can go back to the detector that they started from,
and learn for a few steps on it.

    python tools/replace_detector.py --weights MASKS.safetensors --detector BOXES.safetensors --out NEW.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dynamask.cli.common import run_command
from dynamask.config import ModelConfig
from dynamask.models.weights import load_model, read_header, save_model
from dynamask.structures import DynaMaskError


def replace_detector(arguments: argparse.Namespace) -> None:
    """Write the weights."""
    model, other = load_model(arguments.weights), load_model(arguments.detector)
    if {model.config.FAMILY, other.config.FAMILY} != {ModelConfig.FAMILY}:
        raise DynaMaskError("one-stage weights have no detector apart from their masks; give two-stage weights")
    if model.config.detector_kind != other.config.detector_kind:
        raise DynaMaskError(
            f"{arguments.detector} holds a detector of another kind ({other.config.detector_kind}, not "
            f"{model.config.detector_kind}); give weights of the same architecture"
        )
    taken = {
        name: value
        for name, value in other.detector.state_dict().items()
        if not name.startswith(model.detector.MASK_MODULES)
    }
    model.detector.load_state_dict({**model.detector.state_dict(), **taken})
    save_model(model, arguments.out, training=read_header(arguments.weights)["training"])
    print(f"{arguments.out}: masks of {arguments.weights} on the detector of {arguments.detector}")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the tool."""
    parser = argparse.ArgumentParser(prog="replace_detector", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="weights whose masks are kept")
    parser.add_argument("--detector", type=Path, required=True, metavar="FILE", help="weights whose detector is taken")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="written .safetensors file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Replace the detector; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("replace_detector", lambda: replace_detector(arguments))


if __name__ == "__main__":
    sys.exit(main())
