"""Quality against MACs for one picture: the best choice of mask sizes within every budget, by the exact knapsack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamask.evaluation.choices import at, permuted, shares
from dynamask.ops.knapsack import best_under_budget
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.style import SIZE_COLOURS

if TYPE_CHECKING:
    from app.session import Session

POINTS = 41
"""Budgets of the sweep, evenly spaced from the cheapest size to the full branch."""

MEASURES = {
    "boundary_iou": ("boundary IoU", "mean boundary IoU with ground truth"),
    "mask_iou": ("mask IoU", "mean mask IoU with ground truth"),
    "predicted_quality": ("predicted quality", "mean predicted quality: the mean of mask IoU and boundary IoU"),
    "probability": ("switch probability", "mean switch probability of the chosen sizes"),
}
"""Short name and title of the axis of each measure."""

TRUE_MEASURES = ("boundary_iou", "mask_iou")
"""The measures that need ground truth."""


def budget_curve(session: Session, shown: Sequence[int] | None = None, points: int = POINTS) -> dict[str, Any]:
    """The curve of one picture as JSON values.

    Args:
        session: the picture and its instances.
        shown: indices of the instances that are counted; all by default.
        points: budgets of the sweep.

    Returns:
        `title`, `sizes`, `colours`, `macs`, `instances` (how many are counted), `truth` (whether ground truth is
        known), `follows` (what the sweep maximises, "predicted quality" or "switch") and `measures`, those with ground
        truth first, then the predicted quality; see `measure_curve`. Without an instance `measures` is empty.

    Raises:
        DynaMaskError: an index that no instance has.
    """
    found = session.instances
    rows = checked_rows(shown, len(found))
    values, predicted = found.preferences(), found.quality is not None
    tables = {"predicted_quality": values[rows]} if predicted else {}
    tables["probability"] = found.switch_probs[rows]
    if session.picture.truth is not None:
        tables = {"boundary_iou": found.boundary_iou[rows], "mask_iou": found.mask_iou[rows], **tables}
    chosen = {policy: choice[rows] for policy, choice in found.choices().items()}
    measures = [
        measure_curve(key, table, values[rows], chosen, rows, session.macs, points) for key, table in tables.items()
    ]
    return {
        "title": session.picture.title,
        "sizes": list(MASK_SIZES),
        "colours": [SIZE_COLOURS[size] for size in MASK_SIZES],
        "macs": list(session.macs),
        "instances": len(rows),
        "truth": session.picture.truth is not None,
        "follows": "predicted quality" if predicted else "switch",
        "measures": [measure for measure in measures if measure is not None],
    }


def checked_rows(shown: Any, count: int) -> np.ndarray:
    """(R,) int64 indices below `count`, each once; DynaMaskError for anything else."""
    if shown is None:
        return np.arange(count)
    if not isinstance(shown, (list, tuple)) or not all(type(i) is int and 0 <= i < count for i in shown):
        raise DynaMaskError("the page shows another picture than the server keeps; choose the picture again")
    return np.array(sorted(set(shown)), dtype=np.int64)


def measure_curve(
    key: str,
    table: np.ndarray,
    preferences: np.ndarray,
    chosen: Mapping[str, np.ndarray],
    rows: np.ndarray,
    macs: Sequence[int],
    points: int,
) -> dict[str, Any] | None:
    """The curve of one measure over the instances for which it is known; None if there are none.

    Args:
        key: of `MEASURES`.
        table: (R, 4) the measure at every size, NaN where unknown.
        preferences: (R, 4), the sum of which each budget maximises.
        chosen: (R,) indices into ``MASK_SIZES`` under policies without a budget.
        rows: (R,) indices of the instances.
        macs: (4,) MACs of an instance at each size.
        points: budgets of the sweep.

    Returns:
        `key`, `name`, `axis`, `known`; `values` {instance index: [4 values]}; `curve`, the sweep, a list of points with
        `budget` and `macs` (mean MACs per instance), `value` and `shares`; `fixed`, a point with its `size` for each
        size; a point for each policy of `chosen`; and with ground truth `random` (the curve's sizes assigned at
        random, in expectation) and `oracle` (the best choice by ground truth).
    """
    known = ~np.isnan(table).any(axis=1)
    if not known.any():
        return None
    table, preferences, cost = table[known], preferences[known], np.array(macs, dtype=np.float64)
    budgets = np.linspace(cost[0], cost[-1], points)
    steps = _sweep(preferences, macs, budgets)
    curve = [_point(table, choice, cost, budget) for budget, choice in steps]
    short, axis = MEASURES[key]
    result = {
        "key": key,
        "name": short,
        "axis": axis,
        "known": len(table),
        "values": {str(i): values for i, values in zip(rows[known].tolist(), table.tolist())},
        "curve": curve,
        "fixed": [
            {"size": size, "budget": float(cost[k]), "macs": float(cost[k]), "value": float(table[:, k].mean())}
            for k, size in enumerate(MASK_SIZES)
        ],
        **{policy: _point(table, choice[known], cost) for policy, choice in chosen.items()},
    }
    if key in TRUE_MEASURES:
        result["random"] = [
            {"macs": point["macs"], "value": float(permuted(table, choice).mean())}
            for point, (_, choice) in zip(curve, steps)
        ]
        result["oracle"] = [_point(table, choice, cost, budget) for budget, choice in _sweep(table, macs, budgets)]
    return result


def _sweep(quality: np.ndarray, macs: Sequence[int], budgets: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """The best choice within each budget; budgets that do not change the choice are left out."""
    steps: list[tuple[float, np.ndarray]] = []
    for budget in budgets.tolist():
        choice = best_under_budget(quality, macs, budget)
        if not steps or not np.array_equal(choice, steps[-1][1]):
            steps.append((budget, choice))
    return steps


def _point(table: np.ndarray, choice: np.ndarray, cost: np.ndarray, budget: float | None = None) -> dict[str, Any]:
    """Mean MACs, mean value and shares of a choice; without a budget, its cost is the budget."""
    macs = float(cost[choice].mean())
    return {
        "budget": macs if budget is None else float(budget),
        "macs": macs,
        "value": float(at(table, choice).mean()),
        "shares": shares(choice).tolist(),
    }
