"""The points of a budget curve: the switch and its rivals at equal mean MACs, in true boxes and on detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynamask.data.sources import Data
from dynamask.engine.evaluate import Instances
from dynamask.evaluation.bootstrap import PictureBootstrap, PrecisionBootstrap, interval_of, share_of_gain
from dynamask.evaluation.choices import Draws, at, at_equal_cost, best_mix_quality, blind_mix, shares
from dynamask.evaluation.resampled_ap import MASK_TYPES
from dynamask.ops.knapsack import best_under_budget
from dynamask.reports.collect import IOU_MEASURES
from dynamask.reports.size_choices import at_budget, budget_limits, choice_of, mean_macs
from dynamask.structures import MASK_SIZES, DynaMaskError, Interval

FIXED = tuple(f"fixed:{size}" for size in MASK_SIZES)


@dataclass(frozen=True)
class CurvePoint:
    """One estimate of a budget curve.

    Attributes:
        boxes: "gt" (true boxes) or "detected".
        measure: "mask_iou" or "boundary_iou" in true boxes, "segm_ap" or "boundary_ap" on detections.
        policy: "learned", "budget" (learned, held to a budget), "size", "fixed:S", "random", "mix", "oracle" or
            "noise-aware oracle".
        against: empty for the quality of the policy; the name of a policy for the paired difference to it; "share of
            NAME" for the share of the gain of NAME over a random choice.
        budget_macs: the budget in mean MACs, where there is one.
        mean_macs: mean MACs of an instance under the policy.
        value: the estimate.
        shares: shares of the mask sizes in 0–1; None for policies that are no single choice of sizes.
    """

    boxes: str
    measure: str
    policy: str
    against: str
    budget_macs: float | None
    mean_macs: float
    value: Interval
    shares: tuple[float | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """The point as a row of a table: its fields, with the interval and the shares as columns of their own."""
        row = asdict(self)
        row |= row.pop("value")
        return row | {f"share_{size}": share for size, share in zip(MASK_SIZES, row.pop("shares"))}


class BudgetCurve:
    """The choices of sizes that a budget curve compares.

    Args:
        instances: instances with the masks of every size.
        macs: MACs of an instance at each size.
        dataset: the data set of the instances.
        budgets: number of budgets.
        boxes: "gt" or "detected".

    Attributes:
        named: choice (N,) of each policy without a budget, by name.
        limits: the budgets in mean MACs.
        budgeted: the learned choice (N,) under each budget.

    Raises:
        DynaMaskError: there is no instance.
    """

    def __init__(self, instances: Instances, macs: Sequence[int], dataset: Data, budgets: int, boxes: str) -> None:
        if not instances.results:
            what = "instance of the weights' classes" if boxes == "gt" else "detection"
            raise DynaMaskError(f"the pictures hold no {what}; give other data")
        self.instances, self.macs, self.boxes = instances, tuple(macs), boxes
        self.logits = instances.logits()
        self.named = {policy: choice_of(policy, instances, dataset) for policy in ("learned", "size", *FIXED)}
        self.limits = budget_limits(self.logits, macs, budgets)
        self.budgeted = [self.at_budget(limit) for limit in self.limits]

    def at_budget(self, limit: float) -> np.ndarray:
        """(N,) learned sizes under a budget in mean MACs."""
        return at_budget(self.logits, self.macs, limit)

    def point(
        self,
        measure: str,
        policy: str,
        cost: np.ndarray | float,
        value: Interval,
        against: str = "",
        budget: float | None = None,
    ) -> CurvePoint:
        """One point; ``cost`` is a choice (N,) or its mean MACs."""
        if isinstance(cost, np.ndarray):
            spent, split = mean_macs(cost, self.macs), tuple(shares(cost).tolist())
        else:
            spent, split = cost, (None,) * len(MASK_SIZES)
        return CurvePoint(self.boxes, measure, policy, against, budget, spent, value, split)

    def instance_macs(self, choice: np.ndarray) -> np.ndarray:
        """(N,) float64 MACs of each instance under a choice (N,)."""
        return np.array(self.macs, dtype=np.float64)[choice]


class TrueBoxCurve(BudgetCurve):
    """Mean mask and boundary IoU in true boxes.

    Args:
        views: quality (V, N, 4) in other views, by measure; for V = 0 there is no noise-aware oracle.
        bootstrap: bootstrap over the pictures.
    """

    def __init__(
        self,
        instances: Instances,
        macs: Sequence[int],
        dataset: Data,
        budgets: int,
        views: dict[str, np.ndarray],
        bootstrap: PictureBootstrap,
    ) -> None:
        super().__init__(instances, macs, dataset, budgets, "gt")
        image_ids = np.array([result["image_id"] for result in instances.results], dtype=np.int64)
        self.bootstrap, self.rows = bootstrap, bootstrap.rows(image_ids)
        self.quality = {measure: instances.quality(measure) for measure in IOU_MEASURES}
        self.expected = {measure: quality.mean(axis=0) for measure, quality in views.items() if len(quality)}
        self.size_means = {m: np.stack([self._mean(column) for column in q.T]) for m, q in self.quality.items()}

    def points(self) -> list[CurvePoint]:
        """All points of both measures."""
        return [point for m in IOU_MEASURES for point in (*self._policies(m), *self._differences(m))]

    def _mean(self, values: np.ndarray) -> np.ndarray:
        """Draws (1 + B,) of the mean of values (N,)."""
        return self.bootstrap.draws(values, self.rows)

    def _draws(self, measure: str, choice: np.ndarray) -> Draws:
        return Draws(self._mean(at(self.quality[measure], choice)), self._mean(self.instance_macs(choice)))

    def _random(self, measure: str, choice: np.ndarray) -> Draws:
        """Mean over all permutations of a choice, with the shares of the sizes in each resampled set."""
        split = np.stack([self._mean((choice == k).astype(np.float64)) for k in range(len(self.macs))])  # (K, 1 + B)
        quality = (split * self.size_means[measure]).sum(axis=0)
        return Draws(quality, self._mean(self.instance_macs(choice)))

    def _policies(self, measure: str) -> list[CurvePoint]:
        """The learned, size-based and fixed choices, and every policy at every budget."""
        points = [
            self.point(measure, name, choice, interval_of(self._draws(measure, choice).quality))
            for name, choice in self.named.items()
        ]
        curve = [self._random(measure, choice) for choice in self.budgeted]
        points += self._at_equal_macs(measure, "learned", self.named["learned"], None, curve)
        for limit, choice in zip(self.limits, self.budgeted):
            own = interval_of(self._draws(measure, choice).quality)
            points.append(self.point(measure, "budget", choice, own, budget=limit))
            points += self._at_equal_macs(measure, "budget", choice, limit, curve)
        return points

    def _at_equal_macs(
        self, measure: str, policy: str, choice: np.ndarray, budget: float | None, curve: Sequence[Draws]
    ) -> list[CurvePoint]:
        """A choice against a random one, the best mixture and the oracles that cost as much.

        Args:
            curve: the random choice at every budget.
        """
        quality, limit = self.quality[measure], mean_macs(choice, self.macs)
        macs = np.array(self.macs, dtype=np.float64)
        own, random = self._draws(measure, choice), self._random(measure, choice)
        mixture = best_mix_quality(self.size_means[measure], macs, own.macs)
        gain = own.quality - random.quality
        points = [
            self.point(measure, policy, choice, interval_of(gain), "random", budget),
            self.point(measure, policy, choice, interval_of(own.quality - mixture), "mix", budget),
        ]
        mean_of_mix = interval_of(self._mean(blind_mix(quality, macs, limit)))
        rivals: list[tuple[str, np.ndarray | float, Interval, np.ndarray]] = [
            ("mix", limit, mean_of_mix, mixture - random.quality)
        ]
        for name, known in (("oracle", quality), ("noise-aware oracle", self.expected.get(measure))):
            if known is None:
                continue
            best = best_under_budget(known, self.macs, limit)
            draws = self._draws(measure, best)
            best_gain = at_equal_cost(draws, random, curve)
            rivals.append((name, best, interval_of(draws.quality), best_gain))
            share = share_of_gain(gain, best_gain)
            points.append(self.point(measure, policy, choice, share, f"share of {name}", budget))
        if budget is not None:
            points.append(self.point(measure, "random", limit, interval_of(random.quality), budget=budget))
            for name, cost, value, gain_over_random in rivals:
                points.append(self.point(measure, name, cost, value, budget=budget))
                points.append(self.point(measure, name, cost, interval_of(gain_over_random), "random", budget))
        return points

    def _differences(self, measure: str) -> list[CurvePoint]:
        """Learned sizes at the MACs of the size-based and the fixed choices, minus these."""
        points = []
        curve = [self._draws(measure, choice) for choice in self.budgeted]
        for name, other in self.named.items():
            if name == "learned":
                continue
            limit = mean_macs(other, self.macs)
            own = self.at_budget(limit)
            gap = at_equal_cost(self._draws(measure, own), self._draws(measure, other), curve)
            points.append(self.point(measure, "budget", own, interval_of(gap), name, limit))
        return points

    def known_complexity(self, annotations: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
        """Rank correlation of the size chosen at half the full cost with the known complexity, and with object size.

        Args:
            annotations: annotations of the instances; the result is None unless each has a ``complexity``.
        """
        if any(a is None or a.get("complexity") is None for a in annotations):
            return None
        choice = self.at_budget(self.macs[-1] / 2)
        complexity = np.array([float(a["complexity"]) for a in annotations if a is not None])
        side = np.array([np.sqrt(r["bbox"][2] * r["bbox"][3]) for r in self.instances.results])
        return {
            "mean_macs": mean_macs(choice, self.macs),
            "complexity": self.bootstrap.spearman(choice, complexity, self.rows),
            "object_size": self.bootstrap.spearman(choice, side, self.rows),
            "complexity_by_size": {
                str(size): float(complexity[choice == k].mean()) if (choice == k).any() else None
                for k, size in enumerate(MASK_SIZES)
            },
        }


class DetectionCurve(BudgetCurve):
    """Mask and boundary AP of detections.

    Args:
        precision: AP of the same detections under resampling.
        permutations: number of permutations that the random choice is averaged over.
        seed: seed of the permutations.
    """

    def __init__(
        self,
        instances: Instances,
        macs: Sequence[int],
        dataset: Data,
        budgets: int,
        precision: PrecisionBootstrap,
        permutations: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__(instances, macs, dataset, budgets, "detected")
        self.precision, self.permutations, self.seed = precision, permutations, seed

    def points(self) -> list[CurvePoint]:
        """All points of mask and boundary AP."""
        return [point for iou_type in MASK_TYPES for point in self._points(iou_type, f"{iou_type}_ap")]

    def _draws(self, iou_type: str, choice: np.ndarray) -> Draws:
        return Draws(self.precision.draws(choice, iou_type), self.precision.means(self.instance_macs(choice)))

    def _random(self, iou_type: str, choice: np.ndarray) -> Draws:
        """Mean over permutations of a choice."""
        rng = np.random.default_rng(self.seed)
        draws = [self._draws(iou_type, rng.permutation(choice)) for _ in range(self.permutations)]
        return Draws(np.mean([d.quality for d in draws], axis=0), np.mean([d.macs for d in draws], axis=0))

    def _points(self, iou_type: str, measure: str) -> list[CurvePoint]:
        random_curve = [self._random(iou_type, choice) for choice in self.budgeted]

        def own(choice: np.ndarray) -> Interval:
            return _centred(self.precision.draws(choice, iou_type))

        def gain(choice: np.ndarray) -> Interval:
            random = self._random(iou_type, choice)
            return _centred(at_equal_cost(self._draws(iou_type, choice), random, random_curve))

        points = [self.point(measure, name, choice, own(choice)) for name, choice in self.named.items()]
        learned = self.named["learned"]
        points.append(self.point(measure, "learned", learned, gain(learned), "random"))
        for limit, choice, random in zip(self.limits, self.budgeted, random_curve):
            spent = mean_macs(choice, self.macs)
            points += [
                self.point(measure, "budget", choice, own(choice), budget=limit),
                self.point(measure, "random", spent, _centred(random.quality), budget=limit),
                self.point(measure, "budget", choice, gain(choice), "random", limit),
            ]
        curve = [self._draws(iou_type, choice) for choice in self.budgeted]
        for name, other in self.named.items():
            if name != "learned":
                limit = mean_macs(other, self.macs)
                choice = self.at_budget(limit)
                gap = at_equal_cost(self._draws(iou_type, choice), self._draws(iou_type, other), curve)
                points.append(self.point(measure, "budget", choice, _centred(gap), name, limit))
        return points

    def operating_points(self, drop: float = 0.001, steps: int = 40) -> dict[str, Any]:
        """The two operating points of Tab. 5: the cheapest budget within ``drop`` mask AP of the finest size, and half
        of its MACs.

        Args:
            drop: largest accepted loss of AP, 0–1.
            steps: number of budgets that are tried for the first.

        Returns:
            ``within_drop`` (None if no budget is) and ``half``, each with its mean MACs, the share of the full MACs
            that it saves, and the differences in mask and boundary AP to the finest size.
        """
        full = self.named[FIXED[-1]]
        goal = self.precision.draws(full, "segm")[0] - drop
        choices = (self.at_budget(limit) for limit in budget_limits(self.logits, self.macs, steps))
        within = next((choice for choice in choices if self.precision.value(choice, "segm") >= goal), None)
        return {
            "drop": drop,
            "within_drop": None if within is None else self._operating_point(within, full),
            "half": self._operating_point(self.at_budget(self.macs[-1] / 2), full),
        }

    def _operating_point(self, choice: np.ndarray, full: np.ndarray) -> dict[str, Any]:
        cost, draws = mean_macs(choice, self.macs), self.precision.draws
        gaps = {f"{t}_ap_minus_full": _centred(draws(choice, t) - draws(full, t)) for t in MASK_TYPES}
        return {"mean_macs": cost, "saved": 1 - cost / self.macs[-1], **gaps}


def _centred(draws: np.ndarray) -> Interval:
    return interval_of(draws, centre=True)
