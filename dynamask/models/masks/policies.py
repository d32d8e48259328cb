"""Resolution policies: which mask size each instance gets, as (R,) int64 indices into ``MASK_SIZES``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamask.ops.knapsack import best_under_budget
from dynamask.structures import MASK_SIZES, DynaMaskError


@dataclass(frozen=True)
class Policy:
    """A resolution policy. ``str(policy)`` is the text that :meth:`parse` takes.

    Attributes:
        name: "learned" (the switch's argmax), "quality" (the coarsest size whose predicted quality is close to the
            best), "size" (Eq. 8), "fixed", or a policy of evaluation alone.
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
        """The policy that "learned", "quality", "size", "fixed:S" or one of ``others`` names.

        Raises:
            DynaMaskError: it names none.
        """
        known = [*map(str, POLICIES), *others]
        if str(text) not in known:
            raise DynaMaskError(f"policy {str(text)[:40]!r} is unknown; choose one of {', '.join(known)}")
        name, _, size = str(text).partition(":")
        return cls(name, int(size) if size else None)

    def __str__(self) -> str:
        return self.name if self.size is None else f"{self.name}:{self.size}"

    def check_budget(self, budget: float | None) -> None:
        """Raise :class:`DynaMaskError` if there is a budget and this policy cannot follow one."""
        if budget is not None and self.name not in ("learned", "quality", "oracle"):
            raise DynaMaskError(f"a budget cannot be combined with the policy {str(self)!r}; give one of them")

    def choose(
        self,
        boxes: Tensor,
        image_size: tuple[int, int],
        switch_logits: Tensor | None = None,
        macs: tuple[int, ...] = (),
        limit: float | None = None,
        quality: Tensor | None = None,
    ) -> Tensor:
        """Choose the sizes of R instances of one image.

        Args:
            boxes: (R, 4) xyxy in image pixels.
            image_size: (H, W) in pixels.
            switch_logits: (R, 4); needed by "learned".
            macs: cumulative MACs per size; needed with a limit.
            limit: mean MACs per instance from :func:`budget_in_macs`, met exactly by "learned" and "quality".
            quality: (R, 4, 2) predicted mask IoU and boundary IoU; needed by "quality".

        Returns:
            (R,) int64 indices into ``MASK_SIZES``.
        """
        if limit is not None:
            return exact_budget(self.preferences(switch_logits, quality), macs, limit)
        if self.size is not None:
            return fixed(len(boxes), self.size)
        if self.name == "quality":
            return nearly_best(combined_quality(quality))
        return size_based(boxes, image_size) if self.name == "size" else learned(switch_logits)

    def preferences(self, switch_logits: Tensor | None, quality: Tensor | None) -> Tensor:
        """(R, 4) float64, the sum of which a budget maximises: log p of the switch, or the predicted quality."""
        if self.name == "quality":
            return combined_quality(quality)
        return F.log_softmax(switch_logits.double(), dim=1)


LEARNED = Policy("learned")
QUALITY = Policy("quality")
POLICIES = (LEARNED, QUALITY, Policy("size"), *map(Policy.fixed, MASK_SIZES))
"""The policies that choose from a single image."""


def default_policy(with_budget: bool, with_quality: bool) -> Policy:
    """The policy where none is named: "quality" for a budget if quality is predicted, otherwise "learned"."""
    return QUALITY if with_budget and with_quality else LEARNED


MASK_SHARE = 0.5
"""Weight (0–1) of mask IoU in :func:`combined_quality`; the rest is that of boundary IoU."""
TOLERANCE = 0.01
"""Loss of combined quality that the policy "quality" accepts for a coarser mask."""


def combined_quality(quality: Tensor) -> Tensor:
    """One number (R, 4) float64 in [0, 1] of each size from predicted mask IoU and boundary IoU (R, 4, 2)."""
    mask_iou, boundary_iou = quality.double().unbind(2)
    return torch.lerp(boundary_iou, mask_iou, MASK_SHARE)


def nearly_best(values: Tensor) -> Tensor:
    """The coarsest size whose value, of (R, 4), is within ``TOLERANCE`` of the best."""
    enough = values >= values.amax(dim=1, keepdim=True) - TOLERANCE
    return enough.to(torch.uint8).argmax(dim=1)  # the first of equal maxima


def logits_of(probs: np.ndarray) -> Tensor:
    """Switch logits (R, 4) float64 that give the probabilities (R, 4), which may be 0."""
    return torch.from_numpy(np.log(np.maximum(probs, 1e-30)))


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


def exact_budget(values: Tensor, macs: tuple[int, ...], limit: float) -> Tensor:
    """The sizes with the largest sum of values whose mean cost over one image's instances is within the limit.

    Args:
        values: (R, 4) of :meth:`Policy.preferences`.
        macs: cumulative MACs per size.
        limit: mean MACs per instance, at least ``macs[0]``.
    """
    # MACs are integers, so a thousandth of one only makes up for the rounding of means.
    picked = best_under_budget(values.double().cpu().numpy(), macs, limit + 1e-3)
    return torch.from_numpy(picked).to(values.device)


def at_price(values: Tensor, macs: tuple[int, ...], price: float) -> Tensor:
    """k_i = argmax_k (v_i^k − μ C_k) with one price μ per MAC for all images.

    Args:
        values: (R, 4) of :meth:`Policy.preferences`; a constant of a row, as between logits and log p, has no effect.
    """
    values = values.double()
    return (values - price * values.new_tensor(macs)).argmax(dim=1)


def price_for_budget(values: Tensor, macs: tuple[int, ...], limit: float, iterations: int = 100) -> float:
    """Smallest price μ ≥ 0 per MAC at which the mean cost over all (R, 4) rows is within the limit (bisection).

    Args:
        values: as in :func:`at_price`.
        limit: mean MACs per instance, at least ``macs[0]``; less raises ValueError.
    """
    if limit < macs[0]:
        raise ValueError(f"no price meets {limit} MACs, which is below the cheapest size")
    cost = torch.tensor(macs, dtype=torch.float64)

    def mean_cost(price: float) -> float:
        return float(cost[at_price(values, macs, price)].mean()) if len(values) else 0.0

    if mean_cost(0.0) <= limit:
        return 0.0
    low, high = 0.0, 1.0 / macs[0]
    while mean_cost(high) > limit:
        high *= 2
    for _ in range(iterations):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_cost(middle) > limit else (low, middle)
    return high
