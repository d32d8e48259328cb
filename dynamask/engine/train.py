"""The training loop: any model that returns named losses, any data set, one process.

python -m dynamask train --images DIR --annotations JSON --model NAME --out DIR [--resume]
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dynamask.config import LossConfig
from dynamask.data.loaders import Batch
from dynamask.engine.optimizer import lr_factor
from dynamask.engine.run import Run, RunLog
from dynamask.structures import DynaMaskError

DETECTOR_LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
ONE_STAGE_LOSSES = {"loss_category": 1.0, "loss_dice": 3.0, "loss_direct": 3.0, "loss_centerness": 1.0}
"""Weights of SOLO's losses, SODAR's two-stage loss and FCOS's centerness."""


def loss_weights(config: LossConfig) -> dict[str, float]:
    """Weight of every named loss (Eq. 7); the only place where λ1 and λ2 are applied."""
    return {
        **dict.fromkeys(DETECTOR_LOSSES, 1.0),
        "loss_mask": config.mask_weight,
        "loss_edge": config.edge_weight,
        "loss_boundary": config.boundary_weight,
        "loss_budget": config.switch_weight,
        "loss_entropy": config.switch_weight,
        **ONE_STAGE_LOSSES,
    }


def total_loss(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Weighted sum; a loss without a weight raises KeyError."""
    return torch.stack([losses[name] * weights[name] for name in losses]).sum()


def freeze(model: nn.Module, part: str) -> None:
    """Stop gradients: part "detector" leaves the mask branch to train, "all-but-switch" the switch alone.

    The features of what is frozen are computed anew at every step.

    Raises:
        DynaMaskError: the model has nothing that would be left to train.
    """
    kept = {"detector": ".mask_branch.", "all-but-switch": ".mask_branch.switch."}[part]
    if not any(kept in name for name, _ in model.named_parameters()):
        raise DynaMaskError(f"--freeze {part} leaves nothing to train: this mask branch has no switch; freeze less")
    for name, parameter in model.named_parameters():
        if kept not in name:
            parameter.requires_grad_(False)


def as_float(image: Tensor) -> Tensor:
    """(3, H, W) float32 in [0, 1] of a uint8 picture (0-255) or of a floating-point one that is in [0, 1] already."""
    return image.float() if image.is_floating_point() else image.float() / 255.0


def picture_ids(targets: list[dict[str, Any]]) -> str:
    """The pictures of a batch by their ids, for a message."""
    return ", ".join(str(t["image_id"].item() if isinstance(t["image_id"], Tensor) else t["image_id"]) for t in targets)


def train_step(run: Run, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, float]:
    """One optimiser step.

    Args:
        images: (3, H, W) each, uint8 or float in [0, 1].
        targets: as the model takes them; "image_id" is what messages name.

    Raises:
        DynaMaskError: a loss or the gradient is not finite; it is named with the picture ids, no weight has changed.
    """
    device, config = run.config.device, run.config
    factor = lr_factor(run.step, config)
    for group in run.optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    pictures = [as_float(image.to(device)) for image in images]
    moved = [
        {key: value.to(device) if isinstance(value, Tensor) else value for key, value in target.items()}
        for target in targets
    ]
    losses = run.model(pictures, moved)
    total = total_loss(losses, run.weights)
    if not torch.isfinite(total):
        name = next((key for key, value in losses.items() if not torch.isfinite(value)), "the total")
        raise _not_finite(name, run, targets)
    run.optimizer.zero_grad(set_to_none=True)
    total.backward()
    values = {name: float(value.detach()) for name, value in losses.items()}
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    values["gradient_norm"] = float(nn.utils.clip_grad_norm_(parameters, config.clip_norm or math.inf))
    if not math.isfinite(values["gradient_norm"]):
        raise _not_finite("the gradient", run, targets)
    run.optimizer.step()
    if run.average:
        run.average.update(run.model)
    return {"loss": float(total.detach()), **values, "lr": run.optimizer.param_groups[0]["lr"]}


def _not_finite(what: str, run: Run, targets: list[dict[str, Any]]) -> DynaMaskError:
    """Why a run stops, and what is left of it."""
    left = "" if run.saved_step is None else f"; the state of step {run.saved_step} is intact"
    return DynaMaskError(
        f"{what} is not finite at step {run.step} (pictures {picture_ids(targets)}); lower the learning rate{left}"
    )


def train(
    run: Run,
    on_save: Callable[[Run], None] | None = None,
    progress: bool = True,
    on_step: Callable[[Run, dict[str, float]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> bool:
    """Train to ``config.iterations`` steps (or ``config.stop_at``), from wherever the run stands.

    The state is saved every ``config.save_every`` steps, at the end, when asked to stop, and before an unreadable
    picture ends the run. Calling it again goes on.

    Args:
        run: its model's ``switch_enabled`` (if it has a mask branch) is off during the warm start, phase one.
        on_save: called after every checkpoint and at the end, to write weights or evaluate.
        progress: show a bar with the time left.
        on_step: called with the run and the step's values (losses, "gradient_norm", "lr") after every step.
        should_stop: asked between steps; True saves the state and leaves.

    Returns:
        Whether the last step is done; False after a stop.

    Raises:
        DynaMaskError: something is not finite, a picture cannot be read, or a file cannot be written. What was saved
            before is intact.
    """
    run.prepare()
    last = min(run.config.stop_at or run.config.iterations, run.config.iterations)
    asked, done = should_stop or (lambda: False), None
    with (
        contextlib.closing(RunLog(run.out, run.step)) as log,
        tqdm(initial=run.step, total=last, disable=not progress, unit="step", dynamic_ncols=True) as bar,
    ):
        while run.step < last and not asked():
            batch = _next_batch(run, asked)
            if batch is None:
                break
            values = _step(run, *batch)
            bar.update()
            if run.step % run.config.log_every == 0:
                log.write(run.step, values)
                bar.set_postfix(loss=f"{values['loss']:.3f}", mask=f"{values.get('loss_mask', math.nan):.3f}")
            if on_step is not None:
                on_step(run, values)
            if run.step % run.config.save_every == 0:
                done = _checkpoint(run, log, on_save)
        if done != run.step:
            _checkpoint(run, log, on_save)
    return run.step >= last


def _checkpoint(run: Run, log: RunLog, on_save: Callable[[Run], None] | None) -> int:
    """Save the state and tell the caller; returns the step."""
    log.flush()
    if run.saved_step != run.step:
        run.save()
    if on_save is not None:
        on_save(run)
    return run.step


def _next_batch(run: Run, asked: Callable[[], bool]) -> Batch | None:
    """The next batch; None if there is none because the run is being stopped.

    If it cannot be had otherwise, the state is saved before that is said.
    """
    try:
        return next(run.loader)
    except Exception as error:
        if asked():  # whoever stops a process group stops the processes that read the pictures too
            return None
        if run.step and run.saved_step != run.step:
            run.save()
        if run.step and isinstance(error, DynaMaskError):
            raise DynaMaskError(
                f"{error}; the state of step {run.step} is saved in {run.out}, and --resume goes on from it"
            ) from error
        raise


def _step(run: Run, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, float]:
    """Take one step, the switch off during the warm start."""
    branch = getattr(run.model, "mask_branch", None)
    if branch is not None:
        branch.switch_enabled = run.step >= run.config.warm_start * run.config.iterations
    values = train_step(run, images, targets)
    run.step += 1
    return values
