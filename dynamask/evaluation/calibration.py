"""Calibration of predicted quality: how well it agrees with measured quality.

Predicted and measured quality are arrays (N,) in [0, 1] of the same instances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 10
"""Bins of equal width of the predicted quality."""


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
