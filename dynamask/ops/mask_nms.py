"""Non-maximum suppression on masks: which instances of a picture show an object that a better one shows already."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CONTAINMENT = 0.9
"""Share of a mask that a better-scored mask of the same class covers, from which the instance is a duplicate."""
FINEST_COMPARED = 28
"""Largest side at which masks are compared; finer ones are averaged to it."""
_PAIRS = 4096
"""Pairs of masks that are compared at a time."""


def distinct_masks(mask_probs: Tensor, boxes: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Find the instances that remain when duplicates are left out.

    In the order of their scores, an instance is left out if an instance that remains, of the same class and with a
    better score, has a mask IoU of at least ``iou`` with it or covers at least ``CONTAINMENT`` of its mask. A small
    object in front of a larger one of the same class therefore remains as long as the mask of the larger one leaves it
    out, or its score is the better one. Instances with empty masks remain.

    The pixels of a mask are its cells with a probability of at least 0.5. The intersection of two masks is the area of
    the cells of the worse-scored one whose centres lie in the other, so no mask is pasted.

    Args:
        mask_probs: (R, S, S) in [0, 1], best score first.
        boxes: (R, 4) xyxy, what each mask covers.
        labels: (R,) int64; masks of different labels are not compared.
        iou: threshold in (0, 1].

    Returns:
        (R,) bool, False for duplicates.
    """
    keep = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    if mask_probs.shape[-1] > FINEST_COMPARED:
        mask_probs = F.adaptive_avg_pool2d(mask_probs, FINEST_COMPARED)
    probs, boxes = mask_probs.float(), boxes.float()
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp_min(1e-6)
    filled = probs >= 0.5
    cell = sides.prod(1) / probs.shape[-1] ** 2
    area = filled.sum((1, 2)) * cell
    first, second = _close_pairs(boxes, labels, area, iou)
    shared = [
        _intersections(probs[i], boxes[i], filled[j], boxes[j]) * cell[j]
        for i, j in zip(first.split(_PAIRS), second.split(_PAIRS))
    ]
    both = torch.cat(shared)
    union = area[first] + area[second] - both
    duplicate = (both >= iou * union) | (both >= CONTAINMENT * area[second])
    for i, j in zip(first[duplicate].tolist(), second[duplicate].tolist()):  # ascending j within i, ascending i
        if keep[i]:
            keep[j] = False
    return keep


def _close_pairs(boxes: Tensor, labels: Tensor, area: Tensor, iou: float) -> tuple[Tensor, Tensor]:
    """Pairs (better, worse) of one class whose boxes overlap enough for a duplicate, (P,) int64 each, sorted."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = (high - low).clamp_min(0).prod(2)  # (R, R), at least the intersection of the masks
    needed = torch.minimum(iou * torch.maximum(area[:, None], area[None]), CONTAINMENT * area[None])
    close = (overlap >= needed) & (labels[:, None] == labels[None]) & (area[:, None] > 0) & (area[None] > 0)
    first, second = torch.nonzero(close.triu(1), as_tuple=True)
    return first, second


def _intersections(probs: Tensor, boxes: Tensor, filled: Tensor, others: Tensor) -> Tensor:
    """(P,) number of the filled cells (P, S, S) of masks in the boxes ``others`` whose centres lie in other masks.

    Args:
        probs: (P, S, S) probabilities of these other masks.
        boxes: (P, 4) xyxy, what they cover.
    """
    size = probs.shape[-1]
    centres = (torch.arange(size, device=probs.device) + 0.5) / size
    sides, other_sides = boxes[:, 2:] - boxes[:, :2], others[:, 2:] - others[:, :2]
    places = others[:, None, :2] + centres[:, None] * other_sides[:, None]  # (P, S, 2)
    places = (places - boxes[:, None, :2]) / sides.clamp_min(1e-6)[:, None] * 2 - 1
    xs, ys = places[..., 0], places[..., 1]
    grid = torch.stack(torch.broadcast_tensors(xs[:, None, :], ys[:, :, None]), dim=-1)  # (P, S, S, 2)
    values = F.grid_sample(probs[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]
    return ((values >= 0.5) & filled).sum((1, 2))
