"""Other pyramids on regions (Tab. S3): PANet, BiFPN and NAS-FPN in the place of the r-FPN.

The levels are what the r-FPN reads: the region at 14×14 from the level of its box, at 28, 56 and 112 from P4, P3 and
P2 with their own strides, all brought to one width. Masks and edges are predicted from each fused level, as the r-FPN
does. No pyramid can stop early: every size costs all of it. There is no batch normalisation, as there is none in the
r-FPN; weights start so that a node keeps the mean square of its inputs instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from dynamask.models.macs import conv_macs
from dynamask.models.masks.heads.base import MaskHead, RegionState, class_logits, start_small
from dynamask.models.masks.region_fpn import STAGE_LEVELS, STAGE_STRIDES, crop_assigned_level
from dynamask.structures import MASK_SIZES

SWISH_MEAN_SQUARE = 0.356
"""Mean of swish(x)² for standard normal x."""


def start_even(conv: nn.Conv2d, gain: float) -> nn.Conv2d:
    """Let a convolution multiply the mean square of what it is given by ``gain``; no bias. Returns it."""
    nn.init.normal_(conv.weight, std=(gain / conv.weight[0].numel()) ** 0.5)
    nn.init.zeros_(conv.bias)
    return conv


def conv3(channels: int, gain: float, stride: int = 1) -> nn.Conv2d:
    """A 3×3 convolution of equal width, started by :func:`start_even`; behind a ReLU, 2 keeps the mean square."""
    return start_even(nn.Conv2d(channels, channels, 3, stride=stride, padding=1), gain)


def resized(level: Tensor, side: int) -> Tensor:
    """(n, C, S, S) → (n, C, side, side): nearest upwards, the maximum downwards."""
    if level.shape[-1] > side:
        return F.max_pool2d(level, level.shape[-1] // side)
    return level if level.shape[-1] == side else F.interpolate(level, size=side, mode="nearest")


class RegionPyramid(MaskHead):
    """A pyramid on regions whose levels are fused all at once; subclasses say how.

    Args:
        fpn_channels: channels of the image-level pyramid.
        channels: of every level.
        num_classes: foreground classes; 1 for a class-agnostic head.
    """

    map_strides = STAGE_STRIDES

    def __init__(self, fpn_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(fpn_channels, channels, 1)
        self.projections = nn.ModuleList(nn.Conv2d(fpn_channels, channels, 1) for _ in STAGE_LEVELS)
        self.mask_predictors = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for _ in MASK_SIZES)
        self.edge_predictors = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in MASK_SIZES)
        start_small(*self.mask_predictors, *self.edge_predictors)

    def fuse(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels (n, C, S, S) at 14, 28, 56, 112 → fused levels of the same shapes."""
        raise NotImplementedError

    def fusion_macs(self) -> int:
        """MACs of :meth:`fuse` for one region."""
        raise NotImplementedError

    def begin(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> RegionState:
        """Project the maps, crop R regions at every side and fuse."""
        maps = [projection(features[level]) for projection, level in zip(self.projections, STAGE_LEVELS)]
        crops = [
            roi_align(map_, rois, size, 1.0 / stride, sampling_ratio=1, aligned=True)
            for map_, size, stride in zip(maps, MASK_SIZES[1:], STAGE_STRIDES)
        ]
        levels = self.fuse([self.lateral(crop_assigned_level(features, rois, MASK_SIZES[0])), *crops])
        every = torch.arange(len(rois), device=rois.device)
        return RegionState(rois, labels, maps, [F.relu(level) for level in levels], [every] * len(MASK_SIZES))

    def mask_logits(self, state: RegionState, size_index: int, rows: Tensor) -> Tensor:
        """Mask logits (n, S, S) of the regions' own class."""
        return class_logits(self.mask_predictors[size_index], state.gather(size_index, rows), state.labels[rows])

    def edge_logits(self, state: RegionState, size_index: int, rows: Tensor) -> Tensor:
        """Edge logits (n, S, S)."""
        return self.edge_predictors[size_index](state.gather(size_index, rows))[:, 0]

    def macs_per_instance(self) -> tuple[int, ...]:
        """The whole pyramid and the predictor of each size."""
        shared = conv_macs(self.lateral, MASK_SIZES[0], MASK_SIZES[0]) + self.fusion_macs()
        return tuple(shared + self.mask_predictors[0].in_channels * size * size for size in MASK_SIZES)

    def map_macs_per_pixel(self) -> tuple[int, ...]:
        """MACs of the projections to the levels' width, per pixel of their maps."""
        return tuple(conv_macs(projection, 1, 1) for projection in self.projections)


class PANetStack(nn.Module):
    """FPN's top-down path, then PANet's bottom-up path augmentation (Liu et al. 2018); plain 3×3 convs, each with ReLU.

    Top-down: each level plus the nearest-upsampled coarser one, then a conv. Bottom-up: a conv of stride 2 on the finer
    level, plus the level itself, then a conv.
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
    """PANet's two paths, two stacks.

    Behind one stack, masks at 112 would come from a single convolution of a sum of crops. EfficientDet repeats PANet to
    compare it with the BiFPN; the number is that of our NAS-FPN.
    """

    NAME = "panet"
    STACKS = 2

    def __init__(self, fpn_channels: int, channels: int, num_classes: int) -> None:
        super().__init__(fpn_channels, channels, num_classes)
        self.stacks = nn.ModuleList(PANetStack(channels) for _ in range(self.STACKS))

    def fuse(self, levels: list[Tensor]) -> list[Tensor]:
        """See :meth:`RegionPyramid.fuse`."""
        for stack in self.stacks:
            levels = stack(levels)
        return levels

    def fusion_macs(self) -> int:
        """MACs of all stacks for one region."""
        return sum(stack.macs() for stack in self.stacks)


class WeightedFusion(nn.Module):
    """BiFPN's node: fast normalised fusion, Σ w_i x_i / (Σ w_i + ε) with w ≥ 0, swish, a depthwise-separable 3×3 conv.

    Args:
        channels: of every input and of the output.
        inputs: how many there are.
    """

    EPSILON = 1e-4

    def __init__(self, channels: int, inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.depthwise = start_even(nn.Conv2d(channels, channels, 3, padding=1, groups=channels), 1.0)
        self.pointwise = start_even(nn.Conv2d(channels, channels, 1), inputs / SWISH_MEAN_SQUARE)

    def shares(self) -> Tensor:
        """(inputs,) ≥ 0, their sum just below 1."""
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
    """One BiFPN layer (Tan et al. 2020): top-down to 112, then bottom-up, where inner levels see their input again."""

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
    """Three BiFPN layers, EfficientDet-D0's number, with its depthwise-separable convolutions."""

    NAME = "bifpn"
    LAYERS = 3

    def __init__(self, fpn_channels: int, channels: int, num_classes: int) -> None:
        super().__init__(fpn_channels, channels, num_classes)
        self.layers = nn.ModuleList(BiFPNLayer(channels) for _ in range(self.LAYERS))

    def fuse(self, levels: list[Tensor]) -> list[Tensor]:
        """See :meth:`RegionPyramid.fuse`."""
        for layer in self.layers:
            levels = layer(levels)
        return levels

    def fusion_macs(self) -> int:
        """MACs of all layers for one region."""
        return sum(layer.macs() for layer in self.layers)


NASFPN_SIDES = (112, 56, 28, 14, 7)
"""Sides of the published cell's five levels P3–P7; the last is pooled from 14, as its P7 is from P6."""
NASFPN_CELLS: tuple[tuple[int, str, tuple[int, int]], ...] = (
    (1, "attention", (1, 3)),
    (1, "sum", (1, 5)),
    (0, "sum", (0, 6)),
    (1, "sum", (6, 7)),
    (2, "attention", (7, 8)),
    (4, "attention", (6, 9)),
    (3, "attention", (9, 10)),
)
"""The architecture that NAS-FPN published (Ghiasi et al. 2019): level, operation and inputs of its seven merging cells.
Inputs count the five levels, then the cells in their order; the last five cells are the output."""
OUTPUTS_FROM = 2
"""The first of the cells that are outputs."""


def attention(first: Tensor, second: Tensor, first_is_coarser: bool) -> Tensor:
    """NAS-FPN's global pooling: the coarser input plus the finer one, each channel gated by the coarser's maximum."""
    coarse, fine = (first, second) if first_is_coarser else (second, first)
    return coarse + fine * coarse.amax((2, 3), keepdim=True).sigmoid()


class NASFPNStack(nn.Module):
    """Seven merging cells: two levels brought to one side, merged, ReLU, 3×3 conv. A level that no cell has read yet is
    added to the output of its side.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv3(channels, 1.0) for _ in NASFPN_CELLS)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels (n, C, S, S) at 112, 56, 28, 14, 7 → the same shapes."""
        nodes, level_of = list(levels), list(range(len(NASFPN_SIDES)))
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
    """NAS-FPN's published cell on the levels 112, 56, 28, 14 and, pooled, 7; two stacks.

    With one stack the level at 28 would not reach the masks at 112; two are the least with which every level reaches
    every other.
    """

    NAME = "nasfpn"
    STACKS = 2

    def __init__(self, fpn_channels: int, channels: int, num_classes: int) -> None:
        super().__init__(fpn_channels, channels, num_classes)
        self.stacks = nn.ModuleList(NASFPNStack(channels) for _ in range(self.STACKS))

    def fuse(self, levels: list[Tensor]) -> list[Tensor]:
        """See :meth:`RegionPyramid.fuse`."""
        fine_to_coarse = [*reversed(levels), resized(levels[0], NASFPN_SIDES[-1])]
        for stack in self.stacks:
            fine_to_coarse = stack(fine_to_coarse)
        return fine_to_coarse[-2::-1]

    def fusion_macs(self) -> int:
        """MACs of all stacks for one region."""
        return sum(stack.macs() for stack in self.stacks)


def matching_channels(build: Callable[[int], RegionPyramid], target: int) -> int:
    """The width at which a pyramid's finest mask costs as nearly ``target`` MACs as a whole number can.

    Args:
        build: makes the pyramid of a width. A convolution's MACs are a polynomial of degree two of its width, so three
            widths tell those of all; they are built without memory for their weights.
    """
    with torch.device("meta"):
        one, two, three = (build(channels).macs_per_instance()[-1] for channels in (1, 2, 3))

    def macs(channels: int) -> int:
        return one + (channels - 1) * (two - one) + (channels - 1) * (channels - 2) // 2 * (three - 2 * two + one)

    channels = 1
    while macs(channels + 1) < target:
        channels += 1
    return min((channels, channels + 1), key=lambda width: abs(macs(width) - target))
