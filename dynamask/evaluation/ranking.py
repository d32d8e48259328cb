"""How well a signal ranks the mask sizes of an instance, against the quality that they have."""

from __future__ import annotations

import numpy as np

from dynamask.evaluation.bootstrap import PictureBootstrap, interval_of
from dynamask.structures import Interval


def pairwise(signal: np.ndarray, quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many pairs of sizes a signal puts in the order of their quality, instance by instance.

    Args:
        signal: (N, K), higher where the size is said to be better.
        quality: (N, K), higher is better.

    Returns:
        (N,) pairs in the right order, a tie of the signal counting one half, and (N,) pairs whose quality differs.
    """
    right, pairs = np.zeros(len(signal)), np.zeros(len(signal))
    for j in range(signal.shape[1]):
        for k in range(j + 1, signal.shape[1]):
            truth, said = np.sign(quality[:, k] - quality[:, j]), np.sign(signal[:, k] - signal[:, j])
            pairs += truth != 0
            right += np.where(truth == 0, 0.0, np.where(said == 0, 0.5, said == truth))
    return right, pairs


def row_spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) Spearman's rank correlation of each row of two (N, K) arrays; NaN where a row is constant in one."""
    first, second = (_row_ranks(values) for values in (a, b))
    first, second = first - first.mean(axis=1, keepdims=True), second - second.mean(axis=1, keepdims=True)
    norm = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.divide((first * second).sum(axis=1), norm, out=np.full(len(a), np.nan), where=norm > 0)


def _row_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 within each row, equal values sharing the mean of theirs."""
    below = (values[:, None, :] < values[:, :, None]).sum(axis=2)
    equal = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    return below + (equal + 1) / 2


class SizeRanking:
    """Signals against quality, with intervals over pictures.

    Args:
        quality: (N, K), higher is better.
        bootstrap: over the pictures.
        rows: (N,) pictures of the instances.
    """

    def __init__(self, quality: np.ndarray, bootstrap: PictureBootstrap, rows: np.ndarray) -> None:
        self.quality, self.bootstrap, self.rows = quality, bootstrap, rows

    def accuracy(self, signal: np.ndarray) -> np.ndarray:
        """(1 + B,) share of all pairs of sizes of one instance that the signal puts in the right order."""
        right, pairs = pairwise(signal, self.quality)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.bootstrap.draws(right, self.rows) / self.bootstrap.draws(pairs, self.rows)

    def correlation(self, signal: np.ndarray) -> np.ndarray:
        """(1 + B,) mean over instances of Spearman's rank correlation between signal and quality of the sizes."""
        values = row_spearman(signal, self.quality)
        known = np.isfinite(values)
        if not known.any():
            return np.full(1 + len(self.bootstrap.weights), np.nan)
        return self.bootstrap.draws(values[known], self.rows[known])

    def of_gain(self, signal: np.ndarray) -> Interval:
        """Rank correlation, across instances, of what signal and quality say the finest size gains on the coarsest."""
        return self.bootstrap.spearman(
            signal[:, -1] - signal[:, 0], self.quality[:, -1] - self.quality[:, 0], self.rows
        )

    def figures(self, signal: np.ndarray) -> dict[str, Interval]:
        """All three of one signal."""
        return {
            "pairs": interval_of(self.accuracy(signal)),
            "spearman": interval_of(self.correlation(signal)),
            "gain": self.of_gain(signal),
        }

    def difference(self, first: np.ndarray, second: np.ndarray) -> dict[str, Interval]:
        """``pairs`` and ``spearman`` of the first signal minus the second, paired."""
        return {
            "pairs": interval_of(self.accuracy(first) - self.accuracy(second)),
            "spearman": interval_of(self.correlation(first) - self.correlation(second)),
        }
