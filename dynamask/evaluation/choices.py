"""The arithmetic of judging a choice of mask sizes: other choices at equal cost, and how sure the difference is.

Quality is an array (N, K): every instance at every size, higher is better. A choice is (N,) indices into the K sizes,
costs are (K,) MACs. Permuted means the same sizes dealt out among all instances at random; the mean over every
permutation is taken exactly: an instance gets size k with the probability that is the share of k, so its expected
quality is Σ_k share_k · quality_k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dynamask.evaluation.mask_quality import paired_bootstrap
from dynamask.structures import MASK_SIZES, DynaMaskError

Interval = dict[str, float | None]
"""``mean`` with the bounds ``low`` and ``high`` of its 95 % interval; None where undefined."""


def at(quality: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """(N,) quality of each instance at its chosen size, from (N, K) and (N,) indices."""
    return quality[np.arange(len(choice)), choice]


def shares(choice: np.ndarray) -> np.ndarray:
    """(K,) share of instances at each size, 0–1; zeros where there is no instance."""
    return np.bincount(choice, minlength=len(MASK_SIZES)) / max(1, len(choice))


def permuted(quality: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """(N,) mean quality of each instance over all permutations of the chosen sizes among the instances."""
    return quality @ shares(choice)


def permutation_p(quality: np.ndarray, choice: np.ndarray, draws: int, seed: int = 0) -> float:
    """Share of drawn permutations whose mean quality reaches that of the choice (itself counted once)."""
    rng = np.random.default_rng(seed)
    own = at(quality, choice).mean()
    reached = sum(at(quality, rng.permutation(choice)).mean() >= own for _ in range(draws))
    return (reached + 1) / (draws + 1)


def best_fixed_within(quality: np.ndarray, macs: np.ndarray, limit: float) -> int:
    """Index of the fixed size with the best mean quality among those that cost at most the limit, in MACs."""
    allowed = np.flatnonzero(macs <= limit)
    return int(allowed[quality.mean(axis=0)[allowed].argmax()])


def interpolated_fixed(quality: np.ndarray, macs: np.ndarray, limit: float) -> tuple[int, int, float]:
    """The best mixture of two fixed sizes, drawn blindly, whose mean cost is the limit.

    Returns:
        (cheap, dear, weight of the dear size). Of all pairs around the limit, the one with the best mean quality; at a
        fixed size's own cost that size alone (weight 0) is among the candidates.
    """
    means, found = quality.mean(axis=0), []
    for low in range(len(macs)):
        if macs[low] > limit:
            continue
        if macs[low] == limit or low == len(macs) - 1:
            found.append((means[low], low, low, 0.0))
        for high in range(low + 1, len(macs)):
            if macs[high] > limit:
                weight = float((limit - macs[low]) / (macs[high] - macs[low]))
                found.append((means[low] * (1 - weight) + means[high] * weight, low, high, weight))
    _, low, high, weight = max(found)
    return low, high, weight


def blind_mix(quality: np.ndarray, macs: np.ndarray, limit: float) -> np.ndarray:
    """(N,) expected quality of each instance under :func:`interpolated_fixed`."""
    low, high, weight = interpolated_fixed(quality, macs, limit)
    return quality[:, low] * (1 - weight) + quality[:, high] * weight


def interval(differences: np.ndarray) -> dict[str, float]:
    """Mean of paired differences (N,) with its bootstrap 95 % interval over instances."""
    mean, low, high = paired_bootstrap(differences)
    return {"mean": mean, "low": low, "high": high}


class PictureBootstrap:
    """Resampling whole pictures, because the instances of one picture are not independent.

    Every estimate of one object sees the same draws, so that the interval of a difference is that of paired values.

    Args:
        image_ids: of all judged pictures, those without an instance included; each once.
        samples: how many times as many pictures are drawn with replacement.
        seed: of the draws.

    Attributes:
        image_ids: (P,) sorted.
        weights: (samples, P) int64, how often each picture was drawn.

    Raises:
        DynaMaskError: there is no picture.
    """

    def __init__(self, image_ids: Sequence[int], samples: int = 1000, seed: int = 0) -> None:
        self.image_ids = np.unique(np.asarray(image_ids, dtype=np.int64))
        if len(self.image_ids) == 0:
            raise DynaMaskError("there are no pictures to judge on; give data with at least one picture")
        count = len(self.image_ids)
        self.weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)

    def rows(self, image_ids: np.ndarray) -> np.ndarray:
        """(N,) positions of the instances' pictures in ``image_ids``."""
        return np.searchsorted(self.image_ids, image_ids)

    def means(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(samples,) mean over instances of values (N,) in every draw; NaN where a draw holds none.

        Args:
            rows: (N,) from :meth:`rows`.
        """
        count = len(self.image_ids)
        sums, counts = np.bincount(rows, values, minlength=count), np.bincount(rows, minlength=count)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self.weights @ sums) / (self.weights @ counts)

    def estimate(self, values: np.ndarray, rows: np.ndarray) -> Interval:
        """Mean of values (N,) with its interval."""
        if len(values) == 0:
            return {"mean": None, "low": None, "high": None}
        return percentiles(float(values.mean()), self.means(values, rows))

    def drawn(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(1 + samples,) mean of values (N,): over all instances, then in every draw; N ≥ 1."""
        return np.concatenate([[values.mean()], self.means(values, rows)])

    def spearman(self, a: np.ndarray, b: np.ndarray, rows: np.ndarray) -> Interval:
        """Rank correlation of a and b (N,), with its interval."""
        return self.statistic(lambda kept: spearman(a[kept], b[kept]), rows)

    def statistic(self, compute: Callable[[np.ndarray], float | None], rows: np.ndarray) -> Interval:
        """Any figure of a multiset of instances (their indices), recomputed on every draw, with its interval."""
        value = compute(np.arange(len(rows)))
        if value is None:
            return {"mean": None, "low": None, "high": None}
        drawn = (compute(np.repeat(np.arange(len(rows)), weights[rows])) for weights in self.weights)
        return percentiles(value, np.array([np.nan if v is None else v for v in drawn]))


def percentiles(mean: float | None, drawn: np.ndarray) -> Interval:
    """A figure with the central 95 % of its values (samples,) under resampling; draws that are NaN are left out."""
    drawn = drawn[np.isfinite(drawn)]
    if mean is None or drawn.size == 0:
        return {"mean": mean, "low": None, "high": None}
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def interval_of(drawn: np.ndarray, centre: bool = False) -> Interval:
    """A figure (1 + samples,), first of the pictures as they are, then of the draws, as a value with its interval.

    Args:
        centre: move the draws so that their mean is the figure. AP in draws that hold pictures twice is higher than AP
            of the pictures as they are; without this its interval would lie too high.
    """
    mean = float(drawn[0])
    if not np.isfinite(mean):
        return {"mean": None, "low": None, "high": None}
    values = drawn[1:][np.isfinite(drawn[1:])]
    return percentiles(mean, values - values.mean() + mean if centre and values.size else values)


def share_of_gain(policy: np.ndarray, best: np.ndarray) -> Interval:
    """A gain over chance as a share of the best one, both (1 + samples,), with its interval; None without a gain."""
    if not best[0] > 0:
        return {"mean": None, "low": None, "high": None}
    with np.errstate(invalid="ignore", divide="ignore"):
        return interval_of(policy / best)


def along(costs: np.ndarray, values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Values (B,) of B curves at the costs ``where`` (B,): linear between points, and on beyond the outermost two.

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
    x0, x1, y0, y1 = (
        costs[right - 1, columns],
        costs[right, columns],
        values[right - 1, columns],
        values[right, columns],
    )
    slope = np.divide(y1 - y0, x1 - x0, out=np.zeros_like(y0), where=x1 > x0)
    return y0 + slope * (where - x0)


def at_equal_cost(
    own: np.ndarray,
    theirs: np.ndarray,
    own_cost: np.ndarray,
    their_cost: np.ndarray,
    curve: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Differences (1 + B,) own − theirs, in every draw at the same difference in cost as over all pictures.

    Two choices that cost the same over all pictures do not in a draw of them. Without this, what the dearer one gains
    by being dearer there would widen the interval of a difference "at equal MACs".

    Args:
        own, theirs: (1 + B,) quality over all pictures, then in every draw.
        own_cost, their_cost: (1 + B,) mean MACs.
        curve: costs and quality, (L, 1 + B) each, along which quality follows cost.
    """
    drift = own_cost - their_cost
    drift = drift - drift[0]
    return own - theirs + along(*curve, own_cost - drift) - along(*curve, own_cost)


def mixed(means: np.ndarray, macs: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Quality (B,) of the best blind mixture of two fixed sizes at mean costs ``limit`` (B,), in every draw anew.

    Args:
        means: (K, B) mean quality of every size.
        macs: (K,) rising.
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


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]
