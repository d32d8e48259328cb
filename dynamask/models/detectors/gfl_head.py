"""The head of NanoDet-Plus: class scores that predict the box's IoU, and each side's distance as a distribution.

Generalized Focal Loss (Li et al., NeurIPS 2020): the score of a class is the quality of the box, and the distance of a
side is the mean of a distribution over ``BINS`` whole strides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamask.models.detectors.ghost_pan import SeparableConv

BINS = 8
"""Bins of a side's distribution: 0 to 7 strides."""
STRIDES = (8, 16, 32, 64)
PRIOR = 0.01
"""Score of every class in an untrained head."""


@dataclass
class CellPredictions:
    """Raw predictions of N cells of all levels, fine to coarse, in rows.

    Attributes:
        class_logits: (B, N, C).
        bin_logits: (B, N, 4, BINS) of the distances to the left, top, right and bottom, in strides.
        points: (N, 2) the cells' (x, y) in network-input pixels: their top left corners.
        strides: (N,) float32 of the cells, pixels.
    """

    class_logits: Tensor
    bin_logits: Tensor
    points: Tensor
    strides: Tensor

    @property
    def distances(self) -> Tensor:
        """(B, N, 4) distances to the sides in pixels: the mean of each distribution times the stride."""
        bins = torch.arange(BINS, dtype=self.bin_logits.dtype, device=self.bin_logits.device)
        return self.bin_logits.softmax(dim=-1) @ bins * self.strides[:, None]

    @property
    def boxes(self) -> Tensor:
        """(B, N, 4) xyxy in network-input pixels, not clipped."""
        distances = self.distances
        return torch.cat([self.points - distances[..., :2], self.points + distances[..., 2:]], dim=-1)


class GFLHead(nn.Module):
    """Two separable convolutions and one predictor per level; levels share no weights.

    Args:
        channels: of the neck's maps.
        num_classes: foreground classes.
        norm: keep the batch norms.
    """

    def __init__(self, channels: int, num_classes: int, norm: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_convs = nn.ModuleList(
            nn.Sequential(*(SeparableConv(channels, channels, norm=norm) for _ in range(2))) for _ in STRIDES
        )
        self.gfl_cls = nn.ModuleList(nn.Conv2d(channels, num_classes + 4 * BINS, 1) for _ in STRIDES)
        for predictor in self.gfl_cls:
            nn.init.normal_(predictor.weight, std=0.01)
            nn.init.zeros_(predictor.bias)
            nn.init.constant_(predictor.bias[:num_classes], -math.log((1 - PRIOR) / PRIOR))

    def forward(self, maps: Sequence[Tensor]) -> CellPredictions:
        """Maps (B, channels, H_l, W_l) at strides 8, 16, 32 and 64 → predictions of all cells, float32."""
        points, strides = [], []
        for x, stride in zip(maps, STRIDES, strict=True):
            points.append(_grid(*x.shape[-2:], stride, x.device))
            strides.append(torch.full((len(points[-1]),), float(stride), device=x.device))
        classes, bins = self.rows(maps).split([self.num_classes, 4 * BINS], dim=-1)
        return CellPredictions(classes, bins.unflatten(-1, (4, BINS)), torch.cat(points), torch.cat(strides))

    def rows(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of :meth:`forward` → logits of classes and bins (B, N, C + 4 · BINS) of all cells, float32."""
        levels = zip(self.cls_convs, self.gfl_cls, maps, strict=True)
        outputs = [predictor(convs(x)).float() for convs, predictor, x in levels]  # (B, C + 4 * BINS, H, W)
        return torch.cat([out.flatten(2).transpose(1, 2) for out in outputs], dim=1)


def _grid(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """(height · width, 2) float32: x and y of the cells' top left corners, row by row, pixels."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device) * stride, torch.arange(width, device=device) * stride, indexing="ij"
    )
    return torch.stack([x.flatten(), y.flatten()], dim=1).float()
