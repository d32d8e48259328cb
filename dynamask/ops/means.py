"""Means over the positives of a training step, whose batch may be spread over processes and micro-batches.

Positives are what a model's losses are divided by: the positive regions of a mask branch, the positive cells of a
one-stage model.

The gradient of a step is the mean of its parts' gradients: over processes by DistributedDataParallel, over
micro-batches by the training step. For it to be the gradient of the joint batch's loss, a part returns its own share of
a mean over all N positives, times the number of parts. E(C) and f_k enter nonlinear functions (Eq. 5, 6): they have the
joint value in every part, and the gradient of the part's share. By the chain rule the parts' gradients then add up to
the gradient of the loss of the joint mean, and no gradient is exchanged for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def connected_zero(parameters: Iterable[Tensor]) -> Tensor:
    """A scalar zero whose backward gives each of the parameters a gradient of zeros, whatever their values."""
    return torch.stack([parameter.flatten()[:0].sum() for parameter in parameters]).sum()


class Means:
    """Means over the positives of one batch in one process, and base class of the means over several parts.

    A loss whose last operation is a mean takes :meth:`share`, or :meth:`per_positive` if the summands are not the
    positives themselves. A mean that enters a nonlinear function takes :meth:`mean`.
    """

    counting = False
    """True in a pass without gradients that only finds the joint means; a model may skip its losses in it."""

    def share(self, values: Tensor) -> Tensor:
        """(N, …) → (…): the contribution of these positives to the mean; a connected zero for N = 0."""
        return self.per_positive(values.sum(0), len(values))

    def total(self, values: Tensor) -> Tensor:
        """(N, …) → (…): the contribution of these positives to a sum over all positives of the step."""
        return values.sum(0)

    def per_positive(self, total: Tensor, count: int | Tensor, more: int = 0, kind: str = "regions") -> Tensor:
        """Divide a sum by the number of positives plus ``more``, at least 1.

        Args:
            total: (…) sum over this part.
            count: number of positives in this part.
            more: added once to the number of positives of the whole step.
            kind: of positives, for a model that counts several kinds.
        """
        return total / torch.as_tensor(count + more).clamp_min(1)

    def mean(self, name: str, values: Tensor) -> Tensor:
        """(N, …) → (…): the mean itself; ``name`` distinguishes the means of a step."""
        return self.share(values)

    def add(self, count: int | Tensor, kind: str = "regions") -> None:
        """Record a number of positives; used in the counting pass only."""


LOCAL_MEANS = Means()


class JointMeans(Means):
    """Means over the positives of all processes; each mean sums small tensors over them.

    All processes must ask for the same means in the same order, with or without positives.

    Args:
        parts: number of parts whose gradients are averaged.
        add_up: sums a tensor over the processes, without gradient.
    """

    def __init__(self, parts: int, add_up: Callable[[Tensor], Tensor]) -> None:
        self.parts, self.add_up = parts, add_up

    def total(self, values: Tensor) -> Tensor:
        """This part's sum times the number of parts, whose gradients are averaged."""
        return values.sum(0) * self.parts

    def per_positive(self, total: Tensor, count: int | Tensor, more: int = 0, kind: str = "regions") -> Tensor:
        """This part's sum divided by the joint number of positives plus ``more``, times the number of parts."""
        return total * (self.parts / (self._count(total, count, kind) + more).clamp_min(1.0))

    def mean(self, name: str, values: Tensor) -> Tensor:
        """(N, …) → (…): the joint mean, with the gradient of :meth:`share`."""
        share = self.share(values)
        return self._joint(name, values) + (share - share.detach())

    def _count(self, like: Tensor, count: int | Tensor, kind: str = "regions") -> Tensor:
        """Number of positives of the step, on the device of a tensor."""
        return self.add_up(torch.as_tensor(count, dtype=torch.float32, device=like.device))

    def _joint(self, name: str, values: Tensor) -> Tensor:
        """The joint mean, without gradient."""
        count = self._count(values, len(values)).clamp_min(1.0)
        return (self.add_up(_float32(values.detach()).sum(0)) / count).to(values.dtype)


class CountingMeans(Means):
    """Finds the joint means of a step of several micro-batches, in one pass over each without gradients.

    Args:
        add_up: sums a tensor over the processes, without gradient.
    """

    counting = True

    def __init__(self, add_up: Callable[[Tensor], Tensor]) -> None:
        self.add_up = add_up
        self.counts: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}

    def add(self, count: int | Tensor, kind: str = "regions") -> None:
        """Add the number of positives of a micro-batch."""
        own = torch.as_tensor(count, dtype=torch.float32)
        self.counts[kind] = own + self.counts.get(kind, torch.zeros_like(own))

    def mean(self, name: str, values: Tensor) -> Tensor:
        """The mean of the micro-batch, whose sum is recorded under the name."""
        own = _float32(values.detach()).sum(0)
        self.sums[name] = own + self.sums.get(name, torch.zeros_like(own))
        return super().mean(name, values)

    def counted(self, parts: int) -> CountedMeans:
        """The means for the passes with gradients; everything recorded is summed over the processes at once."""
        if not self.counts:
            raise RuntimeError("no micro-batch was counted")
        kinds, names = sorted(self.counts), sorted(self.sums)
        device = self.sums[names[0]].device if names else self.counts[kinds[0]].device
        counts = torch.stack([self.counts[kind].to(device) for kind in kinds])
        flat = torch.cat([counts, *(self.sums[name].reshape(-1) for name in names)])
        counts, *totals = self.add_up(flat).split([len(kinds), *(self.sums[name].numel() for name in names)])
        by_kind = dict(zip(kinds, counts))
        joint = {
            name: total.reshape(self.sums[name].shape) / by_kind["regions"].clamp_min(1.0)
            for name, total in zip(names, totals)
        }
        return CountedMeans(parts, by_kind, joint)


class CountedMeans(JointMeans):
    """Joint means that a counting pass has found; nothing is exchanged between processes.

    Args:
        parts: number of micro-batches times number of processes.
        counts: positives of the step by kind.
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
    """At least float32, so that large counts are exact."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
