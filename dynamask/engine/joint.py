"""Means over the regions of a whole step, when its batch is spread over processes and micro-batches.

A step's gradient is the mean of its parts' gradients: over processes by DistributedDataParallel, over micro-batches by
the training step. So that this mean is the gradient of the joint batch's loss, a part reports its own share of a mean
over all N regions, times the number of parts. E(C) and f_k go on into something that is not linear (Eq. 5, 6): there
the value must be the joint one in every part, and its gradient that of the part's share. By the chain rule the parts'
gradients then add up to that of the loss of the joint mean, and no gradient has to travel between processes for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynamask.ops.means import RegionMeans


class JointMeans(RegionMeans):
    """Means over the regions of all parts of a step, which are processes: one small sum over them for each mean.

    Every process must ask for the same means in the same order, with regions or without.

    Args:
        parts: how many gradients are averaged.
        total: sums a tensor over the processes, without gradient.
    """

    def __init__(self, parts: int, total: Callable[[Tensor], Tensor]) -> None:
        self.parts, self.total = parts, total

    def share(self, values: Tensor) -> Tensor:
        """(N, …) → (…): the part's share of the joint mean, times the number of parts."""
        return values.sum(0) * (self.parts / self._count(values))

    def mean(self, name: str, values: Tensor) -> Tensor:
        """(N, …) → (…): the joint mean, whose gradient is that of :meth:`share`."""
        share = self.share(values)
        return self._joint(name, values) + (share - share.detach())

    def _count(self, values: Tensor) -> Tensor:
        """Regions of the step, at least one."""
        return self.total(_float32(values.detach()).new_tensor(float(len(values)))).clamp_min(1.0)

    def _joint(self, name: str, values: Tensor) -> Tensor:
        """The joint mean without gradient."""
        return (self.total(_float32(values.detach()).sum(0)) / self._count(values)).to(values.dtype)


class RecordedMeans(RegionMeans):
    """Finds out the joint means of a step of several micro-batches, one pass each, before any of them has a gradient.

    Args:
        total: sums a tensor over the processes, without gradient.
    """

    recording = True

    def __init__(self, total: Callable[[Tensor], Tensor]) -> None:
        self.total = total
        self.count: Tensor | None = None
        self.sums: dict[str, Tensor] = {}

    def add(self, regions: Tensor) -> None:
        """Count (N, …) regions of a micro-batch."""
        own = _float32(regions.detach()).new_tensor(float(len(regions)))
        self.count = own if self.count is None else self.count + own

    def mean(self, name: str, values: Tensor) -> Tensor:
        """The mean of the micro-batch; its sum is remembered under the name."""
        own = _float32(values.detach()).sum(0)
        self.sums[name] = own + self.sums.get(name, torch.zeros_like(own))
        return super().mean(name, values)

    def known(self, parts: int) -> KnownMeans:
        """What was recorded, summed over the processes in one go, for passes with gradients."""
        if self.count is None:
            raise RuntimeError("no micro-batch was recorded")
        names = sorted(self.sums)
        flat = torch.cat([self.count.reshape(1), *(self.sums[name].reshape(-1) for name in names)])
        totals = list(self.total(flat).split([1, *(self.sums[name].numel() for name in names)]))
        count = totals[0][0].clamp_min(1.0)
        joint = {name: total.reshape(self.sums[name].shape) / count for name, total in zip(names, totals[1:])}
        return KnownMeans(parts, count, joint)


class KnownMeans(JointMeans):
    """Means that are known already: nothing travels between processes.

    Args:
        parts: how many gradients are averaged, micro-batches times processes.
        count: regions of the step, at least 1.
        joint: the step's means by name.
    """

    def __init__(self, parts: int, count: Tensor, joint: dict[str, Tensor]) -> None:
        super().__init__(parts, lambda values: values)
        self.count, self.joint = count, joint

    def _count(self, values: Tensor) -> Tensor:
        return self.count

    def _joint(self, name: str, values: Tensor) -> Tensor:
        return self.joint[name].to(values.dtype)


def _float32(values: Tensor) -> Tensor:
    """At least float32, so that many regions can be counted."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
