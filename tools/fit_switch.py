"""Train the switch of given weights on cached features, and write weights with the new switch.

Detector and mask branch stay as they are and see every picture once. `dynamask train --freeze all-but-switch` has the
same losses and computes the features at every step.

    python tools/fit_switch.py --weights W.safetensors --data shapes:3:400 --cache train.safetensors \
        --out NEW.safetensors \
        --set switch_signal=boundary switch_selection=expected entropy_on=instances overlap_share=1 boundary_weight=24
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from dynamask.cli.common import add_data, open_selected_data, run_command
from dynamask.engine.frozen_features import FeatureCache, build_cache, load_cache, save_cache
from dynamask.engine.frozen_switch import SCHEDULE, train_switch
from dynamask.engine.memory import keep_freed_memory
from dynamask.models.weights import read_header, save_model
from dynamask.predict import Predictor, load
from dynamask.structures import DynaMaskError
from dynamask.training_config import LossConfig
from tools.decisions import parse_values
from tools.switch_training import spend


def features(arguments: argparse.Namespace, predictor: Predictor) -> FeatureCache:
    """The cache of ``--cache``, or a new one of the training images, which is saved there."""
    if arguments.cache is not None and arguments.cache.is_file():
        return load_cache(arguments.cache)
    dataset, indices = open_selected_data(arguments, predictor.class_names, training=True)
    pictures = tqdm(indices, unit="picture", disable=not sys.stderr.isatty())
    name = arguments.data or str(arguments.annotations.name)
    about = {"weights": arguments.weights.name, "data": name}
    cache = build_cache(predictor, dataset, pictures, arguments.views, arguments.seed, about)
    if arguments.cache is not None:
        save_cache(cache, arguments.cache)
    return cache


def fit(arguments: argparse.Namespace) -> None:
    """Train the switch and write the weights."""
    if arguments.spend is not None and not 0 < arguments.spend <= 1:
        raise DynaMaskError(f"--spend {arguments.spend} is out of range; give a share above 0 and up to 1")
    if arguments.out.suffix != ".safetensors" or not arguments.out.absolute().parent.is_dir():
        raise DynaMaskError(f"--out {arguments.out} cannot be written; give a .safetensors file in a known folder")
    keep_freed_memory()
    predictor = load(arguments.weights, device="cpu")
    predictor.check_switch("fitting a switch")
    cache = features(arguments, predictor)
    config = dataclasses.replace(LossConfig(), **{k: v[0] for k, v in map(parse_values, arguments.set)})
    schedule = dataclasses.replace(SCHEDULE, iterations=arguments.steps, lr=arguments.lr)
    switch = train_switch(cache, config, schedule, arguments.seed)
    price = spend(switch, cache, arguments.spend) if arguments.spend is not None else None
    predictor.model.mask_branch.switch.load_state_dict(switch.state_dict())
    header = read_header(arguments.weights)["training"]
    fitted = {
        "data": cache.about.get("data"),
        "regions": len(cache),
        "losses": dataclasses.asdict(config),
        "train": dataclasses.asdict(schedule),
        "seed": arguments.seed,
        "spend": arguments.spend,
        "price": price,
    }
    save_model(predictor.model, arguments.out, training={**header, "switch": fitted})
    print(f"{arguments.out}: switch trained on {len(cache)} regions, {schedule.iterations} steps")


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(prog="fit_switch", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="weights to start from")
    add_data(parser, "train on the pictures that `train --holdout M` trains on")
    parser.add_argument("--cache", type=Path, metavar="FILE", help="cached features; written there if missing")
    parser.add_argument("--views", type=int, default=1, help="jittered views of each instance (default: 1)")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of LossConfig")
    parser.add_argument("--steps", type=int, default=SCHEDULE.iterations, help=f"(default: {SCHEDULE.iterations})")
    parser.add_argument("--lr", type=float, default=SCHEDULE.lr, help=f"(default: {SCHEDULE.lr:g})")
    parser.add_argument(
        "--spend",
        type=float,
        metavar="F",
        help="hold the mean cost on the training data to this share of the full branch, by a price in the last bias",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="weights with the new switch")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fit; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("fit_switch", lambda: fit(arguments))


if __name__ == "__main__":
    sys.exit(main())
