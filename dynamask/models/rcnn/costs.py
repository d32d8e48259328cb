"""What the mask branch costs, in multiply–accumulates (1 MAC = 2 FLOPs), derived from the built layers.

Counted are convolutions, deformable convolutions and matrix products; interpolation, RoIAlign, activations and biases
are not, as is usual in the field.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dynamask.models.rcnn.mask_switch import MaskSwitchModule
from dynamask.models.rcnn.region_fpn import STAGE_STRIDES, RegionFPN, RegionStage
from dynamask.structures import MASK_SIZES


@dataclass(frozen=True)
class MaskBranchCosts:
    """MACs of the mask branch.

    Attributes:
        macs_per_instance: cumulative MACs of one instance that stops at 14, 28, 56, 112: the region branch up to that
            size and its mask predictor for one class.
        switch_macs: MACs of the switch, per instance.
        projection_macs_per_pixel: per stage, MACs per pixel of its feature map (strides 16, 8, 4).
    """

    macs_per_instance: tuple[int, ...]
    switch_macs: int
    projection_macs_per_pixel: tuple[int, ...]

    @property
    def fractions(self) -> tuple[float, ...]:
        """Cost of each size as a fraction of the full branch."""
        return tuple(macs / self.macs_per_instance[-1] for macs in self.macs_per_instance)

    def image_macs(self, map_sizes: list[tuple[int, int]], instances: int) -> dict[str, int]:
        """MACs that belong to the image: projections of the maps (h, w) at strides 16, 8, 4, and the switch."""
        rows = {
            f"projection_stride{stride}": macs * height * width
            for stride, macs, (height, width) in zip(
                STAGE_STRIDES, self.projection_macs_per_pixel, map_sizes, strict=True
            )
        }
        return {**rows, "switch": self.switch_macs * instances}


def conv_macs(conv: nn.Conv2d, height: int, width: int) -> int:
    """MACs of a convolution with an output of height × width."""
    kernel = conv.kernel_size[0] * conv.kernel_size[1]
    return height * width * conv.out_channels * conv.in_channels // conv.groups * kernel


def stage_macs(stage: RegionStage, size: int) -> int:
    """MACs of one r-FPN stage whose output has the given side."""
    module = stage.aggregate
    convs = conv_macs(module.align_offsets, size, size) + conv_macs(module.attend_offsets, size, size)
    deformable = (module.align.weight.numel() + module.attend.weight.numel()) * size * size
    return conv_macs(stage.reduce, size // 2, size // 2) + convs + deformable


def switch_macs(switch: MaskSwitchModule) -> int:
    """MACs of the switch for one region."""
    squeeze = conv_macs(switch.squeeze.fc1, 1, 1) + conv_macs(switch.squeeze.fc2, 1, 1)
    half, quarter = (MASK_SIZES[0] + 1) // 2, ((MASK_SIZES[0] + 1) // 2 + 1) // 2
    convs = conv_macs(switch.convs[0], half, half) + conv_macs(switch.convs[2], quarter, quarter)
    return squeeze + convs + switch.fc[0].weight.numel() + switch.fc[2].weight.numel()


def mask_branch_costs(region_fpn: RegionFPN, switch: MaskSwitchModule) -> MaskBranchCosts:
    """Derive all costs from the layers of a built branch."""
    base = sum(conv_macs(conv, MASK_SIZES[0], MASK_SIZES[0]) for conv in (region_fpn.base[0], region_fpn.base[2]))
    running, cumulative = base, []
    for k, size in enumerate(MASK_SIZES):
        if k:
            running += stage_macs(region_fpn.stages[k - 1], size)
        cumulative.append(running + region_fpn.mask_predictors[k].in_channels * size * size)
    projections = tuple(conv_macs(projection, 1, 1) for projection in region_fpn.projections)
    return MaskBranchCosts(tuple(cumulative), switch_macs(switch), projections)
