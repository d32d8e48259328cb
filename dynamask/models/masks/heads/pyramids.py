"""Baselines of the r-FPN (Tab. S3): PANet, BiFPN and NAS-FPN on regions.

Their input levels are those of the r-FPN, projected to one width: the region at 14×14 from the level of its box, at 28,
56 and 112 from P4, P3 and P2. Masks and edges are predicted from each fused level, as in the r-FPN. They cannot stop
early, so every size costs the whole pyramid. There is no batch normalisation, as in the r-FPN; instead, the initial
weights preserve the mean square of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from dynamask.models.macs import conv_macs
from dynamask.models.masks.heads.base import RegionState, start_small
from dynamask.models.masks.region_fpn import PyramidHead, crop_assigned_level
from dynamask.structures import MASK_SIZES

SWISH_MEAN_SQUARE = 0.356
"""Mean of swish(x)² for standard normal x."""


def start_even(conv: nn.Conv2d, gain: float) -> nn.Conv2d:
    """Initialise a convolution so that it multiplies the mean square of its input by ``gain``; returns it."""
    nn.init.normal_(conv.weight, std=(gain / conv.weight[0].numel()) ** 0.5)
    nn.init.zeros_(conv.bias)
    return conv


def conv3(channels: int, gain: float, stride: int = 1) -> nn.Conv2d:
    """A 3×3 convolution initialised by :func:`start_even`; after a ReLU a gain of 2 preserves the mean square."""
    return start_even(nn.Conv2d(channels, channels, 3, stride=stride, padding=1), gain)


def resized(level: Tensor, side: int) -> Tensor:
    """(n, C, S, S) → (n, C, side, side): upsampled to the nearest value, downsampled to the maximum."""
    if level.shape[-1] > side:
        return F.max_pool2d(level, level.shape[-1] // side)
    return level if level.shape[-1] == side else F.interpolate(level, size=side, mode="nearest")


class RegionPyramid(PyramidHead):
    """Base class of pyramids on regions that fuse all levels at once, by several modules in turn.

    Args:
        fpn_channels: channels of the image-level pyramid.
        channels: of every level.
        num_classes: foreground classes; 1 for a class-agnostic head.

    Attributes:
        stacks: modules that map levels at 14, 28, 56, 112 to fused levels, and have ``macs()``.
    """

    stacks: nn.ModuleList

    def __init__(self, fpn_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(fpn_channels, channels, 1)
        self.projections = nn.ModuleList(nn.Conv2d(fpn_channels, channels, 1) for _ in self.map_strides)
        self.mask_predictors = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for _ in MASK_SIZES)
        self.edge_predictors = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in MASK_SIZES)
        start_small(*self.mask_predictors, *self.edge_predictors)

    def fuse(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels (n, C, S, S) at 14, 28, 56, 112 → fused levels of the same shapes."""
        for stack in self.stacks:
            levels = stack(levels)
        return levels

    def begin(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> RegionState:
        """Project the maps, crop R regions at every size and fuse them."""
        maps = self.project(features)
        crops = [
            roi_align(map_, self.on_map(rois, stride), size, 1.0 / stride, sampling_ratio=1, aligned=True)
            for map_, size, stride in zip(maps, MASK_SIZES[1:], self.map_strides)
        ]
        tiny = crop_assigned_level(features, rois, MASK_SIZES[0], self.corner_cells, self.training)
        levels = self.fuse([self.lateral(tiny), *crops])
        every = torch.arange(len(rois), device=rois.device)
        return RegionState(rois, labels, maps, [F.relu(level) for level in levels], [every] * len(MASK_SIZES))

    def macs_per_instance(self) -> tuple[int, ...]:
        """The whole pyramid and the predictor of each size."""
        fusion = sum(stack.macs() for stack in self.stacks)
        shared = conv_macs(self.lateral, MASK_SIZES[0], MASK_SIZES[0]) + fusion
        return tuple(shared + self.mask_predictors[0].in_channels * size * size for size in MASK_SIZES)


class PANetStack(nn.Module):
    """FPN's top-down path, then PANet's bottom-up path (Liu et al. 2018), of 3×3 convolutions with ReLU.

    Top-down: each level plus the upsampled coarser one, then a convolution. Bottom-up: a convolution of stride 2 on the
    finer level, plus the level itself, then a convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        count = len(MASK_SIZES)
        self.smooth = nn.ModuleList(conv3(channels, 2.0 / (k + 1)) for k in range(count))
        self.down = nn.ModuleList(conv3(channels, 2.0, stride=2) for _ in range(count - 1))
        self.merge = nn.ModuleList(conv3(channels, 1.0) for _ in range(count - 1))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels (n, C, S, S) at 14, 28, 56, 112 → the same shapes."""
        summed = [levels[0]]
        for level, size in zip(levels[1:], MASK_SIZES[1:]):
            summed.append(level + resized(summed[-1], size))
        plain = [F.relu(conv(level)) for conv, level in zip(self.smooth, summed)]
        out = [plain[-1]]
        for k in reversed(range(len(self.down))):
            out.insert(0, F.relu(self.merge[k](plain[k] + F.relu(self.down[k](out[0])))))
        return out

    def macs(self) -> int:
        """MACs of one region."""
        below = zip([*self.down, *self.merge], MASK_SIZES[:-1] * 2)
        return sum(conv_macs(conv, size, size) for conv, size in [*zip(self.smooth, MASK_SIZES), *below])


class RegionPANet(RegionPyramid):
    """PANet's two paths, twice.

    With a single stack, masks at 112 would depend on one convolution of a sum of crops. EfficientDet also repeats PANet
    in its comparison with the BiFPN.
    """

    NAME = "panet"
    STACKS = 2

    def __init__(self, fpn_channels: int, channels: int, num_classes: int) -> None:
        super().__init__(fpn_channels, channels, num_classes)
        self.stacks = nn.ModuleList(PANetStack(channels) for _ in range(self.STACKS))


class WeightedFusion(nn.Module):
    """A node of BiFPN: fast normalised fusion Σ w_i x_i / (Σ w_i + ε), swish, a depthwise-separable 3×3 convolution.

    Args:
        channels: of every input and of the output.
        inputs: number of inputs.
    """

    EPSILON = 1e-4

    def __init__(self, channels: int, inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.depthwise = start_even(nn.Conv2d(channels, channels, 3, padding=1, groups=channels), 1.0)
        self.pointwise = start_even(nn.Conv2d(channels, channels, 1), inputs / SWISH_MEAN_SQUARE)

    def shares(self) -> Tensor:
        """(inputs,) weights ≥ 0, their sum just below 1."""
        weights = F.relu(self.weights)
        return weights / (weights.sum() + self.EPSILON)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs (n, C, S, S) each → (n, C, S, S)."""
        fused = sum(share * level for share, level in zip(self.shares(), inputs, strict=True))
        return self.pointwise(self.depthwise(F.silu(fused)))

    def macs(self, size: int) -> int:
        """MACs of one region at a side."""
        return conv_macs(self.depthwise, size, size) + conv_macs(self.pointwise, size, size)


class BiFPNLayer(nn.Module):
    """A BiFPN layer (Tan et al. 2020): top-down to 112, then bottom-up, where inner levels also read their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(WeightedFusion(channels, 2) for _ in MASK_SIZES[1:])
        self.up = nn.ModuleList(WeightedFusion(channels, 2 if k == 0 else 3) for k in range(len(MASK_SIZES) - 1))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels (n, C, S, S) at 14, 28, 56, 112 → the same shapes."""
        between = [levels[0]]
        for node, level, size in zip(self.down, levels[1:], MASK_SIZES[1:]):
            between.append(node(level, resized(between[-1], size)))
        out = [between[-1]]
        for k in reversed(range(len(self.up))):
            finer = F.max_pool2d(out[0], 3, stride=2, padding=1)
            inputs = (levels[k], finer) if k == 0 else (levels[k], between[k], finer)
            out.insert(0, self.up[k](*inputs))
        return out

    def macs(self) -> int:
        """MACs of one region."""
        nodes = [*zip(self.down, MASK_SIZES[1:]), *zip(self.up, MASK_SIZES)]
        return sum(node.macs(size) for node, size in nodes)


class RegionBiFPN(RegionPyramid):
    """Three BiFPN layers, as in EfficientDet-D0."""

    NAME = "bifpn"
    LAYERS = 3

    def __init__(self, fpn_channels: int, channels: int, num_classes: int) -> None:
        super().__init__(fpn_channels, channels, num_classes)
        self.layers = nn.ModuleList(BiFPNLayer(channels) for _ in range(self.LAYERS))

    @property
    def stacks(self) -> nn.ModuleList:
        """The layers."""
        return self.layers


NASFPN_SIDES = (112, 56, 28, 14, 7)
"""Sides of the five levels P3–P7 of the published architecture; the last is pooled from 14, as P7 is from P6."""
NASFPN_CELLS: tuple[tuple[int, str, tuple[int, int]], ...] = (
    (1, "attention", (1, 3)),
    (1, "sum", (1, 5)),
    (0, "sum", (0, 6)),
    (1, "sum", (6, 7)),
    (2, "attention", (7, 8)),
    (4, "attention", (6, 9)),
    (3, "attention", (9, 10)),
)
"""The published architecture of NAS-FPN (Ghiasi et al. 2019): level, operation and inputs of its seven merging cells.
Inputs are numbered from the five levels on to the cells; the last five cells are the output."""
OUTPUTS_FROM = 2
"""Index of the first output cell."""


def attention(first: Tensor, second: Tensor, first_is_coarser: bool) -> Tensor:
    """NAS-FPN's global pooling: the coarser input plus the finer one, gated by the maximum of the coarser."""
    coarse, fine = (first, second) if first_is_coarser else (second, first)
    return coarse + fine * coarse.amax((2, 3), keepdim=True).sigmoid()


class NASFPNStack(nn.Module):
    """Seven merging cells: two levels are resized, merged, and passed through ReLU and a 3×3 convolution.

    Nodes that no cell reads are added to the output of their level.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv3(channels, 1.0) for _ in NASFPN_CELLS)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels (n, C, S, S) at 112, 56, 28, 14, 7 → the same shapes."""
        nodes = list(levels)
        level_of = list(range(len(NASFPN_SIDES)))
        unread = set(level_of)
        for cell, (level, operation, inputs) in enumerate(NASFPN_CELLS):
            first, second = (resized(nodes[i], NASFPN_SIDES[level]) for i in inputs)
            unread -= set(inputs)
            if operation == "sum":
                merged = first + second
            else:
                merged = attention(first, second, level_of[inputs[0]] >= level_of[inputs[1]])
            if cell >= OUTPUTS_FROM:
                left = {i for i in unread if level_of[i] == level}
                merged, unread = merged + sum(nodes[i] for i in left), unread - left
            unread.add(len(nodes))
            nodes.append(self.convs[cell](F.relu(merged)))
            level_of.append(level)
        outputs = {level_of[i]: nodes[i] for i in range(len(levels) + OUTPUTS_FROM, len(nodes))}
        return [outputs[level] for level in range(len(NASFPN_SIDES))]

    def macs(self) -> int:
        """MACs of one region."""
        sides = [NASFPN_SIDES[level] for level, _, _ in NASFPN_CELLS]
        return sum(conv_macs(conv, side, side) for conv, side in zip(self.convs, sides))


class RegionNASFPN(RegionPyramid):
    """The published NAS-FPN on the levels 112, 56, 28, 14 and, pooled, 7, twice.

    With one stack the level at 28 would not reach the masks at 112; with two, every level reaches every other.
    """

    NAME = "nasfpn"
    STACKS = 2

    def __init__(self, fpn_channels: int, channels: int, num_classes: int) -> None:
        super().__init__(fpn_channels, channels, num_classes)
        self.stacks = nn.ModuleList(NASFPNStack(channels) for _ in range(self.STACKS))

    def fuse(self, levels: list[Tensor]) -> list[Tensor]:
        """See :meth:`RegionPyramid.fuse`."""
        fine_to_coarse = super().fuse([*reversed(levels), resized(levels[0], NASFPN_SIDES[-1])])
        return fine_to_coarse[-2::-1]


def matching_channels(build: Callable[[int], RegionPyramid], target: int) -> int:
    """The width at which the MACs of a pyramid's finest mask are closest to ``target``.

    Args:
        build: builds the pyramid of a width. The MACs are a quadratic polynomial of the width, so three widths
            determine them; they are built without memory for their weights.
    """
    with torch.device("meta"):
        one, two, three = (build(channels).macs_per_instance()[-1] for channels in (1, 2, 3))

    def macs(channels: int) -> int:
        return one + (channels - 1) * (two - one) + (channels - 1) * (channels - 2) // 2 * (three - 2 * two + one)

    channels = 1
    while macs(channels + 1) < target:
        channels += 1
    return min((channels, channels + 1), key=lambda width: abs(macs(width) - target))
