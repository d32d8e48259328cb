"""Carry out ``dynamask train``: from its arguments to settings, data, model and run."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynamask.cli.common import check_folder, held_out
from dynamask.cli.recipes import apply_recipe
from dynamask.cli.stop_signals import StopSignals
from dynamask.cli.validation import Validation, evaluate_finished, open_validation, periodic
from dynamask.config import AggregationConfig, BaseModelConfig, ModelConfig, SoloConfig
from dynamask.data.copy_paste import CopyPaste
from dynamask.data.cut_outs import CutOuts
from dynamask.data.loaders import TrainingLoader
from dynamask.data.sources import (
    find_annotations,
    find_source,
    is_shapes,
    open_together,
    require_objects,
    with_mask_windows,
)
from dynamask.data.transforms import TrainingTransforms
from dynamask.engine.checkpoint import checkpoints
from dynamask.engine.distributed import Ranks, joined
from dynamask.engine.folder_lock import locked
from dynamask.engine.memory import keep_freed_memory
from dynamask.engine.run import CONTENTS, Run
from dynamask.engine.train import freeze, train
from dynamask.models.build import build_model
from dynamask.models.detectors.nanodet_weights import add_teacher, is_nanodet_source, load_nanodet
from dynamask.models.detectors.torchvision_weights import is_torchvision_source, load_torchvision_detector
from dynamask.models.hub import find_weights
from dynamask.models.weights import file_digest, initialise, save_model
from dynamask.ops.devices import resolve_device
from dynamask.presets import default_training, list_models, model_config
from dynamask.structures import DynaMaskError
from dynamask.training_config import LossConfig, TrainConfig

MASK_LOSSES = {"loss_reduction", "mask_weight", "dice_weight", "edge_weight"}
"""Weights of the losses that a mask branch without a switch has."""
ECHO_SECONDS = 2.0
"""Time after a signal in which torchrun may send the same signal to this process again."""


def run_training(arguments: argparse.Namespace) -> None:
    """Train, and evaluate at the end if there are validation images."""
    given_losses = given_fields(arguments, LossConfig)  # without those of a recipe
    apply_recipe(arguments)
    keep_freed_memory()
    device = arguments.device or default_training(arguments.model)[0].device
    with joined(device) as ranks, contextlib.ExitStack() as held:
        ranks.together(lambda: _check_arguments(arguments))
        ranks.from_first(lambda: held.enter_context(locked(arguments.out)))
        make_run, validation = ranks.together(lambda: _prepare_run(arguments, ranks, given_losses))
        run = make_run()
        actions = ranks.together(lambda: periodic(run, validation))
        if arguments.resume:
            run.resume()

        def save(run: Run) -> None:
            training = {"images_seen": run.step * run.config.batch_size, **run.settings}
            save_model(run.model, run.out / "last.safetensors", run.final_state(), training)

        with StopSignals(ECHO_SECONDS if ranks.size > 1 else 0.0) as stop:
            finished = train(run, on_save=save, should_stop=stop, periodic=actions)
        if finished:
            evaluate_finished(run, validation)
            return
        signal = next((name for name in ranks.gather(stop.received) if name), None)
        message = (
            f"{signal} at step {run.step}: the state is saved in {run.out}; the same command with --resume continues "
            "from there"
        )
        if signal == "SIGINT" and ranks.size == 1:  # a script must not go on as if the training were finished
            raise KeyboardInterrupt(message)
        if ranks.first:
            print(f"dynamask: {message}", file=sys.stderr)


def _prepare_run(
    arguments: argparse.Namespace, ranks: Ranks, given_losses: Collection[str]
) -> tuple[Callable[[], Run], Validation | None]:
    """Open the data and build the model.

    The run itself, whose constructor communicates with the other processes, is left to the caller.
    """
    config, loss_config = default_training(arguments.model)
    config = _scale_lr(dataclasses.replace(config, **given_fields(arguments, TrainConfig)), arguments, config)
    loss_config = dataclasses.replace(loss_config, **given_fields(arguments, LossConfig))
    device = resolve_device(ranks.device(config.device), mps=arguments.model in list_models(ModelConfig.FAMILY))
    config = dataclasses.replace(config, device=str(device) if ranks.size == 1 else device.type)
    dataset, indices = _training_data(arguments, config)
    config = with_epochs(config, arguments.epochs, len(dataset if indices is None else indices), ranks)
    validation = open_validation(arguments, dataset, bool(config.overlay_every))
    torch.manual_seed(config.seed)
    preset = model_config(arguments.model)
    classes = {"class_names": dataset.class_names, "category_ids": dataset.category_ids}
    built = dataclasses.replace(preset, **classes, **_given_model_fields(arguments, preset))
    if config.cut_outs:
        _check_cut_outs(built, arguments)
    model = build_model(built, arguments.backbone_weights, loss_config)
    _refuse_unused_losses(model, given_losses)
    if arguments.init is not None:
        _initialise(model, arguments)
    if arguments.teacher is not None:
        add_teacher(model, arguments.teacher)
    torch.manual_seed(config.seed)  # makes the following draws independent of the layers built so far
    if arguments.freeze is not None:
        freeze(model, arguments.freeze)
    part = (ranks.rank, ranks.size)
    loader = TrainingLoader(dataset, config.batch_size, config.seed, config.workers, indices, part)
    settings = {
        "train": dataclasses.asdict(config),
        "losses": dataclasses.asdict(loss_config),
        "model": model.config.to_dict(),
        **data_record(arguments),
        "split": arguments.split,
        "freeze": arguments.freeze,
        "teacher": arguments.teacher and Path(arguments.teacher).name,
        "merge_classes": arguments.merge_classes,
        "holdout": arguments.holdout,
    }
    settings = json.loads(json.dumps(settings))  # as they are after reading them from a file
    return partial(Run, model, loader, config, arguments.out, settings=settings, ranks=ranks), validation


def _check_cut_outs(config: BaseModelConfig, arguments: argparse.Namespace) -> None:
    """Refuse cut-outs, which have no class, where a class would be learned from them."""
    if arguments.merge_classes:
        return
    if not getattr(config, "class_agnostic", False):
        raise DynaMaskError("cut-outs have no class; give --class-agnostic or --merge-classes, or leave out --cut-outs")
    if config.detector_kind == "faster_rcnn" and arguments.freeze is None:
        raise DynaMaskError(
            "Faster R-CNN would learn a class from cut-outs, which have none; give --freeze detector or "
            "--merge-classes, or leave out --cut-outs"
        )


def data_record(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of the training data: ``data`` as it was given, a list if it was repeated, and names and hashes of the
    annotation files.

    Folders are left out of the names, so that a run can be resumed after its data was moved.
    """
    data = arguments.data[0] if len(arguments.data) == 1 else arguments.data or None
    names = [path.name for path in arguments.annotations]
    return {"data": data, "annotations": names, CONTENTS: _annotation_digests(arguments)}


def _annotation_digests(arguments: argparse.Namespace) -> list[str]:
    """SHA-256 of every annotation file; none for scenes and for data sets whose labels are pictures."""
    folders = [find_source(data, arguments.split) for data in arguments.data if not is_shapes(data)]
    given = [find_annotations(path) if path.is_dir() else path for path in arguments.annotations]
    files = [*(folder.annotations for folder in folders), *given]
    return [file_digest(path) for path in files if path.is_file()]


def with_epochs(config: TrainConfig, epochs: int | None, pictures: int, ranks: Ranks) -> TrainConfig:
    """With ``--epochs``, the schedule with the steps of as many passes over the training pictures, rounded up."""
    if epochs is None:
        return config
    iterations = -(-epochs * pictures // config.batch_size)
    if ranks.first:
        steps = f"{pictures} training pictures, {config.batch_size} per step: {iterations} steps"
        print(f"dynamask: --epochs {epochs} with {steps}", file=sys.stderr)
    return dataclasses.replace(config, iterations=iterations)


def _check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse combinations of arguments, and a folder that cannot be used."""
    if (arguments.val_images is None) != (arguments.val_annotations is None):
        raise DynaMaskError("--val-images and --val-annotations belong together; give both or neither")
    if arguments.epochs is not None and arguments.iterations is not None:
        raise DynaMaskError("--epochs and --iterations both set the length of the training; leave out one")
    check_folder(arguments.out)
    if arguments.init_part is not None and arguments.init is None:
        raise DynaMaskError("--init-part needs --init; give both")
    if arguments.teacher is not None and arguments.freeze is not None:
        raise DynaMaskError("--freeze keeps the detector from training, so --teacher has no effect; leave out one")
    if not arguments.resume and checkpoints(arguments.out):
        raise DynaMaskError(f"{arguments.out} holds a run already; add --resume to continue it or choose another --out")


def given_fields(arguments: argparse.Namespace, config: type, prefix: str = "") -> dict[str, Any]:
    """Fields of a configuration that were given as flags; the names of the flags begin with the prefix."""
    values = {field.name: getattr(arguments, prefix + field.name, None) for field in dataclasses.fields(config)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}


def _given_model_fields(arguments: argparse.Namespace, preset: BaseModelConfig) -> dict[str, Any]:
    """Fields of the model that were given as flags; flags that the model does not have are refused."""
    values = given_fields(arguments, type(preset))
    unknown = {**given_fields(arguments, ModelConfig), **given_fields(arguments, SoloConfig)}.keys() - values.keys()
    of_aggregation = given_fields(arguments, AggregationConfig, "agg_")
    aggregation = getattr(preset, "aggregation", None)
    if of_aggregation and aggregation:
        values["aggregation"] = dataclasses.replace(aggregation, **of_aggregation)
    elif of_aggregation:
        unknown |= {f"agg_{name}" for name in of_aggregation}
    if unknown:
        flag = min(unknown).replace("_", "-")
        raise DynaMaskError(f"{preset.name} has no --{flag}; leave it out or choose another model")
    return values


def _refuse_unused_losses(model: nn.Module, given: Collection[str]) -> None:
    """Refuse flags of losses that the model does not have."""
    branch, config = getattr(model, "mask_branch", None), model.config
    if branch is None:
        reason, used = f"{config.name} has no mask branch", set()
    elif branch.switch is not None:
        return
    elif branch.head.has_edges or set(given) - MASK_LOSSES:
        reason, used = (
            f"the mask branch {config.mask_branch} has no switch",
            MASK_LOSSES,
        )
    else:
        reason, used = f"the mask branch {config.mask_branch} predicts no edges", {"loss_reduction", "mask_weight"}
    unused = set(given) - used
    if unused:
        flag = min(unused).replace("_", "-")
        raise DynaMaskError(f"{reason}, so --{flag} would have no effect; leave it out or choose another model")


def _scale_lr(config: TrainConfig, arguments: argparse.Namespace, recipe: TrainConfig) -> TrainConfig:
    """With ``--scale-lr``, the learning rate multiplied by the ratio of the batch size to the recipe's."""
    if not arguments.scale_lr:
        return config
    if config.optimizer != "sgd":
        raise DynaMaskError("--scale-lr is the linear rule of SGD; with AdamW give the rate itself with --lr")
    return dataclasses.replace(config, lr=config.lr * config.batch_size / recipe.batch_size)


def _initialise(model: nn.Module, arguments: argparse.Namespace) -> None:
    """Load the weights of ``--init``."""
    if is_nanodet_source(model, arguments.init):
        if arguments.init_part not in (None, "detector"):
            raise DynaMaskError(f"{arguments.init} holds a whole detector and nothing else; leave out --init-part")
        message = load_nanodet(model, arguments.init, allow_other_classes=arguments.freeze is None)
        print(f"dynamask: {message}", file=sys.stderr)
        return
    if not is_torchvision_source(arguments.init):
        source, trains_detector = find_weights(arguments.init), arguments.freeze is None
        message = initialise(model, source, arguments.init_part, allow_new_classes=trains_detector)
        print(f"dynamask: {message}", file=sys.stderr)
        return
    unknown = load_torchvision_detector(model, arguments.init)
    if unknown and arguments.freeze is not None:
        raise DynaMaskError(
            f"COCO has no {', '.join(unknown[:5])}, so a frozen detector would never find it; leave out --freeze"
        )
    if unknown:
        warnings.warn(
            f"the box head has random weights for classes that COCO lacks: {', '.join(unknown)}", stacklevel=2
        )


def _training_data(arguments: argparse.Namespace, config: TrainConfig) -> tuple[Any, list[int] | None]:
    """The data set with its augmentation, and the indices of its training images (None: all)."""
    transforms = TrainingTransforms(
        photometric=config.jitter,
        crop=config.crop,
        scale_jitter=config.scale_jitter,
        jitter_size=config.jitter_size,
        hue=config.hue,
    )
    dataset = open_together(
        arguments.data,
        arguments.images,
        arguments.annotations,
        transforms=transforms,
        merge_classes=arguments.merge_classes,
        split=arguments.split,
    )
    require_objects(with_mask_windows(dataset))
    indices = held_out(dataset, arguments.holdout, False) if arguments.holdout else None
    if config.copy_paste:
        dataset = CopyPaste(dataset, config.copy_paste, indices)
    if config.cut_outs:
        dataset = CutOuts(dataset, config.cut_outs, indices)
    return dataset, indices
