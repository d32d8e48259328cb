"""The training loop: any model that returns named losses, any data set, one process or as many as torchrun starts.

python -m dynamask train --images DIR --annotations JSON --model NAME --out DIR [--resume]
torchrun --nproc-per-node N -m dynamask train …
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from tqdm import tqdm

from dynamask.data.loaders import Batch
from dynamask.engine.distributed import FAILED, FINE, STOP
from dynamask.engine.log import RunLog, SilentLog
from dynamask.engine.run import Run
from dynamask.engine.step import DETECTOR_LOSSES, as_float, loss_weights, picture_ids, total_loss, train_step
from dynamask.structures import DynaMaskError

__all__ = [
    "DETECTOR_LOSSES", "Periodic", "Run", "as_float", "freeze", "loss_weights", "picture_ids", "total_loss", "train",
    "train_step",
]  # fmt: skip


def freeze(model: nn.Module, part: str) -> None:
    """Stop gradients: part "detector" leaves the mask branch to train, "all-but-switch" the switch alone.

    The features of what is frozen are computed anew at every step.

    Raises:
        DynaMaskError: the model has nothing that would be left to train.
    """
    kept = {"detector": "mask_branch.", "all-but-switch": "mask_branch.switch."}[part]
    if not any(name.startswith(kept) for name, _ in model.named_parameters()):
        raise DynaMaskError(f"--freeze {part} leaves nothing to train: this mask branch has no switch; freeze less")
    for name, parameter in model.named_parameters():
        if not name.startswith(kept):
            parameter.requires_grad_(False)


@dataclass(frozen=True)
class Periodic:
    """Something that a training does besides: after every so many steps, in every process.

    Attributes:
        every: how many steps; 0 for never.
        act: called with the run and its log, which is silent in all processes but the first.
    """

    every: int
    act: Callable[[Run, RunLog], None]


def train(
    run: Run,
    on_save: Callable[[Run], None] | None = None,
    progress: bool = True,
    on_step: Callable[[Run, dict[str, float]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    periodic: Sequence[Periodic] = (),
) -> bool:
    """Train to ``config.iterations`` steps (or ``config.stop_at``), from wherever the run stands.

    The state is saved every ``config.save_every`` steps, at the end, when asked to stop, and before an unreadable
    picture ends the run. Calling it again goes on. Of several processes the first logs, saves and shows the bar; a
    stop that one is asked for, or an error of one, ends all of them at the same step.

    Args:
        run: its model's ``switch_enabled`` (if it has a mask branch) is off during the warm start, phase one.
        on_save: called in the first process after every checkpoint and at the end, to write weights.
        progress: show a bar with the time left.
        on_step: called with the run and the step's values (losses, "gradient_norm", "lr") after every step.
        should_stop: asked between steps; True saves the state and leaves.
        periodic: what else is done after every so many steps, in this order.

    Returns:
        Whether the last step is done; False after a stop.

    Raises:
        DynaMaskError: something is not finite, a picture cannot be read, or a file cannot be written. What was saved
            before is intact.
    """
    run.prepare()
    last = min(run.config.stop_at or run.config.iterations, run.config.iterations)
    asked, done, shown = should_stop or (lambda: False), None, progress and run.ranks.first
    with (
        contextlib.closing(RunLog(run.out, run.step) if run.ranks.first else SilentLog()) as log,
        tqdm(initial=run.step, total=last, disable=not shown, unit="step", dynamic_ncols=True) as bar,
    ):
        while run.step < last and not run.ranks.agree(stop=asked()):
            batch = _next_batch(run, asked)
            if batch is None:
                break
            values = _step(run, *batch)
            bar.update()
            if run.step % run.config.log_every == 0:
                log.write(run.step, values)
                bar.set_postfix(_shown(values))
            if on_step is not None:
                on_step(run, values)
            for besides in periodic:
                if besides.every and run.step % besides.every == 0:
                    besides.act(run, log)
            if run.step % run.config.save_every == 0:
                done = _checkpoint(run, log, on_save)
        if done != run.step:
            _checkpoint(run, log, on_save)
    return run.step >= last


def _shown(values: dict[str, float]) -> dict[str, str]:
    """What the bar says: the total, and the loss of the masks under its name, if the model has one."""
    shown = next((name for name in ("loss_mask", "loss_dice") if name in values), None)
    told = {"loss": values["loss"], **({shown.removeprefix("loss_"): values[shown]} if shown else {})}
    return {name: f"{value:.3f}" for name, value in told.items()}


def _checkpoint(run: Run, log: RunLog, on_save: Callable[[Run], None] | None) -> int:
    """Save the state and tell the caller; returns the step."""
    log.flush()
    if run.saved_step != run.step:
        run.save()
    if on_save is not None and run.ranks.first:
        on_save(run)
    return run.step


def _next_batch(run: Run, asked: Callable[[], bool]) -> Batch | None:
    """The next batch; None if there is none because the run is being stopped.

    If any process cannot have its own otherwise, the state is saved before that is said.
    """
    batch, error = None, None
    try:
        batch = next(run.loader)
    except Exception as caught:
        error = caught
    # whoever stops a process group stops the processes that read the pictures too
    verdict = run.ranks.worst(FINE if error is None else STOP if asked() else FAILED)
    if verdict == FINE:
        return batch
    if error is None:
        run.loader.give_back()
    if verdict == STOP:
        return None
    if run.step and run.saved_step != run.step:
        run.save()
    if run.step and isinstance(error, DynaMaskError):
        saved = f"{error}; the state of step {run.step} is saved in {run.out}, and --resume goes on from it"
        run.ranks.agree(error=_because(DynaMaskError(saved), error))
    run.ranks.agree(error=error)
    return None


def _because(error: DynaMaskError, cause: Exception) -> DynaMaskError:
    """The same error with its cause."""
    error.__cause__ = cause
    return error


def _step(run: Run, *batch: Any) -> dict[str, float]:
    """Take one step on (images, targets), the switch off during the warm start."""
    if run.branch is not None:
        run.branch.switch_enabled = run.step >= run.config.warm_start * run.config.iterations
    values = train_step(run, *batch)
    run.step += 1
    return values
