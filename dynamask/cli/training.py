"""Carry out ``dynamask train``: flags to settings, data, model and run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from dynamask.cli.common import check_folder, held_out
from dynamask.cli.recipes import fill_in
from dynamask.cli.stop_signals import StopSignals
from dynamask.cli.validation import Validation, evaluate_finished, open_validation, periodic
from dynamask.config import AggregationConfig, LossConfig, ModelConfig, SoloConfig, TrainConfig
from dynamask.data.copy_paste import CopyPaste
from dynamask.data.loaders import TrainingLoader
from dynamask.data.sources import open_data
from dynamask.data.transforms import TrainingTransforms
from dynamask.engine.checkpoint import checkpoints
from dynamask.engine.distributed import Ranks, check_device, joined
from dynamask.engine.memory import keep_freed_memory
from dynamask.engine.run import Run
from dynamask.engine.train import freeze, train
from dynamask.models.build import build_model
from dynamask.models.detectors.torchvision_weights import is_torchvision_source, load_torchvision_detector
from dynamask.models.dynamask import DynaMask
from dynamask.models.hub import find_weights
from dynamask.models.solo.model import SoloNet
from dynamask.models.weights import initialise, save_model
from dynamask.presets import default_training, model_config
from dynamask.structures import DynaMaskError

ECHO = 2.0
"""Seconds in which a second signal is torchrun passing on the first."""
_OF_EVERY_BRANCH = ("mask_weight", "edge_weight")
"""Fields of the losses that need no switch."""


def given_fields(arguments: argparse.Namespace, config: type, prefix: str = "") -> dict[str, Any]:
    """Fields of a configuration that were given as flags, whose names begin with the prefix."""
    values = {f.name: getattr(arguments, prefix + f.name, None) for f in dataclasses.fields(config)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}


def _given_model(arguments: argparse.Namespace, config: ModelConfig | SoloConfig) -> dict[str, Any]:
    """Fields of the model that were given as flags; a flag of the other family is refused."""
    own, both = type(config), (ModelConfig, SoloConfig)
    foreign = {name for kind in both if kind is not own for name in given_fields(arguments, kind)}
    foreign = sorted(foreign - {field.name for field in dataclasses.fields(own)})
    values, moved = given_fields(arguments, own), given_fields(arguments, AggregationConfig, "agg_")
    aggregation = getattr(config, "aggregation", None)
    foreign += [] if aggregation else [f"agg_{name}" for name in moved]
    if foreign:
        raise DynaMaskError(
            f"{config.name} has no --{foreign[0].replace('_', '-')}; leave it away or choose another model"
        )
    return {**values, "aggregation": dataclasses.replace(aggregation, **moved)} if moved else values


def _refuse_idle_losses(model: DynaMask | SoloNet, given: Sequence[str]) -> None:
    """Refuse flags of losses that a model does not have: those of a switch, of edges, or of a mask branch at all."""
    branch, name = getattr(model, "mask_branch", None), model.config.name
    if branch is None:
        lacks, idle = f"{name} has no mask branch", given
    elif branch.switch is None:
        lacks, idle = f"the mask branch {model.config.mask_branch} has no switch", set(given) - {*_OF_EVERY_BRANCH}
        if not idle and not branch.head.has_edges:
            lacks, idle = f"the mask branch {model.config.mask_branch} predicts no edges", {*given} & {"edge_weight"}
    else:
        return
    if idle:
        flag = "--" + min(idle).replace("_", "-")
        raise DynaMaskError(f"{lacks}, so {flag} would have no effect; leave it away or choose another model")


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything of a training that a process makes by itself."""

    model: DynaMask | SoloNet
    loader: TrainingLoader
    config: TrainConfig
    loss_config: LossConfig
    settings: dict[str, Any]
    validation: Validation | None


def run_training(arguments: argparse.Namespace) -> None:
    """Train as the flags say, and evaluate at the end where there are pictures for it."""
    losses = given_fields(arguments, LossConfig)  # before a recipe adds its own, which may not apply
    fill_in(arguments)
    keep_freed_memory()
    with joined(arguments.device or default_training(arguments.model)[0].device) as ranks:
        plan = ranks.together(lambda: _plan(arguments, ranks, list(losses)))
        run = Run(plan.model, plan.loader, plan.config, arguments.out, settings=plan.settings, ranks=ranks)
        besides = ranks.together(lambda: periodic(run, plan.validation))
        if arguments.resume:
            run.resume()

        def save(state: Run) -> None:
            training = {"images_seen": state.step * state.config.batch_size, **state.settings}
            save_model(plan.model, arguments.out / "last.safetensors", state.final_state(), training)

        with StopSignals(ECHO if ranks.size > 1 else 0.0) as stop:
            finished = train(run, on_save=save, should_stop=stop, periodic=besides)
        if finished:
            evaluate_finished(run, plan.validation)
        else:
            name = next((name for name in ranks.gather(stop.received) if name), None)
            if ranks.first:
                print(
                    f"dynamask: {name} at step {run.step}: the state is saved in {arguments.out}; "
                    "the same command with --resume goes on from there",
                    file=sys.stderr,
                )


def _plan(arguments: argparse.Namespace, ranks: Ranks, losses: Sequence[str]) -> _Plan:
    """Check what was given, the fields of the losses among it, open the data and build the model."""
    if (arguments.val_images is None) != (arguments.val_annotations is None):
        raise DynaMaskError("--val-images and --val-annotations belong together; give both or neither")
    check_folder(arguments.out)
    if arguments.init_part is not None and arguments.init is None:
        raise DynaMaskError("--init-part says what to take of --init; give --init as well")
    if not arguments.resume and checkpoints(arguments.out):
        raise DynaMaskError(
            f"{arguments.out} holds a run already; add --resume to go on with it or choose another --out"
        )
    net_config, (config, loss_config) = model_config(arguments.model), default_training(arguments.model)
    config = _scaled(dataclasses.replace(config, **given_fields(arguments, TrainConfig)), arguments, config.batch_size)
    loss_config = dataclasses.replace(loss_config, **given_fields(arguments, LossConfig))
    check_device(ranks.device(config.device))
    dataset, indices = _training_data(arguments, config)
    validation = open_validation(arguments, dataset, bool(config.overlay_every))
    torch.manual_seed(config.seed)
    net_config = dataclasses.replace(
        net_config,
        class_names=dataset.class_names,
        category_ids=dataset.category_ids,
        **_given_model(arguments, net_config),
    )
    model = build_model(net_config, arguments.backbone_weights, loss_config)
    _refuse_idle_losses(model, losses)
    if arguments.init is not None:
        _initialise(model, arguments)
    torch.manual_seed(config.seed)  # what is drawn from here on does not depend on the layers that were built
    if arguments.freeze is not None:
        freeze(model, arguments.freeze)
    settings = _settings(arguments, config, loss_config, net_config)
    part = (ranks.rank, ranks.size)
    loader = TrainingLoader(dataset, config.batch_size, config.seed, config.workers, indices, part)
    return _Plan(model, loader, config, loss_config, settings, validation)


def _scaled(config: TrainConfig, arguments: argparse.Namespace, recipe_batch: int) -> TrainConfig:
    """The learning rate for the batch that was asked for, under ``--scale-lr``."""
    if not arguments.scale_lr:
        return config
    if config.optimizer != "sgd":
        raise DynaMaskError("--scale-lr is the linear rule of SGD; with AdamW give the rate itself with --lr")
    return dataclasses.replace(config, lr=config.lr * config.batch_size / recipe_batch)


def _initialise(model: DynaMask | SoloNet, arguments: argparse.Namespace) -> None:
    """Weights to start from: a model of ours, or torchvision's detector, whose classes are told."""
    if not is_torchvision_source(arguments.init):
        taken = initialise(model, find_weights(arguments.init), arguments.init_part)
        print(f"dynamask: {taken}", file=sys.stderr)
        return
    if not isinstance(model, DynaMask):
        raise DynaMaskError("torchvision's detector fits the two-stage models alone; give --backbone-weights instead")
    unknown = load_torchvision_detector(model, arguments.init)
    if unknown and arguments.freeze is not None:
        raise DynaMaskError(
            f"COCO has no {', '.join(unknown[:5])}, so a frozen detector would never find it; leave --freeze away"
        )
    if unknown:
        warnings.warn(f"the box head starts anew for classes that COCO lacks: {', '.join(unknown)}", stacklevel=2)


def _settings(
    arguments: argparse.Namespace, config: TrainConfig, loss_config: LossConfig, net_config: ModelConfig | SoloConfig
) -> dict[str, Any]:
    """What makes the run the run that it is, as JSON values: kept with its weights, and compared when it is resumed."""
    values = {
        "train": dataclasses.asdict(config),
        "losses": dataclasses.asdict(loss_config),
        "model": net_config.to_dict(),
        "data": arguments.data,
        "split": arguments.split,
        "freeze": arguments.freeze,
        "merge_classes": arguments.merge_classes,
        "holdout": arguments.holdout,
    }
    return json.loads(json.dumps(values))


def _training_data(arguments: argparse.Namespace, config: TrainConfig) -> tuple[Any, list[int] | None]:
    """The pictures to train on with their augmentation, and which of them (None: all)."""
    transforms = TrainingTransforms(
        photometric=config.jitter,
        crop=config.crop,
        scale_jitter=config.scale_jitter,
        jitter_size=config.jitter_size,
    )
    dataset = open_data(
        *(arguments.data, arguments.images, arguments.annotations),
        transforms=transforms,
        merge_classes=arguments.merge_classes,
        split=arguments.split,
    )
    indices = held_out(dataset, arguments.holdout, False) if arguments.holdout else None
    if config.copy_paste:
        dataset = CopyPaste(dataset, config.copy_paste, indices)
    return dataset, indices
