"""Losses of a detector with quality scores and distance distributions (Generalized Focal Loss), as in NanoDet-Plus.

Pure functions; all of them compute in float32. Shapes: B pictures, N cells, C classes, 8 bins for each of the four
distances from a cell's point to the left, top, right and bottom of its box. Bin k is a distance of k strides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from dynamask.models.detectors.assignment import IGNORED, AssignedCells, assign_cells
from dynamask.models.detectors.base import Target
from dynamask.models.detectors.gfl_head import CellPredictions

TEACHER_MIN_SCORE = 0.05
"""Cells whose highest score is not above it have no part in the boxes that the teacher teaches."""
_MARGIN = 0.1
"""Distances are clamped to the last bin less this margin, so that both bins around them exist."""
_TINY = 1e-6


def detection_losses(cells: CellPredictions, targets: list[Target]) -> dict[str, Tensor]:
    """Assign cells to objects by :func:`dynamask.models.detectors.assignment.assign_cells` and take their losses.

    Args:
        cells: predictions of B pictures.
        targets: of each picture ``boxes`` (G, 4) xyxy in network-input pixels, ``labels`` (G,) in 1 … C, and
            optionally ``mask_only`` (G,) bool, the objects whose boxes are not learned.

    Returns:
        See :func:`assigned_losses`.
    """
    return assigned_losses(cells, targets, assign_cells(cells.class_logits, cells.boxes, cells.points, targets))


def assigned_losses(cells: CellPredictions, targets: list[Target], assigned: AssignedCells) -> dict[str, Tensor]:
    """The losses of scores and boxes, unweighted scalars.

    ``loss_quality`` is the sum of :func:`quality_focal_loss` over all classes and all cells that are not ignored,
    divided by the number of positive cells, at least 1; the target of a positive cell is its quality at the class of
    its object, every other target is 0. ``loss_giou`` (1 − GIoU) and ``loss_distribution``, the mean of
    :func:`distribution_focal_loss` over the four sides, are weighted means Σ_i w_i ℓ_i / Σ_i w_i over the positive
    cells, where w_i is the highest class score of cell i, without gradient. Without a positive cell both are zeros
    that are connected to their inputs.

    Args:
        cells: predictions of B pictures.
        targets: see :func:`detection_losses`.
        assigned: what the cells learn.
    """
    logits, bins, boxes = cells.class_logits.float(), cells.bin_logits.float(), cells.boxes.float()
    image, cell = torch.nonzero(assigned.positive, as_tuple=True)  # (P,) each
    rows = _first_rows(targets).to(image.device)[image] + assigned.matched[image, cell]
    truth = torch.cat([target["boxes"] for target in targets]).float()[rows]  # (P, 4)
    labels = torch.cat([target["labels"] for target in targets])[rows]

    quality = torch.zeros_like(logits)
    quality[image, cell, labels - 1] = assigned.quality[image, cell]
    counted = assigned.matched != IGNORED
    scores = quality_focal_loss(logits, quality).sum(2) * counted
    weights = logits.detach()[image, cell].amax(1).sigmoid()
    distances = box_distances(cells.points[cell], truth) / cells.strides[cell, None]
    return {
        "loss_quality": scores.sum() / max(len(rows), 1),
        "loss_distribution": _weighted_mean(distribution_focal_loss(bins[image, cell], distances).mean(1), weights),
        "loss_giou": _weighted_mean(generalized_box_iou_loss(boxes[image, cell], truth), weights),
    }


def quality_focal_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """|q − p|² · BCE(p, q), elementwise, with p the sigmoid of the logits (Li et al., NeurIPS 2020, with β = 2).

    Args:
        logits: any shape.
        quality: targets q in [0, 1], of the same shape.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return (quality - logits.sigmoid()).square() * cross_entropy


def distribution_focal_loss(bins: Tensor, distances: Tensor) -> Tensor:
    """−((k + 1 − d) log p_k + (d − k) log p_(k+1)) with k ≤ d < k + 1, and p the softmax over the bins.

    Args:
        bins: (…, K) logits.
        distances: (…) in strides; clamped to 0 … K − 1.1.

    Returns:
        (…) ≥ 0.
    """
    distances = distances.clamp(0.0, bins.shape[-1] - 1 - _MARGIN)
    lower = distances.floor()
    upper_share = distances - lower
    log_probs = bins.log_softmax(-1)
    index = lower.long()[..., None]
    below, above = log_probs.gather(-1, index)[..., 0], log_probs.gather(-1, index + 1)[..., 0]
    return -(below * (1.0 - upper_share) + above * upper_share)


def box_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances (P, 4) from points (P, 2) to the left, top, right and bottom of boxes (P, 4) xyxy; negative outside."""
    return torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=1)


def teacher_losses(cells: CellPredictions, teacher: CellPredictions) -> dict[str, Tensor]:
    """Losses that keep a detector close to another one with the same cells and classes; unweighted scalars.

    They need no annotations. With the scores p of the detector and q of the teacher, and with w_i the highest q of
    cell i if it is above 0.05, otherwise 0:

    - ``loss_teacher_scores``: Σ_i Σ_c |q_ic − p_ic|² · BCE(p_ic, q_ic) / max(Σ_i w_i, 1),
    - ``loss_teacher_boxes``: Σ_i w_i KL_i / Σ_i w_i, where KL_i is the divergence Σ_k t_k log(t_k / s_k) of the
      detector's distribution s of a distance from the teacher's t, averaged over the four distances.

    Where both detectors agree, the losses and their gradients are zero.

    Args:
        cells: predictions of B pictures.
        teacher: predictions of the teacher on the same pictures, used without gradient.
    """
    scores = teacher.class_logits.detach().float().sigmoid()
    highest = scores.amax(2)
    weights = highest * (highest > TEACHER_MIN_SCORE)
    own, taught = cells.bin_logits.float().log_softmax(-1), teacher.bin_logits.detach().float().log_softmax(-1)
    divergence = F.kl_div(own, taught, reduction="none", log_target=True).sum(-1).mean(-1)
    differences = quality_focal_loss(cells.class_logits.float(), scores)
    return {
        "loss_teacher_scores": differences.sum() / weights.sum().clamp_min(1.0),
        "loss_teacher_boxes": _weighted_mean(divergence, weights),
    }


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ w v / Σ w; a connected zero where all weights are zero."""
    return (values * weights).sum() / weights.sum().clamp_min(_TINY)


def _first_rows(targets: list[Target]) -> Tensor:
    """(B,) int64: the row of each picture's first object among the objects of all pictures."""
    counts = [len(target["labels"]) for target in targets]
    return torch.tensor([0, *counts[:-1]]).cumsum(0)
