"""Ranking of the mask sizes of an instance by a signal, for example a loss, compared with their quality."""

from __future__ import annotations

import numpy as np

from dynamask.evaluation.bootstrap import PictureBootstrap, interval_of
from dynamask.structures import Interval


def pairwise(signal: np.ndarray, quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs of sizes that a signal puts in the order of their quality, per instance.

    Args:
        signal: (N, K), higher means predicted to be better.
        quality: (N, K), higher is better.

    Returns:
        (N,) pairs in the right order, a tie of the signal counting one half, and (N,) pairs whose quality differs.
    """
    right, pairs = np.zeros(len(signal)), np.zeros(len(signal))
    for j in range(signal.shape[1]):
        for k in range(j + 1, signal.shape[1]):
            truth, predicted = np.sign(quality[:, k] - quality[:, j]), np.sign(signal[:, k] - signal[:, j])
            pairs += truth != 0
            right += np.where(truth == 0, 0.0, np.where(predicted == 0, 0.5, predicted == truth))
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
    """Agreement of signals with the quality of the sizes, with intervals over pictures.

    Args:
        quality: (N, K), higher is better.
        bootstrap: bootstrap over the pictures.
        rows: (N,) pictures of the instances.
    """

    def __init__(self, quality: np.ndarray, bootstrap: PictureBootstrap, rows: np.ndarray) -> None:
        self.quality, self.bootstrap, self.rows = quality, bootstrap, rows

    def accuracy(self, signal: np.ndarray) -> np.ndarray:
        """Draws (1 + B,) of the share of pairs of sizes that the signal puts in the right order, over all instances."""
        right, pairs = pairwise(signal, self.quality)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.bootstrap.draws(right, self.rows) / self.bootstrap.draws(pairs, self.rows)

    def correlation(self, signal: np.ndarray) -> np.ndarray:
        """Draws (1 + B,) of the mean over instances of Spearman's rank correlation between signal and quality."""
        values = row_spearman(signal, self.quality)
        known = np.isfinite(values)
        if not known.any():
            return np.full(1 + len(self.bootstrap.weights), np.nan)
        return self.bootstrap.draws(values[known], self.rows[known])

    def gain_correlation(self, signal: np.ndarray) -> Interval:
        """Rank correlation over instances between the gains of the finest size over the coarsest in both."""
        gains = [values[:, -1] - values[:, 0] for values in (signal, self.quality)]
        return self.bootstrap.spearman(*gains, self.rows)

    def figures(self, signal: np.ndarray) -> dict[str, Interval]:
        """``pairs``, ``spearman`` and ``gain``: accuracy, correlation and correlation of the gains."""
        return {
            "pairs": interval_of(self.accuracy(signal)),
            "spearman": interval_of(self.correlation(signal)),
            "gain": self.gain_correlation(signal),
        }

    def difference(self, first: np.ndarray, second: np.ndarray) -> dict[str, Interval]:
        """``pairs`` and ``spearman`` of the first signal minus those of the second, paired."""
        return {
            "pairs": interval_of(self.accuracy(first) - self.accuracy(second)),
            "spearman": interval_of(self.correlation(first) - self.correlation(second)),
        }
