"""Who decides the resolution: policies return (R,) int64 indices into ``MASK_SIZES`` (§ "Selecting a resolution")."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamask.ops.knapsack import best_under_budget
from dynamask.structures import MASK_SIZES, DynaMaskError


def learned(switch_logits: Tensor) -> Tensor:
    """The switch's own choice: argmax of (R, 4) logits, no noise."""
    return switch_logits.argmax(dim=1)


def fixed(count: int, size: int) -> Tensor:
    """One size for all (Tab. 7); a size that is none of 14, 28, 56, 112 raises :class:`DynaMaskError`."""
    if size not in MASK_SIZES:
        raise DynaMaskError(f"mask size {size} does not exist; choose one of {', '.join(map(str, MASK_SIZES))}")
    return torch.full((count,), MASK_SIZES.index(size), dtype=torch.int64)


def size_based(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Eq. 8: k = clamp(⌊4 + log2(√(wh) / √(w0·h0))⌋, 1, 4), as an index from 0.

    Args:
        boxes: (R, 4) xyxy in image pixels.
        image_size: (h0, w0) in the same pixels.
    """
    width, height = (boxes[:, 2] - boxes[:, 0]).clamp_min(1e-6), (boxes[:, 3] - boxes[:, 1]).clamp_min(1e-6)
    ratio = torch.sqrt(width.double() * height.double()) / math.sqrt(image_size[0] * image_size[1])
    return (torch.floor(4 + torch.log2(ratio)).clamp(1, 4) - 1).to(torch.int64)


def random_permutation(sizes: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The same sizes (R,), permuted among the instances: the honest chance level at equal mean MACs."""
    return sizes[torch.randperm(len(sizes), generator=generator).to(sizes.device)]


def check_budget(budget: float, macs: tuple[int, ...]) -> float:
    """A budget in mean GMACs per instance, turned into MACs, at most the full branch's.

    Raises:
        DynaMaskError: it is no finite number, or nothing can meet it.
    """
    if not math.isfinite(budget):
        raise DynaMaskError(f"budget {budget} is no finite number; give mean GMACs per instance")
    limit = round(budget * 1e9, 3)  # MACs are whole: undo the rounding of MACs / 1e9
    if limit < macs[0]:
        raise DynaMaskError(
            f"budget {budget} GMACs is below the cheapest size; give at least "
            f"{math.ceil(macs[0] / 1e5) / 1e4:.4f} mean GMACs per instance"
        )
    return min(limit, float(macs[-1]))


def budget(switch_logits: Tensor, macs: tuple[int, ...], budget_gmacs: float) -> Tensor:
    """Best Σ log p under a mean budget for the instances of one picture, exactly.

    Args:
        switch_logits: (R, 4).
        macs: cumulative MACs per size.
        budget_gmacs: mean GMACs per instance; not finite or below the cheapest size raises :class:`DynaMaskError`.
    """
    limit = check_budget(budget_gmacs, macs)
    log_probs = F.log_softmax(switch_logits.double(), dim=1).cpu().numpy()
    # MACs are whole, so a thousandth of one only makes up for the rounding of means in GMACs.
    picked = best_under_budget(log_probs, macs, limit + 1e-3)
    return torch.from_numpy(picked).to(switch_logits.device)


def at_price(switch_logits: Tensor, macs: tuple[int, ...], price: float) -> Tensor:
    """k_i = argmax_k (log p_i^k − μ C_k) with one price μ per MAC for all pictures."""
    log_probs = F.log_softmax(switch_logits.double(), dim=1)
    return (log_probs - price * log_probs.new_tensor(macs)).argmax(dim=1)


def price_for_budget(switch_logits: Tensor, macs: tuple[int, ...], budget_gmacs: float, iterations: int = 100) -> float:
    """Smallest price μ ≥ 0 per MAC at which the mean cost over all (R, 4) rows meets the budget (bisection)."""
    limit = check_budget(budget_gmacs, macs)
    cost = torch.tensor(macs, dtype=torch.float64)

    def mean_cost(price: float) -> float:
        return float(cost[at_price(switch_logits, macs, price)].mean()) if len(switch_logits) else 0.0

    if mean_cost(0.0) <= limit:
        return 0.0
    low, high = 0.0, 1.0 / macs[0]
    while mean_cost(high) > limit:
        high *= 2
    for _ in range(iterations):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_cost(middle) > limit else (low, middle)
    return high
