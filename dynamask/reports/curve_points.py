"""The points of a budget curve: the switch and its rivals at equal mean MACs, in true boxes and on detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynamask.data.sources import Data
from dynamask.engine.evaluate import Instances
from dynamask.evaluation.bootstrap import PictureBootstrap, PrecisionBootstrap, interval_of, share_of_gain
from dynamask.evaluation.choices import Draws, at, at_equal_cost, best_mix_quality, blind_mix, shares, within_spearman
from dynamask.evaluation.resampled_ap import MASK_TYPES
from dynamask.evaluation.rivals import TABLES, Measured, cross_fitted
from dynamask.ops.knapsack import best_under_budget
from dynamask.reports.size_choices import at_budget, budget_limits, choice_of, mean_macs
from dynamask.structures import IOU_MEASURES, MASK_SIZES, DynaMaskError, Interval

FIXED = tuple(f"fixed:{size}" for size in MASK_SIZES)


@dataclass(frozen=True)
class CurvePoint:
    """One estimate of a budget curve.

    Attributes:
        boxes: "gt" (true boxes) or "detected".
        measure: "mask_iou" or "boundary_iou" in true boxes, "segm_ap" or "boundary_ap" on detections.
        policy: "learned", "budget" (by predicted quality or the switch), "size", "fixed:S", "random", "mix", one of
            :data:`dynamask.evaluation.rivals.TABLES`, "oracle" or "noise-aware oracle".
        against: empty for the quality of the policy; the name of a policy for the paired difference to it; "share of
            NAME" for the share of the gain of NAME over a random choice, "share over mix of NAME" for that over the
            best blind mixture of two fixed sizes.
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
    """The choices of sizes that a budget curve compares, and the points that both kinds of boxes have.

    Args:
        instances: instances with the masks of every size.
        macs: MACs of an instance at each size.
        dataset: the data set of the instances.
        budgets: number of budgets.

    Attributes:
        named: choice (N,) of each policy without a budget, by name.
        limits: the budgets in mean MACs.
        budgeted: the learned choice (N,) under each budget.

    Raises:
        DynaMaskError: there is no instance.
    """

    boxes: str
    measures: tuple[str, ...]

    def __init__(self, instances: Instances, macs: Sequence[int], dataset: Data, budgets: int) -> None:
        if not instances.results:
            what = "instance of the weights' classes" if self.boxes == "gt" else "detection"
            raise DynaMaskError(f"the pictures hold no {what}; give other data")
        self.instances, self.macs, self.values = instances, tuple(macs), instances.preferences()
        self.named = {policy: choice_of(policy, instances, dataset) for policy in ("learned", "size", *FIXED)}
        self.limits = budget_limits(self.values, macs, budgets)
        self.budgeted = [self.at_budget(limit) for limit in self.limits]
        self._random_curves: dict[str, list[Draws]] = {}

    def at_budget(self, limit: float) -> np.ndarray:
        """(N,) sizes under a budget in mean MACs, by predicted quality where it is known, else by the switch."""
        return at_budget(self.values, self.macs, limit)

    def instance_macs(self, choice: np.ndarray) -> np.ndarray:
        """(N,) float64 MACs of each instance under a choice (N,)."""
        return np.array(self.macs, dtype=np.float64)[choice]

    def draws(self, measure: str, choice: np.ndarray) -> Draws:
        """A measure and the mean MACs of a choice (N,)."""
        raise NotImplementedError

    def random(self, measure: str, choice: np.ndarray) -> Draws:
        """The mean of a measure over permutations of a choice (N,), and its mean MACs."""
        raise NotImplementedError

    def random_curve(self, measure: str) -> list[Draws]:
        """:meth:`random` of the learned choice under each budget."""
        if measure not in self._random_curves:
            self._random_curves[measure] = [self.random(measure, choice) for choice in self.budgeted]
        return self._random_curves[measure]

    def rivals(self, measure: str, policy: str, choice: np.ndarray, budget: float | None) -> list[CurvePoint]:
        """A learned choice against policies at its own MACs; under a budget also the quality of these."""
        raise NotImplementedError

    def points(self) -> list[CurvePoint]:
        """All points: every policy at its own MACs, the learned sizes at every budget, and paired differences."""
        points = []
        for measure in self.measures:
            for name, choice in self.named.items():
                points.append(self.point(measure, name, choice, self.draws(measure, choice).quality))
            points += self.rivals(measure, "learned", self.named["learned"], None)
            for limit, choice in zip(self.limits, self.budgeted):
                points.append(self.point(measure, "budget", choice, self.draws(measure, choice).quality, budget=limit))
                points += self.rivals(measure, "budget", choice, limit)
            curve = [self.draws(measure, choice) for choice in self.budgeted]
            for name in ("size", *FIXED):
                limit = mean_macs(self.named[name], self.macs)
                own = self.at_budget(limit)
                gap = at_equal_cost(self.draws(measure, own), self.draws(measure, self.named[name]), curve)
                points.append(self.point(measure, "budget", own, gap, name, limit))
        return points

    def point(
        self,
        measure: str,
        policy: str,
        cost: np.ndarray | float,
        value: np.ndarray | Interval,
        against: str = "",
        budget: float | None = None,
    ) -> CurvePoint:
        """One point; ``cost`` is a choice (N,) or its mean MACs, ``value`` its draws (1 + B,) or their interval."""
        spent, split = cost, (None,) * len(MASK_SIZES)
        if isinstance(cost, np.ndarray):
            spent, split = mean_macs(cost, self.macs), tuple(shares(cost).tolist())
        if isinstance(value, np.ndarray):
            value = interval_of(value, centre=self.boxes == "detected")
        return CurvePoint(self.boxes, measure, policy, against, budget, spent, value, split)


class TrueBoxCurve(BudgetCurve):
    """Mean mask and boundary IoU in true boxes.

    Args:
        views: quality (V, N, 4) in other views, by measure; for V = 0 there is no noise-aware oracle.
        bootstrap: bootstrap over the pictures.
    """

    boxes, measures = "gt", IOU_MEASURES

    def __init__(
        self,
        instances: Instances,
        macs: Sequence[int],
        dataset: Data,
        budgets: int,
        views: dict[str, np.ndarray],
        bootstrap: PictureBootstrap,
    ) -> None:
        super().__init__(instances, macs, dataset, budgets)
        image_ids = np.array([result["image_id"] for result in instances.results], dtype=np.int64)
        self.bootstrap, self.rows = bootstrap, bootstrap.rows(image_ids)
        self.quality = {measure: instances.quality(measure) for measure in IOU_MEASURES}
        self.expected = {measure: quality.mean(axis=0) for measure, quality in views.items() if len(quality)}
        self.size_means = {m: np.stack([self._mean(column) for column in q.T]) for m, q in self.quality.items()}
        measured = Measured(np.stack([self.quality[m] for m in IOU_MEASURES], axis=2), *_keys(instances), image_ids)
        self.labels, self.sides = measured.label, measured.side
        self.tables = cross_fitted(measured)

    def _mean(self, values: np.ndarray) -> np.ndarray:
        """Draws (1 + B,) of the mean of values (N,)."""
        return self.bootstrap.draws(values, self.rows)

    def draws(self, measure: str, choice: np.ndarray) -> Draws:
        """See :meth:`BudgetCurve.draws`."""
        return Draws(self._mean(at(self.quality[measure], choice)), self._mean(self.instance_macs(choice)))

    def random(self, measure: str, choice: np.ndarray) -> Draws:
        """The exact mean over all permutations, with the shares of the sizes in each resampled set."""
        split = np.stack([self._mean((choice == k).astype(np.float64)) for k in range(len(self.macs))])  # (K, 1 + B)
        quality = (split * self.size_means[measure]).sum(axis=0)
        return Draws(quality, self._mean(self.instance_macs(choice)))

    def rivals(self, measure: str, policy: str, choice: np.ndarray, budget: float | None) -> list[CurvePoint]:
        """See :meth:`BudgetCurve.rivals`: a random choice, the best mixture of two sizes, the tables, the oracles."""
        limit, macs = mean_macs(choice, self.macs), np.array(self.macs, dtype=np.float64)
        own, random = self.draws(measure, choice), self.random(measure, choice)
        mixture = best_mix_quality(self.size_means[measure], macs, own.macs)
        gain = own.quality - random.quality
        points = [
            self.point(measure, policy, choice, gain, "random", budget),
            self.point(measure, policy, choice, own.quality - mixture, "mix", budget),
        ]
        mean_of_mix = self._mean(blind_mix(self.quality[measure], macs, limit))
        rivals: list[tuple[str, np.ndarray | float, np.ndarray, np.ndarray]] = [
            ("mix", limit, mean_of_mix, mixture - random.quality)
        ]
        for name, known in self._known(measure).items():
            best = best_under_budget(known, self.macs, limit)
            draws = self.draws(measure, best)
            best_gain = at_equal_cost(draws, random, self.random_curve(measure))
            rivals.append((name, best, draws.quality, best_gain))
            if name in TABLES:
                points.append(self.point(measure, policy, choice, gain - best_gain, name, budget))
                continue
            over_mix = share_of_gain(own.quality - mixture, best_gain - (mixture - random.quality))
            shared = {"share of": share_of_gain(gain, best_gain), "share over mix of": over_mix}
            points += [self.point(measure, policy, choice, v, f"{text} {name}", budget) for text, v in shared.items()]
        if budget is not None:
            points.append(self.point(measure, "random", limit, random.quality, budget=budget))
            for name, cost, value, gain_over_random in rivals:
                points.append(self.point(measure, name, cost, value, budget=budget))
                points.append(self.point(measure, name, cost, gain_over_random, "random", budget))
        return points

    def _known(self, measure: str) -> dict[str, np.ndarray]:
        """Quality (N, 4) by which the rivals with a budget choose, by name."""
        tables = {name: values[:, :, IOU_MEASURES.index(measure)] for name, values in self.tables.items()}
        oracles = {"oracle": self.quality[measure], "noise-aware oracle": self.expected.get(measure)}
        return tables | {name: known for name, known in oracles.items() if known is not None}

    def known_complexity(self, annotations: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
        """Rank correlation of the size chosen at half the full cost with the known complexity, and with object size.

        Each is given over all instances, and within classes: the mean over classes, weighted by their instances.

        Args:
            annotations: annotations of the instances; the result is None unless each has a ``complexity``.
        """
        if any(a is None or a.get("complexity") is None for a in annotations):
            return None
        choice = self.at_budget(self.macs[-1] / 2)
        complexity = np.array([float(a["complexity"]) for a in annotations if a is not None])
        found = {
            "complexity": self.bootstrap.spearman(choice, complexity, self.rows),
            "object_size": self.bootstrap.spearman(choice, self.sides, self.rows),
            "complexity_within": self._within_classes(choice, complexity),
            "object_size_within": self._within_classes(choice, self.sides),
        }
        return {
            "mean_macs": mean_macs(choice, self.macs),
            **found,
            "complexity_by_size": {
                str(size): float(complexity[choice == k].mean()) if (choice == k).any() else None
                for k, size in enumerate(MASK_SIZES)
            },
        }

    def _within_classes(self, a: np.ndarray, b: np.ndarray) -> Interval:
        """Spearman's rank correlation within classes, with its interval."""
        return self.bootstrap.statistic(lambda kept: within_spearman(a[kept], b[kept], self.labels[kept]), self.rows)


def _keys(instances: Instances) -> tuple[np.ndarray, np.ndarray]:
    """(N,) class ids, and (N,) square roots of the box areas in pixels."""
    label = np.array([result["category_id"] for result in instances.results], dtype=np.int64)
    return label, np.array([np.sqrt(result["bbox"][2] * result["bbox"][3]) for result in instances.results])


class DetectionCurve(BudgetCurve):
    """Mask and boundary AP of detections.

    Args:
        precision: AP of the same detections under resampling.
        permutations: number of permutations that the random choice is averaged over.
        seed: seed of the permutations.
    """

    boxes, measures = "detected", tuple(f"{iou_type}_ap" for iou_type in MASK_TYPES)

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
        super().__init__(instances, macs, dataset, budgets)
        self.precision, self.permutations, self.seed = precision, permutations, seed

    def draws(self, measure: str, choice: np.ndarray) -> Draws:
        """See :meth:`BudgetCurve.draws`."""
        quality = self.precision.draws(choice, measure.removesuffix("_ap"))
        return Draws(quality, self.precision.means(self.instance_macs(choice)))

    def random(self, measure: str, choice: np.ndarray) -> Draws:
        """See :meth:`BudgetCurve.random`; the same permutations for every choice."""
        rng = np.random.default_rng(self.seed)
        draws = [self.draws(measure, rng.permutation(choice)) for _ in range(self.permutations)]
        return Draws(np.mean([d.quality for d in draws], axis=0), np.mean([d.macs for d in draws], axis=0))

    def rivals(self, measure: str, policy: str, choice: np.ndarray, budget: float | None) -> list[CurvePoint]:
        """See :meth:`BudgetCurve.rivals`: a random choice."""
        random = self.random(measure, choice)
        gain = at_equal_cost(self.draws(measure, choice), random, self.random_curve(measure))
        points = [self.point(measure, policy, choice, gain, "random", budget)]
        if budget is not None:
            spent = mean_macs(choice, self.macs)
            points.insert(0, self.point(measure, "random", spent, random.quality, budget=budget))
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
        goal = self.precision.draws(self.named[FIXED[-1]], "segm")[0] - drop
        choices = (self.at_budget(limit) for limit in budget_limits(self.values, self.macs, steps))
        within = next((choice for choice in choices if self.precision.value(choice, "segm") >= goal), None)
        half = self._operating_point(self.at_budget(self.macs[-1] / 2))
        return {"drop": drop, "within_drop": None if within is None else self._operating_point(within), "half": half}

    def _operating_point(self, choice: np.ndarray) -> dict[str, Any]:
        cost, full = mean_macs(choice, self.macs), self.named[FIXED[-1]]
        gaps = {m: self.draws(m, choice).quality - self.draws(m, full).quality for m in self.measures}
        intervals = {f"{measure}_minus_full": interval_of(gap, centre=True) for measure, gap in gaps.items()}
        return {"mean_macs": cost, "saved": 1 - cost / self.macs[-1], **intervals}
