"""Mask R-CNN's FCN head (He et al. 2017) at a single mask size, the baseline of DynaMask's Tab. 1."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from dynamask.models.macs import conv_macs
from dynamask.models.masks.heads.base import MaskHead, RegionState, class_logits, start_small
from dynamask.models.masks.region_fpn import crop_assigned_level
from dynamask.models.tensor_functions import TensorFunction, region_function
from dynamask.structures import MASK_SIZES


class FCNHead(MaskHead):
    """Four 3×3 convolutions on an RoIAlign of half the mask size, a deconvolution to the full size, a 1×1 predictor.

    The layers are torchvision's. The aligned crop comes from the level that the box is assigned to, and the initial
    predictor is close to zero, as in the r-FPN.

    Args:
        fpn_channels: channels of the image-level pyramid.
        channels: of the convolutions and the deconvolution.
        num_classes: foreground classes; 1 for a class-agnostic head.
        size: side of the mask, one of ``MASK_SIZES``; the convolutions run at half of it.
    """

    NAME = "fcn_head"
    has_edges = False

    def __init__(self, fpn_channels: int, channels: int, num_classes: int, size: int) -> None:
        super().__init__()
        self.mask_sizes = (size,)
        self.convs = MaskRCNNHeads(fpn_channels, (channels,) * 4, 1)
        self.predictor = MaskRCNNPredictor(channels, channels, num_classes)
        start_small(self.predictor.mask_fcn_logits)

    def begin(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> RegionState:
        """Crop R regions at half the mask size."""
        crop = crop_assigned_level(features, rois, self.mask_sizes[0] // 2, self.corner_cells, self.training)
        return RegionState(rois, labels, [], [crop], [torch.arange(len(rois), device=rois.device)])

    def mask_logits(self, state: RegionState, size_index: int, rows: Tensor) -> Tensor:
        """See :meth:`MaskHead.mask_logits`; ValueError for a size that the head does not predict."""
        self.check_size(size_index)
        feature = self.upsampled(state.gather(0, rows))
        return class_logits(self.predictor.mask_fcn_logits, feature, state.labels[rows])

    def upsampled(self, crop: Tensor) -> Tensor:
        """Crops (n, C, S/2, S/2) → features (n, C', S, S) at the mask size S."""
        return F.relu(self.predictor.conv5_mask(self.convs(crop)))

    def tensor_functions(self) -> Iterator[TensorFunction]:
        """See :meth:`MaskHead.tensor_functions`."""
        half = self.mask_sizes[0] // 2
        yield region_function("fcn", self, (self.convs[0][0].in_channels, half, half), method="upsampled")

    def macs_per_instance(self) -> tuple[int, ...]:
        """MACs of the whole head for every size; it cannot stop early."""
        half = self.mask_sizes[0] // 2
        convs = sum(conv_macs(block[0], half, half) for block in self.convs)
        upsampling = self.predictor.conv5_mask.weight.numel() * half * half
        predictor = self.predictor.mask_fcn_logits.in_channels * (2 * half) ** 2
        return (convs + upsampling + predictor,) * len(MASK_SIZES)
