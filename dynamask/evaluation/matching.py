"""Matching of predicted to true instances, as the oracle policy, the app and the reports use it."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torchvision.ops import box_iou

MATCH_IOU = 0.5
"""IoU from which a prediction counts as a true instance."""


def match_greedily(
    ious: np.ndarray,
    allowed: np.ndarray | None = None,
    exclusive: np.ndarray | None = None,
    threshold: float = MATCH_IOU,
) -> list[int | None]:
    """The true instance of each prediction: the free one with the largest IoU, from a threshold on.

    Args:
        ious: (N, G) of N predictions, the best score first, and G true instances.
        allowed: (N, G) bool, which pairs may match; all by default.
        exclusive: (N,) bool, whether a prediction takes its true instance from those after it; all do by default.
        threshold: least IoU of a match.

    Returns:
        N indices of true instances, None where nothing matches.
    """
    free = np.ones(ious.shape[1], dtype=bool)
    matches: list[int | None] = []
    for row, values in enumerate(ious):
        usable = free & (values >= threshold) & (True if allowed is None else allowed[row])
        best = int(np.where(usable, values, -1.0).argmax()) if usable.any() else None
        matches.append(best)
        if best is not None and (exclusive is None or exclusive[row]):
            free[best] = False
    return matches


def match_detections(
    boxes: Tensor, categories: list[int | None], true_boxes: Tensor, true_categories: list[int]
) -> list[int | None]:
    """Match detections to true instances of the same category by box IoU.

    Args:
        boxes: (N, 4) xyxy, the best score first.
        categories: N category ids; None matches nothing.
        true_boxes: (G, 4) xyxy.
        true_categories: G category ids.
    """
    same = np.array([[category == true for true in true_categories] for category in categories], dtype=bool)
    ious = box_iou(boxes, true_boxes).numpy()
    return match_greedily(ious, same.reshape(ious.shape))
