"""Resolution policies: which mask size each instance gets, as (R,) int64 indices into ``MASK_SIZES``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamask.ops.knapsack import best_under_budget
from dynamask.structures import MASK_SIZES, DynaMaskError


@dataclass(frozen=True)
class Policy:
    """A resolution policy. ``str(policy)`` is the text that :meth:`parse` takes.

    Attributes:
        name: "learned" (the switch's argmax), "size" (Eq. 8), "fixed", or a policy of evaluation alone.
        size: side of every mask in mask pixels under "fixed", otherwise None.
    """

    name: str
    size: int | None = None

    @classmethod
    def fixed(cls, size: int) -> Policy:
        """One size for all instances (Tab. 7)."""
        return cls("fixed", size)

    @classmethod
    def parse(cls, text: str | Policy, others: Sequence[str] = ()) -> Policy:
        """The policy that "learned", "size", "fixed:S" or one of ``others`` names; raises :class:`DynaMaskError`."""
        known = [*map(str, POLICIES), *others]
        if str(text) not in known:
            raise DynaMaskError(f"policy {str(text)!r} is unknown; choose one of {', '.join(known)}")
        name, _, size = str(text).partition(":")
        return cls(name, int(size) if size else None)

    def __str__(self) -> str:
        return self.name if self.size is None else f"{self.name}:{self.size}"

    def check_budget(self, budget: float | None) -> None:
        """Raise :class:`DynaMaskError` if there is a budget and this policy cannot follow one."""
        if budget is not None and self.name not in ("learned", "oracle"):
            raise DynaMaskError(f"a budget cannot be combined with the policy {str(self)!r}; give one of them")

    def choose(
        self,
        boxes: Tensor,
        image_size: tuple[int, int],
        switch_logits: Tensor | None = None,
        macs: tuple[int, ...] = (),
        limit: float | None = None,
    ) -> Tensor:
        """Choose the sizes of R instances of one image.

        Args:
            boxes: (R, 4) xyxy in image pixels.
            image_size: (H, W) in pixels.
            switch_logits: (R, 4); needed by "learned".
            macs: cumulative MACs per size; needed with a limit.
            limit: mean MACs per instance from :func:`budget_in_macs`, met exactly by "learned".

        Returns:
            (R,) int64 indices into ``MASK_SIZES``.
        """
        if limit is not None:
            return exact_budget(switch_logits, macs, limit)
        if self.size is not None:
            return fixed(len(boxes), self.size)
        return size_based(boxes, image_size) if self.name == "size" else learned(switch_logits)


LEARNED = Policy("learned")
POLICIES = (LEARNED, Policy("size"), *map(Policy.fixed, MASK_SIZES))
"""The policies that choose from a single image."""


def learned(switch_logits: Tensor) -> Tensor:
    """Argmax of the switch logits (R, 4), without noise."""
    return switch_logits.argmax(dim=1)


def fixed(count: int, size: int) -> Tensor:
    """The same size for ``count`` instances; a size outside ``MASK_SIZES`` raises :class:`DynaMaskError`."""
    if size not in MASK_SIZES:
        raise DynaMaskError(f"mask size {size} does not exist; choose one of {', '.join(map(str, MASK_SIZES))}")
    return torch.full((count,), MASK_SIZES.index(size), dtype=torch.int64)


def size_based(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Eq. 8: k = clamp(⌊4 + log2(√(wh) / √(w0·h0))⌋, 1, 4), as an index from 0.

    Args:
        boxes: (R, 4) xyxy in image pixels.
        image_size: (h0, w0) in the same pixels.
    """
    width = (boxes[:, 2] - boxes[:, 0]).clamp_min(1e-6)
    height = (boxes[:, 3] - boxes[:, 1]).clamp_min(1e-6)
    ratio = torch.sqrt(width.double() * height.double()) / math.sqrt(image_size[0] * image_size[1])
    return (torch.floor(4 + torch.log2(ratio)).clamp(1, 4) - 1).to(torch.int64)


def random_permutation(sizes: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The sizes (R,) permuted among the instances: the chance level at equal mean MACs."""
    return sizes[torch.randperm(len(sizes), generator=generator).to(sizes.device)]


def budget_in_macs(budget: float, macs: tuple[int, ...]) -> float:
    """Convert a budget from mean GMACs to mean MACs per instance, at most the cost of the finest size.

    Raises:
        DynaMaskError: the budget is not a finite number, or is below the cost of the cheapest size.
    """
    if not math.isfinite(budget):
        raise DynaMaskError(f"budget {budget} is not a finite number; give mean GMACs per instance")
    limit = round(budget * 1e9, 3)  # MACs are integers: undo the rounding of MACs / 1e9
    if limit < macs[0]:
        raise DynaMaskError(
            f"budget {budget} GMACs is below the cheapest size; give at least "
            f"{math.ceil(macs[0] / 1e5) / 1e4:.4f} mean GMACs per instance"
        )
    return min(limit, float(macs[-1]))


def exact_budget(switch_logits: Tensor, macs: tuple[int, ...], limit: float) -> Tensor:
    """The sizes with the largest Σ log p whose mean cost over one image's instances is within the limit.

    Args:
        switch_logits: (R, 4).
        macs: cumulative MACs per size.
        limit: mean MACs per instance, at least ``macs[0]``.
    """
    log_probs = F.log_softmax(switch_logits.double(), dim=1).cpu().numpy()
    # MACs are integers, so a thousandth of one only makes up for the rounding of means.
    picked = best_under_budget(log_probs, macs, limit + 1e-3)
    return torch.from_numpy(picked).to(switch_logits.device)


def at_price(switch_logits: Tensor, macs: tuple[int, ...], price: float) -> Tensor:
    """k_i = argmax_k (log p_i^k − μ C_k) with one price μ per MAC for all images."""
    log_probs = F.log_softmax(switch_logits.double(), dim=1)
    return (log_probs - price * log_probs.new_tensor(macs)).argmax(dim=1)


def price_for_budget(switch_logits: Tensor, macs: tuple[int, ...], limit: float, iterations: int = 100) -> float:
    """Smallest price μ ≥ 0 per MAC at which the mean cost over all (R, 4) rows is within the limit (bisection).

    Args:
        limit: mean MACs per instance, at least ``macs[0]``; less raises ValueError.
    """
    if limit < macs[0]:
        raise ValueError(f"no price meets {limit} MACs, which is below the cheapest size")
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
