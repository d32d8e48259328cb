"""How well predicted quality agrees with measured quality: calibration and rank correlation.

Predicted and measured quality are arrays (N,) in [0, 1] of the same instances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dynamask.evaluation.choices import spearman

BINS = 10
"""Bins of equal width of the predicted quality."""
MIN_INSTANCES = 8
"""Classes with fewer instances have no correlation of their own."""


@dataclass(frozen=True)
class Reliability:
    """The instances of one bin of predicted quality.

    Attributes:
        count: number of instances, at least 1.
        predicted, measured: their mean predicted and measured quality, 0–1.
    """

    count: int
    predicted: float
    measured: float


def reliability(predicted: np.ndarray, measured: np.ndarray) -> list[Reliability]:
    """The bins of predicted quality that hold instances, in rising order."""
    bins = np.clip((np.asarray(predicted) * BINS).astype(np.int64), 0, BINS - 1)
    rows = []
    for k in np.unique(bins):
        own = bins == k
        rows.append(Reliability(int(own.sum()), float(predicted[own].mean()), float(measured[own].mean())))
    return rows


def calibration_error(predicted: np.ndarray, measured: np.ndarray) -> float | None:
    """Expected calibration error: mean over instances of |predicted − measured| of the bins; None without instances."""
    rows = reliability(predicted, measured)
    total = sum(row.count for row in rows)
    return sum(row.count * abs(row.predicted - row.measured) for row in rows) / total if total else None


def spearman_within(a: np.ndarray, b: np.ndarray, labels: np.ndarray) -> float | None:
    """Spearman's rank correlation of a and b (N,) within classes: the mean over classes, weighted by their instances.

    Classes with fewer than ``MIN_INSTANCES`` instances, and those where a or b is constant, are left out; None where no
    class is left.

    Args:
        labels: (N,) class of each instance.
    """
    return _weighted_by_class(lambda own: spearman(a[own], b[own]), np.asarray(labels))


def _weighted_by_class(compute: Callable[[np.ndarray], float | None], labels: np.ndarray) -> float | None:
    """Mean of a statistic of the rows (n,) of each class, weighted by n."""
    total, count = 0.0, 0
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        value = compute(own) if len(own) >= MIN_INSTANCES else None
        if value is not None:
            total, count = total + value * len(own), count + len(own)
    return total / count if count else None
