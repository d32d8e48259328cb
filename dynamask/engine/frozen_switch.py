"""Training the switch or the quality head alone on the cached features of a frozen model; it takes seconds.

cache = build_cache(predictor, dataset, range(len(dataset)), views=1, seed=0, about={})
switch = train_switch(cache, LossConfig(switch_signal="boundary"))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dynamask.engine.frozen_features import FeatureCache
from dynamask.engine.optimizer import WeightAverage, build_optimizer, lr_factor
from dynamask.engine.step import total_loss
from dynamask.models.masks import losses
from dynamask.models.masks.quality_head import QualityHead, quality_loss
from dynamask.models.masks.switch import MaskSwitchModule, sample_gumbel
from dynamask.structures import DynaMaskError
from dynamask.training_config import LossConfig, TrainConfig

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
"""Default schedule of the switch alone; ``batch_size`` counts regions."""


class CachedTraining:
    """Trains a small module on the rows of a cache, step by step.

    The order of the rows comes from a generator of the training's own, so a training is determined by its seed.

    Args:
        module: what is trained; put into training mode.
        cache: rows to learn from.
        config: schedule, optimizer and moving average; ``batch_size`` counts regions.
        seed: of the order of the rows.

    Attributes:
        cache: may be replaced between steps; the rows of a new cache are used from the next epoch on.
        step: number of steps done.
    """

    def __init__(self, module: nn.Module, cache: FeatureCache, config: TrainConfig, seed: int) -> None:
        self.cache, self.config = cache, config
        self.step = 0
        self._module = module.train()
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)
        self._optimizer = build_optimizer(module, config)
        self._average = WeightAverage(module, config.ema_decay) if config.ema_decay else None

    def losses(self, rows: Tensor) -> dict[str, Tensor]:
        """Named losses of some rows of the cache, unweighted."""
        raise NotImplementedError

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each named loss."""
        raise NotImplementedError

    def take_step(self) -> dict[str, float]:
        """One optimizer step.

        Returns:
            ``loss`` (the weighted total), every named loss, ``gradient_norm`` and ``lr``.
        """
        while len(self._order) < self.config.batch_size:
            self._order = torch.cat([self._order, torch.randperm(len(self.cache), generator=self._generator)])
        rows, self._order = self._order[: self.config.batch_size], self._order[self.config.batch_size :]
        named = self.losses(rows)
        total = total_loss(named, self.weights)
        lr = self.config.lr * lr_factor(self.step, self.config)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self._module.parameters(), self.config.clip_norm)
        self._optimizer.step()
        self.step += 1
        if self._average:
            self._average.update(self._module)
            if self.step == self.config.iterations:
                self._module.load_state_dict(self._average.state)
        values = {name: float(value.detach()) for name, value in {"loss": total, **named}.items()}
        return {**values, "gradient_norm": float(norm), "lr": lr}

    def train(
        self,
        on_step: Callable[[CachedTraining, dict[str, float]], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> bool:
        """Train to ``config.iterations`` steps, or to ``config.stop_at``; calling it again continues.

        Args:
            on_step: called after every step with this object and the values of the step.
            should_stop: called before every step; True ends the call.

        Returns:
            Whether the last step is done.
        """
        last = min(self.config.stop_at or self.config.iterations, self.config.iterations)
        while self.step < last and not (should_stop and should_stop()):
            values = self.take_step()
            if on_step is not None:
                on_step(self, values)
        return self.step >= last


class SwitchTraining(CachedTraining):
    """Trains a switch on cached features with the losses of ``dynamask train``.

    The Gumbel noise comes from the generator of the order.

    Args:
        cache: rows to learn from.
        loss_config: settings and weights of the losses.
        config: schedule, optimizer and moving average; ``batch_size`` counts regions.
        seed: of the first weights, the order of the regions and the noise.
        without: names of losses that get weight 0, such as "loss_entropy".

    Attributes:
        switch: the trained module; after the last step it has the averaged weights, if the schedule averages.
        loss_config: may be replaced between steps.

    Raises:
        DynaMaskError: ``loss_config`` needs gradients to the features, which are constants here.
    """

    def __init__(
        self,
        cache: FeatureCache,
        loss_config: LossConfig,
        config: TrainConfig = SCHEDULE,
        seed: int = 0,
        without: Sequence[str] = (),
    ) -> None:
        if not loss_config.detach_switch:
            raise DynaMaskError(
                "features in a cache take no gradients: compare --no-detach-switch by training the branch"
            )
        self.switch = cache.new_switch(seed)
        super().__init__(self.switch, cache, config, seed)
        self.loss_config, self.without = loss_config, tuple(without)
        self._fractions = torch.from_numpy(cache.macs / cache.macs[-1]).float()

    @property
    def weights(self) -> dict[str, float]:
        """See :attr:`CachedTraining.weights`."""
        return self.loss_config.weights | dict.fromkeys(self.without, 0.0)

    def losses(self, rows: Tensor) -> dict[str, Tensor]:
        """See :meth:`CachedTraining.losses`."""
        cache, config = self.cache, self.loss_config
        logits = self.switch(cache.feature[rows].float())
        error = torch.lerp(cache.boundary_error[rows], cache.overlap_error[rows], config.overlap_share)
        noise = sample_gumbel(logits, self._generator) if config.switch_selection == "drawn" else None
        tables = (cache.mask_loss[rows], cache.edge_loss[rows], error)
        return losses.switch_losses(logits, self._fractions, *tables, config, noise)


class QualityTraining(CachedTraining):
    """Trains a quality head on cached features and the measured quality of the pasted masks.

    Args:
        cache: rows to learn from.
        config: schedule, optimizer and moving average; ``batch_size`` counts regions.
        seed: of the first weights and the order of the regions.

    Attributes:
        head: the trained module; after the last step it has the averaged weights, if the schedule averages.
    """

    weights = {"loss_mask_quality": 1.0}

    def __init__(self, cache: FeatureCache, config: TrainConfig = SCHEDULE, seed: int = 0) -> None:
        self.head = cache.new_quality_head(seed)
        super().__init__(self.head, cache, config, seed)

    def losses(self, rows: Tensor) -> dict[str, Tensor]:
        """See :meth:`CachedTraining.losses`."""
        cache = self.cache
        logits = self.head(cache.feature[rows].float(), cache.rois(rows), cache.label[rows])
        return {"loss_mask_quality": quality_loss(logits, self.cache.quality[rows].float()).mean()}


def train_switch(
    cache: FeatureCache, loss_config: LossConfig, config: TrainConfig = SCHEDULE, seed: int = 0
) -> MaskSwitchModule:
    """A switch trained on a cache, in evaluation mode; arguments as of :class:`SwitchTraining`."""
    training = SwitchTraining(cache, loss_config, config, seed)
    training.train()
    return training.switch.eval()


def train_quality(cache: FeatureCache, config: TrainConfig = SCHEDULE, seed: int = 0) -> QualityHead:
    """A quality head trained on a cache, in evaluation mode; arguments as of :class:`QualityTraining`."""
    training = QualityTraining(cache, config, seed)
    training.train()
    return training.head.eval()


@torch.no_grad()
def predict_quality(head: QualityHead, cache: FeatureCache) -> Tensor:
    """(N, 4, 2) mask IoU and boundary IoU that a quality head predicts for all rows of a cache."""
    parts = torch.arange(len(cache)).split(256)
    logits = [head(cache.feature[rows].float(), cache.rois(rows), cache.label[rows]) for rows in parts]
    return torch.cat(logits).sigmoid()


@torch.no_grad()
def predict_logits(switch: MaskSwitchModule, cache: FeatureCache) -> Tensor:
    """(N, 4) logits of a switch on all rows of a cache."""
    return torch.cat([switch(part.float()) for part in cache.feature.split(256)])
