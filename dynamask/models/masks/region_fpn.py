"""Region-level FPN (r-FPN): a coarse-to-fine pyramid on every region of interest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from dynamask.models.macs import conv_macs
from dynamask.models.masks.heads.base import MaskHead, RegionState, centred_rois, class_logits, start_small
from dynamask.ops.deform import DeformConv2d
from dynamask.ops.means import connected_zero
from dynamask.structures import MASK_SIZES

LEVEL_STRIDES = (4, 8, 16, 32)
STAGE_STRIDES = (16, 8, 4)
"""Strides of P4, P3 and P2, which the stages to 28, 56 and 112 read in the paper."""
CHECKPOINTED_ROIS = 16
"""Number of regions per recomputation in the backward pass, if stages are checkpointed."""


def level_key(stride: int) -> str:
    """Key of the image-level pyramid's map of a stride: "0" for P2 to "3" for P5."""
    return str(LEVEL_STRIDES.index(stride))


def crop_assigned_level(features: dict[str, Tensor], rois: Tensor, size: int, corner_cells: bool = False) -> Tensor:
    """RoIAlign (aligned, 2×2 samples per cell) from the pyramid level that each box is assigned to.

    Args:
        features: {"0": P2, …, "3": P5}, each (B, C, H_l, W_l).
        rois: (R, 5) batch index and xyxy in network-input pixels.
        size: side of the crops.
        corner_cells: see :class:`dynamask.config.ModelConfig`.

    Returns:
        (R, C, size, size).
    """
    first = features["0"]
    out = first.new_zeros((rois.shape[0], first.shape[1], size, size))
    levels = LevelMapper(2, 5, canonical_scale=224, canonical_level=4, eps=1e-6)([rois[:, 1:]])
    for level, stride in enumerate(LEVEL_STRIDES):  # no branch on the number of regions, for torch.export
        rows = torch.nonzero(levels == level)[:, 0]
        here = centred_rois(rois[rows], stride) if corner_cells else rois[rows]
        crop = roi_align(features[str(level)], here, size, 1.0 / stride, sampling_ratio=2, aligned=True)
        out = out.index_copy(0, rows, crop.to(out.dtype))
    return out


class FeatureAggregationModule(nn.Module):
    """FAM (Fig. 3): aligns the upsampled region feature L to the image feature P, then attends to both.

    Args:
        channels: C of L and of P.
        offset_groups: groups of channels that share an offset field.

    Attributes:
        deformable: apply the offsets. Without them both convolutions are plain, which is equal, and several times
            faster, while the offsets are zero as they are at the start.
    """

    def __init__(self, channels: int, offset_groups: int) -> None:
        super().__init__()
        self.deformable = True
        self.align = DeformConv2d(channels, channels, offset_groups)
        self.attend = DeformConv2d(channels, channels, offset_groups)
        self.align_offsets = nn.Conv2d(2 * channels, self.align.offset_channels, 3, padding=1)
        self.attend_offsets = nn.Conv2d(2 * channels, self.attend.offset_channels, 1)
        for conv in (self.align_offsets, self.attend_offsets):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, region: Tensor, image: Tensor) -> Tensor:
        """L and P, both (R, C, S, S) → fused feature (R, C, S, S), ReLU applied."""
        if not self.deformable:
            fused = F.relu(self.attend.plain(F.relu(self.align.plain(region)) + image))
            return fused + connected_zero([*self.align_offsets.parameters(), *self.attend_offsets.parameters()])
        aligned = F.relu(self.align(region, self.align_offsets(torch.cat([region, image], dim=1))))
        offsets = self.attend_offsets(torch.cat([aligned, image], dim=1))
        return F.relu(self.attend(aligned + image, offsets))


class RegionStage(nn.Module):
    """A stage of the r-FPN: halves the channels (1×1), doubles the side (bilinear), and aggregates the image's crop."""

    def __init__(self, channels: int, offset_groups: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(2 * channels, channels, 1)
        self.aggregate = FeatureAggregationModule(channels, offset_groups)

    def forward(self, coarse: Tensor, image: Tensor) -> Tensor:
        """(R, 2C, S/2, S/2) and (R, C, S, S) → (R, C, S, S)."""
        region = F.relu(self.reduce(coarse))
        region = F.interpolate(region, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.aggregate(region, image)

    def macs(self, size: int) -> int:
        """MACs of one region whose output has the given side."""
        module = self.aggregate
        convs = conv_macs(module.align_offsets, size, size) + conv_macs(module.attend_offsets, size, size)
        deformable = (module.align.weight.numel() + module.attend.weight.numel()) * size * size
        return conv_macs(self.reduce, size // 2, size // 2) + convs + deformable


class PyramidHead(MaskHead):
    """Base class of mask heads with a region feature, a mask predictor and an edge predictor at each size.

    Attributes:
        map_strides: strides of the maps that the sizes 28, 56 and 112 read; P4, P3 and P2 in the paper.
        projections: 1×1 convolutions of these maps to the channels of the sizes.
        mask_predictors, edge_predictors: 1×1 convolutions, one per size.
    """

    map_strides = STAGE_STRIDES
    projections: nn.ModuleList
    mask_predictors: nn.ModuleList
    edge_predictors: nn.ModuleList

    def project(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Projected maps of the sizes 28, 56 and 112, which all regions of a picture share."""
        maps = (features[level_key(stride)] for stride in self.map_strides)
        return [projection(map_) for projection, map_ in zip(self.projections, maps)]

    def advance(self, state: RegionState, size_index: int, rows: Tensor) -> None:
        """Compute the features of the regions ``rows`` (n,) up to a size; a head that has computed all does nothing."""

    def mask_logits(self, state: RegionState, size_index: int, rows: Tensor) -> Tensor:
        """See :meth:`MaskHead.mask_logits`."""
        self.advance(state, size_index, rows)
        return class_logits(self.mask_predictors[size_index], state.gather(size_index, rows), state.labels[rows])

    def edge_logits(self, state: RegionState, size_index: int, rows: Tensor) -> Tensor:
        """See :meth:`MaskHead.edge_logits`."""
        self.advance(state, size_index, rows)
        return self.edge_predictors[size_index](state.gather(size_index, rows))[:, 0]

    def map_macs_per_pixel(self) -> tuple[int, ...]:
        """MACs of the projections, per pixel of their maps."""
        return tuple(conv_macs(projection, 1, 1) for projection in self.projections)


class RegionFPN(PyramidHead):
    """r-FPN with its predictors: 14×14 base, then stages to 28, 56 and 112 (Fig. 2).

    Args:
        fpn_channels: channels of the image-level pyramid.
        channels: C of the 14×14 feature; the stages have C/2, C/4, C/8.
        num_classes: foreground classes; 1 for a class-agnostic branch.
        offset_groups: of the deformable convolutions of the three stages.
        agnostic_last: one mask logit for all classes at the finest size.
        map_strides: see :class:`PyramidHead`.

    Attributes:
        checkpoint_stages: recompute the activations inside the stages in the backward pass instead of storing them.
    """

    NAME = "region_fpn"

    def __init__(
        self,
        fpn_channels: int,
        channels: int,
        num_classes: int,
        offset_groups: Sequence[int],
        agnostic_last: bool = False,
        map_strides: tuple[int, int, int] = STAGE_STRIDES,
    ) -> None:
        super().__init__()
        self.map_strides = map_strides
        widths = [channels // 2**k for k in range(len(MASK_SIZES))]
        self.base = nn.Sequential(
            nn.Conv2d(fpn_channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )
        self.projections = nn.ModuleList(nn.Conv2d(fpn_channels, width, 1) for width in widths[1:])
        self.stages = nn.ModuleList(RegionStage(w, g) for w, g in zip(widths[1:], offset_groups, strict=True))
        classes = [num_classes] * (len(widths) - 1) + [1 if agnostic_last else num_classes]
        self.mask_predictors = nn.ModuleList(nn.Conv2d(width, count, 1) for width, count in zip(widths, classes))
        self.edge_predictors = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths)
        self.checkpoint_stages = False
        self._initialise()

    def _initialise(self) -> None:
        for conv in (self.base[0], self.base[2], *(stage.reduce for stage in self.stages)):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        start_small(*self.mask_predictors, *self.edge_predictors)

    def set_deformable(self, deformable: bool) -> None:
        """Set :attr:`FeatureAggregationModule.deformable` of all stages."""
        for stage in self.stages:
            stage.aggregate.deformable = deformable

    def begin(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> RegionState:
        """Project the maps and compute the 14×14 feature of R regions; see :meth:`MaskHead.begin`."""
        maps = self.project(features)
        tiny = self.base(crop_assigned_level(features, rois, MASK_SIZES[0], self.corner_cells))
        every = torch.arange(len(rois), device=rois.device)
        none = every[:0]
        empty = [map_.new_zeros((0, map_.shape[1], size, size)) for map_, size in zip(maps, MASK_SIZES[1:])]
        return RegionState(rois, labels, maps, [tiny, *empty], [every, none, none, none])

    def advance(self, state: RegionState, size_index: int, rows: Tensor) -> None:
        """Compute the features of the regions ``rows`` (n,) up to a size, running only the stages they lack."""
        for k in range(1, size_index + 1):
            known = torch.isin(rows, state.rows[k])
            missing = rows[~known]
            if len(missing) == 0:
                continue
            coarse = state.gather(k - 1, missing)
            fine = self.stage(k, coarse, state.maps[k - 1], state.rois[missing])
            state.features[k] = torch.cat([state.features[k], fine]) if len(state.rows[k]) else fine
            state.rows[k] = torch.cat([state.rows[k], missing])

    def stage(self, size_index: int, coarse: Tensor, projected_map: Tensor, rois: Tensor) -> Tensor:
        """Stage to ``MASK_SIZES[size_index]``: (n, 2C, S/2, S/2) → (n, C, S, S); P is cropped with its own stride."""
        if not self.checkpoint_stages or not torch.is_grad_enabled():
            return self._stage(size_index, coarse, projected_map, rois)
        some = zip(coarse.split(CHECKPOINTED_ROIS), rois.split(CHECKPOINTED_ROIS))
        options = {"use_reentrant": False, "preserve_rng_state": False}  # nothing in a stage is random
        return torch.cat([checkpoint(self._stage, size_index, c, projected_map, r, **options) for c, r in some])

    def _stage(self, size_index: int, coarse: Tensor, projected_map: Tensor, rois: Tensor) -> Tensor:
        size, stride = MASK_SIZES[size_index], self.map_strides[size_index - 1]
        here = self.on_map(rois, stride)
        crop = roi_align(projected_map.float(), here, size, 1.0 / stride, sampling_ratio=1, aligned=True)
        return self.stages[size_index - 1](coarse, crop.to(projected_map.dtype))

    def macs_per_instance(self) -> tuple[int, ...]:
        """Cumulative MACs of one region that stops at 14, 28, 56, 112; see :meth:`MaskHead.macs_per_instance`."""
        running = sum(conv_macs(conv, MASK_SIZES[0], MASK_SIZES[0]) for conv in (self.base[0], self.base[2]))
        cumulative = []
        for k, size in enumerate(MASK_SIZES):
            if k:
                running += self.stages[k - 1].macs(size)
            cumulative.append(running + self.mask_predictors[k].in_channels * size * size)
        return tuple(cumulative)
