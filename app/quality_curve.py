"""Quality against MACs for the picture at hand, without Gradio: every budget answered by the exact knapsack."""

from __future__ import annotations

from collections.abc import Sequence
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

LEAST_PROBABILITY = 1e-12
"""Probabilities below it count as it, so that their logarithm is finite."""

MEASURES = {
    "boundary_iou": ("boundary IoU", "mean boundary IoU with the truth"),
    "mask_iou": ("mask IoU", "mean mask IoU with the truth"),
    "probability": ("switch probability", "mean probability that the switch gives the chosen sizes"),
}
"""Short name and what the axis says, by key; the true ones come first where there is a truth."""


def budget_curve(session: Session, shown: Sequence[int] | None = None, points: int = POINTS) -> dict[str, Any]:
    """Everything that the curve of one picture shows, as JSON values.

    Args:
        session: the picture and its instances.
        shown: indices of the instances that count; all by default.
        points: budgets of the sweep.

    Returns:
        `title`, `sizes`, `colours`, `macs`, `instances` (how many are shown) and `measures`, the best one first. See
        `measure_curve` for what a measure holds; `measures` is empty without an instance.

    Raises:
        DynaMaskError: an index that no instance has.
    """
    rows = checked_rows(shown, len(session.instances))
    probs = np.maximum(np.asarray(session.instances.switch_probs, dtype=np.float64)[rows], LEAST_PROBABILITY)
    tables = {"probability": np.asarray(session.instances.switch_probs, dtype=np.float64)[rows]}
    if session.truth is not None:
        tables = {
            "boundary_iou": session.instances.boundary_iou[rows],
            "mask_iou": session.instances.mask_iou[rows],
            **tables,
        }
    measures = [measure_curve(key, table, np.log(probs), rows, session.macs, points) for key, table in tables.items()]
    return {
        "title": session.title,
        "sizes": list(MASK_SIZES),
        "colours": [SIZE_COLOURS[size] for size in MASK_SIZES],
        "macs": [int(value) for value in session.macs],
        "instances": len(rows),
        "truth": session.truth is not None,
        "measures": [measure for measure in measures if measure is not None],
    }


def checked_rows(shown: Any, count: int) -> np.ndarray:
    """(R,) int64 indices below `count`, each once; DynaMaskError for anything else."""
    if shown is None:
        return np.arange(count)
    whole = isinstance(shown, (list, tuple)) and all(isinstance(i, int) and not isinstance(i, bool) for i in shown)
    if not whole or not all(0 <= i < count for i in shown):
        raise DynaMaskError("the page and the server speak of different pictures; choose the picture again")
    return np.array(sorted(set(shown)), dtype=np.int64)


def measure_curve(
    key: str, table: np.ndarray, log_probs: np.ndarray, rows: np.ndarray, macs: Sequence[int], points: int
) -> dict[str, Any] | None:
    """The curve of one measure over the instances for which it is known; None where there is none.

    Args:
        key: of `MEASURES`.
        table: (R, 4) the measure at every size, NaN where unknown.
        log_probs: (R, 4) of the switch.
        rows: (R,) indices of the instances.
        macs: (4,) MACs of an instance at each size.
        points: budgets of the sweep.

    Returns:
        `key`, `name`, `axis`, `known`; `values` {instance index: [4 values]}; `curve`, the sweep, a list of points with
        `budget` and `macs` (mean MACs per instance), `value` and `shares`; `fixed`, a point with its `size` for each
        size; `learned`, the switch's own choice; and with a true measure `random` (the curve's sizes dealt out at
        random, in expectation) and `oracle` (the best choice there is).
    """
    known = ~np.isnan(table).any(axis=1)
    if not known.any():
        return None
    table, log_probs, cost = table[known], log_probs[known], np.array(macs, dtype=np.float64)
    budgets = np.linspace(cost[0], cost[-1], points)
    steps = _sweep(log_probs, macs, budgets)
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
        "learned": _point(table, log_probs.argmax(axis=1), cost),
    }
    if key != "probability":
        result["random"] = [
            {"macs": point["macs"], "value": float(permuted(table, choice).mean())}
            for point, (_, choice) in zip(curve, steps)
        ]
        result["oracle"] = [_point(table, choice, cost, budget) for budget, choice in _sweep(table, macs, budgets)]
    return result


def _sweep(quality: np.ndarray, macs: Sequence[int], budgets: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """The best choice within each budget, by its first budget; budgets that change nothing are left out."""
    steps: list[tuple[float, np.ndarray]] = []
    for budget in budgets.tolist():
        choice = best_under_budget(quality, macs, budget)
        if not steps or not np.array_equal(choice, steps[-1][1]):
            steps.append((budget, choice))
    return steps


def _point(table: np.ndarray, choice: np.ndarray, cost: np.ndarray, budget: float | None = None) -> dict[str, Any]:
    """Mean MACs, mean value and shares of a choice; without a budget, its own cost is the budget."""
    macs = float(cost[choice].mean())
    return {
        "budget": macs if budget is None else float(budget),
        "macs": macs,
        "value": float(at(table, choice).mean()),
        "shares": shares(choice).tolist(),
    }
