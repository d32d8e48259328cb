"""Choices of mask sizes for collected instances: by policy, or by one price on MACs for the whole data set.

A choice is an array (N,) of indices into ``MASK_SIZES``. ``values`` (N, 4) are what is maximised: predicted quality, or
logits of the switch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dynamask.data.sources import Data
from dynamask.engine.evaluate import Instances
from dynamask.models.masks import policies
from dynamask.models.masks.policies import LEARNED, QUALITY, Policy


def choice_of(policy: str | Policy, instances: Instances, dataset: Data) -> np.ndarray:
    """(N,) size indices under "learned", "quality", "size" (Eq. 8) or "fixed:S"; masks are known at every size."""
    policy = Policy.parse(policy)
    if policy == LEARNED:
        return np.array(instances.choice, dtype=np.int64)
    if policy == QUALITY:
        return policies.nearly_best(policies.combined_quality(instances.predicted_quality())).numpy()
    if policy.size is not None:
        return policies.fixed(len(instances.results), policy.size).numpy()
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset.coco["images"]}
    choice = []
    for result in instances.results:
        x, y, width, height = result["bbox"]
        box = torch.tensor([[x, y, x + width, y + height]])
        choice.append(int(policies.size_based(box, sizes[result["image_id"]])))
    return np.array(choice, dtype=np.int64)


def mean_macs(choice: np.ndarray, macs: Sequence[int]) -> float:
    """Mean MACs of an instance under a choice (N,), N ≥ 1."""
    return float(np.array(macs, dtype=np.float64)[choice].mean())


def at_budget(values: torch.Tensor, macs: Sequence[int], limit: float) -> np.ndarray:
    """(N,) size indices whose mean cost is at most ``limit`` MACs, by one price on MACs for all instances.

    A limit above the cost of the values' own maxima changes nothing: the price is zero there.
    """
    price = policies.price_for_budget(values, tuple(macs), max(round(limit, 3), macs[0]))
    return policies.at_price(values, tuple(macs), price).numpy()


def at_cost(values: torch.Tensor, macs: Sequence[int], limit: float) -> np.ndarray:
    """(N,) size indices whose mean cost comes as close to ``limit`` MACs as one price allows, without exceeding it.

    Below the cost of the values' own maxima this is :func:`at_budget`; above it the price is negative, a reward.
    """
    if len(values) == 0 or mean_macs(policies.learned(values).numpy(), macs) > limit:
        return at_budget(values, macs, limit)
    low, high = 0.0, -1.0 / macs[0]
    while mean_macs(policies.at_price(values, tuple(macs), high).numpy(), macs) < min(limit, macs[-1]):
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        spent = mean_macs(policies.at_price(values, tuple(macs), middle).numpy(), macs)
        low, high = (middle, high) if spent <= limit else (low, middle)
    return policies.at_price(values, tuple(macs), low).numpy()


def budget_limits(values: torch.Tensor, macs: Sequence[int], count: int) -> list[float]:
    """Evenly spaced budgets in mean MACs, from the cheapest size to the cost of the values' own maxima."""
    own = mean_macs(policies.learned(values).numpy(), macs)
    return sorted(set(np.linspace(macs[0], own, count).tolist()))
