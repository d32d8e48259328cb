"""Comparing a choice of mask sizes with other choices that cost as much.

Quality is an array (N, K): every instance at every size, higher is better. A choice is (N,) indices into the K sizes,
costs are (K,) MACs. A permuted choice has the same sizes, assigned to the instances at random. Its expected quality is
exact: over all permutations an instance gets size k with probability share_k, so it is Σ_k share_k · quality_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynamask.structures import MASK_SIZES


def at(quality: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """(N,) quality of each instance at its chosen size, from (N, K) and (N,) indices."""
    return quality[np.arange(len(choice)), choice]


def shares(choice: np.ndarray) -> np.ndarray:
    """(K,) share of instances at each size, 0–1; zeros where there is no instance."""
    return np.bincount(choice, minlength=len(MASK_SIZES)) / max(1, len(choice))


def permuted(quality: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """(N,) mean quality of each instance over all permutations of the chosen sizes among the instances."""
    return quality @ shares(choice)


def blind_mix(quality: np.ndarray, macs: np.ndarray, limit: float) -> np.ndarray:
    """(N,) expected quality under the best mixture of two fixed sizes, assigned at random, with a given mean cost.

    Args:
        quality: (N, K).
        macs: (K,) rising.
        limit: mean MACs, at least ``macs[0]``; from ``macs[-1]`` on, all instances get the finest size.
    """
    if limit >= macs[-1]:
        return quality[:, -1]
    mixtures = []
    for low in np.flatnonzero(macs <= limit):
        for high in np.flatnonzero(macs > limit):
            weight = (limit - macs[low]) / (macs[high] - macs[low])
            mixtures.append(quality[:, low] * (1 - weight) + quality[:, high] * weight)
    return max(mixtures, key=lambda mixture: mixture.mean())


class Draws(NamedTuple):
    """A choice of sizes under resampling: first of the pictures as they are, then of B resampled sets of them.

    Attributes:
        quality: (1 + B,), for example mean IoU or AP.
        macs: (1 + B,) mean MACs of an instance.
    """

    quality: np.ndarray
    macs: np.ndarray


def at_equal_cost(first: Draws, second: Draws, curve: Sequence[Draws]) -> np.ndarray:
    """Draws (1 + B,) of a difference in quality, its difference in cost fixed to that of the pictures as they are.

    Two choices that cost the same over the pictures as they are differ in cost in a resampled set. Without this
    correction, the quality gained by spending more there would widen the interval of a difference "at equal MACs".

    Args:
        first, second: the difference is first − second.
        curve: points along which quality follows cost, for example one choice under rising budgets.
    """
    extra = first.macs - second.macs
    extra = extra - extra[0]
    costs, quality = np.stack([point.macs for point in curve]), np.stack([point.quality for point in curve])
    corrected = interpolate(costs, quality, first.macs - extra) - interpolate(costs, quality, first.macs)
    return first.quality - second.quality + corrected


def interpolate(costs: np.ndarray, values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Values (B,) of B curves at the costs ``where`` (B,), by linear interpolation and extrapolation.

    Args:
        costs: (L, B), the L points of every curve, in any order.
        values: (L, B).
    """
    if len(costs) == 1:
        return values[0]
    order = np.argsort(costs, axis=0, kind="stable")
    costs, values = np.take_along_axis(costs, order, axis=0), np.take_along_axis(values, order, axis=0)
    right = np.clip((costs < where).sum(axis=0), 1, len(costs) - 1)
    columns = np.arange(costs.shape[1])
    x0, y0 = costs[right - 1, columns], values[right - 1, columns]
    x1, y1 = costs[right, columns], values[right, columns]
    slope = np.divide(y1 - y0, x1 - x0, out=np.zeros_like(y0), where=x1 > x0)
    return y0 + slope * (where - x0)


def best_mix_quality(means: np.ndarray, macs: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Quality (B,) of the best mixture of two fixed sizes in each of B sets of pictures.

    Args:
        means: (K, B) mean quality of every size.
        macs: (K,) rising.
        limit: (B,) mean costs of the mixtures.
    """
    best = np.full(means.shape[1], -np.inf)
    for low in range(len(macs)):
        for high in range(low + 1, len(macs)):
            weight = (limit - macs[low]) / (macs[high] - macs[low])
            value = means[low] + weight * (means[high] - means[low])
            best = np.maximum(best, np.where((weight > -1e-9) & (weight < 1 + 1e-9), value, -np.inf))
    return best


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation of two (N,) arrays, ties ranked by their mean; None where one is constant."""
    ranks = [_ranks(np.asarray(values)) for values in (a, b)]
    centred = [r - r.mean() for r in ranks if r.size]
    if len(centred) < 2:
        return None
    norm = np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    return float((centred[0] * centred[1]).sum() / norm) if norm > 0 else None


def within_spearman(a: np.ndarray, b: np.ndarray, label: np.ndarray, least: int = 5) -> float | None:
    """Spearman's rank correlation of a and b (N,) within classes: the mean over classes, weighted by their instances.

    Args:
        label: (N,) class of each instance.
        least: classes with fewer instances are left out, as are those in which a or b is constant.

    Returns:
        None if no class is left.
    """
    found = []
    for group in (label == value for value in np.unique(label)):
        rho = spearman(a[group], b[group]) if group.sum() >= least else None
        if rho is not None:
            found.append((rho, int(group.sum())))
    if not found:
        return None
    rhos, counts = zip(*found)
    return float(np.average(rhos, weights=counts))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]
