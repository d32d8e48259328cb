"""Bootstrap confidence intervals: over instances, over pictures, and of average precision.

*Draws* are arrays (1 + B,): the statistic of the pictures as they are, followed by its values in B resampled sets of
pictures. Statistics that are computed from the same :class:`PictureBootstrap` share its resampled sets, so the draws of
a paired difference are the difference of the draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dynamask.evaluation.choices import spearman
from dynamask.evaluation.resampled_ap import ResampledAP
from dynamask.structures import DynaMaskError, Interval


def paired_bootstrap(differences: np.ndarray, samples: int = 2000, seed: int = 0) -> Interval:
    """Mean of paired differences with its bootstrap 95 % percentile interval over instances.

    Args:
        differences: (N,) one number per instance, for example IoU of method A minus IoU of method B.
        samples: number of times that N instances are drawn with replacement.
        seed: seed of the draws; the same seed gives the same interval.

    Returns:
        The interval in the unit of the differences.

    Raises:
        DynaMaskError: there is nothing to compare.
        ValueError: a difference is not finite.
    """
    differences = np.asarray(differences, dtype=np.float64).reshape(-1)
    if differences.size == 0:
        raise DynaMaskError("there are no instances to compare; give data with at least one annotated instance")
    if not np.isfinite(differences).all():
        raise ValueError("a difference is not finite")
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    for s in range(samples):
        means[s] = differences[rng.integers(0, differences.size, differences.size)].mean()
    return percentile_interval(float(differences.mean()), means)


def percentile_interval(value: float | None, resampled: np.ndarray) -> Interval:
    """A statistic with the central 95 % of its values (B,) under resampling; values that are NaN are left out."""
    resampled = resampled[np.isfinite(resampled)]
    if value is None or resampled.size == 0:
        return Interval(value)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def interval_of(draws: np.ndarray, centre: bool = False) -> Interval:
    """The interval of a statistic given by its draws (1 + B,).

    Args:
        centre: shift the resampled values so that their mean is the statistic. AP is higher where pictures occur
            twice, as in resampled sets, than over the pictures as they are; without the shift its interval would lie
            too high.
    """
    value, resampled = float(draws[0]), draws[1:][np.isfinite(draws[1:])]
    if not np.isfinite(value):
        return Interval()
    if centre and resampled.size:
        resampled = resampled - resampled.mean() + value
    return percentile_interval(value, resampled)


_T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t with 1 to 10 degrees of freedom."""


def interval_over_trainings(values: Sequence[float]) -> Interval:
    """Mean of one value per training, with its 95 % interval by Student's t; without bounds for fewer than two values.

    It covers the variation between trainings, which resampling the pictures of a test set does not.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Interval(float(values[0])) if len(values) else Interval()
    freedom, mean = len(values) - 1, float(values.mean())
    known = freedom <= len(_T_QUANTILES)
    quantile = _T_QUANTILES[freedom - 1] if known else 1.96 + 2.4 / freedom + 2.8 / freedom**2
    margin = quantile * float(values.std(ddof=1)) / np.sqrt(len(values))
    return Interval(mean, mean - margin, mean + margin)


def share_of_gain(gain: np.ndarray, best: np.ndarray) -> Interval:
    """A gain as a share of the best possible gain, both draws (1 + B,); undefined unless that gain is positive."""
    if not best[0] > 0:
        return Interval()
    with np.errstate(invalid="ignore", divide="ignore"):
        return interval_of(gain / best)


class PictureBootstrap:
    """Resamples whole pictures, because the instances of one picture are not independent.

    Args:
        image_ids: ids of all pictures, those without an instance included; each once.
        samples: number of times that P pictures are drawn with replacement.
        seed: seed of the draws.

    Attributes:
        image_ids: (P,) sorted.
        weights: (samples, P) int64, number of times that each picture was drawn.

    Raises:
        DynaMaskError: there is no picture.
    """

    def __init__(self, image_ids: Sequence[int], samples: int = 1000, seed: int = 0) -> None:
        self.image_ids = np.unique(np.asarray(image_ids, dtype=np.int64))
        if len(self.image_ids) == 0:
            raise DynaMaskError("there are no pictures to evaluate on; give data with at least one picture")
        count = len(self.image_ids)
        self.weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)

    def rows(self, image_ids: np.ndarray) -> np.ndarray:
        """(N,) positions in ``image_ids`` of the pictures of N instances."""
        return np.searchsorted(self.image_ids, image_ids)

    def resampled_means(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(samples,) mean over instances of values (N,) in every resampled set; NaN where a set holds no instance.

        Args:
            rows: (N,) from :meth:`rows`.
        """
        return _weighted_means(self.weights, values, rows)

    def draws(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Draws (1 + samples,) of the mean over instances of values (N,); N ≥ 1."""
        return np.concatenate([[values.mean()], self.resampled_means(values, rows)])

    def interval(self, values: np.ndarray, rows: np.ndarray) -> Interval:
        """Mean over instances of values (N,) with its interval; undefined for N = 0."""
        return interval_of(self.draws(values, rows)) if len(values) else Interval()

    def spearman(self, a: np.ndarray, b: np.ndarray, rows: np.ndarray) -> Interval:
        """Spearman's rank correlation of a and b (N,) with its interval."""
        return self.statistic(lambda kept: spearman(a[kept], b[kept]), rows)

    def statistic(self, compute: Callable[[np.ndarray], float | None], rows: np.ndarray) -> Interval:
        """Any statistic of a multiset of instances (their indices), recomputed on every resampled set."""
        value = compute(np.arange(len(rows)))
        if value is None:
            return Interval()
        resampled = (compute(np.repeat(np.arange(len(rows)), weights[rows])) for weights in self.weights)
        return percentile_interval(value, np.array([np.nan if v is None else v for v in resampled]))


class PrecisionBootstrap:
    """Draws of mask and boundary AP for choices of mask sizes; each choice is evaluated once.

    Args:
        ap: the detections, compared with the ground truth.
        weights: (B, P), how often each picture of ``ap.image_ids`` occurs in each resampled set.
    """

    def __init__(self, ap: ResampledAP, weights: np.ndarray) -> None:
        self.ap = ap
        self.weights = np.concatenate([np.ones((1, weights.shape[1]), dtype=np.int64), weights])
        self._known: dict[tuple[str, bytes], np.ndarray] = {}

    def by_threshold(self, choice: np.ndarray, iou_type: str) -> np.ndarray:
        """(10, 1 + B) AP at each IoU threshold.

        Args:
            choice: (N,) size index of every detection.
            iou_type: "segm" or "boundary".
        """
        key = (iou_type, choice.tobytes())
        if key not in self._known:
            self._known[key] = self.ap.at_thresholds(self.ap.match(choice, iou_type), self.weights)
        return self._known[key]

    def draws(self, choice: np.ndarray, iou_type: str) -> np.ndarray:
        """Draws (1 + B,) of AP, arguments as of :meth:`by_threshold`."""
        return self.by_threshold(choice, iou_type).mean(axis=0)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Draws (1 + B,) of the mean over detections of values (N,); NaN where a set holds no detection."""
        return _weighted_means(self.weights, values, self.ap.pictures)

    def value(self, choice: np.ndarray, iou_type: str) -> float:
        """AP over the pictures as they are, without resampling."""
        return float(self.ap.average_precision(self.ap.match(choice, iou_type))[0])


def _weighted_means(weights: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(B,) mean of values (N,) whose pictures (N,) count as often as weights (B, P) say; NaN where none counts."""
    count = weights.shape[1]
    sums, counts = np.bincount(rows, values, minlength=count), np.bincount(rows, minlength=count)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ sums) / (weights @ counts)
