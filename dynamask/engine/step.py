"""One optimiser step: its batch in one piece or in micro-batches, in one process or in several, in any precision."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from dynamask.config import LossConfig
from dynamask.engine.optimizer import lr_factor
from dynamask.engine.run import Run
from dynamask.ops.means import LOCAL_MEANS, CountingMeans, JointMeans, Means
from dynamask.structures import MASK_SIZES, DynaMaskError, ReportedElsewhereError

Target = dict[str, Any]
DETECTOR_LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
LEAST_LOSS_SCALE = 2.0**-10
"""A gradient that overflows float16 even at this scale is none that more scaling mends."""


def loss_weights(config: LossConfig) -> dict[str, float]:
    """Weight of every named loss (Eq. 7); the only place where λ1 and λ2 are applied."""
    return {
        **dict.fromkeys(DETECTOR_LOSSES, 1.0),
        "loss_mask": config.mask_weight,
        "loss_edge": config.edge_weight,
        "loss_boundary": config.boundary_weight,
        "loss_budget": config.switch_weight,
        "loss_entropy": config.switch_weight,
    }


def one_stage_weights(direct_weight: float = 0.0) -> dict[str, float]:
    """Weights of SOLO's losses (1 and 3), of SODAR's two-stage loss, beside its dice loss, and of FCOS's centerness."""
    return {"loss_category": 1.0, "loss_dice": 3.0, "loss_direct": 3.0 * direct_weight, "loss_centerness": 1.0}


def total_loss(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Weighted sum; a loss without a weight raises KeyError."""
    return torch.stack([losses[name] * weights[name] for name in losses]).sum()


def as_float(image: Tensor) -> Tensor:
    """(3, H, W) float32 in [0, 1] of a uint8 picture (0-255) or of a floating-point one that is in [0, 1] already."""
    return image.float() if image.is_floating_point() else image.float() / 255.0


def picture_ids(targets: list[Target]) -> str:
    """The pictures of a batch by their ids, for a message."""
    return ", ".join(str(t["image_id"].item() if isinstance(t["image_id"], Tensor) else t["image_id"]) for t in targets)


def train_step(run: Run, images: list[Tensor], targets: list[Target]) -> dict[str, float]:
    """One optimiser step.

    Args:
        images: (3, H, W) each, uint8 or float in [0, 1]; of several processes, this one's share of the batch.
        targets: as the model takes them; "image_id" is what messages name.

    Returns:
        ``loss``, every named loss, ``gradient_norm``, ``lr``; of a model with a switch also :func:`size_figures`; in
        fp16 ``loss_scale``. They are those of the whole batch, the same in every process.

    Raises:
        DynaMaskError: a loss or the gradient is not finite; it is named with the picture ids, no weight has changed.
    """
    config = run.config
    factor = lr_factor(run.step, config)
    for group in run.optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    values, sizes = _gradients(run, images, targets)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    if run.scaler:
        run.scaler.unscale_(run.optimizer)
    values["gradient_norm"] = float(nn.utils.clip_grad_norm_(parameters, config.clip_norm or math.inf))
    if not math.isfinite(values["gradient_norm"]) and not (run.scaler and run.scaler.get_scale() > LEAST_LOSS_SCALE):
        raise _not_finite("the gradient", run, targets)
    if run.scaler:
        run.scaler.step(run.optimizer)  # leaves a step out whose gradient overflowed, and halves the scale
        run.scaler.update()
        sizes["loss_scale"] = run.scaler.get_scale()
    else:
        run.optimizer.step()
    if run.average:
        run.average.update(run.model)
    return {**values, "lr": run.optimizer.param_groups[0]["lr"], **sizes}


def _gradients(run: Run, images: list[Tensor], targets: list[Target]) -> tuple[dict[str, float], dict[str, float]]:
    """Set the gradients of a step; returns its losses and what its regions were given."""
    pieces = _micro_batches(run, images, targets)
    known = _recorded_means(run, pieces) if len(pieces) > 1 and run.normalising is not None else None
    means = known or (JointMeans(run.ranks.size, run.ranks.sum) if run.ranks.size > 1 else LOCAL_MEANS)
    run.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    tally = torch.zeros(2 + len(MASK_SIZES))
    for number, (state, pictures, moved) in enumerate(pieces, start=1):
        if known:
            run.set_random(state)
        last = number == len(pieces)
        with _means_of(run, means), contextlib.nullcontext() if last else run.without_sync():
            losses = run.losses(pictures, moved)
            total = total_loss(losses, run.weights)
            for name, loss in {"loss": total, **losses}.items():
                sums[name] = sums.get(name, 0.0) + float(loss.detach())
            tally = tally + getattr(run.branch, "tally", tally * 0).to(tally)
            if last:
                values, tally = _of_all(run, sums, tally, targets)
            if len(pieces) > 1:
                total = total / len(pieces)
            (run.scaler.scale(total) if run.scaler else total).backward()
    return values, size_figures(run, tally)


def _micro_batches(run: Run, images: list[Tensor], targets: list[Target]) -> list[tuple[Any, list[Tensor], list[Any]]]:
    """The batch in equal pieces, on the device of the run; each with a place for its random state."""
    device, count = run.device, run.config.accumulate
    if len(images) % count:
        raise DynaMaskError(
            f"{len(images)} pictures of a process cannot be divided into {count} micro-batches; give a batch size that "
            f"is a multiple of {run.ranks.size} processes × {count}"
        )
    pictures = [as_float(image.to(device)) for image in images]
    moved = [
        {key: value.to(device) if isinstance(value, Tensor) else value for key, value in target.items()}
        for target in targets
    ]
    size = len(images) // count
    return [(None, pictures[i : i + size], moved[i : i + size]) for i in range(0, len(images), size)]


def _recorded_means(run: Run, pieces: list[tuple[Any, list[Tensor], list[Any]]]) -> JointMeans:
    """The joint means of all micro-batches, from a pass over each without gradients.

    A mask branch leaves its region stages out in it, SOLO's models every layer.

    The random state before every piece is kept in it, so that the pass with gradients draws the same.
    """
    recorded = CountingMeans(run.ranks.sum)
    for number, (_, pictures, moved) in enumerate(pieces):
        pieces[number] = (run.random(), pictures, moved)
        with torch.no_grad(), _means_of(run, recorded):
            run.losses(pictures, moved, alone=True)
    return recorded.counted(len(pieces) * run.ranks.size)


@contextlib.contextmanager
def _means_of(run: Run, means: Means) -> Any:
    """What normalises its losses by counts does so by these means while it lasts; another model is left alone."""
    module = run.normalising
    if module is None:
        yield
        return
    before, module.means = module.means, means
    try:
        yield
    finally:
        module.means = before


def _of_all(run: Run, sums: dict[str, float], tally: Tensor, targets: list[Target]) -> tuple[dict[str, float], Tensor]:
    """Losses as means over all parts and the tally of all processes; refuses a loss that is not finite in any."""
    count = run.config.accumulate * run.ranks.size
    told = run.ranks.sum(torch.cat([torch.tensor(list(sums.values()), dtype=torch.float64), tally.double()]))
    values = {name: value / count for name, value in zip(sums, told[: len(sums)].tolist())}
    if not math.isfinite(values["loss"]):
        name = next((key for key, value in values.items() if key != "loss" and not math.isfinite(value)), "the total")
        raise _not_finite(name, run, targets if not math.isfinite(sums["loss"]) else [])
    return values, told[len(sums) :]


def size_figures(run: Run, tally: Tensor) -> dict[str, float]:
    """What the switch would choose for the regions of a step; empty for a model without one.

    Returns:
        ``share_14`` … of the regions, ``mean_macs`` per instance of these choices, ``expected_macs`` under the switch's
        probabilities, and ``target_macs``, C_t, which Eq. 5 holds the latter against. All but the target are 0 where
        the step had no region.
    """
    if run.branch is None or not hasattr(run.branch, "tally"):
        return {}
    macs = run.branch.costs.macs_per_instance
    regions, expected, *chosen = tally.tolist()
    shares = [number / max(regions, 1.0) for number in chosen]
    return {
        **{f"share_{size}": share for size, share in zip(MASK_SIZES, shares)},
        "mean_macs": sum(share * cost for share, cost in zip(shares, macs)),
        "expected_macs": expected / max(regions, 1.0) * macs[-1],
        "target_macs": run.branch.loss_config.budget_target * macs[-1],
    }


def _not_finite(what: str, run: Run, targets: list[Target]) -> DynaMaskError:
    """Why a run stops, and what is left of it; the pictures are those of every process that has some."""
    pictures = ", ".join(ids for ids in run.ranks.gather(picture_ids(targets)) if ids)
    left = "" if run.saved_step is None else f"; the state of step {run.saved_step} is intact"
    text = f"{what} is not finite at step {run.step} (pictures {pictures}); lower the learning rate{left}"
    return DynaMaskError(text) if run.ranks.first else ReportedElsewhereError(text)
