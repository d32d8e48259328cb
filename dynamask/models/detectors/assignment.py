"""Dynamic soft label assignment of NanoDet-Plus: which cells of a detector learn which objects.

The cost of a cell for an object is computed from the cell's own predictions, without gradient. The original takes them
from an auxiliary head that exists in training only (its Assign Guidance Module), which is left out here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from dynamask.models.detectors.base import Target

BACKGROUND, IGNORED = -1, -2
IOU_FACTOR = 3.0
"""Weight of −ln IoU in the cost."""
CANDIDATES = 13
"""Highest IoUs of an object whose sum is its number of cells."""
_TINY = 1e-7
"""Added to the IoU before its logarithm."""


@dataclass(frozen=True)
class AssignedCells:
    """The object that each of the N cells of B pictures learns.

    Attributes:
        matched: (B, N) int64, the row of the picture's target that the cell learns; ``BACKGROUND`` (−1) for none, or
            ``IGNORED`` (−2) for a cell that takes no part in the losses.
        quality: (B, N) float32 in [0, 1], the IoU of the cell's box with the box of its object, 0 without an object.
    """

    matched: Tensor
    quality: Tensor

    @property
    def positive(self) -> Tensor:
        """(B, N) bool, the cells that learn an object."""
        return self.matched >= 0


@torch.no_grad()
def assign_cells(logits: Tensor, boxes: Tensor, points: Tensor, targets: list[Target]) -> AssignedCells:
    """Assign the cells of a batch to objects by :func:`assign_objects`.

    Objects that are only masks, such as crowds, are not assigned to any cell, and cells whose point lies inside one
    of them are ignored unless they learn another object.

    Args:
        logits: (B, N, C) of the classes.
        boxes: (B, N, 4) predicted xyxy, in network-input pixels.
        points: (N, 2) (x, y) of the cells, in network-input pixels.
        targets: of each picture ``boxes`` (G, 4) xyxy in network-input pixels, ``labels`` (G,) in 1 … C, and
            optionally ``mask_only`` (G,) bool.
    """
    matched = torch.full(logits.shape[:2], BACKGROUND, dtype=torch.int64, device=logits.device)
    quality = torch.zeros(logits.shape[:2], device=logits.device)
    for i, target in enumerate(targets):
        objects, labels = target["boxes"].float(), target["labels"]
        mask_only = target.get("mask_only")
        if mask_only is None:
            mask_only = torch.zeros_like(labels, dtype=torch.bool)
        rows = torch.nonzero(~mask_only)[:, 0]
        own, quality[i] = assign_objects(logits[i].float(), boxes[i].float(), points, objects[rows], labels[rows])
        learns = own >= 0
        matched[i, learns] = rows[own[learns]]
        matched[i, ~learns & inside(points, objects[mask_only]).any(1)] = IGNORED
    return AssignedCells(matched, quality)


def assign_objects(
    logits: Tensor, boxes: Tensor, points: Tensor, objects: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Assign the cells of one picture to objects by the cost of :func:`assignment_cost`.

    Candidates are the cells whose point lies inside the box of any object. Each object claims its k cheapest
    candidates, where k is the sum of its 13 highest IoUs with candidates, rounded down, and at least 1. A cell that
    several objects claim goes to the one with the lowest cost, so the result does not depend on the order of objects.

    Args:
        logits: (N, C) float32.
        boxes: (N, 4) predicted xyxy.
        points: (N, 2) (x, y).
        objects: (G, 4) xyxy.
        labels: (G,) int64 in 1 … C.

    Returns:
        Row of the objects (N,) int64, ``BACKGROUND`` for none, and IoU with that object (N,) float32, 0 for none.
    """
    matched = torch.full((len(points),), BACKGROUND, dtype=torch.int64, device=points.device)
    quality = torch.zeros(len(points), device=points.device)
    candidates = torch.nonzero(inside(points, objects).any(1))[:, 0]  # (M,)
    if len(candidates) == 0:
        return matched, quality
    iou = box_iou(boxes[candidates], objects)  # (M, G)
    cost = assignment_cost(logits[candidates], iou, labels)
    counts = iou.topk(min(CANDIDATES, len(iou)), dim=0).values.sum(0).long().clamp_min(1)  # (G,)
    cheapest = cost.topk(int(counts.max()), dim=0, largest=False).indices
    wanted = torch.arange(len(cheapest), device=counts.device)[:, None] < counts
    claimed = torch.zeros_like(cost, dtype=torch.bool).scatter_(0, cheapest, wanted)
    claims, owner = cost.masked_fill(~claimed, torch.inf).min(1)
    learns = claims < torch.inf
    matched[candidates[learns]] = owner[learns]
    quality[candidates[learns]] = iou[learns, owner[learns]]
    return matched, quality


def assignment_cost(logits: Tensor, iou: Tensor, labels: Tensor) -> Tensor:
    """Cost of each cell for each object: Σ_c BCE(p_c, t_c) · |t_c − p_c|² − 3 ln IoU.

    p is the sigmoid of the logits; the soft label t is the IoU at the object's class and 0 elsewhere.

    Args:
        logits: (M, C) float32.
        iou: (M, G) of the cells' boxes with the objects.
        labels: (G,) int64 in 1 … C.

    Returns:
        (M, G) ≥ 0.
    """
    probs = logits.sigmoid()
    absent = F.softplus(logits) * probs.square()  # (M, C), the summands for t = 0
    own, own_probs = logits[:, labels - 1], probs[:, labels - 1]  # (M, G)
    present = (F.softplus(own) - iou * own) * (iou - own_probs).square()
    classification = absent.sum(1, keepdim=True) - absent[:, labels - 1] + present
    return classification - IOU_FACTOR * (iou + _TINY).log()


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """(N, G) bool: whether each point (N, 2) lies strictly inside each box (G, 4) xyxy."""
    x, y = points[:, :1], points[:, 1:]
    left, top, right, bottom = boxes.unbind(1)
    return (x > left) & (x < right) & (y > top) & (y < bottom)
