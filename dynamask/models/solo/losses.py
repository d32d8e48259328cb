"""Losses of the one-stage family: pure functions; the trainer applies their weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from dynamask.ops.means import LOCAL_MEANS, Means


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 − 2Σpt / (Σp² + Σt² + 0.002) of each mask, in float32.

    Args:
        logits: (N, H, W).
        masks: (N, H, W) in {0, 1}.

    Returns:
        (N,) in [0, 1].
    """
    probs, truth = logits.float().sigmoid().flatten(1), masks.float().flatten(1)
    overlap = (probs * truth).sum(1)
    return 1.0 - 2.0 * overlap / (probs.square().sum(1) + truth.square().sum(1) + 0.002)


def category_loss(logits: Tensor, labels: Tensor, means: Means = LOCAL_MEANS) -> Tensor:
    """Focal loss (α 0.25, γ 2) summed over cells and classes, divided by the number of positive cells plus 1.

    Args:
        logits: (M, C) of all cells of all levels and images.
        labels: (M,) int64, 0 is the background.
        means: divides by the number of positive cells.
    """
    truth = F.one_hot(labels, logits.shape[1] + 1)[:, 1:].to(torch.float32)
    total = sigmoid_focal_loss(logits.float(), truth, alpha=0.25, gamma=2.0, reduction="sum")
    return means.per_positive(total, (labels > 0).sum(), more=1)
