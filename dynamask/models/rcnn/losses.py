"""The mask branch's losses (Eq. 3–6): pure functions; weights are applied by the trainer alone (Eq. 7).

Reductions: means over the pixels of a mask and over the N positive RoIs, so that λ does not depend on the batch.
Without a positive RoI every loss is a zero that is connected to its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resolution_losses(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Binary cross-entropy of each RoI at each resolution, mean over pixels.

    Args:
        logits: K tensors (N, S_k, S_k).
        targets: K tensors (N, S_k, S_k) in [0, 1].

    Returns:
        (N, K).
    """
    return torch.stack(
        [
            F.binary_cross_entropy_with_logits(x, t, reduction="none").flatten(1).mean(1)
            if len(x)
            else x.flatten(1).sum(1)
            for x, t in zip(logits, targets, strict=True)
        ],
        dim=1,
    )


def _roi_mean(values: Tensor) -> Tensor:
    """Mean over the first axis, a connected zero when it is empty."""
    return values.sum() / max(len(values), 1)


def mask_loss(per_resolution: Tensor, selection: Tensor | None) -> Tensor:
    """L_mask (Eq. 3) from (N, K) cross-entropies.

    Args:
        per_resolution: (N, K) of :func:`resolution_losses` on masks.
        selection: (N, K) one-hot y for Eq. 3 read literally ("selected"); None supervises all resolutions with equal
            weight 1/K ("all").
    """
    weights = 1.0 / per_resolution.shape[1] if selection is None else selection
    return _roi_mean((per_resolution * weights).sum(1))


def edge_loss(per_resolution: Tensor, selection: Tensor | None) -> Tensor:
    """L_edge (Eq. 4) from (N, K) cross-entropies on edges, weighted by y; None weighs all by 1/K (phase one)."""
    return mask_loss(per_resolution, selection)


def selected_error(error: Tensor, selection: Tensor) -> Tensor:
    """Mean error of the drawn resolutions, Σ_k y_k · error_k: a signal to the switch alone.

    Args:
        error: (N, K) without gradient, lower is better.
        selection: (N, K) one-hot y.
    """
    return _roi_mean((error * selection).sum(1))


def budget_loss(selection: Tensor, macs: Tensor, target: float) -> Tensor:
    """L_budget (Eq. 5): max(E(C)/C_t − 1, 0).

    Args:
        selection: (N, K) one-hot y.
        macs: (K,) cumulative cost of each resolution, as a fraction of the full branch (or in the unit of target).
        target: C_t in the same unit.
    """
    if len(selection) == 0:
        return selection.sum()
    expected = (selection * macs).sum(1).mean()
    return F.relu(expected / target - 1.0)


def entropy_loss(probs: Tensor) -> Tensor:
    """L_entropy (Eq. 6): (1/K) Σ_k f_k log f_k with f_k the mean of p^k; least at the uniform distribution.

    Args:
        probs: (N, K) switch probabilities.
    """
    if len(probs) == 0:
        return probs.sum()
    frequency = probs.mean(0)
    return torch.special.entr(frequency).sum() / -probs.shape[1]
