"""Judging a switch: its choices against others at equal mean MACs, in true boxes and on detections.

Every figure is a row with the keys boxes, measure, policy, against, budget_macs, mean_macs, mean, low, high and share_S
for every size S: a policy's own quality where ``against`` is empty, else a paired difference to that policy, or the
share of its gain over random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dynamask.data.sources import Data
from dynamask.engine.evaluate import Instances
from dynamask.evaluation.ap_bootstrap import MASK_TYPES, DetectionJudge
from dynamask.evaluation.choices import (
    Interval,
    PictureBootstrap,
    at,
    blind_mix,
    percentiles,
    permuted,
    shares,
)
from dynamask.models.rcnn import policies
from dynamask.ops.knapsack import best_under_budget
from dynamask.reports.collecting import MEASURES
from dynamask.structures import MASK_SIZES, DynaMaskError

Row = dict[str, Any]


def size_based_choice(found: Instances, sizes: dict[int, tuple[int, int]]) -> np.ndarray:
    """(N,) indices of Eq. 8; ``sizes`` gives (height, width) by image id."""
    picks = []
    for result in found.results:
        x, y, width, height = result["bbox"]
        box = torch.tensor([[x, y, x + width, y + height]])
        picks.append(int(policies.size_based(box, sizes[result["image_id"]])))
    return np.array(picks, dtype=np.int64)


def image_sizes(dataset: Data) -> dict[int, tuple[int, int]]:
    """(height, width) by image id."""
    return {image["id"]: (image["height"], image["width"]) for image in dataset.coco["images"]}


def at_budget(logits: torch.Tensor, macs: Sequence[int], limit: float) -> np.ndarray:
    """(N,) learned indices whose mean cost is at most ``limit`` MACs: one price for all instances."""
    price = policies.price_for_budget(logits, tuple(macs), max(limit, macs[0] * (1 + 1e-9)) / 1e9)
    return policies.at_price(logits, tuple(macs), price).numpy()


def choice_of(policy: str, found: Instances, dataset: Data) -> np.ndarray:
    """(N,) size indices of "learned", "size" or "fixed:S" for instances that were collected at every size."""
    if policy == "learned":
        return np.array(found.choice, dtype=np.int64)
    if policy.startswith("fixed:"):
        return policies.fixed(len(found.results), int(policy.removeprefix("fixed:"))).numpy()
    return size_based_choice(found, image_sizes(dataset))


def mean_macs(choice: np.ndarray, macs: Sequence[int]) -> float:
    """Mean MACs of an instance under a choice (N,), N ≥ 1."""
    return float(np.array(macs, dtype=np.float64)[choice].mean())


def budget_limits(logits: torch.Tensor, macs: Sequence[int], count: int) -> list[float]:
    """Evenly spaced budgets in mean MACs, from the cheapest size to the most that the switch would spend.

    Beyond its own choice a budget changes nothing: the price is zero there and Σ log p at its maximum.
    """
    own = mean_macs(policies.learned(logits).numpy(), macs)
    return sorted(set(np.linspace(macs[0], own, count).tolist()))


class Judge:
    """What judging in true boxes and on detections share: the choices to compare, and how rows look.

    Args:
        found: instances with every size known.
        macs: MACs of an instance at each size.
        dataset: that the instances are from.
        budgets: how many budgets.
        boxes: "gt" or "detected", for the rows.

    Raises:
        DynaMaskError: there is no instance.
    """

    def __init__(self, found: Instances, macs: Sequence[int], dataset: Data, budgets: int, boxes: str) -> None:
        if not found.results:
            what = "instance of the weights' classes" if boxes == "gt" else "detection"
            raise DynaMaskError(f"the pictures hold no {what}; give other data")
        self.found, self.macs, self.boxes = found, tuple(macs), boxes
        self.logits = found.logits()
        self.image_ids = np.array([result["image_id"] for result in found.results], dtype=np.int64)
        self.limits = budget_limits(self.logits, macs, budgets)
        self.named = {p: choice_of(p, found, dataset) for p in ("learned", "size", *(f"fixed:{s}" for s in MASK_SIZES))}

    def budget(self, limit: float) -> np.ndarray:
        """(N,) sizes at a budget in mean MACs."""
        return at_budget(self.logits, self.macs, limit)

    def row(
        self,
        measure: str,
        policy: str,
        cost: np.ndarray | float,
        value: Interval,
        against: str = "",
        budget: float | None = None,
    ) -> Row:
        """One figure; ``cost`` is a choice (N,) or its mean MACs."""
        split = shares(cost).tolist() if isinstance(cost, np.ndarray) else [None] * len(MASK_SIZES)
        return {
            "boxes": self.boxes,
            "measure": measure,
            "policy": policy,
            "against": against,
            "budget_macs": budget,
            "mean_macs": mean_macs(cost, self.macs) if isinstance(cost, np.ndarray) else cost,
            **value,
            **{f"share_{size}": share for size, share in zip(MASK_SIZES, split)},
        }

    def rivals(self) -> list[tuple[str, np.ndarray]]:
        """(name, choice) of the policies that learned sizes are compared with at their MACs."""
        return [(name, choice) for name, choice in self.named.items() if name != "learned"]


class TrueBoxJudge(Judge):
    """Mean mask and boundary IoU in true boxes.

    Args:
        views: by measure (V, N, 4) quality in other views, V ≥ 0; without them there is no noise-aware oracle.
        bootstrap: over the pictures.
    """

    def __init__(
        self,
        found: Instances,
        macs: Sequence[int],
        dataset: Data,
        budgets: int,
        views: dict[str, np.ndarray],
        bootstrap: PictureBootstrap,
    ) -> None:
        super().__init__(found, macs, dataset, budgets, "gt")
        self.bootstrap, self.pictures = bootstrap, bootstrap.rows(self.image_ids)
        self.quality = {measure: found.quality(measure) for measure in MEASURES}
        self.expected = {m: v.mean(axis=0) for m, v in views.items() if len(v)}

    def rows(self) -> list[Row]:
        """All figures of both measures."""
        return [row for measure in MEASURES for row in (*self._points(measure), *self._against(measure))]

    def _value(self, values: np.ndarray) -> Interval:
        return self.bootstrap.estimate(values, self.pictures)

    def _points(self, measure: str) -> list[Row]:
        """The learned, size-based and fixed points, and everything at every budget."""
        quality = self.quality[measure]
        rows = [self.row(measure, name, c, self._value(at(quality, c))) for name, c in self.named.items()]
        rows += self._level(measure, "learned", self.named["learned"], None)
        for limit in self.limits:
            choice = self.budget(limit)
            rows.append(self.row(measure, "budget", choice, self._value(at(quality, choice)), budget=limit))
            rows += self._level(measure, "budget", choice, limit)
        return rows

    def _level(self, measure: str, policy: str, choice: np.ndarray, budget: float | None) -> list[Row]:
        """The yardsticks at the MACs of a choice, all as gains over chance, and its shares of the oracles' gains."""
        quality, limit = self.quality[measure], mean_macs(choice, self.macs)
        own, chance = at(quality, choice), permuted(quality, choice)
        mixture = blind_mix(quality, np.array(self.macs, dtype=np.float64), limit)
        rows = [
            self.row(measure, policy, choice, self._value(own - chance), "random", budget),
            self.row(measure, policy, choice, self._value(own - mixture), "mix", budget),
        ]
        yardsticks: dict[str, tuple[np.ndarray, np.ndarray | float]] = {"mix": (mixture, limit)}
        for name, judged in (("oracle", quality), ("noise-aware oracle", self.expected.get(measure))):
            if judged is not None:
                best = best_under_budget(judged, self.macs, limit)
                yardsticks[name] = (at(quality, best), best)
                share = self.bootstrap.share(own, chance, at(quality, best), self.pictures)
                rows.append(self.row(measure, policy, choice, share, f"share of {name}", budget))
        if budget is not None:
            rows.append(self.row(measure, "random", limit, self._value(chance), budget=budget))
            for name, (values, cost) in yardsticks.items():
                rows.append(self.row(measure, name, cost, self._value(values), budget=budget))
                rows.append(self.row(measure, name, cost, self._value(values - chance), "random", budget))
        return rows

    def _against(self, measure: str) -> list[Row]:
        """Learned sizes at the MACs of the size-based and the fixed choices, minus these."""
        quality, rows = self.quality[measure], []
        for name, theirs in self.rivals():
            ours = self.budget(mean_macs(theirs, self.macs))
            gap = self._value(at(quality, ours) - at(quality, theirs))
            rows.append(self.row(measure, "budget", ours, gap, name, mean_macs(theirs, self.macs)))
        return rows

    def known_complexity(self, annotations: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
        """Rank correlation of the size chosen at half the full cost with the known complexity, and with object size.

        Args:
            annotations: of the instances; None is returned unless each has a ``complexity``.
        """
        if any(a is None or a.get("complexity") is None for a in annotations):
            return None
        choice = self.budget(self.macs[-1] / 2)
        complexity = np.array([float(a["complexity"]) for a in annotations if a is not None])
        side = np.array([np.sqrt(r["bbox"][2] * r["bbox"][3]) for r in self.found.results])
        return {
            "mean_macs": mean_macs(choice, self.macs),
            "complexity": self.bootstrap.spearman(choice, complexity, self.pictures),
            "object_size": self.bootstrap.spearman(choice, side, self.pictures),
            "complexity_by_size": {
                str(size): float(complexity[choice == k].mean()) if (choice == k).any() else None
                for k, size in enumerate(MASK_SIZES)
            },
        }


class DetectionCurveJudge(Judge):
    """Mask and boundary AP of detections.

    Args:
        weights: (B, P) of the resampled pictures.
        draws: how many permutations chance is the mean over.
        seed: of the permutations.
    """

    def __init__(
        self,
        found: Instances,
        macs: Sequence[int],
        dataset: Data,
        budgets: int,
        judge: DetectionJudge,
        weights: np.ndarray,
        draws: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__(found, macs, dataset, budgets, "detected")
        self.judge, self.weights, self.draws, self.seed = judge, weights, draws, seed
        self._known: dict[tuple[str, bytes], np.ndarray] = {}

    def precision(self, choice: np.ndarray, iou_type: str) -> np.ndarray:
        """(1 + B,) AP of a choice (N,): of the pictures as they are, then of every resampled set."""
        key = (iou_type, choice.tobytes())
        if key not in self._known:
            own = np.ones((1, self.weights.shape[1]), dtype=np.int64)
            matches = self.judge.match(choice, iou_type)
            self._known[key] = self.judge.average_precision(matches, np.concatenate([own, self.weights]))
        return self._known[key]

    def chance(self, choice: np.ndarray, iou_type: str) -> np.ndarray:
        """(1 + B,) mean AP over permutations of a choice."""
        rng = np.random.default_rng(self.seed)
        return np.mean([self.precision(rng.permutation(choice), iou_type) for _ in range(self.draws)], axis=0)

    def rows(self) -> list[Row]:
        """All figures of mask and boundary AP."""
        rows = []
        for kind in MASK_TYPES:
            measure = f"{kind}_ap"
            rows += [self.row(measure, name, c, _ap(self.precision(c, kind))) for name, c in self.named.items()]
            own = self.named["learned"]
            gain = self.precision(own, kind) - self.chance(own, kind)
            rows.append(self.row(measure, "learned", own, _ap(gain), "random"))
            for limit in self.limits:
                rows += self._level(measure, kind, limit)
            for name, theirs in self.rivals():
                limit = mean_macs(theirs, self.macs)
                ours = self.budget(limit)
                gap = _ap(self.precision(ours, kind) - self.precision(theirs, kind))
                rows.append(self.row(measure, "budget", ours, gap, name, limit))
        return rows

    def _level(self, measure: str, kind: str, limit: float) -> list[Row]:
        choice = self.budget(limit)
        own, chance = self.precision(choice, kind), self.chance(choice, kind)
        return [
            self.row(measure, "budget", choice, _ap(own), budget=limit),
            self.row(measure, "random", mean_macs(choice, self.macs), _ap(chance), budget=limit),
            self.row(measure, "budget", choice, _ap(own - chance), "random", limit),
        ]

    def operating_points(self, drop: float = 0.001, steps: int = 40) -> dict[str, Any]:
        """Tab. 5's two points: the cheapest budget within ``drop`` mask AP of the finest size, and half its MACs.

        Args:
            drop: in AP, 0–1.
            steps: how many budgets are tried for the first.

        Returns:
            ``within_drop`` (None where no budget is) and ``half``, each with its mean MACs, the share of the full MACs
            it saves, and the differences in mask and boundary AP to the finest size.
        """
        full = self.named[f"fixed:{MASK_SIZES[-1]}"]
        goal = self.precision(full, "segm")[0] - drop
        within = None
        for limit in budget_limits(self.logits, self.macs, steps):
            choice = self.budget(limit)
            matches = self.judge.match(choice, "segm")
            if self.judge.average_precision(matches)[0] >= goal:
                within = self._operating(choice, full)
                break
        return {"drop": drop, "within_drop": within, "half": self._operating(self.budget(self.macs[-1] / 2), full)}

    def _operating(self, choice: np.ndarray, full: np.ndarray) -> dict[str, Any]:
        cost = mean_macs(choice, self.macs)
        gaps = {f"{k}_ap_minus_full": _ap(self.precision(choice, k) - self.precision(full, k)) for k in MASK_TYPES}
        return {"mean_macs": cost, "saved": 1 - cost / self.macs[-1], **gaps}


def _ap(drawn: np.ndarray) -> Interval:
    """A figure (1 + B,) whose first value is that of the pictures as they are; None where AP is undefined."""
    mean = float(drawn[0])
    return percentiles(mean if np.isfinite(mean) else None, drawn[1:])
