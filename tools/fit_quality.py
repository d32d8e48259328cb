r"""Train a quality head for given weights on cached features, and write weights with the head.

Everything else stays as it is. The features are those that `fit_switch.py` and `decisions.py cache` store.

    python tools/fit_quality.py --weights W.safetensors --caches train.safetensors more.safetensors \
        --out NEW.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dynamask.cli.common import run_command
from dynamask.engine.frozen_features import QUALITY_CHANNELS, FeatureCache, load_cache
from dynamask.engine.frozen_switch import SCHEDULE, train_quality
from dynamask.models.build import build_model
from dynamask.models.weights import read_header, save_model
from dynamask.predict import load
from dynamask.structures import DynaMaskError


def fit(arguments: argparse.Namespace) -> None:
    """Train the head and write the weights."""
    if arguments.out.suffix != ".safetensors" or not arguments.out.absolute().parent.is_dir():
        raise DynaMaskError(f"--out {arguments.out} cannot be written; give a .safetensors file in a known folder")
    predictor = load(arguments.weights, device="cpu")
    predictor.check_switch("a quality head")
    parts = [load_cache(path) for path in arguments.caches]
    cache = FeatureCache.joined(parts, parts[0].about)
    schedule = dataclasses.replace(SCHEDULE, iterations=arguments.steps, lr=arguments.lr, batch_size=128)
    head = train_quality(cache, schedule, arguments.seed)
    own = predictor.model
    channels = own.config.quality_channels or QUALITY_CHANNELS
    model = build_model(dataclasses.replace(own.config, quality_channels=channels))
    kept = {name: value for name, value in own.state_dict().items() if not name.startswith("mask_branch.quality.")}
    new = {f"mask_branch.quality.{name}": value for name, value in head.state_dict().items()}
    model.load_state_dict(kept | new)
    fitted = {
        "data": [part.about.get("data") for part in parts],
        "regions": len(cache),
        "train": dataclasses.asdict(schedule),
        "seed": arguments.seed,
    }
    training = {**read_header(arguments.weights)["training"], "quality": fitted}
    save_model(model, arguments.out, training=training)
    print(f"{arguments.out}: quality head trained on {len(cache)} regions, {schedule.iterations} steps")


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(prog="fit_quality", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="weights to start from")
    parser.add_argument("--caches", type=Path, nargs="+", required=True, metavar="FILE", help="cached features")
    parser.add_argument("--steps", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="(default: %(default)g)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="weights with the new head")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fit; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("fit_quality", lambda: fit(arguments))


if __name__ == "__main__":
    sys.exit(main())
