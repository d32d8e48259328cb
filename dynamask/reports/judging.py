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
from dynamask.evaluation.choices import (
    Interval,
    PictureBootstrap,
    at,
    at_equal_cost,
    blind_mix,
    interval_of,
    mixed,
    share_of_gain,
    shares,
)
from dynamask.evaluation.detection_bootstrap import MASK_TYPES, DetectionJudge
from dynamask.models.masks import policies
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


def spending(logits: torch.Tensor, macs: Sequence[int], limit: float) -> np.ndarray:
    """(N,) indices that come as close to mean MACs ``limit`` as one price lets them from below.

    Below what the switch spends by itself this is :func:`at_budget`; above it MACs are rewarded instead of priced.
    """
    if len(logits) == 0 or mean_macs(policies.learned(logits).numpy(), macs) > limit:
        return at_budget(logits, macs, limit)
    low, high = 0.0, -1.0 / macs[0]
    while mean_macs(policies.at_price(logits, tuple(macs), high).numpy(), macs) < min(limit, macs[-1]):
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        spent = mean_macs(policies.at_price(logits, tuple(macs), middle).numpy(), macs)
        low, high = (middle, high) if spent <= limit else (low, middle)
    return policies.at_price(logits, tuple(macs), low).numpy()


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
        self.means = {m: np.stack([self._drawn(column) for column in q.T]) for m, q in self.quality.items()}  # (K, 1+B)
        self._budgets = [self.budget(limit) for limit in self.limits]

    def rows(self) -> list[Row]:
        """All figures of both measures."""
        return [row for measure in MEASURES for row in (*self._points(measure), *self._against(measure))]

    def _drawn(self, values: np.ndarray) -> np.ndarray:
        """(1 + B,) mean of values (N,) over all pictures, then in every draw."""
        return self.bootstrap.drawn(values, self.pictures)

    def _value(self, values: np.ndarray) -> Interval:
        return interval_of(self._drawn(values))

    def _cost(self, choice: np.ndarray) -> np.ndarray:
        return self._drawn(np.array(self.macs, dtype=np.float64)[choice])

    def _own(self, measure: str, choice: np.ndarray) -> np.ndarray:
        return self._drawn(at(self.quality[measure], choice))

    def _chance(self, measure: str, choice: np.ndarray) -> np.ndarray:
        """(1 + B,) mean over all permutations of the sizes, in every draw of the sizes chosen there."""
        dealt = np.stack([self._drawn((choice == k).astype(np.float64)) for k in range(len(self.macs))])  # (K, 1 + B)
        return (dealt * self.means[measure]).sum(axis=0)

    def _points(self, measure: str) -> list[Row]:
        """The learned, size-based and fixed points, and everything at every budget."""
        quality = self.quality[measure]
        rows = [self.row(measure, name, c, self._value(at(quality, c))) for name, c in self.named.items()]
        chances = np.stack([self._chance(measure, choice) for choice in self._budgets])
        line = np.stack([self._cost(choice) for choice in self._budgets]), chances
        rows += self._level(measure, "learned", self.named["learned"], None, line)
        for limit, choice in zip(self.limits, self._budgets):
            rows.append(self.row(measure, "budget", choice, self._value(at(quality, choice)), budget=limit))
            rows += self._level(measure, "budget", choice, limit, line)
        return rows

    def _level(
        self,
        measure: str,
        policy: str,
        choice: np.ndarray,
        budget: float | None,
        line: tuple[np.ndarray, np.ndarray],
    ) -> list[Row]:
        """The yardsticks at the MACs of a choice, all as gains over chance, and its shares of the oracles' gains.

        Args:
            line: costs and quality of chance at every budget, (L, 1 + B) each.
        """
        quality, limit = self.quality[measure], mean_macs(choice, self.macs)
        macs = np.array(self.macs, dtype=np.float64)
        own, chance, cost = self._own(measure, choice), self._chance(measure, choice), self._cost(choice)
        mixture = mixed(self.means[measure], macs, cost)
        rows = [
            self.row(measure, policy, choice, interval_of(own - chance), "random", budget),
            self.row(measure, policy, choice, interval_of(own - mixture), "mix", budget),
        ]
        fixed_mix = self._value(blind_mix(quality, macs, limit))
        yardsticks: dict[str, tuple[Interval, np.ndarray, np.ndarray | float]] = {
            "mix": (fixed_mix, mixture - chance, limit)
        }
        for name, judged in (("oracle", quality), ("noise-aware oracle", self.expected.get(measure))):
            if judged is not None:
                best = best_under_budget(judged, self.macs, limit)
                gain = at_equal_cost(self._own(measure, best), chance, self._cost(best), cost, line)
                yardsticks[name] = (self._value(at(quality, best)), gain, best)
                rows.append(
                    self.row(measure, policy, choice, share_of_gain(own - chance, gain), f"share of {name}", budget)
                )
        if budget is not None:
            rows.append(self.row(measure, "random", limit, interval_of(chance), budget=budget))
            for name, (value, gain, spent) in yardsticks.items():
                rows.append(self.row(measure, name, spent, value, budget=budget))
                rows.append(self.row(measure, name, spent, interval_of(gain), "random", budget))
        return rows

    def _against(self, measure: str) -> list[Row]:
        """Learned sizes at the MACs of the size-based and the fixed choices, minus these."""
        rows, owns = [], np.stack([self._own(measure, choice) for choice in self._budgets])
        line = np.stack([self._cost(choice) for choice in self._budgets]), owns
        for name, theirs in self.rivals():
            ours = self.budget(mean_macs(theirs, self.macs))
            costs = self._cost(ours), self._cost(theirs)
            gap = at_equal_cost(self._own(measure, ours), self._own(measure, theirs), *costs, line)
            rows.append(self.row(measure, "budget", ours, interval_of(gap), name, mean_macs(theirs, self.macs)))
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


class DrawnPrecision:
    """Mask and boundary AP of choices over all pictures and in every draw, remembered.

    Args:
        judge: of N detections.
        weights: (B, P) of the resampled pictures.
        image_ids: (N,) of the detections.
        macs: MACs of an instance at each size.
    """

    def __init__(self, judge: DetectionJudge, weights: np.ndarray, image_ids: np.ndarray, macs: Sequence[int]) -> None:
        self.judge, self.macs = judge, np.array(macs, dtype=np.float64)
        self.weights = np.concatenate([np.ones((1, weights.shape[1]), dtype=np.int64), weights])
        self.pictures = np.searchsorted(judge.image_ids, image_ids)
        self._known: dict[tuple[str, bytes], np.ndarray] = {}

    @classmethod
    def of(
        cls, found: Instances, dataset: Data, image_ids: Sequence[int], weights: np.ndarray, macs: Sequence[int]
    ) -> DrawnPrecision:
        """Of detections on the pictures ``image_ids`` of a data set, weights (B, P) as above."""
        judge = DetectionJudge(dataset.coco, found.results, found.rles, image_ids)
        own = np.array([result["image_id"] for result in found.results], dtype=np.int64)
        return cls(judge, weights, own, macs)

    def precision(self, choice: np.ndarray, iou_type: str) -> np.ndarray:
        """(1 + B,) AP of a choice (N,)."""
        key = (iou_type, choice.tobytes())
        if key not in self._known:
            self._known[key] = self.judge.average_precision(self.judge.match(choice, iou_type), self.weights)
        return self._known[key]

    def plain(self, choice: np.ndarray, iou_type: str) -> float:
        """AP of a choice over all pictures alone."""
        return float(self.judge.average_precision(self.judge.match(choice, iou_type))[0])

    def cost(self, choice: np.ndarray) -> np.ndarray:
        """(1 + B,) mean MACs of a choice (N,); NaN in a draw without a detection."""
        count = len(self.judge.image_ids)
        spent = np.bincount(self.pictures, self.macs[choice], minlength=count)
        there = np.bincount(self.pictures, minlength=count)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self.weights @ spent) / (self.weights @ there)

    def difference(
        self, ours: np.ndarray, theirs: np.ndarray, iou_type: str, budgets: Sequence[np.ndarray]
    ) -> np.ndarray:
        """(1 + B,) AP of ours − theirs, in every draw at the same difference in cost; ``budgets`` span the curve."""
        line = np.stack([self.cost(b) for b in budgets]), np.stack([self.precision(b, iou_type) for b in budgets])
        own, others = self.precision(ours, iou_type), self.precision(theirs, iou_type)
        return at_equal_cost(own, others, self.cost(ours), self.cost(theirs), line)


class DetectionCurveJudge(Judge):
    """Mask and boundary AP of detections.

    Args:
        drawn: AP of choices on the same detections.
        draws: how many permutations chance is the mean over.
        seed: of the permutations.
    """

    def __init__(
        self,
        found: Instances,
        macs: Sequence[int],
        dataset: Data,
        budgets: int,
        drawn: DrawnPrecision,
        draws: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__(found, macs, dataset, budgets, "detected")
        self.drawn, self.draws, self.seed = drawn, draws, seed
        self._budgets = [self.budget(limit) for limit in self.limits]

    def chance(self, choice: np.ndarray, iou_type: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean AP and mean cost (1 + B,) over permutations of a choice."""
        rng = np.random.default_rng(self.seed)
        dealt = [rng.permutation(choice) for _ in range(self.draws)]
        return (
            np.mean([self.drawn.precision(d, iou_type) for d in dealt], axis=0),
            np.mean([self.drawn.cost(d) for d in dealt], axis=0),
        )

    def rows(self) -> list[Row]:
        """All figures of mask and boundary AP."""
        return [row for kind in MASK_TYPES for row in self._rows(kind, f"{kind}_ap")]

    def _rows(self, kind: str, measure: str) -> list[Row]:
        drawn = self.drawn
        rows = [self.row(measure, name, c, _ap(drawn.precision(c, kind))) for name, c in self.named.items()]
        chances = [self.chance(choice, kind) for choice in self._budgets]
        line = np.stack([cost for _, cost in chances]), np.stack([value for value, _ in chances])

        def gain(choice: np.ndarray) -> Interval:
            by_chance, its_cost = self.chance(choice, kind)
            own, cost = drawn.precision(choice, kind), drawn.cost(choice)
            return _ap(at_equal_cost(own, by_chance, cost, its_cost, line))

        rows.append(self.row(measure, "learned", self.named["learned"], gain(self.named["learned"]), "random"))
        for limit, choice, (by_chance, _) in zip(self.limits, self._budgets, chances):
            spent = mean_macs(choice, self.macs)
            rows += [
                self.row(measure, "budget", choice, _ap(drawn.precision(choice, kind)), budget=limit),
                self.row(measure, "random", spent, _ap(by_chance), budget=limit),
                self.row(measure, "budget", choice, gain(choice), "random", limit),
            ]
        for name, theirs in self.rivals():
            limit = mean_macs(theirs, self.macs)
            ours = self.budget(limit)
            gap = drawn.difference(ours, theirs, kind, self._budgets)
            rows.append(self.row(measure, "budget", ours, _ap(gap), name, limit))
        return rows

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
        goal = self.drawn.precision(full, "segm")[0] - drop
        within = None
        for limit in budget_limits(self.logits, self.macs, steps):
            choice = self.budget(limit)
            if self.drawn.plain(choice, "segm") >= goal:
                within = self._operating(choice, full)
                break
        return {"drop": drop, "within_drop": within, "half": self._operating(self.budget(self.macs[-1] / 2), full)}

    def _operating(self, choice: np.ndarray, full: np.ndarray) -> dict[str, Any]:
        cost, drawn = mean_macs(choice, self.macs), self.drawn
        gaps = {f"{k}_ap_minus_full": _ap(drawn.precision(choice, k) - drawn.precision(full, k)) for k in MASK_TYPES}
        return {"mean_macs": cost, "saved": 1 - cost / self.macs[-1], **gaps}


def _ap(drawn: np.ndarray) -> Interval:
    """A figure of AP (1 + B,) with its centred interval; None where AP is undefined."""
    return interval_of(drawn, centre=True)
