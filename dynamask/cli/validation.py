"""Validation during and after ``dynamask train``: average precision, and overlays of the first images."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dynamask.cli.common import held_out, print_summary, write_json
from dynamask.data.sources import Data, open_data, open_together, with_mask_windows
from dynamask.engine.evaluate import EvaluationOptions, category_map, run_evaluation
from dynamask.engine.log import RunLog
from dynamask.engine.run import Run
from dynamask.engine.train import Periodic
from dynamask.predict import predictor_of
from dynamask.structures import DynaMaskError
from dynamask.viz.overlay import draw_prediction

OVERLAYS = 4
"""Number of images of which overlays are drawn."""
OVERLAY_SCORE = 0.5


@dataclass(frozen=True)
class Validation:
    """The images that a training is validated on.

    Attributes:
        dataset: without augmentation.
        indices: of the images in the data set.
        held_out: whether the training does not use them. Training images only serve for overlays.
    """

    dataset: Data
    indices: Sequence[int]
    held_out: bool

    def evaluate(self, run: Run) -> dict[str, Any]:
        """The figures of :func:`dynamask.engine.evaluate.run_evaluation` for the weights that the run keeps."""
        progress = sys.stderr.isatty() and run.ranks.first
        predictor = predictor_of(run.evaluation_model())
        options = EvaluationOptions(score=predictor.score_threshold)
        return run_evaluation(predictor, self.dataset, self.indices, options, progress, run.ranks)

    def log_figures(self, run: Run, log: RunLog | None) -> None:
        """Write average precision and costs to the log, without undefined figures."""
        summary = self.evaluate(run)
        if log is None:
            return
        values = {f"{kind}_{key}": summary[kind][key] for kind in ("bbox", "segm", "boundary") for key in summary[kind]}
        values["mean_macs_per_instance"] = summary["mean_macs_per_instance"]
        log.write_validation(run.step, {name: value for name, value in values.items() if value is not None})

    def log_overlays(self, run: Run, log: RunLog | None) -> None:
        """Log overlays of the first images by the weights that the run keeps."""
        if log is None:
            return
        predictor = predictor_of(run.evaluation_model())
        for number, index in enumerate(self.indices[:OVERLAYS]):
            image, _ = self.dataset[index]
            prediction = predictor(image, score=OVERLAY_SCORE)
            log.image(run.step, f"overlay/{number}", draw_prediction(prediction, named=True))


def open_validation(arguments: argparse.Namespace, training: Data, overlays: bool) -> Validation | None:
    """Open the validation images before the training starts, so that mistakes show at once.

    Args:
        arguments: of ``dynamask train``.
        training: the training data; its classes are those of the model.
        overlays: whether overlays are drawn; without images to validate on, they are drawn on training images.
    """
    if overlays and importlib.util.find_spec("tensorboard") is None:
        raise DynaMaskError("--overlay-every writes to TensorBoard; install it with `pip install 'dynamask[train]'`")
    given = (arguments.val_data, arguments.val_images, arguments.val_annotations)
    held = any(given) or bool(arguments.holdout)
    if not any(given) and arguments.val_split is not None:
        raise DynaMaskError("--val-split chooses a part of --val-data; give both")
    if not held and not overlays:
        return None
    if any(given):
        dataset = open_data(*given, training.class_names, split=arguments.val_split, default_split="val")
        category_map(training, dataset)
        return Validation(with_mask_windows(dataset), range(len(dataset)), True)
    sources = (arguments.data, arguments.images, arguments.annotations)
    dataset = open_together(*sources, training.class_names, split=arguments.split)
    indices = held_out(dataset, arguments.holdout, True) if held else range(len(dataset))
    return Validation(with_mask_windows(dataset), indices, held)


def periodic(run: Run, validation: Validation | None) -> list[Periodic]:
    """The evaluations and overlays during a run.

    Raises:
        DynaMaskError: ``--val-every`` without images to evaluate on.
    """
    config = run.config
    if config.val_every and (validation is None or not validation.held_out):
        raise DynaMaskError("--val-every needs pictures to evaluate on; give --val-data, --val-images or --holdout")
    if validation is None:
        return []
    return [
        Periodic(config.val_every, validation.log_figures),
        Periodic(config.overlay_every, validation.log_overlays),
    ]


def evaluate_finished(run: Run, validation: Validation | None) -> None:
    """Evaluate a finished run on its validation images, if it has any, and write ``evaluation.json``."""
    if validation is None or not validation.held_out:
        return
    summary = validation.evaluate(run)
    if run.ranks.first:
        print_summary(summary, None)
        write_json(summary, str(run.out / "evaluation.json"))
