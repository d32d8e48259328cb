"""A switch that learns while the visitor watches: a fresh one on top of frozen weights, steps by the engine.

Work is done only while somebody asks for it (`LiveTraining.work`), so a closed tab trains nothing.
"""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.lesson_scenes import LessonScenes
from dynamask.config import LossConfig, TrainConfig
from dynamask.data.loaders import training_loader
from dynamask.engine.run import Run
from dynamask.engine.train import loss_weights, train_step
from dynamask.evaluation.choices import at, permuted, shares
from dynamask.models.masks import losses
from dynamask.models.masks.switch import MaskSwitchModule, sample_gumbel, straight_through_gumbel
from dynamask.structures import MASK_SIZES, DynaMaskError

MAX_STEPS = 3000
"""Steps of one run, at most."""
MAX_SECONDS = 600.0
"""Seconds of training of one run, at most; pauses do not count."""
MAX_RUNS = 3
"""Runs at a time on this server."""
STALE_SECONDS = 20.0
"""A run that did nothing for so long has been left by its visitor."""
CHECK_SCENES = 8
"""Scenes at the end of the data set that the switch never learns from; the figures are measured on them."""
MOST_POINTS = 240
"""Points of the history that are kept; older ones are thinned out."""
BOUNDARY_WEIGHT = 2.0
"""Weight of the boundary error: on shapes, where sizes differ by some 0.3 in it, λ2 around 0.4 can hold against it."""
BUDGET_RANGE = (0.12, 1.0)
"""Budget targets that may be asked for, as a share of the full branch's MACs."""
WEIGHT_RANGE = (0.0, 2.0)
"""λ2 that may be asked for."""


class SwitchLesson(nn.Module):
    """The switch alone with its losses, as a model that the engine trains: model(images, targets) → named losses.

    Args:
        switch: that learns.
        fractions: (4,) cost of each size as a share of the full branch.
        generator: of the Gumbel noise.
    """

    def __init__(self, switch: MaskSwitchModule, fractions: tuple[float, ...], generator: torch.Generator) -> None:
        super().__init__()
        self.switch, self.generator = switch, generator
        self.register_buffer("fractions", torch.tensor(fractions))
        self.budget_target = 0.5
        self.temperature = LossConfig().temperature

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Losses of the objects of a batch of scenes (see `LessonScenes`); the pictures are not looked at."""
        joined = {key: torch.cat([target[key] for target in targets]) for key in ("features", "edge", "error")}
        if len(joined["features"]) == 0:
            zero = losses.connected_zero(self.switch.parameters())
            return dict.fromkeys(("loss_boundary", "loss_edge", "loss_budget", "loss_entropy"), zero)
        logits = self.switch(joined["features"])
        noise = sample_gumbel(logits, self.generator)
        selection = straight_through_gumbel(logits, self.temperature, noise)
        return {
            "loss_boundary": losses.selected_error(joined["error"], selection),
            "loss_edge": losses.edge_loss(joined["edge"], selection.detach()),
            "loss_budget": losses.budget_loss(selection, self.fractions, self.budget_target),
            "loss_entropy": losses.entropy_loss(logits.softmax(dim=1)),
        }


@dataclass
class Point:
    """What was measured after a step.

    Attributes:
        step: steps done.
        losses: means since the point before, by name; "loss" is the weighted total.
        shares: (4,) share of each size among the objects of the scenes kept back.
        macs: mean MACs of these objects.
        quality: their mean boundary IoU at the chosen sizes.
        permuted: the same sizes dealt out at random, in expectation.
    """

    step: int
    losses: dict[str, float]
    shares: list[float]
    macs: float
    quality: float
    permuted: float


@dataclass
class Registry:
    """Which runs are alive on this server, by the time of their last work."""

    beats: dict[int, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, key: int, limit: int = MAX_RUNS) -> None:
        """Note that a run works now; DynaMaskError when too many others do."""
        now = time.monotonic()
        with self.lock:
            self.beats = {k: beat for k, beat in self.beats.items() if now - beat < STALE_SECONDS}
            if key not in self.beats and len(self.beats) >= limit:
                raise DynaMaskError(f"{limit} other visitors train at the moment; try again in a few minutes")
            self.beats[key] = now

    def leave(self, key: int) -> None:
        """Forget a run."""
        with self.lock:
            self.beats.pop(key, None)


RUNS = Registry()


class LiveTraining:
    """One visitor's run.

    Attributes:
        history: of the measured points, oldest first.
        wanted: whether the visitor wants it to go on; a pause clears it.
        spent: seconds of training so far.
    """

    def __init__(
        self,
        scenes: LessonScenes,
        budget_target: float = 0.5,
        switch_weight: float = 0.4,
        seed: int = 0,
        registry: Registry = RUNS,
    ) -> None:
        """Begin with a switch that knows nothing.

        Args:
            scenes: what a frozen model says about scenes.
            budget_target: C_t as a share of the full branch's MACs.
            switch_weight: λ2.
            seed: of the switch's first weights, the order of the scenes and the noise.
            registry: of the runs of this server.
        """
        config = scenes.model.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            switch = MaskSwitchModule(config.region_channels, config.switch_channels, config.switch_hidden)
        self.scenes, self.registry, self.wanted, self.spent = scenes, registry, True, 0.0
        self.lesson = SwitchLesson(switch, scenes.macs.fractions, torch.Generator().manual_seed(seed))
        self.history: list[Point] = []
        self._sums, self._count, self._judged_on = {}, 0, 0
        self._working = threading.Lock()
        self._kept_back = list(range(max(1, len(scenes) - CHECK_SCENES), len(scenes)))
        train = TrainConfig(
            batch_size=4, iterations=MAX_STEPS, warm_start=0.0, optimizer="adamw", lr=5e-4, weight_decay=0.01,
            warmup=10, milestones=(), clip_norm=10.0, seed=seed, workers=0,
        )  # fmt: skip
        learned_from = range(self._kept_back[0]) if self._kept_back else range(len(scenes))
        loader = training_loader(scenes, train.batch_size, seed, indices=list(learned_from))
        # The engine wants a folder; nothing is written, because no checkpoint is asked for.
        self.run = Run(self.lesson, loader, train, {}, Path(tempfile.gettempdir()))
        self.set(budget_target, switch_weight)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.run.step

    @property
    def finished(self) -> bool:
        """Whether the run reached its last step or its time."""
        return self.step >= MAX_STEPS or self.spent >= MAX_SECONDS

    def set(self, budget_target: float, switch_weight: float) -> None:
        """Change the budget target and λ2, from the next step on.

        Raises:
            DynaMaskError: a number out of range.
        """
        for name, value, (low, high) in (
            ("budget target", budget_target, BUDGET_RANGE), ("λ2", switch_weight, WEIGHT_RANGE),
        ):  # fmt: skip
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise DynaMaskError(f"{name} {value} is out of range; give a number from {low:g} to {high:g}")
        self.lesson.budget_target = self.budget_target = float(budget_target)
        self.switch_weight = float(switch_weight)
        self.run.weights = loss_weights(
            LossConfig(switch_signal="boundary", boundary_weight=BOUNDARY_WEIGHT, switch_weight=self.switch_weight)
        )

    def work(self, steps: int = 8, seconds: float = 1.0) -> Point:
        """Train some steps, at least one, at most for some seconds, then measure; returns the measured point.

        Raises:
            DynaMaskError: too many other runs, or a loss that is not finite.
        """
        with self._working:  # a loop that has been overtaken may not have left yet
            return self._work(steps, seconds)

    def _work(self, steps: int, seconds: float) -> Point:
        self.registry.enter(id(self))
        start = time.monotonic()
        if not self.history:
            self._measure()
        for _ in range(steps):
            if self.finished:
                break
            values = train_step(self.run, *next(self.run.loader))
            self.run.step += 1
            self._count += 1
            for name, value in values.items():
                if name.startswith("loss"):
                    self._sums[name] = self._sums.get(name, 0.0) + value
            if time.monotonic() - start >= seconds:
                break
        point = self._measure()
        self.spent += time.monotonic() - start
        return point

    def _measure(self) -> Point:
        """Judge the switch on the scenes kept back, one more of them each time, so that the first answer is quick."""
        self._judged_on = min(self._judged_on + 1, len(self._kept_back))
        targets = [self.scenes[i][1] for i in self._kept_back[: self._judged_on]]
        choice = self.choose(torch.cat([target["features"] for target in targets]))
        quality = 1.0 - torch.cat([target["error"] for target in targets]).numpy().astype(np.float64)
        macs = np.array(self.scenes.macs.macs_per_instance, dtype=np.float64)
        means = {name: total / max(1, self._count) for name, total in self._sums.items()}
        some = len(choice) > 0
        point = Point(
            self.step,
            means,
            shares(choice).tolist(),
            float(macs[choice].mean()) if some else 0.0,
            float(at(quality, choice).mean()) if some else 0.0,
            float(permuted(quality, choice).mean()) if some else 0.0,
        )
        self._keep(point)
        return point

    def _keep(self, point: Point) -> None:
        """Add a point to the history; when it grows too long, every second one is dropped."""
        self._sums, self._count = {}, 0
        self.history.append(point)
        if len(self.history) > MOST_POINTS:
            self.history = self.history[:-1:2] + self.history[-1:]

    @torch.no_grad()
    def choose(self, features: Tensor) -> np.ndarray:
        """(n,) size indices that the switch chooses for features (n, C, 14, 14)."""
        device = next(self.lesson.parameters()).device
        return self.lesson.switch(features.to(device)).argmax(dim=1).cpu().numpy()

    @torch.no_grad()
    def study_probs(self) -> np.ndarray:
        """(N, 4) probabilities for the objects of the fixed scene."""
        return self.lesson.switch(self.scenes.study.features).softmax(dim=1).numpy()

    def stop(self) -> None:
        """End the run for good."""
        self.wanted = False
        self.registry.leave(id(self))


def sizes_of(choice: np.ndarray) -> np.ndarray:
    """(n,) mask sizes in pixels of size indices."""
    return np.array(MASK_SIZES)[choice]
