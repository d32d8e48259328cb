"""Boxes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

ROWS_AT_ONCE = 64
"""Boxes whose overlaps are computed together by :func:`chunked_box_iou`."""


def chunked_box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (N, M) of boxes (N, 4) with others (M, 4) xyxy, equal to torchvision's ``box_iou``.

    torchvision keeps several arrays of twice the size of the result. Here they are only as large as the overlaps of
    ``ROWS_AT_ONCE`` boxes, which matters where a picture holds a thousand objects and tens of thousands of anchors.
    """
    if len(boxes) <= ROWS_AT_ONCE:
        return box_iou(boxes, others)
    return torch.cat([box_iou(part, others) for part in boxes.split(ROWS_AT_ONCE)])
