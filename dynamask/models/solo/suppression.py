"""Duplicates removed without a loop: points NMS on the grid, matrix NMS on masks (SOLOv2, § 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamask.structures import DynaMaskError

_PIXELS = 16_384
"""Mask pixels that take part in one matrix product."""


def points_nms(scores: Tensor) -> Tensor:
    """Scores (B, C, G, G) in [0, 1], zero where a cell lies below its upper, left or upper-left neighbour."""
    best = F.max_pool2d(scores, 2, stride=1, padding=1)[..., :-1, :-1]
    return scores * (best == scores).to(scores.dtype)


def mask_ious(masks: Tensor) -> Tensor:
    """Pairwise IoU (N, N) float32 of (N, H, W) masks of 0 and 1; 0 where both are empty."""
    flat = masks.flatten(1)
    overlap = flat.new_zeros((len(flat), len(flat)), dtype=torch.float32)
    for start in range(0, flat.shape[1], _PIXELS):
        part = flat[:, start : start + _PIXELS].float()
        overlap += part @ part.T
    areas = overlap.diagonal()
    union = areas[:, None] + areas[None, :] - overlap
    return torch.where(union > 0, overlap / union.clamp_min(1), overlap.new_zeros(()))


def voting_weights(ious: Tensor, same_class: Tensor, scores: Tensor, scheme: str, threshold: float) -> Tensor:
    """Mask voting, the pilot of SODAR's Table II: how much each candidate counts in each kept mask.

    Args:
        ious: (R, N) of the kept masks with all candidates, themselves among them.
        same_class: (R, N) bool.
        scores: (N,) of the candidates.
        scheme: "average", "score" (weighted by the class score) or "iou" (by the overlap).
        threshold: candidates that overlap less do not vote.

    Returns:
        (R, N), each row summing to 1 (0 where nobody votes).

    Raises:
        DynaMaskError: the scheme is unknown.
    """
    schemes = {"average": torch.ones_like(ious), "score": scores.expand_as(ious), "iou": ious}
    if scheme not in schemes:
        raise DynaMaskError(f"voting scheme {scheme!r} is unknown; choose one of {', '.join(schemes)}")
    weights = schemes[scheme] * (same_class & (ious >= threshold))
    return weights / weights.sum(1, keepdim=True).clamp_min(1e-12)


def matrix_nms(ious: Tensor, labels: Tensor, scores: Tensor, kernel: str = "gaussian", sigma: float = 2.0) -> Tensor:
    """Decayed scores (N,): decay_j = min_{i<j} f(IoU_ij) / f(max_{k<i} IoU_ki), within a class.

    Args:
        ious: (N, N), of instances sorted by falling score.
        labels: (N,) int64.
        scores: (N,).
        kernel: "gaussian", f = exp(−σ·IoU²), or "linear", f = 1 − IoU.
        sigma: σ.

    Raises:
        DynaMaskError: the kernel is unknown.
    """
    if kernel not in ("gaussian", "linear"):
        raise DynaMaskError(f"NMS kernel {kernel!r} is unknown; choose 'gaussian' or 'linear'")
    if len(scores) == 0:
        return scores
    same = labels[:, None] == labels[None, :]
    overlap = (ious * same).triu(diagonal=1)  # row i: the more confident one
    compensation = overlap.max(dim=0).values[:, None]  # (N, 1): how much i itself is suppressed
    if kernel == "gaussian":
        decay = torch.exp(-sigma * (overlap.square() - compensation.square()))
    else:
        # A duplicate's own f is zero: whatever it decays is decayed by its original already.
        decay = torch.where(
            compensation < 1, (1 - overlap) / (1 - compensation).clamp_min(1e-6), torch.ones_like(overlap)
        )
    return scores * decay.min(dim=0).values
