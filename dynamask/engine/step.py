"""One optimizer step: in one piece or in micro-batches, in one process or in several, in any precision."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynamask.engine.checkpoint import random_state, restore_random_state
from dynamask.engine.distributed import ReportedElsewhereError
from dynamask.engine.optimizer import lr_factor
from dynamask.engine.run import Run
from dynamask.ops.means import LOCAL_MEANS, CountingMeans, JointMeans, Means
from dynamask.structures import DynaMaskError

Target = dict[str, Any]
LEAST_LOSS_SCALE = 2.0**-10
"""If a gradient overflows float16 at this loss scale, the run stops instead of lowering the scale further."""


@dataclass
class MicroBatch:
    """A part of a process's batch, on the device of the run.

    Attributes:
        images: (3, H, W) float32 in [0, 1] each.
        targets: of the images.
        random_state: the random state in front of its counting pass, which its pass with gradients repeats.
    """

    images: list[Tensor]
    targets: list[Target]
    random_state: dict[str, Any] | None = None


def total_loss(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Weighted sum of named losses; a loss without a weight raises KeyError."""
    return torch.stack([losses[name] * weights[name] for name in losses]).sum()


def as_float(image: Tensor) -> Tensor:
    """(3, H, W) float32 in [0, 1] from an image in uint8 (0–255) or floating point ([0, 1])."""
    return image.float() if image.is_floating_point() else image.float().div_(255.0)


def train_step(run: Run, images: list[Tensor], targets: list[Target]) -> dict[str, float]:
    """Take one optimizer step.

    Args:
        run: its ``step`` is advanced by one.
        images: (3, H, W) each, uint8 or float in [0, 1]; with several processes, this process's share of the batch.
        targets: as the model expects them; "image_id" is used in messages.

    Returns:
        ``loss``, every named loss, ``gradient_norm`` and ``lr``; for a model with a switch also
        :meth:`dynamask.models.masks.branch.MaskBranch.size_figures`; in fp16 ``loss_scale``. The values are those of
        the whole batch, equal in every process.

    Raises:
        DynaMaskError: a loss or the gradient is not finite; the message names it and the image ids. No weight has
            changed.
    """
    factor = lr_factor(run.step, run.config)
    for group in run.optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    values, figures = _backward(run, _micro_batches(run, images, targets), targets)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    if run.scaler:
        run.scaler.unscale_(run.optimizer)
    norm = float(nn.utils.clip_grad_norm_(parameters, run.config.clip_norm or math.inf))
    if not math.isfinite(norm) and not (run.scaler and run.scaler.get_scale() > LEAST_LOSS_SCALE):
        raise _not_finite("the gradient", run, targets)
    if run.scaler:
        run.scaler.step(run.optimizer)  # skips the step if its gradient has overflowed, and halves the scale
        run.scaler.update()
        figures["loss_scale"] = run.scaler.get_scale()
    else:
        run.optimizer.step()
    if run.average:
        run.average.update(run.model)
    run.step += 1
    return {**values, "gradient_norm": norm, "lr": run.optimizer.param_groups[0]["lr"], **figures}


def _micro_batches(run: Run, images: list[Tensor], targets: list[Target]) -> list[MicroBatch]:
    """The batch of this process in ``config.accumulate`` equal parts."""
    device, count = run.device, run.config.accumulate
    if len(images) % count:
        raise DynaMaskError(
            f"{len(images)} pictures of a process cannot be divided into {count} micro-batches; give a batch size that "
            f"is a multiple of {run.ranks.size} processes × {count}"
        )
    moved = [as_float(image.to(device)) for image in images]
    placed = [
        {key: value.to(device) if isinstance(value, Tensor) else value for key, value in target.items()}
        for target in targets
    ]
    size = len(images) // count
    return [MicroBatch(moved[i : i + size], placed[i : i + size]) for i in range(0, len(images), size)]


def _backward(run: Run, batches: list[MicroBatch], targets: list[Target]) -> tuple[dict[str, float], dict[str, float]]:
    """Set the gradients of a step; returns its losses and the figures of the mask sizes."""
    parts = len(batches) * run.ranks.size
    means: Means = LOCAL_MEANS if parts == 1 else JointMeans(parts, run.ranks.sum)
    if len(batches) > 1 and run.averaging_module is not None:
        means = _count(run, batches)
    run.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    tally = torch.zeros(0)
    for number, batch in enumerate(batches, start=1):
        if batch.random_state is not None:
            restore_random_state(batch.random_state)
        last = number == len(batches)
        with _using(run, means), contextlib.nullcontext() if last else run.without_sync():
            losses = run.losses(batch.images, batch.targets)
            total = total_loss(losses, run.weights)
            for name, loss in {"loss": total, **losses}.items():
                sums[name] = sums.get(name, 0.0) + float(loss.detach())
            tally = tally + run.tally() if len(tally) else run.tally()
            if last:  # before the last backward pass, in which the processes meet
                values, tally = _joint_values(run, sums, tally, targets)
            if len(batches) > 1:
                total = total / len(batches)
            (run.scaler.scale(total) if run.scaler else total).backward()
    return values, run.branch.size_figures(tally) if len(tally) else {}


def _count(run: Run, batches: list[MicroBatch]) -> JointMeans:
    """The joint means of all micro-batches, from a pass over each without gradients."""
    counting = CountingMeans(run.ranks.sum)
    for batch in batches:
        batch.random_state = random_state()
        with torch.no_grad(), _using(run, counting):
            run.losses(batch.images, batch.targets, synchronised=False)
    return counting.counted(len(batches) * run.ranks.size)


@contextlib.contextmanager
def _using(run: Run, means: Means) -> Iterator[None]:
    """Let the model divide its losses by these means."""
    module = run.averaging_module
    if module is None:
        yield
        return
    before, module.means = module.means, means
    try:
        yield
    finally:
        module.means = before


def _joint_values(
    run: Run, sums: dict[str, float], tally: Tensor, targets: list[Target]
) -> tuple[dict[str, float], Tensor]:
    """Losses as means over all parts, and the tally of all processes; raises if a loss is not finite in any of them."""
    count = run.config.accumulate * run.ranks.size
    joint = run.ranks.sum(torch.cat([torch.tensor(list(sums.values()), dtype=torch.float64), tally.double()]))
    values = {name: value / count for name, value in zip(sums, joint[: len(sums)].tolist())}
    if not math.isfinite(values["loss"]):
        name = next((key for key, value in values.items() if key != "loss" and not math.isfinite(value)), "the total")
        raise _not_finite(name, run, targets if not math.isfinite(sums["loss"]) else [])
    return values, joint[len(sums) :]


def _not_finite(what: str, run: Run, targets: list[Target]) -> DynaMaskError:
    """The error for a loss or gradient that is not finite; it names the images given in all processes."""
    own = ", ".join(str(t["image_id"].item() if isinstance(t["image_id"], Tensor) else t["image_id"]) for t in targets)
    ids = ", ".join(part for part in run.ranks.gather(own) if part)
    left = "" if run.saved_step is None else f"; the state of step {run.saved_step} is intact"
    text = f"{what} is not finite at step {run.step} (pictures {ids}); lower the learning rate{left}"
    return DynaMaskError(text) if run.ranks.first else ReportedElsewhereError(text)
