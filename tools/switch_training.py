"""Evaluate switches that were trained on cached features, for ``decisions.py``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamask.engine.frozen_features import FeatureCache
from dynamask.engine.frozen_switch import predict_logits, train_switch
from dynamask.evaluation.bootstrap import PictureBootstrap
from dynamask.evaluation.choices import at, blind_mix, permuted, shares, spearman, within_spearman
from dynamask.evaluation.rivals import FRACTIONS, BudgetComparison, Measured, correlations, table_predictions
from dynamask.models.masks import policies
from dynamask.models.masks.switch import MaskSwitchModule
from dynamask.training_config import LossConfig, TrainConfig

BUDGETS = FRACTIONS
"""Budgets at which a switch is evaluated, by a price per MAC, as fractions of the full branch's MACs."""
MEASURES = ("boundary_iou", "mask_iou")


@torch.no_grad()
def spend(switch: MaskSwitchModule, cache: FeatureCache, fraction: float) -> float:
    """Limit the mean cost of a switch's choices, in the true boxes of a cache, to a fraction of the full branch.

    The price per MAC that meets it goes into the last bias: argmax (log p_k − μ C_k) becomes the argmax of p. What a
    further price chooses stays as it was.

    Returns:
        The price μ.
    """
    macs = tuple(int(m) for m in cache.macs)
    logits = predict_logits(switch, cache.true_boxes())
    price = policies.price_for_budget(logits, macs, fraction * macs[-1]) * (1 + 1e-4)  # float32 keeps it
    switch.fc[2].bias -= price * torch.tensor(macs, dtype=torch.float64).to(switch.fc[2].bias.dtype)
    return price


class Frontier:
    """Best mean quality as a function of the mean cost, by one price per MAC: an upper bound of the oracle.

    Over hundreds of instances the exact knapsack lies less than one instance's gain below it, divided by their number.

    Args:
        known: (N, K) by which the oracle chooses.
        quality: (N, K) by which it is judged.
        macs: (K,).
    """

    def __init__(self, known: np.ndarray, quality: np.ndarray, macs: np.ndarray, prices: int = 400) -> None:
        scale = np.concatenate([[0.0], np.geomspace(1e-5, 100.0, prices)]) / macs[-1]
        choices = [(known - price * macs).argmax(axis=1) for price in scale]
        points = sorted((float(macs[c].mean()), float(at(quality, c).mean())) for c in choices)
        self.cost, self.value = (np.array(column) for column in zip(*points))

    def __call__(self, limit: float) -> float:
        """Mean quality at a mean cost in MACs."""
        return float(np.interp(limit, self.cost, self.value))


def box_side(cache: FeatureCache) -> Tensor:
    """(N,) square root of the box area in pixels."""
    return (cache.box[:, 2:] - cache.box[:, :2]).prod(1).sqrt()


def other_views(cache: FeatureCache, measure: str) -> np.ndarray | None:
    """(M, 4) mean quality of each instance over its views but view 0, in the order of ``cache.true_boxes()``.

    None where there are no other views.
    """
    views = int(cache.view.max()) if len(cache) else 0
    if not views:
        return None
    quality, rows = getattr(cache, measure).double(), cache.view > 0
    mean = quality.new_zeros(int(cache.instance.max()) + 1, quality.shape[1])
    mean.index_add_(0, cache.instance[rows], quality[rows] / views)
    return mean[cache.instance[cache.view == 0]].numpy()


def measured(cache: FeatureCache) -> Measured:
    """The instances of a cache in their true boxes."""
    cache = cache.true_boxes()
    quality = torch.stack([cache.mask_iou, cache.boundary_iou], dim=2).double()
    columns = (quality, cache.label, box_side(cache).double(), cache.image_id)
    return Measured(*(values.numpy() for values in columns))


def compare_with_tables(train: FeatureCache, test: FeatureCache, predicted: Mapping[str, Tensor]) -> dict[str, Any]:
    """Predictors of quality, and tables fitted on another cache, at equal budgets on the true boxes of a cache.

    All choose by the mean of mask and boundary IoU, switches by their log p.

    Args:
        train: whose instances the tables are fitted on; without an instance of the test pictures.
        test: whose instances are judged; its other views are what the noise-aware oracle knows.
        predicted: (R, 4) by name, of the first predictor and others; the tables are compared with the first.

    Returns:
        ``budgets``: :meth:`BudgetComparison.to_dict`; ``correlation``: by predictor Spearman's rank correlation, pooled
        and within classes, of the predicted gain 112 − 14 with the measured gain in boundary IoU.
    """
    known, judged = measured(train), measured(test)
    views = [other_views(test, name) for name in ("mask_iou", "boundary_iou")]
    aware = None if views[0] is None else np.stack(views, axis=2)
    rows = {name: values.double().numpy() for name, values in predicted.items()}
    rows |= {name: values.mean(axis=2) for name, values in table_predictions(known, judged).items()}
    if aware is not None:
        rows["noise-aware oracle"] = aware.mean(axis=2)
    comparison = BudgetComparison(judged, test.macs, rows, aware)
    gain = judged.quality[:, -1, 1] - judged.quality[:, 0, 1]
    found = {n: correlations(p[:, -1] - p[:, 0], gain, judged.label, judged.picture) for n, p in rows.items()}
    return {
        "budgets": comparison.to_dict(next(iter(rows))),
        "correlation": {name: {kind: rho.to_dict() for kind, rho in one.items()} for name, one in found.items()},
    }


class Judge:
    """Evaluates size choices for the true boxes of a cache against random choices, fixed mixtures and oracles.

    Args:
        cache: whose rows of view 0 are judged; its other views are what the noise-aware oracle knows.
        budgets: fractions of the full branch's MACs.
    """

    def __init__(self, cache: FeatureCache, budgets: Sequence[float] = BUDGETS) -> None:
        self.cache, self.budgets, self.macs = cache.true_boxes(), tuple(budgets), cache.macs
        self.quality = {m: getattr(self.cache, m).double().numpy() for m in MEASURES}
        views = {m: other_views(cache, m) for m in MEASURES}
        self.oracle = {m: Frontier(q, q, self.macs) for m, q in self.quality.items()}
        self.aware = {m: Frontier(views[m], q, self.macs) for m, q in self.quality.items() if views[m] is not None}
        self.bootstrap = PictureBootstrap(self.cache.image_id.tolist(), 2000)
        self.rows = self.bootstrap.rows(self.cache.image_id.numpy())
        self.complexity, self.side = self.cache.complexity.double().numpy(), box_side(self.cache).double().numpy()

    def judge(self, logits: Tensor) -> dict[str, Any]:
        """Results of a switch's own choices, of its choices at every budget, and means over the budgets."""
        macs = tuple(int(m) for m in self.macs)
        budgets = {}
        for budget in self.budgets:
            price = policies.price_for_budget(logits, macs, budget * macs[-1])
            budgets[str(budget)] = self.point(policies.at_price(logits, macs, price).numpy())
        return {
            "learned": self.point(policies.learned(logits).numpy()),
            "budgets": budgets,
            "sweep": {m: sweep_means([point[m] for point in budgets.values()]) for m in MEASURES},
        }

    def point(self, choice: np.ndarray) -> dict[str, Any]:
        """Results of one choice (N,)."""
        limit = float(self.macs[choice].mean())
        label, known = self.cache.label.numpy(), not np.isnan(self.complexity).any()
        figures: dict[str, Any] = {
            "size_shares": shares(choice).tolist(),
            "mean_macs": limit,
            "macs_fraction": limit / float(self.macs[-1]),
            "spearman_side": spearman(choice, self.side),
            "spearman_side_within": within_spearman(choice, self.side, label),
            "spearman_complexity": spearman(choice, self.complexity) if known else None,
            "spearman_complexity_within": within_spearman(choice, self.complexity, label) if known else None,
        }
        for measure, quality in self.quality.items():
            own, chance = at(quality, choice), permuted(quality, choice)
            mixture = blind_mix(quality, self.macs, limit)
            aware = self.aware[measure](limit) if self.aware else None
            figures[measure] = {
                "mean": float(own.mean()),
                "gain": self.bootstrap.interval(own - chance, self.rows).to_dict(),
                "gain_over_mix": float((own - mixture).mean()),
                "share_of_oracle": _share(own, chance, self.oracle[measure](limit)),
                "share_of_noise_aware": None if aware is None else _share(own, chance, aware),
                "share_over_mix": None if aware is None else _share(own, mixture, aware),
            }
        return figures


def sweep_means(points: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Means of a measure's results over budgets; None if one is undefined."""
    found: dict[str, float | None] = {"gain": float(np.mean([point["gain"]["mean"] for point in points]))}
    for name in ("mean", "gain_over_mix", "share_of_oracle", "share_of_noise_aware", "share_over_mix"):
        values = [point[name] for point in points]
        found[name] = None if any(value is None for value in values) else float(np.mean(values))
    return found


def _share(own: np.ndarray, chance: np.ndarray, best: float) -> float | None:
    """Gain over blind choices as a share of the best one's; None if the best one gains nearly nothing."""
    gain = best - float(chance.mean())
    return float((own - chance).mean()) / gain if gain > 1e-6 else None


def run_setting(
    train: FeatureCache, judge: Judge, config: LossConfig, schedule: TrainConfig, seeds: Sequence[int]
) -> dict[str, Any]:
    """Train and evaluate a switch with one setting for every seed.

    Returns:
        ``losses`` and ``schedule`` as JSON values, and ``runs``: :meth:`Judge.judge` with its ``seed``.
    """
    runs = []
    for seed in seeds:
        switch = train_switch(train, config, schedule, seed)
        runs.append({"seed": seed, **judge.judge(predict_logits(switch, judge.cache))})
    return {"losses": dataclasses.asdict(config), "schedule": dataclasses.asdict(schedule), "runs": runs}
