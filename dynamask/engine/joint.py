"""Means over the positives of a whole step, when its batch is spread over processes and micro-batches.

A step's gradient is the mean of its parts' gradients: over processes by DistributedDataParallel, over micro-batches by
the training step. So that this mean is the gradient of the joint batch's loss, a part reports its own share of a mean
over all N positives, times the number of parts. E(C) and f_k go on into something that is not linear (Eq. 5, 6): there
the value must be the joint one in every part, and its gradient that of the part's share. By the chain rule the parts'
gradients then add up to that of the loss of the joint mean, and no gradient has to travel between processes for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynamask.ops.means import RegionMeans


class JointMeans(RegionMeans):
    """Means over the positives of all parts of a step, which are processes: small sums over them for each mean.

    Every process must ask for the same means in the same order, with positives or without.

    Args:
        parts: how many gradients are averaged.
        total: sums a tensor over the processes, without gradient.
    """

    def __init__(self, parts: int, total: Callable[[Tensor], Tensor]) -> None:
        self.parts, self.total = parts, total

    def share(self, values: Tensor) -> Tensor:
        """(N, …) → (…): the part's share of the joint mean, times the number of parts."""
        return self.per_positive(values.sum(0), len(values))

    def per_positive(self, total: Tensor, count: int | Tensor, more: int = 0, kind: str = "regions") -> Tensor:
        """The part's share of the joint sum over the joint number, times the number of parts."""
        return total * (self.parts / (self._count(total, count, kind) + more).clamp_min(1.0))

    def mean(self, name: str, values: Tensor) -> Tensor:
        """(N, …) → (…): the joint mean, whose gradient is that of :meth:`share`."""
        share = self.share(values)
        return self._joint(name, values) + (share - share.detach())

    def _count(self, like: Tensor, count: int | Tensor, kind: str = "regions") -> Tensor:
        """Positives of the step, on the device of a tensor."""
        return self.total(torch.as_tensor(count, dtype=torch.float32, device=like.device))

    def _joint(self, name: str, values: Tensor) -> Tensor:
        """The joint mean without gradient."""
        count = self._count(values, len(values)).clamp_min(1.0)
        return (self.total(_float32(values.detach()).sum(0)) / count).to(values.dtype)


class RecordedMeans(RegionMeans):
    """Finds out the joint means of a step of several micro-batches, one pass each, before any of them has a gradient.

    Args:
        total: sums a tensor over the processes, without gradient.
    """

    recording = True

    def __init__(self, total: Callable[[Tensor], Tensor]) -> None:
        self.total = total
        self.counts: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}

    def add(self, count: int | Tensor, kind: str = "regions") -> None:
        """Count positives of a micro-batch."""
        own = torch.as_tensor(count, dtype=torch.float32)
        self.counts[kind] = own + self.counts.get(kind, torch.zeros_like(own))

    def mean(self, name: str, values: Tensor) -> Tensor:
        """The mean of the micro-batch; its sum is remembered under the name."""
        own = _float32(values.detach()).sum(0)
        self.sums[name] = own + self.sums.get(name, torch.zeros_like(own))
        return super().mean(name, values)

    def known(self, parts: int) -> KnownMeans:
        """What was recorded, summed over the processes in one go, for passes with gradients."""
        if not self.counts:
            raise RuntimeError("no micro-batch was recorded")
        kinds, names = sorted(self.counts), sorted(self.sums)
        device = self.sums[names[0]].device if names else self.counts[kinds[0]].device
        counts = torch.stack([self.counts[kind].to(device) for kind in kinds])
        flat = torch.cat([counts, *(self.sums[name].reshape(-1) for name in names)])
        counts, *totals = self.total(flat).split([len(kinds), *(self.sums[name].numel() for name in names)])
        counted = dict(zip(kinds, counts))
        joint = {
            name: total.reshape(self.sums[name].shape) / counted["regions"].clamp_min(1.0)
            for name, total in zip(names, totals)
        }
        return KnownMeans(parts, counted, joint)


class KnownMeans(JointMeans):
    """Means that are known already: nothing travels between processes.

    Args:
        parts: how many gradients are averaged, micro-batches times processes.
        counts: positives of the step by their kind.
        joint: the step's means by name.
    """

    def __init__(self, parts: int, counts: dict[str, Tensor], joint: dict[str, Tensor]) -> None:
        super().__init__(parts, lambda values: values)
        self.counts, self.joint = counts, joint

    def _count(self, like: Tensor, count: int | Tensor, kind: str = "regions") -> Tensor:
        return self.counts[kind].to(like.device)

    def _joint(self, name: str, values: Tensor) -> Tensor:
        return self.joint[name].to(values.dtype)


def _float32(values: Tensor) -> Tensor:
    """At least float32, so that many regions can be counted."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
