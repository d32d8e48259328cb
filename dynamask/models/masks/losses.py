"""Losses of the mask branch (Eq. 3–6): pure functions; the trainer applies their weights (Eq. 7).

They are means over the pixels of a mask and over the N positive RoIs, so that λ does not depend on the batch size. The
argument ``means`` takes the mean over the RoIs: those of the arguments by default, those of the whole batch where a
step is spread over processes or micro-batches, so that E(C) and f_k are those of the whole batch. Without a positive
RoI every loss is a zero that is connected to its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamask.config import LossConfig
from dynamask.models.masks.switch import straight_through_gumbel
from dynamask.ops.means import LOCAL_MEANS, Means


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """The same values (exactly); their gradient is multiplied by a factor."""
    return values.detach() + (values - values.detach()) * factor


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


def mask_loss(per_resolution: Tensor, selection: Tensor | None, means: Means = LOCAL_MEANS) -> Tensor:
    """L_mask (Eq. 3) from (N, K) cross-entropies.

    Args:
        per_resolution: (N, K) of :func:`resolution_losses` on masks.
        selection: (N, K) one-hot y for Eq. 3 read literally ("selected"); None supervises all resolutions with equal
            weight 1/K ("all").
        means: over which RoIs.
    """
    weights = 1.0 / per_resolution.shape[1] if selection is None else selection
    return means.share((per_resolution * weights).sum(1))


def edge_loss(per_resolution: Tensor, selection: Tensor | None, means: Means = LOCAL_MEANS) -> Tensor:
    """L_edge (Eq. 4) from (N, K) cross-entropies on edges, weighted by y; None weighs all by 1/K (phase one)."""
    return mask_loss(per_resolution, selection, means)


def selected_error(error: Tensor, selection: Tensor, means: Means = LOCAL_MEANS) -> Tensor:
    """Mean error of the selected resolutions, Σ_k y_k · error_k: a signal to the switch alone.

    Args:
        error: (N, K) without gradient, lower is better.
        selection: (N, K) one-hot y, or p for the mean over every draw.
        means: over which RoIs.
    """
    return means.share((error * selection).sum(1))


def at_finest_grid(probs: Sequence[Tensor], size: int) -> Tensor:
    """Masks (N, K, S, S) in {0, 1} of K tensors (N, S_k, S_k) of probabilities, all brought to one grid bilinearly."""
    return torch.cat([F.interpolate(x[:, None], size=(size, size), mode="bilinear") for x in probs], dim=1).ge(0.5)


def overlap_error(masks: Tensor, truth: Tensor) -> Tensor:
    """1 − mask IoU (N, K) of masks (N, K, S, S) bool with the truth (N, S, S) in {0, 1}; 0 where both are empty."""
    truth = truth[:, None] >= 0.5
    both, either = (masks & truth).sum((2, 3)), (masks | truth).sum((2, 3))
    return torch.where(either > 0, 1.0 - both / either.clamp_min(1), 0.0)


def budget_loss(selection: Tensor, macs: Tensor, target: float, means: Means = LOCAL_MEANS) -> Tensor:
    """L_budget (Eq. 5): max(E(C)/C_t − 1, 0).

    Args:
        selection: (N, K) one-hot y, or p.
        macs: (K,) cumulative cost of each resolution, as a fraction of the full branch (or in the unit of target).
        target: C_t in the same unit.
        means: over which RoIs.
    """
    expected = means.mean("macs", (selection * macs).sum(1))
    return F.relu(expected / target - 1.0)


def entropy_loss(probs: Tensor, means: Means = LOCAL_MEANS) -> Tensor:
    """L_entropy (Eq. 6): (1/K) Σ_k f_k log f_k with f_k the mean of p^k; least at the uniform distribution.

    Args:
        probs: (N, K) switch probabilities.
        means: over which RoIs.
    """
    mean = means.mean("frequency", probs)
    frequency = mean + 1e-7  # the slope at zero is infinite
    some = mean.detach().sum() > 0  # without a RoI anywhere the loss is zero
    return some * torch.special.entr(frequency).sum() / -probs.shape[1]


def instance_entropy_loss(logits: Tensor, means: Means = LOCAL_MEANS) -> Tensor:
    """Eq. 6 taken instance by instance: mean_i (1/K) Σ_k p_i^k log p_i^k, least where every p_i is uniform.

    With the expected error Σ_k p_k · e_k of weight w beside it (weight λ), the best p_i is the softmax of
    −E(e_k) · w K / λ: differences of log p are then expected gains in quality, which is what a price on MACs needs.

    Args:
        logits: (N, K) of the switch; p is their softmax, which may be zero without harm.
        means: over which RoIs.
    """
    return means.share((F.softmax(logits, dim=1) * F.log_softmax(logits, dim=1)).sum(1)) / logits.shape[1]


def drawn_selection(logits: Tensor, config: LossConfig, noise: Tensor | None = None) -> Tensor:
    """(N, K) that weighs the sizes in the losses: the one-hot y of Eq. 2 with (N, K) noise, or p under "expected"."""
    if config.switch_selection == "drawn":
        return straight_through_gumbel(logits, config.temperature, noise)
    return F.softmax(logits, dim=1)


def balance_losses(
    logits: Tensor, selection: Tensor, fractions: Tensor, config: LossConfig, means: Means = LOCAL_MEANS
) -> dict[str, Tensor]:
    """``loss_budget`` and ``loss_entropy`` (Eq. 5, 6), arguments as of :func:`switch_losses`."""
    if config.entropy_on == "instances":
        entropy = instance_entropy_loss(logits, means)
    else:
        entropy = entropy_loss(selection if config.entropy_on == "selection" else F.softmax(logits, dim=1), means)
    return {"loss_budget": budget_loss(selection, fractions, config.budget_target, means), "loss_entropy": entropy}


def switch_losses(
    logits: Tensor,
    fractions: Tensor,
    mask_losses: Tensor,
    edge_losses: Tensor,
    error: Tensor | None,
    config: LossConfig,
    noise: Tensor | None = None,
    means: Means = LOCAL_MEANS,
) -> dict[str, Tensor]:
    """Every loss that the switch's selection takes part in (Eq. 2–6), unweighted.

    Args:
        logits: (N, K) of the switch.
        fractions: (K,) cost of each size as a fraction of the full branch's.
        mask_losses: (N, K) of :func:`resolution_losses` on masks.
        edge_losses: (N, K), on edges.
        error: (N, K) without gradient, lower is better; the signal "boundary" alone reads it.
        config: how the sizes are weighed; the weights of Eq. 7 are not applied here.
        noise: (N, K) Gumbel noise, drawn when absent; "expected" needs none.
        means: over which RoIs.

    Returns:
        ``loss_mask``, ``loss_edge``, ``loss_boundary`` under the signal "boundary", ``loss_budget``, ``loss_entropy``.
    """
    selection = drawn_selection(logits, config, noise)
    quality, named = scale_gradient(selection, config.switch_gradient), {}
    if config.switch_signal == "boundary":
        if error is None:
            raise ValueError("the signal 'boundary' needs the boundary error of every size")
        named, quality = {"loss_boundary": selected_error(error, selection, means)}, selection.detach()
    return {
        "loss_mask": mask_loss(mask_losses, None if config.mask_supervision == "all" else quality, means),
        "loss_edge": edge_loss(edge_losses, quality, means),
        **named,
        **balance_losses(logits, selection, fractions, config, means),
    }
