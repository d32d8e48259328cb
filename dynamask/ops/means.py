"""Means over the positive regions of a training step, which may be spread over processes and micro-batches."""

from __future__ import annotations

from torch import Tensor


class RegionMeans:
    """Means over the regions at hand: one process, one batch. ``dynamask.engine.joint`` has others to stand in for it.

    A loss of which the mean is the last operation takes :meth:`share`; a mean that goes on into something that is not
    linear (Eq. 5 and 6) takes :meth:`mean`. At home both are the same; where a step is spread over several parts, the
    mean of the parts' losses and of their gradients is then that of the joint batch.
    """

    recording = False
    """Whether this pass only finds out the means that later passes need; losses may then be left out."""

    def share(self, values: Tensor) -> Tensor:
        """(N, …) → (…): what the regions at hand contribute to the mean; a connected zero where there are none."""
        return values.sum(0) / max(len(values), 1)

    def mean(self, name: str, values: Tensor) -> Tensor:
        """(N, …) → (…): the mean itself. ``name`` tells one mean of a step from another."""
        return values.sum(0) / max(len(values), 1)

    def add(self, regions: Tensor) -> None:
        """Hear of (N, …) regions in a pass that only records."""


AT_HAND = RegionMeans()
"""Means over the regions at hand."""
