"""Exact multiple-choice knapsack: one mask size per instance under a mean budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynamask.structures import DynaMaskError

MAX_STATES = 3_000_000
"""Largest number of (cost, loss) states of one problem. Beyond it, states are thinned out, and the result may be
inexact."""
FEWEST_STATES = 256
"""States per instance that are kept when they are thinned out."""


def best_under_budget(quality: np.ndarray, macs: Sequence[int] | np.ndarray, budget: float) -> np.ndarray:
    """The sizes with the best total quality under a mean budget, exact up to the rounding of float64 sums.

    A Lagrangian price of the budget gives an upper bound on the quality, and the loss of each choice against it.
    Dynamic programming over Pareto-optimal (cost, loss) pairs starts with the instances whose best choices are closest,
    and includes more of them until no other choice can be part of a better solution. Hundreds of instances take about
    10 ms, thousands about a second.

    Problems made to be hard can have billions of such pairs, for example hundreds of instances with nearly the same
    qualities, whose costs add up to ever new sums. The result is exact with up to ``MAX_STATES`` pairs. With more of
    them, only those with the smallest loss among similar costs are kept: time and memory stay bounded, the budget is
    kept, and the total quality is below the optimum by at most the largest difference between two qualities of one
    instance, that is, the mean quality by at most an N-th of that; usually by much less.

    Args:
        quality: (N, K) finite, higher is better, for example the mask IoU of every instance at every size.
        macs: (K,) MACs of an instance at each size.
        budget: mean MACs per instance, in the unit of ``macs``.

    Returns:
        (N,) int64 indices into the K sizes; their mean cost is at most ``budget``.

    Raises:
        DynaMaskError: if the budget is not finite or below the cheapest size.
        ValueError: if the shapes disagree or a quality is not finite.
    """
    quality, macs = np.asarray(quality, dtype=np.float64), np.asarray(macs, dtype=np.float64)
    if quality.ndim != 2 or macs.shape != quality.shape[1:] or not np.isfinite(quality).all():
        raise ValueError(f"quality {quality.shape} must be finite and (N, K), with macs {macs.shape} of (K,)")
    if not np.isfinite(budget) or budget < macs.min():
        raise DynaMaskError(
            f"a budget of {budget:g} MACs per instance cannot be kept, the cheapest size costs {macs.min():g}: raise it"
        )
    n = len(quality)
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    capacity = n * float(budget) * (1 + 1e-15)  # a budget taken from a mean cost must admit that very assignment
    price, choice = _price(quality, macs, capacity)
    priced = quality - price * macs
    loss = priced.max(axis=1, keepdims=True) - priced  # (N, K), >= 0, against the bound
    worst = price * (capacity - macs[choice].sum()) + loss[np.arange(n), choice].sum()
    runner_up = np.partition(loss, 1, axis=1)[:, 1] if len(macs) > 1 else np.zeros(n)
    order = np.argsort(runner_up, kind="stable")
    size, states = min(n, 32), MAX_STATES
    while True:
        core, rest = order[:size], order[size:]
        best = loss[rest].argmin(axis=1)
        free = capacity - macs[best].sum()
        found, gap, used = _best_in_core(loss[core], macs, free, price, worst, states)
        if gap < worst:
            worst, choice = gap, np.empty(n, dtype=np.int64)
            choice[core], choice[rest] = found, best
        # No other choice outside the core can improve, or the limit of states is reached.
        if size == n or runner_up[order[size]] >= worst or used >= states:
            return choice.astype(np.int64)
        size, states = min(n, 2 * size), states - used


def _price(quality: np.ndarray, macs: np.ndarray, capacity: float) -> tuple[float, np.ndarray]:
    """The smallest price per MAC, to float precision, whose best choices meet the capacity, and choices for it.

    Instances that have two best choices at this price get the more expensive one as far as the capacity allows. What is
    left of it then costs less than a step of one instance.
    """
    by_cost = np.argsort(macs, kind="stable")  # ties go to the cheaper size
    quality, macs = quality[:, by_cost], macs[by_cost]

    def choose(price: float) -> np.ndarray:
        return (quality - price * macs).argmax(axis=1)

    steps = np.diff(np.unique(macs))
    high = 2 * float(np.ptp(quality)) / float(steps.min()) + 1e-300 if steps.size else 0.0
    low, choice = 0.0, choose(0.0)
    if macs[choice].sum() <= capacity:
        return 0.0, by_cost[choice]
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if macs[choose(middle)].sum() <= capacity else (middle, high)
    choice, dearer = choose(high), choose(low)
    added = np.maximum(macs[dearer] - macs[choice], 0.0)
    fits = (np.cumsum(added) <= capacity - macs[choice].sum()) & (added > 0)
    return high, by_cost[np.where(fits, dearer, choice)]


def _best_in_core(
    loss: np.ndarray, macs: np.ndarray, free: float, price: float, worst: float, most: int
) -> tuple[np.ndarray, float, int]:
    """Choices (M,) that minimise the loss plus the price of unused MACs, within ``free`` MACs, and this minimum.

    States are Pareto-optimal pairs (cost, loss) sorted by cost. States that must exceed ``free`` or ``worst`` are
    dropped; the minimum is infinite if none is left. The third value is the number of states of all instances, at least
    ``most`` if some of them were left out to keep it near ``most``.
    """
    costs, losses = np.zeros(1), np.zeros(1)
    used, thinned = 0, False
    allowed = loss <= worst
    least_ahead, most_ahead = (
        np.append(np.cumsum(extreme[::-1])[::-1][1:], 0.0)  # (M,) total cost of later instances
        for extreme in (np.where(allowed, macs, np.inf).min(axis=1), np.where(allowed, macs, -np.inf).max(axis=1))
    )
    history: list[tuple[np.ndarray, np.ndarray]] = []  # parent state and choice of every state, per instance
    for i, row in enumerate(loss):
        options = np.flatnonzero(allowed[i])
        new_costs = (costs[None, :] + macs[options, None]).ravel()
        new_losses = (losses[None, :] + row[options, None]).ravel()
        bound = new_losses + price * np.maximum(free - new_costs - most_ahead[i], 0)
        kept = np.flatnonzero((bound <= worst) & (new_costs + least_ahead[i] <= free))
        if kept.size == 0:
            return np.zeros(0, dtype=np.int64), np.inf, max(used, most * thinned)
        kept = kept[np.argsort(new_costs[kept], kind="stable")]  # a few sorted runs: merged in linear time
        new_costs, new_losses = new_costs[kept], new_losses[kept]
        values = price * new_costs - new_losses  # total quality up to a constant
        best_before = np.concatenate([[-np.inf], np.maximum.accumulate(values)[:-1]])
        front = np.flatnonzero(values > best_before)
        front = front[np.append(np.diff(new_costs[front]) > 0, True)]  # of equal costs the last is best
        limit = max(FEWEST_STATES, (most - used) // (len(loss) - i))
        if front.size > limit:
            thinned, front = True, front[_spread(new_costs[front], new_losses[front], limit)]
        used += front.size
        choice, parents = np.divmod(kept[front], costs.size)
        history.append((parents.astype(np.int32), options[choice].astype(np.int16)))
        costs, losses = new_costs[front], new_losses[front]
    totals = losses + price * (free - costs)
    state = int(totals.argmin())
    gap = float(totals[state])
    found = np.empty(len(loss), dtype=np.int64)
    for i in range(len(loss) - 1, -1, -1):
        parents, choices = history[i]
        found[i], state = choices[state], parents[state]
    return found, gap, max(used, most * thinned)


def _spread(costs: np.ndarray, losses: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of at most ``count`` states of sorted costs: the one with the smallest loss in each of as many
    equal ranges of costs."""
    ranges = np.minimum((costs - costs[0]) * (count / (costs[-1] - costs[0])), count - 1).astype(np.int64)
    starts = np.flatnonzero(np.diff(ranges, prepend=-1))
    lowest = np.minimum.reduceat(losses, starts)
    hits = np.flatnonzero(losses == lowest.repeat(np.diff(starts, append=costs.size)))
    return hits[np.diff(ranges[hits], prepend=-1) > 0]
