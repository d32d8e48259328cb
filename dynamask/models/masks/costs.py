"""Cost of the mask branch in multiply–accumulates (1 MAC = 2 FLOPs), derived from its layers.

Convolutions, deformable convolutions and matrix products are counted, but not interpolation, RoIAlign, activations and
biases, as is usual.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynamask.models.macs import conv_macs
from dynamask.models.masks.heads.base import MaskHead
from dynamask.models.masks.quality_head import QualityHead
from dynamask.models.masks.switch import MaskSwitchModule, RegionEncoder
from dynamask.structures import MASK_SIZES


@dataclass(frozen=True)
class MaskBranchCosts:
    """MACs of the mask branch.

    Attributes:
        macs_per_instance: cumulative MACs of one instance that stops at 14, 28, 56, 112, including the mask predictor
            for one class; all equal if the branch cannot stop early.
        switch_macs: MACs of the switch, per instance.
        quality_macs: MACs of the quality head, per instance; 0 without one.
        projection_macs_per_pixel: MACs per pixel of each feature map that is projected for the whole image.
        projection_strides: strides of those maps.
        cells: number of cells of the masks at 14, 28, 56 and 112 that are computed; fewer than all with boundary
            refinement.
    """

    macs_per_instance: tuple[int, ...]
    switch_macs: int
    projection_macs_per_pixel: tuple[int, ...]
    projection_strides: tuple[int, ...]
    cells: tuple[int, ...] = tuple(size * size for size in MASK_SIZES)
    quality_macs: int = 0

    @property
    def fractions(self) -> tuple[float, ...]:
        """Cost of each size as a fraction of the full branch."""
        return tuple(macs / self.macs_per_instance[-1] for macs in self.macs_per_instance)

    def image_macs(self, map_sizes: list[tuple[int, int]], instances: int) -> dict[str, int]:
        """MACs per image: the projections of the maps of sizes (h, w), coarse to fine, and the switch."""
        rows: dict[str, int] = {}
        maps = zip(self.projection_strides, self.projection_macs_per_pixel, map_sizes, strict=True)
        for stride, macs, (height, width) in maps:
            if macs:
                name = f"projection_stride{stride}"
                rows[name] = rows.get(name, 0) + macs * height * width
        rows["switch"] = self.switch_macs * instances
        return {**rows, "quality_head": self.quality_macs * instances} if self.quality_macs else rows


def encoder_macs(encoder: RegionEncoder) -> int:
    """MACs of the switch or the quality head for one region."""
    squeeze = conv_macs(encoder.squeeze.fc1, 1, 1) + conv_macs(encoder.squeeze.fc2, 1, 1)
    half, quarter = (MASK_SIZES[0] + 1) // 2, ((MASK_SIZES[0] + 1) // 2 + 1) // 2
    convs = conv_macs(encoder.convs[0], half, half) + conv_macs(encoder.convs[2], quarter, quarter)
    return squeeze + convs + encoder.fc[0].weight.numel() + encoder.fc[2].weight.numel()


def mask_branch_costs(
    head: MaskHead, switch: MaskSwitchModule | None, quality: QualityHead | None = None
) -> MaskBranchCosts:
    """Derive the costs of a mask branch from its layers."""
    choosing, judging = (0 if module is None else encoder_macs(module) for module in (switch, quality))
    maps = (head.map_macs_per_pixel(), head.map_strides)
    return MaskBranchCosts(head.macs_per_instance(), choosing, *maps, head.computed_cells(), judging)
