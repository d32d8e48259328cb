"""A training step of DynaMask, dense and refined, and of torchvision's Mask R-CNN: time and peak memory."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN

from benchmarks import harness
from benchmarks.inputs import Batch, generated_batches
from benchmarks.mask_branch import REFERENCE, Row
from benchmarks.mask_rcnn import PRESET
from benchmarks.mixed_regions import Refine
from dynamask.config import ModelConfig
from dynamask.engine.run import Run
from dynamask.engine.step import train_step
from dynamask.evaluation.efficiency import Case, interleave, rows_of
from dynamask.models.build import build_model
from dynamask.models.detectors.rcnn import LOSSES
from dynamask.models.detectors.torchvision_mask_rcnn import build_mask_rcnn
from dynamask.models.dynamask import DynaMask
from dynamask.predict import Predictor
from dynamask.presets import default_training, model_config


class RegionCount:
    """Counts the regions in the input of a module, with a forward hook."""

    def __init__(self, module: nn.Module) -> None:
        self.counts: list[int] = []
        module.register_forward_hook(lambda _module, inputs, _output: self.counts.append(len(inputs[0])))

    @property
    def mean(self) -> float:
        """Mean number of regions per forward pass."""
        return float(np.mean(self.counts)) if self.counts else 0.0


def trained_model(config: ModelConfig, refine: Refine, state: dict[str, Any] | None = None) -> DynaMask:
    """A model that trains all sizes and the switch with the losses of the preset.

    Args:
        refine: shares of the cells that the stages compute; None for dense stages.
        state: its weights; random by default.
    """
    settings = config if refine is None else dataclasses.replace(config, refine=refine)
    model = build_model(settings, loss_config=default_training(PRESET)[1])
    model.mask_branch.switch_enabled = True
    if state is not None:
        model.load_state_dict(state)
    return model


def models_to_train(predictor: Predictor, baseline: MaskRCNN, refine: Refine) -> dict[str, nn.Module]:
    """Copies of both models for training: "mask_rcnn", "dense" and, with a refinement, "refined"."""
    theirs = build_mask_rcnn(baseline.config)
    theirs.load_state_dict(baseline.state_dict())
    models: dict[str, nn.Module] = {REFERENCE: theirs}
    for name, shares in {"dense": None, **({} if refine is None else {"refined": refine})}.items():
        config = dense_config(predictor.model.config)
        models[name] = trained_model(config, shares, predictor.model.state_dict())
    return models


def dense_config(config: ModelConfig) -> ModelConfig:
    """The configuration without refinement."""
    return dataclasses.replace(config, refine=None)


def run_of(model: nn.Module, folder: Path) -> Run:
    """A training with the schedule of the preset."""
    config, losses = default_training(PRESET)
    weights = {**dict.fromkeys(LOSSES, 1.0), **losses.weights}
    return Run(model, None, config, folder, weights)  # type: ignore[arg-type]


def measure_training(models: dict[str, nn.Module], batches: list[Batch], rounds: int) -> list[Row]:
    """One optimiser step with the recipe of the preset on the same batches at the same sizes, with all losses."""
    counters = {name: RegionCount(_first_mask_layer(model)) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: run_of(model, Path(folder) / name) for name, model in models.items()}

        def step(name: str) -> Case:
            def once(number: int) -> None:
                torch.manual_seed(number + 1000)  # the same shorter side for all
                train_step(runs[name], *batches[number % len(batches)])

            return once

        times = interleave({name: step(name) for name in runs}, rounds)
    extra = {name: {"mask_regions_per_step": counter.mean} for name, counter in counters.items()}
    return rows_of("training step", times, REFERENCE, extra)


def _first_mask_layer(model: nn.Module) -> nn.Module:
    return model.mask_branch.region_fpn.base if isinstance(model, DynaMask) else model.roi_heads.mask_head


def peak_of_step(kind: str, refine: Refine, threads: int) -> int:
    """Peak memory of the first training step of the preset with random weights, bytes; in a separate process.

    The batch is one of :func:`generated_batches`. The step has all losses, and its peak includes the gradients and the
    state of the optimiser.

    Args:
        kind: "mask_rcnn", "dense" or "refined".
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = model_config(PRESET, class_names=("__background__", "person"))
    if kind == REFERENCE:
        model: nn.Module = build_mask_rcnn(config)
    else:
        model = trained_model(config, refine if kind == "refined" else None)
    (batch,) = generated_batches(1, default_training(PRESET)[0].batch_size)
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(model, Path(folder))
        return harness.peak_memory(lambda: train_step(run, *batch))


def measure_memory(script: str, refine: Refine, rounds: int) -> list[Row]:
    """Peak memory of a training step of each model, the largest of the rounds, each in a separate process.

    Args:
        script: prints :func:`peak_of_step` of the arguments "child", kind, the JSON of ``refine``, and threads.
    """
    kinds = [REFERENCE, "dense", *([] if refine is None else ["refined"])]
    peaks: dict[str, list[int]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, found in peaks.items():
            found.append(harness.in_child(script, "child", kind, json.dumps(refine), torch.get_num_threads()))
    most = {kind: max(found) for kind, found in peaks.items()}
    return [
        {
            "part": "training memory",
            "case": kind,
            "peak_bytes": peak,
            "ratio": peak / most[REFERENCE],
            "reference": REFERENCE,
        }
        for kind, peak in most.items()
    ]
