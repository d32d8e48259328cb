"""The switch trained alone on cached features, with the losses that ``dynamask train`` has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamask.config import LossConfig, TrainConfig
from dynamask.engine.cached_features import Cache
from dynamask.engine.optimizer import WeightAverage, build_optimizer, lr_factor
from dynamask.engine.train import loss_weights, total_loss
from dynamask.models.masks.losses import switch_losses
from dynamask.models.masks.switch import MaskSwitchModule
from dynamask.structures import DynaMaskError

SCHEDULE = TrainConfig(
    batch_size=64,
    iterations=500,
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.02,
    warmup=25,
    schedule="cosine",
    clip_norm=10.0,
    warm_start=0.0,
    ema_decay=0.99,
)
"""The small preset's schedule, shortened to what the switch alone needs; a batch is counted in regions here."""


@dataclass(frozen=True)
class Signals:
    """What the losses read of a cache, in memory as they need it.

    Attributes:
        feature: (N, C, 14, 14) float32.
        mask_loss, edge_loss, boundary_error, overlap_error: (N, 4) float32.
        fractions: (4,) cost of each size as a fraction of the full branch's.
    """

    feature: Tensor
    mask_loss: Tensor
    edge_loss: Tensor
    boundary_error: Tensor
    overlap_error: Tensor
    fractions: Tensor

    @classmethod
    def of(cls, cache: Cache) -> Signals:
        """The signals of all rows of a cache."""
        fractions = torch.from_numpy(cache.macs / cache.macs[-1]).float()
        errors = (cache.boundary_error, cache.overlap_error)
        return cls(cache.feature.float(), cache.mask_loss, cache.edge_loss, *errors, fractions)

    def error(self, config: LossConfig) -> Tensor:
        """(N, 4) what :meth:`dynamask.models.masks.branch.MaskBranch.size_error` gives under a configuration."""
        return torch.lerp(self.boundary_error, self.overlap_error, config.overlap_share)


def check_config(config: LossConfig) -> None:
    """Refuse losses that a cache cannot tell apart: its features are computed, no gradient reaches them."""
    if not config.detach_switch:
        raise DynaMaskError("features in a cache take no gradients: compare --no-detach-switch by training the branch")


def train_switch(
    signals: Signals,
    switch: MaskSwitchModule,
    config: LossConfig,
    schedule: TrainConfig,
    seed: int,
    on_step: Callable[[int, MaskSwitchModule], None] | None = None,
    without: Sequence[str] = (),
) -> MaskSwitchModule:
    """Train a switch on cached features with the losses that ``dynamask train`` has.

    Args:
        switch: changed in place.
        config: of the losses; weights are applied as :func:`dynamask.engine.train.loss_weights` has them.
        schedule: its batch is counted in regions.
        seed: of the order of the regions and of the Gumbel noise.
        without: names of losses that are left out, such as "loss_entropy", to see what they are for.
        on_step: called with the number of steps taken and the switch as it is then, without the average.

    Returns:
        The switch, with the moving average of its weights if the schedule has one.
    """
    check_config(config)
    torch.manual_seed(seed)
    weights, optimizer = loss_weights(config) | dict.fromkeys(without, 0.0), build_optimizer(switch, schedule)
    average = WeightAverage(switch, schedule.ema_decay) if schedule.ema_decay else None
    error, order = signals.error(config), torch.empty(0, dtype=torch.int64)
    for step in range(schedule.iterations):
        while len(order) < schedule.batch_size:
            order = torch.cat([order, torch.randperm(len(signals.feature))])
        rows, order = order[: schedule.batch_size], order[schedule.batch_size :]
        logits = switch(signals.feature[rows])
        tables = (signals.mask_loss[rows], signals.edge_loss[rows], error[rows])
        total = total_loss(switch_losses(logits, signals.fractions, *tables, config), weights)
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * lr_factor(step, schedule)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(switch.parameters(), schedule.clip_norm)
        optimizer.step()
        if average:
            average.update(switch)
        if on_step:
            on_step(step + 1, switch)
    if average:
        switch.load_state_dict(average.state)
    return switch


@torch.inference_mode()
def logits_of(switch: MaskSwitchModule, cache: Cache) -> Tensor:
    """(N, 4) logits of a switch on all rows of a cache."""
    return torch.cat([switch(part.float()) for part in cache.feature.split(256)])
