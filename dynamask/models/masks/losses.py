"""Losses of the mask branch (Eq. 3–6): pure functions; the trainer applies their weights (Eq. 7).

They are means over the pixels of a mask. Over the N positive RoIs they are means, so that λ does not depend on the
batch size, or, in Eq. 3–4 with ``loss_reduction="sum"``, sums as the paper writes them; Eq. 5–6 are always means. The
argument ``means`` reduces over the RoIs: those of the arguments by default, those of the whole batch where a step is
spread over processes or micro-batches, so that E(C) and f_k are those of the whole batch. Without a positive RoI every
loss is a zero that is connected to its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamask.models.masks.switch import straight_through_gumbel
from dynamask.ops.masks import grid_boundary_iou
from dynamask.ops.means import LOCAL_MEANS, Means
from dynamask.training_config import LossConfig


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """Return the same values, with their gradient multiplied by a factor."""
    return values.detach() + (values - values.detach()) * factor


def resolution_losses(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Binary cross-entropy of each RoI at each size, mean over pixels.

    Args:
        logits: K tensors (N, S_k, S_k).
        targets: K tensors (N, S_k, S_k) in [0, 1].

    Returns:
        (N, K).
    """
    pairs = zip(logits, targets, strict=True)
    raw = [F.binary_cross_entropy_with_logits(x, t, reduction="none") for x, t in pairs]
    return torch.stack([values.flatten(1).mean(1) for values in raw], dim=1)


def dice_losses(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Dice loss 1 − (2 Σ p t + 1) / (Σ p + Σ t + 1) of each RoI at each size; arguments and result as of
    :func:`resolution_losses`."""
    losses = []
    for probs, truth in zip((x.sigmoid() for x in logits), targets, strict=True):
        both, either = (probs * truth).flatten(1).sum(1), (probs + truth).flatten(1).sum(1)
        losses.append(1.0 - (2.0 * both + 1.0) / (either + 1.0))
    return torch.stack(losses, dim=1)


def selected_loss(
    per_size: Tensor, selection: Tensor | None, means: Means = LOCAL_MEANS, reduction: str = "mean"
) -> Tensor:
    """Mean or sum over RoIs of Σ_k y_k ℓ_k: L_mask (Eq. 3), L_edge (Eq. 4), or the boundary error of the chosen sizes.

    Args:
        per_size: (N, K) losses ℓ of each size.
        selection: (N, K) one-hot y, or p for the expected loss; None weights all sizes equally by 1/K.
        means: takes the mean or the sum over the RoIs of the step.
        reduction: "mean" or "sum" over the RoIs.
    """
    weights = 1.0 / per_size.shape[1] if selection is None else selection
    per_region = (per_size * weights).sum(1)
    return means.total(per_region) if reduction == "sum" else means.share(per_region)


def size_errors(
    mask_logits: Sequence[Tensor], truth: Tensor, boxes: Tensor, boundary_width: Tensor
) -> tuple[Tensor, Tensor]:
    """Boundary error and overlap error of the masks of all sizes, compared on the finest grid.

    Args:
        mask_logits: K tensors (N, S_k, S_k).
        truth: (N, S, S) in {0, 1} at the finest size.
        boxes: (N, 4) xyxy.
        boundary_width: (N,) in pixels of the boxes.

    Returns:
        1 − boundary IoU and 1 − mask IoU, (N, K) each.
    """
    if len(truth) == 0:
        return (truth.new_zeros((0, len(mask_logits))),) * 2
    masks = at_finest_grid([x.sigmoid() for x in mask_logits], truth.shape[-1])  # (N, K, S, S)
    return 1.0 - grid_boundary_iou(masks.to(truth.dtype), truth, boxes, boundary_width), overlap_error(masks, truth)


def at_finest_grid(probs: Sequence[Tensor], size: int) -> Tensor:
    """K tensors (N, S_k, S_k) of probabilities → bool masks (N, K, S, S), resized bilinearly and thresholded at 0.5."""
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
        macs: (K,) cumulative MACs of each size.
        target: C_t in the same unit.
        means: takes E(C), the mean over the RoIs.
    """
    expected = means.mean("macs", (selection * macs).sum(1))
    return F.relu(expected / target - 1.0)


def entropy_loss(probs: Tensor, means: Means = LOCAL_MEANS) -> Tensor:
    """L_entropy (Eq. 6): (1/K) Σ_k f_k log f_k with f_k the mean of the probabilities (N, K) over the RoIs.

    It is smallest for the uniform distribution, and 0 without RoIs.
    """
    mean = means.mean("frequency", probs)
    frequency = mean + 1e-7  # the slope at zero is infinite
    any_roi = mean.detach().sum() > 0
    return any_roi * torch.special.entr(frequency).sum() / -probs.shape[1]


def instance_entropy_loss(logits: Tensor, means: Means = LOCAL_MEANS) -> Tensor:
    """Eq. 6 for single instances: mean_i (1/K) Σ_k p_i^k log p_i^k, with p_i the softmax of the logits (N, K).

    Together with the expected error Σ_k p_k e_k, with weights λ and w, it is minimised by the softmax of
    −E(e_k) · w K / λ: differences of log p are then proportional to expected differences in quality, as a price on MACs
    requires.
    """
    return means.share((F.softmax(logits, dim=1) * F.log_softmax(logits, dim=1)).sum(1)) / logits.shape[1]


def drawn_selection(logits: Tensor, config: LossConfig, noise: Tensor | None = None) -> Tensor:
    """Weights (N, K) of the sizes in the losses: the one-hot y of Eq. 2, with (N, K) noise, or p for "expected"."""
    if config.switch_selection == "drawn":
        return straight_through_gumbel(logits, config.temperature, noise)
    return F.softmax(logits, dim=1)


def balance_losses(
    logits: Tensor, selection: Tensor, fractions: Tensor, config: LossConfig, means: Means = LOCAL_MEANS
) -> dict[str, Tensor]:
    """``loss_budget`` and ``loss_entropy`` (Eq. 5, 6); arguments as in :func:`switch_losses`."""
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
    """All losses that depend on the selection of sizes (Eq. 2–6), unweighted.

    Args:
        logits: (N, K) of the switch.
        fractions: (K,) cost of each size as a fraction of the full branch.
        mask_losses: (N, K) of :func:`resolution_losses` on masks.
        edge_losses: (N, K) of :func:`resolution_losses` on edges.
        error: (N, K) without gradient, lower is better; required by the signal "boundary".
        config: settings of the selection; the weights of Eq. 7 are not applied here.
        noise: (N, K) Gumbel noise, drawn by default; "expected" needs none.
        means: takes the means over the RoIs.

    Returns:
        ``loss_mask``, ``loss_edge``, ``loss_boundary`` under the signal "boundary", ``loss_budget``, ``loss_entropy``.
    """
    selection = drawn_selection(logits, config, noise)
    quality, named = scale_gradient(selection, config.switch_gradient), {}
    if config.switch_signal == "boundary":
        if error is None:
            raise ValueError("the signal 'boundary' needs the boundary error of every size")
        named, quality = {"loss_boundary": selected_loss(error, selection, means)}, selection.detach()
    masks, reduction = None if config.mask_supervision == "all" else quality, config.loss_reduction
    return {
        "loss_mask": selected_loss(mask_losses, masks, means, reduction),
        "loss_edge": selected_loss(edge_losses, quality, means, reduction),
        **named,
        **balance_losses(logits, selection, fractions, config, means),
    }
