"""Feature pyramid of the mask branch on top of NanoDet-Plus: strides 4 to 32 from the backbone and the neck."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamask.models.detectors.shufflenet import SLOPE

GROUPS = 8
"""Groups of the GroupNorm of every lateral connection."""


class MaskPyramid(nn.Module):
    """Top-down pyramid whose levels read the backbone's stage and the neck's map of the same stride.

    The backbone's map at stride 4 has only 24 channels of a single convolution. Its level also reads the map at
    stride 2, whose 2×2 cells become channels, and the sum of the coarser levels.

    Args:
        body_channels: of the backbone's maps at strides 2, 4, 8, 16 and 32.
        neck_channels: of the neck's maps at strides 8, 16 and 32.
        channels: of every output, a multiple of ``GROUPS``.
        top_down: add the coarser levels; without them every level stands alone, which is for comparison.
        corner_cells: see :class:`dynamask.config.ModelConfig`; the sums of levels are aligned accordingly.
    """

    def __init__(
        self,
        body_channels: Sequence[int],
        neck_channels: int,
        channels: int,
        top_down: bool = True,
        corner_cells: bool = False,
    ) -> None:
        super().__init__()
        stride2, stride4, *stages = body_channels
        widths = [4 * stride2 + stride4, *(width + neck_channels for width in stages)]
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), nn.GroupNorm(GROUPS, channels)) for width in widths
        )
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)
        self.top_down = top_down
        self.corner_cells = corner_cells
        for conv in (*(lateral[0] for lateral in self.laterals), *self.outputs):
            nn.init.kaiming_normal_(conv.weight, a=SLOPE, mode="fan_out")
        for conv in self.outputs:
            nn.init.zeros_(conv.bias)

    def forward(self, body: Sequence[Tensor], neck: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps at strides 2 to 32 and the neck's at 8 to 32 → maps at strides 4, 8, 16 and 32."""
        stride2, stride4, *stages = body
        inputs = [torch.cat([stride4, _folded(stride2, stride4)], dim=1)]
        inputs += [torch.cat(pair, dim=1) for pair in zip(stages, neck)]
        sums = [lateral(x) for lateral, x in zip(self.laterals, inputs, strict=True)]
        if self.top_down:
            for level in range(len(sums) - 2, -1, -1):
                sums[level] = sums[level] + self._upsample(sums[level + 1], sums[level].shape[-2:])
        return [
            F.leaky_relu(output(F.leaky_relu(x, SLOPE)), SLOPE) for output, x in zip(self.outputs, sums, strict=True)
        ]

    def _upsample(self, coarse: Tensor, size: Sequence[int]) -> Tensor:
        """(B, C, h, w) → (B, C, H, W) of twice the sides, odd or even, bilinearly."""
        if not self.corner_cells:
            return F.interpolate(coarse, size=tuple(size), mode="bilinear")
        height, width = coarse.shape[-2:]
        exact = F.interpolate(coarse, size=(2 * height - 1, 2 * width - 1), mode="bilinear", align_corners=True)
        return F.pad(exact, (0, size[1] - exact.shape[-1], 0, size[0] - exact.shape[-2]), mode="replicate")


def _folded(fine: Tensor, coarse: Tensor) -> Tensor:
    """(B, C, 2h, 2w) → (B, 4C, h, w) for the height and width of a coarser map; odd sides are padded with zeros."""
    height, width = coarse.shape[-2:]
    padded = F.pad(fine, (0, 2 * width - fine.shape[-1], 0, 2 * height - fine.shape[-2]))
    return F.pixel_unshuffle(padded, 2)
