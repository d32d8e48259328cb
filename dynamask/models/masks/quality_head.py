"""Quality head: predicts how good the mask of a region will be at each size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamask.models.masks.switch import RegionEncoder
from dynamask.structures import IOU_MEASURES, MASK_SIZES

GAIN_WEIGHT = 10.0
"""Weight of the squared error of differences between sizes in :func:`quality_loss`."""
_GEOMETRY = 5
_REFERENCE_SIDE = 64.0
_START = (0.7, 0.5)
"""Mask IoU and boundary IoU that an untrained head predicts at 14."""


class QualityHead(RegionEncoder):
    """A region encoder and two fully connected layers, which also see width, height and class of the region.

    Quality never falls from one size to the next finer one: the head predicts the logit of the quality at 14 and the
    steps to the other sizes, which are positive. On average the measured quality rises, too; the exceptions of single
    masks are not predictable, and a budget can then always be spent.

    Args:
        in_channels: channels of the 14×14 region feature.
        channels: channels of the two convolutions.
        hidden: width of the first fully connected layer.
        classes: number of foreground classes; 0 for a head that does not see the class.
    """

    def __init__(self, in_channels: int, channels: int, hidden: int, classes: int = 0) -> None:
        super().__init__(in_channels, channels)
        self.of_class = nn.Embedding(classes, hidden) if classes else None
        if classes:
            nn.init.zeros_(self.of_class.weight)
        self.fc = nn.Sequential(
            nn.Linear(self.out_features + _GEOMETRY, hidden),
            nn.ReLU(),
            nn.Linear(hidden, len(MASK_SIZES) * len(IOU_MEASURES)),
        )
        nn.init.normal_(self.fc[2].weight, std=0.01)
        start = torch.full((len(MASK_SIZES), len(IOU_MEASURES)), -1.0)
        start[0] = torch.logit(torch.tensor(_START))
        self.fc[2].bias.data = start.flatten()

    def forward(self, region: Tensor, rois: Tensor, labels: Tensor) -> Tensor:
        """Logits of the quality.

        Args:
            region: (R, C, 14, 14).
            rois: (R, 5) batch index and xyxy in network-input pixels.
            labels: (R,) int64 ≥ 1.

        Returns:
            (R, 4, 2): for each size the logits of mask IoU and boundary IoU.
        """
        hidden = self.fc[0](torch.cat([self.encode(region), box_geometry(rois[:, 1:])], dim=1))
        if self.of_class is not None:
            hidden = hidden + self.of_class(labels - 1)
        raw = self.fc[2](self.fc[1](hidden)).reshape(-1, len(MASK_SIZES), len(IOU_MEASURES))
        return torch.cat([raw[:, :1], F.softplus(raw[:, 1:])], dim=1).cumsum(1)


def box_geometry(boxes: Tensor) -> Tensor:
    """(R, 5) from boxes (R, 4) xyxy in pixels: log2 of width, height and side (and its square), and of the elongation.

    Boundary IoU depends on the size of an object, because the width of the band does not.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).clamp_min(1.0).div(_REFERENCE_SIDE).log2().unbind(1)
    side = (width + height) / 2
    return torch.stack([width, height, side, side.square() / 4, (width - height).abs()], dim=1)


def quality_loss(logits: Tensor, measured: Tensor) -> Tensor:
    """Cross-entropy of predicted and measured quality, plus the squared error of differences between sizes.

    Both are smallest where the prediction is the expectation of the measured quality. What a budget needs are the
    differences between sizes, which are small beside the differences between regions.

    Args:
        logits: (R, 4, 2) of :class:`QualityHead`.
        measured: (R, 4, 2) in [0, 1], without gradient.

    Returns:
        (R,) means over sizes and measures.
    """
    level = F.binary_cross_entropy_with_logits(logits, measured, reduction="none").flatten(1).mean(1)
    error = logits.sigmoid() - measured
    steps, total = error.diff(dim=1), error[:, -1] - error[:, 0]
    return level + GAIN_WEIGHT * (steps.square().flatten(1).mean(1) + total.square().mean(1))
