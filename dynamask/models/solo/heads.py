"""Heads of SOLO and SOLOv2: for every grid cell the category logits and the vector that its mask is decoded from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamask.config import AggregationConfig
from dynamask.models.solo.aggregation import MultiLevelContext, starting_theta

PRIOR = math.log(0.01 / 0.99)
"""Initial bias of the category and mask layers: a foreground probability of 0.01."""
THETA_PACE = 0.1
"""Scale of the feature that θ is predicted from. The effect of θ multiplies from layer to layer, so that the equal step
sizes of AdamW would be too large for it; the scale slows it down and does not limit what can be learned."""


@dataclass
class CellGrid:
    """The output of a head for one level.

    Attributes:
        category: (B, C, G, G) logits.
        vectors: (B, V, G′, G′) of the mask representations, or (1, V, G′, G′) shared by all images.
        features: (B, V or V − 1, h, w) that the vectors are convolved with.
        theta: (B, D, G, G) parameters of the aggregation, if they are dynamic.
        offsets: (B, 2·S, G, G), (Δrow, Δcolumn) of each neighbour, if they are learned.
        context: (B, K, h, w), if the aggregation has one.
    """

    category: Tensor
    vectors: Tensor
    features: Tensor
    theta: Tensor | None = None
    offsets: Tensor | None = None
    context: Tensor | None = None


def coordinates(like: Tensor) -> Tensor:
    """(B, 2, H, W) coordinates x and y, each from −1 to 1 over the padded map."""
    rows = torch.linspace(-1, 1, like.shape[-2], device=like.device, dtype=like.dtype)
    columns = torch.linspace(-1, 1, like.shape[-1], device=like.device, dtype=like.dtype)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y]).expand(len(like), -1, -1, -1)


def with_coordinates(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C + 2, H, W)."""
    return torch.cat([x, coordinates(x)], dim=1)


def resized(x: Tensor, size: int | tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resize bilinearly to a side or (H, W)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def conv_norm(fan_in: int, fan_out: int, groups: int) -> nn.Sequential:
    """3×3 convolution without bias, GroupNorm, ReLU."""
    return nn.Sequential(nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False), nn.GroupNorm(groups, fan_out), nn.ReLU())


def tower(fan_in: int, channels: int, depth: int, groups: int) -> nn.Sequential:
    """``depth`` times :func:`conv_norm`."""
    return nn.Sequential(*(conv_norm(channels if i else fan_in, channels, groups) for i in range(depth)))


def head_levels(features: dict[str, Tensor]) -> list[Tensor]:
    """The five levels of a head: P2 halved, P3, P4, P5, and P6 at the size of P5."""
    p2, p3, p4, p5, p6 = (features[key] for key in ("0", "1", "2", "3", "pool"))
    half = F.interpolate(p2, scale_factor=0.5, mode="bilinear", align_corners=False)
    return [half, p3, p4, p5, resized(p6, p5.shape[-2:])]


def initialise(module: nn.Module) -> None:
    """Initialise every convolution with weights from N(0, 0.01²) and zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.01)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class AggregationHead(nn.Module):
    """Predicts the parameters θ of the aggregation and the offsets of the neighbours for every cell.

    Initially θ is close to :func:`starting_theta` in all cells, and the offsets are zero.

    Args:
        in_channels: of the input feature.
        config: of the aggregation.
        squash: apply tanh to θ (SODAR on SOLO; not on SOLOv2).
    """

    def __init__(self, in_channels: int, config: AggregationConfig, squash: bool) -> None:
        super().__init__()
        kernel, self.squash = config.theta_kernel, squash
        dynamic, moved = config.weights == "dynamic", config.deformable and config.samples > 0
        self.theta = nn.Conv2d(in_channels, config.parameters, kernel, padding=kernel // 2) if dynamic else None
        self.offsets = nn.Conv2d(in_channels, 2 * config.samples, kernel, padding=kernel // 2) if moved else None
        initialise(self)
        if self.offsets is not None:
            nn.init.zeros_(self.offsets.weight)
        if self.theta is not None:
            start = starting_theta(config)
            nn.init.normal_(self.theta.weight, std=0.001)
            self.theta.bias.data.copy_(start.clamp(-0.9, 0.9).atanh() if squash else start)

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(B, C, G, G) → θ (B, D, G, G) and offsets (B, 2·S, G, G), each None if it is not predicted."""
        theta = None if self.theta is None else self.theta(x * THETA_PACE)
        theta = theta.tanh() if theta is not None and self.squash else theta
        return theta, None if self.offsets is None else self.offsets(x)


class CellHead(nn.Module):
    """Base class of the heads, with the category branch.

    Args:
        in_channels: of the pyramid.
        channels, depth: of the towers.
        groups: of every GroupNorm.
        num_classes: foreground classes.
        grids: G of the five levels.
        mask_grids: G′ of the five levels.
    """

    context: MultiLevelContext | None

    def __init__(
        self,
        in_channels: int,
        channels: int,
        depth: int,
        groups: int,
        num_classes: int,
        grids: Sequence[int],
        mask_grids: Sequence[int],
    ) -> None:
        super().__init__()
        self.grids, self.mask_grids = tuple(grids), tuple(mask_grids)
        self.category_tower = tower(in_channels, channels, depth, groups)
        self.category = nn.Conv2d(channels, num_classes, 3, padding=1)

    def context_map(self, features: dict[str, Tensor]) -> Tensor | None:
        """The context (B, K, H/4, W/4) of the aggregation from {"0": P2, …, "pool": P6}; None without context."""
        levels = [features[key] for key in ("0", "1", "2", "3", "pool")]
        return None if self.context is None else self.context(levels)


class SoloHead(CellHead):
    """SOLO: per level a 1×1 convolution with one mask channel for every cell of the grid.

    Args:
        aggregation: None for plain SOLO. The other arguments are those of :class:`CellHead`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        depth: int,
        groups: int,
        num_classes: int,
        grids: Sequence[int],
        mask_grids: Sequence[int],
        aggregation: AggregationConfig | None = None,
    ) -> None:
        super().__init__(in_channels, channels, depth, groups, num_classes, grids, mask_grids)
        self.mask_tower = tower(in_channels + 2, channels, depth, groups)
        self.masks = nn.ModuleList(nn.Conv2d(channels, side * side, 1) for side in mask_grids)
        self.context = build_context(aggregation, in_channels, groups)
        self.aggregation = None if aggregation is None else AggregationHead(channels, aggregation, squash=True)
        for part in (self.category_tower, self.category, self.mask_tower, self.masks):
            initialise(part)
        for last in (self.category, *self.masks):
            nn.init.constant_(last.bias, PRIOR)

    def forward(self, features: dict[str, Tensor]) -> list[CellGrid]:
        """{"0": P2, …, "pool": P6} → five grids, with masks at twice the size of their level."""
        context = self.context_map(features)
        return [self._level(i, level, context) for i, level in enumerate(head_levels(features))]

    def _level(self, index: int, level: Tensor, context: Tensor | None) -> CellGrid:
        cells = self.category_tower(resized(level, self.grids[index]))
        maps = self.mask_tower(with_coordinates(level))
        maps = F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)
        last = self.masks[index]
        rows = torch.cat([last.weight[:, :, 0, 0], last.bias[:, None]], dim=1)  # (G′², C + 1)
        side = math.isqrt(len(rows))
        grid = CellGrid(self.category(cells), rows.T.reshape(1, -1, side, side), maps)
        if self.aggregation is not None:
            grid.theta, grid.offsets = self.aggregation(cells)
        if context is not None:
            grid.context = resized(context, maps.shape[-2:], align_corners=True)
        return grid


class MaskFeature(nn.Module):
    """SOLOv2's mask feature: the sum of P2 … P5, upsampled to the size of P2 by convolutions and ×2 steps.

    Args:
        in_channels: of the pyramid.
        channels: of the branches.
        out_channels: of the feature.
        groups: of the GroupNorms.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.ModuleList(
                conv_norm(channels if step else in_channels + (2 if level == 3 else 0), channels, groups)
                for step in range(max(level, 1))
            )
            for level in range(4)
        )
        last = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.out = nn.Sequential(last, nn.GroupNorm(groups, out_channels), nn.ReLU())
        initialise(self)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """P2 … P5 → (B, out_channels, H/4, W/4)."""
        total = self.branches[0][0](levels[0])
        for level, branch in enumerate(self.branches[1:], start=1):
            x = with_coordinates(levels[level]) if level == 3 else levels[level]
            for conv in branch:
                x = F.interpolate(conv(x), scale_factor=2.0, mode="bilinear", align_corners=False)
            total = total + x[..., : total.shape[-2], : total.shape[-1]]
        return self.out(total)


class SoloV2Head(CellHead):
    """SOLOv2: a kernel predicted for every cell, convolved with one mask feature.

    Args:
        feature_channels: of the branches of the mask feature.
        kernel_channels: of the mask feature and the kernels.
        aggregation: None for plain SOLOv2. The other arguments are those of :class:`CellHead`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        depth: int,
        groups: int,
        num_classes: int,
        grids: Sequence[int],
        mask_grids: Sequence[int],
        feature_channels: int,
        kernel_channels: int,
        aggregation: AggregationConfig | None = None,
    ) -> None:
        super().__init__(in_channels, channels, depth, groups, num_classes, grids, mask_grids)
        self.kernel_tower = tower(in_channels + 2, channels, depth, groups)
        self.kernel = nn.Conv2d(channels, kernel_channels, 3, padding=1)
        for part in (self.category_tower, self.category, self.kernel_tower, self.kernel):
            initialise(part)
        nn.init.constant_(self.category.bias, PRIOR)
        self.mask_feature = MaskFeature(in_channels, feature_channels, kernel_channels, groups)
        self.context = build_context(aggregation, in_channels, groups)
        self.aggregation = self.aggregation_tower = None
        if aggregation is not None:
            width = aggregation.tower_channels or channels
            self.aggregation_tower = tower(in_channels + 2, width, depth, groups)
            initialise(self.aggregation_tower)
            self.aggregation = AggregationHead(width, aggregation, squash=False)

    def forward(self, features: dict[str, Tensor]) -> list[CellGrid]:
        """{"0": P2, …, "pool": P6} → five grids that share one mask feature at the size of P2."""
        maps = self.mask_feature([features[key] for key in "0123"])
        maps = maps.contiguous(memory_format=torch.channels_last)  # decoded pixel by pixel
        context = self.context_map(features)
        grids = []
        for index, level in enumerate(head_levels(features)):
            placed = with_coordinates(level)
            cells = resized(placed, self.grids[index])
            own = cells if self.mask_grids[index] == self.grids[index] else resized(placed, self.mask_grids[index])
            category = self.category(self.category_tower(cells[:, :-2]))
            grid = CellGrid(category, self.kernel(self.kernel_tower(own)), maps, context=context)
            if self.aggregation is not None:
                grid.theta, grid.offsets = self.aggregation(self.aggregation_tower(cells))
            grids.append(grid)
        return grids


def build_context(
    aggregation: AggregationConfig | None, in_channels: int, groups: int, levels: int = 5
) -> MultiLevelContext | None:
    """The context module of an aggregation; None without context."""
    if aggregation is None or aggregation.context == "without":
        return None
    width, fusion = aggregation.context_channels, aggregation.context_fusion
    return MultiLevelContext(in_channels, width, fusion, levels, groups)
