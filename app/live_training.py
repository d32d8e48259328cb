"""Training of a switch in the Train tab: a new switch on cached features of frozen weights.

Work is done only while :meth:`LiveTraining.work` is called, so that a closed tab trains nothing.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from app.lesson_scenes import LessonScenes
from dynamask.engine.frozen_features import FeatureCache
from dynamask.engine.frozen_switch import SCHEDULE, SwitchTraining, predict_logits
from dynamask.evaluation.choices import at, permuted, shares
from dynamask.structures import DynaMaskError
from dynamask.training_config import LossConfig

MAX_STEPS = 3000
"""Largest number of steps of a run."""
MAX_SECONDS = 600.0
"""Longest training time of a run in seconds; pauses do not count."""
MAX_RUNS = 3
"""Largest number of runs at a time on this server."""
STALE_SECONDS = 20.0
"""A run that has not worked for this long counts as abandoned."""
MOST_POINTS = 240
"""Number of points of the history that are kept; older ones are thinned out."""
BUDGET_RANGE = (0.12, 1.0)
"""Range of the budget target, as a share of the full branch's MACs."""
WEIGHT_RANGE = (0.0, 2.0)
"""Range of λ2."""
LOSSES = LossConfig(switch_signal="boundary", boundary_weight=2.0)
"""On shapes the sizes differ by about 0.3 in boundary error: with this weight, λ2 around 0.4 can balance it."""
RUN_SCHEDULE = dataclasses.replace(
    SCHEDULE,
    batch_size=32,
    iterations=MAX_STEPS,
    lr=5e-4,
    weight_decay=0.01,
    warmup=10,
    schedule="step",
    milestones=(),
    ema_decay=0.0,
)
"""A constant learning rate, because the visitor moves the targets at any time."""


@dataclass
class Point:
    """Measurements after a step.

    Attributes:
        step: number of steps done.
        losses: means since the point before, by name; "loss" is the weighted total.
        shares: (4,) share of each size among the objects that are evaluated on.
        macs: mean MACs of these objects.
        quality: their mean boundary IoU at the chosen sizes.
        permuted: their mean boundary IoU with the same sizes assigned at random, in expectation.
    """

    step: int
    losses: dict[str, float]
    shares: list[float]
    macs: float
    quality: float
    permuted: float


@dataclass
class Registry:
    """The runs of this server that are at work, by the time of their last work."""

    beats: dict[int, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, key: int, limit: int = MAX_RUNS) -> None:
        """Note that a run works now; raises DynaMaskError if ``limit`` others do."""
        now = time.monotonic()
        with self.lock:
            self.beats = {k: beat for k, beat in self.beats.items() if now - beat < STALE_SECONDS}
            if key not in self.beats and len(self.beats) >= limit:
                raise DynaMaskError(f"{limit} other visitors train at the moment; try again in a few minutes")
            self.beats[key] = now

    def leave(self, key: int) -> None:
        """Remove a run."""
        with self.lock:
            self.beats.pop(key, None)


RUNS = Registry()


class LiveTraining:
    """The run of one visitor.

    Args:
        scenes: features of the frozen model, shared by all visitors.
        budget_target: C_t as a share of the full branch's MACs.
        switch_weight: λ2.
        seed: of the first weights, the order of the objects and the noise.
        registry: of the runs of this server.

    Attributes:
        history: measured points, oldest first.
        active: whether the run should continue; a pause clears it.
        spent: training time so far in seconds.
    """

    def __init__(
        self,
        scenes: LessonScenes,
        budget_target: float = 0.5,
        switch_weight: float = 0.4,
        seed: int = 0,
        registry: Registry = RUNS,
    ) -> None:
        self.scenes, self.registry = scenes, registry
        self.active, self.spent = True, 0.0
        self.history: list[Point] = []
        self.training = SwitchTraining(scenes.study.features, LOSSES, RUN_SCHEDULE, seed)
        self._sums: dict[str, float] = {}
        self._measured_step = 0
        self._working = threading.Lock()
        self.set(budget_target, switch_weight)

    @property
    def step(self) -> int:
        """Number of steps done."""
        return self.training.step

    @property
    def finished(self) -> bool:
        """True after the last step or the longest time."""
        return self.step >= MAX_STEPS or self.spent >= MAX_SECONDS

    @property
    def budget_target(self) -> float:
        """C_t as a share of the full branch's MACs."""
        return self.training.loss_config.budget_target

    def set(self, budget_target: float, switch_weight: float) -> None:
        """Change the budget target and λ2, from the next step on.

        Raises:
            DynaMaskError: a number is out of range.
        """
        limits = (("budget target", budget_target, BUDGET_RANGE), ("λ2", switch_weight, WEIGHT_RANGE))
        for name, value, (low, high) in limits:
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise DynaMaskError(f"{name} {value} is out of range; give a number from {low:g} to {high:g}")
        self.training.loss_config = dataclasses.replace(
            LOSSES, budget_target=float(budget_target), switch_weight=float(switch_weight)
        )

    def work(self, steps: int = 8, seconds: float = 1.0) -> None:
        """Do a piece of work: compute the features of further scenes or, when all are known, train and measure.

        Args:
            steps: largest number of training steps.
            seconds: time after which no further scene or step is begun; one is always done.

        Raises:
            DynaMaskError: too many other runs.
        """
        with self._working:  # the loop of an earlier click may not have ended yet
            self.registry.enter(id(self))
            start = time.monotonic()
            if not self.scenes.ready:
                self.scenes.add_next()
                while not self.scenes.ready and time.monotonic() - start < seconds:
                    self.scenes.add_next()
                return
            if not self.history:
                self.training.cache = self.scenes.learned
                self._measure()
            for _ in range(steps):
                if self.finished:
                    break
                for name, value in self.training.take_step().items():
                    self._sums[name] = self._sums.get(name, 0.0) + value
                if time.monotonic() - start >= seconds:
                    break
            self._measure()
            self.spent += time.monotonic() - start

    def _measure(self) -> None:
        """Evaluate the switch on the held-out scenes, and add a point to the history."""
        scenes = self.scenes.evaluated
        choice, quality, macs = self.choose(scenes), scenes.boundary_iou.double().numpy(), scenes.macs
        count = max(1, self.step - self._measured_step)
        means = {name: total / count for name, total in self._sums.items() if name.startswith("loss")}
        self._sums, self._measured_step = {}, self.step
        self.history.append(
            Point(
                step=self.step,
                losses=means,
                shares=shares(choice).tolist(),
                macs=float(macs[choice].mean()),
                quality=float(at(quality, choice).mean()),
                permuted=float(permuted(quality, choice).mean()),
            )
        )
        if len(self.history) > MOST_POINTS:  # drop every second point
            self.history = self.history[:-1:2] + self.history[-1:]

    def choose(self, features: FeatureCache) -> np.ndarray:
        """(N,) size indices that the switch chooses for the rows of a cache."""
        return predict_logits(self.training.switch, features).argmax(dim=1).numpy()

    def stop(self) -> None:
        """End the run for good."""
        self.active = False
        self.registry.leave(id(self))
