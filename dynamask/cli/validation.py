"""What ``dynamask train`` looks at on the way and at the end: average precision, and pictures with their masks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dynamask.cli.common import held_out, print_summary, write_json
from dynamask.data.sources import Data, open_data
from dynamask.engine.evaluate import EvaluationOptions, category_map, run_evaluation
from dynamask.engine.log import RunLog
from dynamask.engine.run import Run
from dynamask.engine.train import Periodic
from dynamask.predict import predictor_of
from dynamask.structures import DynaMaskError
from dynamask.viz.overlay import draw_prediction

OVERLAYS = 4
"""Pictures of which overlays are drawn."""
OVERLAY_SCORE = 0.5


@dataclass(frozen=True)
class Validation:
    """Pictures to look at.

    Attributes:
        dataset: without augmentation.
        indices: of the pictures in it.
        judged: whether they were kept back from training; otherwise they are its own, good for overlays alone.
    """

    dataset: Data
    indices: Sequence[int]
    judged: bool

    def evaluate(self, run: Run) -> dict[str, Any]:
        """The figures of :func:`dynamask.engine.evaluate.run_evaluation` for the weights to keep."""
        progress = sys.stderr.isatty() and run.ranks.first
        predictor = predictor_of(run.evaluation_model())
        options = EvaluationOptions(score=predictor.score_threshold)
        return run_evaluation(predictor, self.dataset, self.indices, options, progress, run.ranks)

    def log_figures(self, run: Run, log: RunLog) -> None:
        """Write the average precision and the cost to the log; undefined figures are left out."""
        summary = self.evaluate(run)
        values = {f"{kind}_{key}": summary[kind][key] for kind in ("bbox", "segm", "boundary") for key in summary[kind]}
        values["mean_macs_per_instance"] = summary["mean_macs_per_instance"]
        log.write_validation(run.step, {name: value for name, value in values.items() if value is not None})

    def log_overlays(self, run: Run, log: RunLog) -> None:
        """Draw the first pictures with the masks that the weights to keep give them, in the first process."""
        if not run.ranks.first:
            return
        predictor = predictor_of(run.evaluation_model())
        for number, index in enumerate(self.indices[:OVERLAYS]):
            image, _ = self.dataset[index]
            prediction = predictor(image, score=OVERLAY_SCORE)
            log.picture(run.step, f"overlay/{number}", draw_prediction(prediction, named=True))


def open_validation(arguments: argparse.Namespace, training: Data, overlays: bool) -> Validation | None:
    """The pictures to look at, as weights with the training's classes see them: those to evaluate on, else its own.

    They are opened before the training starts, so that a mistake costs nothing.

    Args:
        arguments: of ``dynamask train``.
        training: the data that is trained on.
        overlays: whether pictures are needed even where there are none to evaluate on.
    """
    own = (arguments.data, arguments.images, arguments.annotations)
    given = (arguments.val_data, arguments.val_images, arguments.val_annotations)
    judged = any(given) or bool(arguments.holdout)
    if not any(given) and arguments.val_split is not None:
        raise DynaMaskError("--val-split chooses a part of --val-data; give both")
    if not judged and not overlays:
        return None
    if any(given):
        dataset = open_data(*given, training.class_names, split=arguments.val_split, default_split="val")
        category_map(training, dataset)
    else:
        dataset = open_data(*own, training.class_names, split=arguments.split)
    indices = range(len(dataset)) if any(given) or not judged else held_out(dataset, arguments.holdout, True)
    return Validation(dataset, list(indices), judged)


def periodic(run: Run, validation: Validation | None) -> list[Periodic]:
    """What a run does with these pictures on its way.

    Raises:
        DynaMaskError: evaluations are asked for, and there is nothing to evaluate on.
    """
    config = run.config
    if config.val_every and (validation is None or not validation.judged):
        raise DynaMaskError("--val-every needs pictures to evaluate on; give --val-data, --val-images or --holdout")
    if validation is None:
        return []
    return [
        Periodic(config.val_every, validation.log_figures),
        Periodic(config.overlay_every, validation.log_overlays),
    ]


def evaluate_finished(run: Run, validation: Validation | None) -> None:
    """Evaluate a finished run on its validation pictures, if it has any, and write ``evaluation.json``."""
    if validation is None or not validation.judged:
        return
    summary = validation.evaluate(run)
    if run.ranks.first:
        print_summary(summary, None)
        write_json(summary, str(run.out / "evaluation.json"))
