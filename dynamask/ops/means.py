"""Means over the positives of a training step, which may be spread over processes and micro-batches.

Positives are what a model's losses are normalised by: the regions of a mask branch, the cells of a one-stage model.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RegionMeans:
    """Means over the regions at hand: one process, one batch. ``dynamask.engine.joint`` has others to stand in for it.

    A loss of which the mean is the last operation takes :meth:`share`, or :meth:`per_positive` where what is summed are
    not the positives themselves. A mean that goes on into something that is not linear (Eq. 5, 6) takes :meth:`mean`.
    At home all are the same; where a step is spread over several parts, the mean of the parts' losses and of their
    gradients is then that of the joint batch.
    """

    recording = False
    """Whether this pass only finds out the means that later passes need; losses may then be left out."""

    def share(self, values: Tensor) -> Tensor:
        """(N, …) → (…): what the regions at hand contribute to the mean; a connected zero where there are none."""
        return values.sum(0) / max(len(values), 1)

    def per_positive(self, total: Tensor, count: int | Tensor, more: int = 0, kind: str = "regions") -> Tensor:
        """A sum (…) over the number of positives and ``more``, which is at least 1.

        Args:
            total: what the positives at hand, or all else that is at hand, add up to.
            count: how many positives are at hand.
            more: added to the number of the whole step, once.
            kind: of positives, where a model counts several.
        """
        return total / torch.as_tensor(count + more).clamp_min(1)

    def mean(self, name: str, values: Tensor) -> Tensor:
        """(N, …) → (…): the mean itself. ``name`` tells one mean of a step from another."""
        return values.sum(0) / max(len(values), 1)

    def add(self, count: int | Tensor, kind: str = "regions") -> None:
        """Hear of so many positives in a pass that only records."""


AT_HAND = RegionMeans()
"""Means over the regions at hand."""
