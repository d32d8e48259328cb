"""Notebook 05: runs that train in a thread, the history of a run, and small models to train."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dynamask.data.loaders import TrainingLoader
from dynamask.data.shapes import CLASS_NAMES, ShapesDataset
from dynamask.data.transforms import TrainingTransforms
from dynamask.engine.evaluate import EvaluationOptions, collect
from dynamask.engine.frozen_features import FeatureCache
from dynamask.engine.frozen_switch import SwitchTraining, predict_logits
from dynamask.engine.run import Run
from dynamask.engine.train import train
from dynamask.evaluation.choices import shares
from dynamask.models.build import build_model
from dynamask.models.dynamask import DynaMask
from dynamask.models.masks.switch import MaskSwitchModule
from dynamask.models.weights import bundled_path, load_model
from dynamask.predict import TwoStagePredictor
from dynamask.presets import default_training, model_config
from dynamask.structures import MASK_SIZES
from dynamask.training_config import LossConfig


class History:
    """The values of every step of a run, and measurements after some of its steps.

    Attributes:
        steps: numbers of the steps, from 1.
        values: by name (losses, "gradient_norm", "lr") the value of every step.
        measured_at: steps after which something was measured.
        measured: the measurements, (4,) values by mask size each.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: dict[str, list[float]] = {}
        self.measured_at: list[int] = []
        self.measured: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.steps)

    def __call__(self, run: Run | SwitchTraining, values: dict[str, float]) -> None:
        """Add the values of a step; for ``on_step`` of :func:`dynamask.engine.train.train`."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)
        self.steps.append(run.step)

    def note(self, step: int, figures: np.ndarray) -> None:
        """Add a measurement (4,) after a step."""
        self.measured_at.append(step)
        self.measured.append(np.asarray(figures, dtype=np.float64))


class BackgroundTraining:
    """Trains a run in a thread, so that other cells can be run and a button can stop it.

    Args:
        run: the run, at any step.
        measure: returns (4,) values by mask size; called before the first step, every ``every`` steps and at the end.
        every: number of steps between two measurements.
        on_change: called after every step, in the thread of the training.

    Attributes:
        history: of the steps so far.
        seconds: training time so far, with the measurements.
    """

    def __init__(
        self,
        run: Run | SwitchTraining,
        measure: Callable[[], np.ndarray] | None = None,
        every: int = 10,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.run, self.measure, self.every, self.on_change = run, measure, every, on_change
        self.history, self.seconds = History(), 0.0
        self._stop, self._thread = threading.Event(), None
        self._error: BaseException | None = None

    @property
    def running(self) -> bool:
        """True while the thread trains."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """True if :meth:`stop` was called since the last start."""
        return self._stop.is_set()

    @property
    def finished(self) -> bool:
        """True after the last step."""
        return self.run.step >= self.run.config.iterations

    def start(self) -> BackgroundTraining:
        """Start or resume; without effect while the run trains and after its last step."""
        if not self.running and not self.finished:
            self._stop.clear()
            self._error = None
            self._thread = threading.Thread(target=self._work, name="training", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Stop after the current step, when the state is saved."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the training stops, or for a time; returns whether the last step is done.

        Raises:
            DynaMaskError: the error that ended the run.
        """
        if self._thread is not None:
            self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        return self.finished

    def _work(self) -> None:
        begun = time.monotonic()
        try:
            if not self.history.measured_at:
                self._measure()
            steps = self.run.train if isinstance(self.run, SwitchTraining) else partial(train, self.run, progress=False)
            steps(on_step=self._step, should_stop=self._stop.is_set)
            if self.history.measured_at and self.history.measured_at[-1] != self.run.step:
                self._measure()
        except BaseException as error:  # raised by wait()
            self._error = error
        self.seconds += time.monotonic() - begun
        self._changed()

    def _step(self, run: Run | SwitchTraining, values: dict[str, float]) -> None:
        self.history(run, values)
        if run.step % self.every == 0:
            self._measure()
        self._changed()

    def _measure(self) -> None:
        if self.measure is not None:
            self.history.note(self.run.step, self.measure())

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()


def fresh_mask_branch(weights: str, loss_config: LossConfig, seed: int = 0, **overrides: object) -> DynaMask:
    """A model with the detector of bundled weights and a new mask branch with random weights.

    Args:
        weights: bundled name.
        loss_config: of the new branch.
        seed: of its weights; the global random state is left as it is.
        overrides: fields of :class:`dynamask.config.ModelConfig`, such as ``mask_rois``.
    """
    with torch.random.fork_rng(devices=[]):
        stored = load_model(bundled_path(weights))
        torch.manual_seed(seed)
        model = build_model(dataclasses.replace(stored.config, **overrides), loss_config=loss_config)
    model.detector.load_state_dict(stored.detector.state_dict())
    return model


def iou_by_size(model: DynaMask, dataset: ShapesDataset, indices: Sequence[int]) -> np.ndarray:
    """(4,) mean mask IoU in true boxes when every instance of these scenes has the same size."""
    training = model.training
    options = EvaluationOptions(boxes="gt")
    found = collect(TwoStagePredictor(model), dataset, indices, options, every_size=True)
    model.train(training)
    return found.quality("mask_iou").mean(axis=0)


def masks_by_size(
    model: DynaMask, dataset: ShapesDataset, index: int, row: int
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """One object of a scene in its true box, and its predicted masks.

    Returns:
        The scene (H, W, 3) uint8, the true mask (H, W) bool, and the masks of the four sizes, coarse to fine.
    """
    training, (image, target) = model.training, dataset[index]
    box, label = target["boxes"][row : row + 1], target["labels"][row : row + 1].tolist()
    prediction = TwoStagePredictor(model)(image, boxes=box, labels=label, all_sizes=True)
    model.train(training)
    truth = target["masks"][row].numpy().astype(bool)
    return prediction.picture, truth, [prediction.mask_at(0, size).numpy() for size in MASK_SIZES]


SMALL_SCENES = (144, 176)
"""(height, width) in pixels of the scenes of :func:`small_run`."""


def small_run(out: Path, iterations: int, seed: int = 0, lr: float | None = None) -> Run:
    """A run of the whole small model on small scenes, from random weights (also of the backbone), by its recipe.

    Args:
        out: folder of the run.
        iterations: number of steps of two scenes each, without a warm start of the switch.
        seed: of the weights, the scenes, their order and the noise.
        lr: learning rate; by default the recipe's.
    """
    name = "dynamask_mobilenetv2_fpn_small"
    schedule, loss_config = default_training(name)
    changes = {"batch_size": 2, "iterations": iterations, "warm_start": 0.0, "warmup": 4, "seed": seed}
    config = dataclasses.replace(schedule, **changes, lr=lr or schedule.lr)
    side = SMALL_SCENES[0]
    torch.manual_seed(seed)
    net_config = model_config(name, class_names=CLASS_NAMES, min_sizes=(side,), test_min_size=side, mask_rois=1)
    model = build_model(net_config, loss_config=loss_config)
    scenes = ShapesDataset(10_000, seed, SMALL_SCENES, transforms=TrainingTransforms(photometric=config.jitter))
    settings = {"train": dataclasses.asdict(config), "losses": dataclasses.asdict(loss_config)}
    loader = TrainingLoader(scenes, config.batch_size, seed)
    return Run(model, loader, config, out, settings=json.loads(json.dumps(settings)))


def size_shares(switch: MaskSwitchModule, cache: FeatureCache) -> np.ndarray:
    """(4,) shares of the sizes that a switch chooses for the regions of a cache, by argmax and without noise."""
    return shares(chosen_sizes(switch, cache))


def chosen_sizes(switch: MaskSwitchModule, cache: FeatureCache) -> np.ndarray:
    """(N,) size indices that a switch chooses for the regions of a cache, by argmax and without noise."""
    return predict_logits(switch, cache).argmax(dim=1).numpy()


def spent(choice: np.ndarray, macs: np.ndarray) -> float:
    """Mean cost of size indices (N,) as a share of the finest size's, 0–1; ``macs`` (4,) of each size."""
    return float((np.asarray(macs, dtype=np.float64) / macs[-1])[choice].mean())
