"""Simple predictors of mask quality, and the comparison of any predictors of quality at equal budgets.

A switch is worth its cost only if it beats what a table could say: the mean quality of the class, of the size of the
box, or of both. Each such table is fitted on measured instances and predicts the quality of others, so that one budget
solver serves tables, switches and oracles alike. A comparison assigns sizes to all instances of a data set under a mean
budget, exactly, and its intervals resample pictures.

Quality is an array (R, 4, 2): each instance at each size of ``MASK_SIZES``, as in :data:`IOU_MEASURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynamask.evaluation.bootstrap import PictureBootstrap, interval_of, share_of_gain
from dynamask.evaluation.choices import Draws, at, at_equal_cost, best_mix_quality, shares, within_spearman
from dynamask.ops.knapsack import best_under_budget
from dynamask.structures import IOU_MEASURES, Interval

FRACTIONS = (0.2, 0.35, 0.5, 0.75)
"""Budgets at which predictors are compared, as shares of the MACs of the finest size."""
SIZE_BINS = 8
"""Bins of the box size; each holds the same number of the instances that a table is fitted on."""
PRIOR = 10.0
"""Number of instances that the mean of the class, or of all instances, counts as in a table's cell."""


@dataclass(frozen=True)
class Measured:
    """Instances with the measured quality of their masks at every size.

    Attributes:
        quality: (R, 4, 2) in 0–1.
        label: (R,) int64 class of each instance; any ids.
        side: (R,) square root of the area of the box, pixels.
        picture: (R,) int64 id of the picture of each instance.
    """

    quality: np.ndarray
    label: np.ndarray
    side: np.ndarray
    picture: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: np.ndarray) -> Measured:
        """Some of the instances, by indices or by a mask."""
        return Measured(self.quality[rows], self.label[rows], self.side[rows], self.picture[rows])


class QualityTable:
    """Mean quality by class, by bin of the box size, or by both, fitted on measured instances.

    A cell's mean is shrunk towards the mean of its class (of all instances in a table without the other key), which
    counts as :data:`PRIOR` instances; a class that was not seen has the mean of all instances.

    Args:
        train: instances to fit on, at least one.
        by_class, by_size: keys of the table. Without either every instance gets the mean of all.
    """

    def __init__(self, train: Measured, by_class: bool = True, by_size: bool = False) -> None:
        self.by_class, self.by_size = by_class, by_size
        cuts = np.quantile(train.side, np.arange(1, SIZE_BINS) / SIZE_BINS) if by_size else []
        self.thresholds = np.unique(cuts)
        """(B − 1,) sides in pixels between the bins."""
        self.labels = np.unique(train.label) if by_class else np.zeros(0, dtype=np.int64)
        overall = train.quality.mean(axis=0)  # (4, 2)
        classes = self._classes(train.label)
        of_class = _shrunk(train.quality, classes, len(self.labels) + 1, np.broadcast_to(overall, (1, *overall.shape)))
        cells = (len(self.labels) + 1) * (len(self.thresholds) + 1)
        prior = np.repeat(of_class, len(self.thresholds) + 1, axis=0)  # (cells, 4, 2)
        self.cells = _shrunk(train.quality, self._cells(train), cells, prior) if by_size else prior
        """(cells, 4, 2) predicted quality."""

    def _classes(self, label: np.ndarray) -> np.ndarray:
        """(R,) rows of classes, from 0; unknown ones have the last row."""
        if len(self.labels) == 0:
            return np.zeros(len(label), dtype=np.int64)
        row = np.searchsorted(self.labels, label).clip(max=len(self.labels) - 1)
        return np.where(self.labels[row] == label, row, len(self.labels))

    def _cells(self, instances: Measured) -> np.ndarray:
        """(R,) cell of each instance."""
        bins = np.searchsorted(self.thresholds, instances.side, side="right")
        return self._classes(instances.label) * (len(self.thresholds) + 1) + bins

    def predict(self, instances: Measured) -> np.ndarray:
        """(R, 4, 2) predicted quality; the instances' own quality is not used."""
        return self.cells[self._cells(instances)]


def _shrunk(quality: np.ndarray, cell: np.ndarray, cells: int, prior: np.ndarray) -> np.ndarray:
    """(cells, 4, 2) means of quality (R, 4, 2) by cell (R,), each with its prior (cells or 1, 4, 2) as further rows."""
    counts = np.bincount(cell, minlength=cells)[:, None, None]
    sums = np.zeros((cells, *quality.shape[1:]))
    np.add.at(sums, cell, quality)
    return (sums + PRIOR * prior) / (counts + PRIOR)


TABLES: dict[str, dict[str, bool]] = {
    "class table": {"by_class": True},
    "size table": {"by_class": False, "by_size": True},
    "class-size table": {"by_class": True, "by_size": True},
}
"""The keys of the rivals' tables by name."""


def table_predictions(train: Measured, test: Measured) -> dict[str, np.ndarray]:
    """(R, 4, 2) quality of the test instances by each of :data:`TABLES`, fitted on the training instances."""
    return {name: QualityTable(train, **keys).predict(test) for name, keys in TABLES.items()}


def cross_fitted(instances: Measured, folds: int = 5) -> dict[str, np.ndarray]:
    """(R, 4, 2) quality by each of :data:`TABLES`; no instance is predicted from one of its own picture.

    Args:
        instances: of at least two pictures; with only one, its instances are predicted from themselves.
        folds: number of parts that the pictures are divided into, in the order of their ids.
    """
    pictures = np.unique(instances.picture)
    part = np.searchsorted(pictures, instances.picture) % min(folds, max(1, len(pictures)))
    found = {name: np.empty_like(instances.quality) for name in TABLES}
    for number in np.unique(part):
        held = part == number
        train = instances.take(~held) if not held.all() else instances
        for name, values in table_predictions(train, instances.take(held)).items():
            found[name][held] = values
    return found


# Comparison at equal budgets


class BudgetComparison:
    """The sizes that predictors of quality choose at fixed budgets, judged by the measured quality.

    Args:
        test: the instances that are judged.
        macs: (4,) rising MACs of an instance at each size.
        predicted: (R, 4) quality by name of the predictor, from a switch, a quality head or a table; only differences
            between sizes of an instance, and between those of instances, matter.
        aware: (R, 4, 2) quality that a noise-aware oracle knows, for example the mean over other views.
        fractions: budgets as shares of the finest size's MACs.
        bootstrap: over pictures; by default over those of the instances.

    Attributes:
        choices: by predictor and fraction, the size index (R,) of every instance.
    """

    def __init__(
        self,
        test: Measured,
        macs: np.ndarray,
        predicted: Mapping[str, np.ndarray],
        aware: np.ndarray | None = None,
        fractions: Sequence[float] = FRACTIONS,
        bootstrap: PictureBootstrap | None = None,
    ) -> None:
        self.test, self.macs, self.fractions = test, np.asarray(macs, dtype=np.float64), tuple(fractions)
        self.bootstrap = bootstrap or PictureBootstrap(test.picture.tolist())
        self.rows = self.bootstrap.rows(test.picture)
        self.aware = aware
        self.choices = {name: {f: self.choose(values, f) for f in fractions} for name, values in predicted.items()}
        self._means = {
            m: np.stack([self._draws(test.quality[:, k, m]) for k in range(len(self.macs))]) for m in range(2)
        }

    def choose(self, predicted: np.ndarray, fraction: float) -> np.ndarray:
        """(R,) sizes with the best total predicted quality (R, 4) within a mean budget."""
        return best_under_budget(predicted, self.macs, max(fraction * self.macs[-1], self.macs[0]))

    def _draws(self, values: np.ndarray) -> np.ndarray:
        return self.bootstrap.draws(values.astype(np.float64), self.rows)

    def quality(self, choice: np.ndarray, measure: str) -> Interval:
        """Mean quality under a choice (R,)."""
        return interval_of(self._draws(self._at(choice, measure)))

    def difference(self, first: str, second: str, fraction: float, measure: str) -> Interval:
        """Mean of the paired differences first − second at a budget, with its interval over pictures.

        In resampled sets the two differ in cost; what that is worth along the fixed sizes is taken out.
        """
        one, two = (self._both(self.choices[name][fraction], measure) for name in (first, second))
        means = self._means[IOU_MEASURES.index(measure)]
        fixed = [Draws(mean, np.full_like(mean, cost)) for mean, cost in zip(means, self.macs)]
        return interval_of(at_equal_cost(one, two, fixed))

    def over_mixture(self, name: str, fraction: float, measure: str) -> Interval:
        """Gain over the best blind mixture of two fixed sizes with the same mean MACs."""
        return interval_of(self._over_mixture(self.choices[name][fraction], measure))

    def share_of_aware(self, name: str, fraction: float, measure: str) -> Interval:
        """That gain as a share of the noise-aware oracle's at the same mean MACs; undefined without ``aware``."""
        if self.aware is None:
            return Interval()
        own = self.choices[name][fraction]
        known = self.aware[:, :, IOU_MEASURES.index(measure)]
        oracle = best_under_budget(known, self.macs, self.macs[own].mean())
        return share_of_gain(self._over_mixture(own, measure), self._over_mixture(oracle, measure))

    def _at(self, choice: np.ndarray, measure: str) -> np.ndarray:
        return at(self.test.quality[:, :, IOU_MEASURES.index(measure)], choice)

    def _both(self, choice: np.ndarray, measure: str) -> Draws:
        """Mean quality and mean MACs under a choice (R,)."""
        return Draws(self._draws(self._at(choice, measure)), self._draws(self.macs[choice]))

    def _over_mixture(self, choice: np.ndarray, measure: str) -> np.ndarray:
        """Draws (1 + B,) of the gain over the mixture, both at the mean MACs of each resampled set."""
        own = self._both(choice, measure)
        return own.quality - best_mix_quality(self._means[IOU_MEASURES.index(measure)], self.macs, own.macs)

    def to_dict(self, reference: str) -> dict[str, Any]:
        """All figures as JSON values, by fraction of the full MACs and predictor.

        Args:
            reference: predictor whose paired differences to the others are given, reference − other.
        """
        found: dict[str, Any] = {}
        for fraction in self.fractions:
            found[str(fraction)] = {
                name: {
                    "macs_fraction": float(self.macs[chosen[fraction]].mean() / self.macs[-1]),
                    "size_shares": shares(chosen[fraction]).tolist(),
                    **self._each(lambda m, n=name, f=fraction: self.quality(self.choices[n][f], m), ""),
                    **self._each(lambda m, n=name, f=fraction: self.over_mixture(n, f, m), "_over_mixture"),
                    **self._each(lambda m, n=name, f=fraction: self.share_of_aware(n, f, m), "_share_of_aware"),
                    **self._each(lambda m, n=name, f=fraction: self.difference(reference, n, f, m), "_difference"),
                }
                for name, chosen in self.choices.items()
            }
        return found

    @staticmethod
    def _each(compute: Callable[[str], Interval], suffix: str) -> dict[str, Any]:
        return {measure + suffix: compute(measure).to_dict() for measure in IOU_MEASURES}


def correlations(
    a: np.ndarray, b: np.ndarray, label: np.ndarray, picture: np.ndarray, samples: int = 300
) -> dict[str, Interval]:
    """Spearman's rank correlation of a and b (R,), ``pooled`` over all instances and ``within`` classes.

    Args:
        label: (R,) class of each instance.
        picture: (R,) ids of the pictures that the intervals resample.
        samples: number of resampled sets.
    """
    bootstrap = PictureBootstrap(picture.tolist(), samples)
    rows = bootstrap.rows(picture)
    return {
        "pooled": bootstrap.spearman(a, b, rows),
        "within": bootstrap.statistic(lambda kept: within_spearman(a[kept], b[kept], label[kept]), rows),
    }
