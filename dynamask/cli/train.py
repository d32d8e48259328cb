"""``dynamask train``: train a model; every hyper-parameter is a flag."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynamask.cli.common import DEVICE_HELP, MOST, add_data, add_refine, input_file, number_in
from dynamask.config import AggregationConfig, ModelConfig, SoloConfig
from dynamask.presets import list_models
from dynamask.training_config import LossConfig, TrainConfig

INIT_PARTS = ("all", "detector", "backbone")
HELP = {
    "device": DEVICE_HELP,
    "loss_reduction": "mean or sum of the mask and edge losses over the positive regions of a batch. The paper "
    "writes a sum, which makes these losses stronger than the budget and entropy terms (default: mean)",
}
"""Help of flags that are made from the fields of a configuration, by the name of the field."""


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "train",
        help="train a model on COCO, LVIS, Cityscapes or own data",
        description="Train a model on a data set. Flags that are not given have the values of the model's recipe. "
        "Several devices: torchrun --nproc-per-node N -m dynamask train …; they share each batch.",
    )
    add_data(
        parser,
        "validate on the pictures whose SHA-256 of the image id is divisible by M, and train on the others",
        several=True,
    )
    parser.add_argument(
        "--recipe", metavar="NAME", help="recipe with the values of flags that are not given; see `dynamask recipes`"
    )
    parser.add_argument("--model", help=f"one of {', '.join(list_models())}; not needed with --recipe")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--val-data", metavar="DATA", help="data to validate on, in the format of --data")
    parser.add_argument("--val-split", metavar="NAME", help="split of --val-data, if it has several (default: val)")
    parser.add_argument(
        "--val-images", type=Path, metavar="DIR", help="pictures to validate on, with --val-annotations"
    )
    parser.add_argument("--val-annotations", type=input_file, metavar="JSON", help="COCO annotations")
    parser.add_argument("--merge-classes", action="store_true", help="train all classes as one class, 'object'")
    _add_weights(parser)
    parser.add_argument(
        "--freeze", choices=["detector", "all-but-switch"], help="train only the mask branch, or only the switch"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the newest state in --out")
    parser.add_argument(
        "--scale-lr",
        action="store_true",
        help="multiply the learning rate by --batch-size over the recipe's batch size",
    )
    schedule = parser.add_argument_group("schedule")
    schedule.add_argument(
        "--epochs",
        type=number_in(1, MOST),
        metavar="N",
        help="passes over the training pictures, instead of --iterations: N x pictures / --batch-size steps",
    )
    _add_fields(schedule, TrainConfig)
    _add_fields(parser.add_argument_group("losses"), LossConfig)
    skip, model = ("name", "class_names", "category_ids"), parser.add_argument_group("model")
    _add_fields(model, ModelConfig, (*skip, "refine"))
    add_refine(model)
    shared = tuple(field.name for field in dataclasses.fields(ModelConfig))
    nested = ("aggregation", "scale_ranges")
    _add_fields(parser.add_argument_group("one-stage model"), SoloConfig, (*skip, *nested, *shared))
    _add_fields(parser.add_argument_group("aggregation (SODAR)"), AggregationConfig, prefix="agg_")
    parser.set_defaults(run=_train)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the flags for weights that a training starts from or learns from."""
    parser.add_argument(
        "--backbone-weights", metavar="FILE|timm", help="ImageNet weights with timm's names; 'timm' downloads them"
    )
    parser.add_argument(
        "--init",
        metavar="FILE|NAME|torchvision",
        help="initial weights: a .safetensors file or the name of bundled weights; or those of a detector alone, which "
        "are torchvision's COCO Mask R-CNN ('torchvision' downloads it, a .pth file contains it), or NanoDet-Plus for "
        "the nanodet_plus models (.pth, .ckpt or .safetensors)",
    )
    parser.add_argument(
        "--init-part",
        choices=INIT_PARTS,
        help="part of --init to load: all, the detector without the mask branch (one-stage models: without the "
        "aggregation), or backbone and FPN (default: the largest part that fits)",
    )
    parser.add_argument(
        "--teacher",
        metavar="FILE|NAME",
        help="for the nanodet_plus models: train scores and boxes towards those of this detector instead of the "
        "annotated boxes; a file of NanoDet-Plus as for --init, or weights of dynamask",
    )


def _add_fields(group: Any, config: type, skip: Sequence[str] = (), prefix: str = "") -> None:
    """Add a flag for every field of a configuration, with the prefix; flags that are not given are None."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        kind, flag = hints[field.name], "--" + (prefix + field.name).replace("_", "-")
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        elif isinstance(kind, types.GenericAlias) or typing.get_origin(kind) is tuple:
            group.add_argument(flag, nargs="+", type=typing.get_args(kind)[0], default=None)
        else:
            group.add_argument(flag, type=kind, default=None, help=HELP.get(field.name))


def _train(arguments: argparse.Namespace) -> None:
    from dynamask.cli.training import run_training

    run_training(arguments)
