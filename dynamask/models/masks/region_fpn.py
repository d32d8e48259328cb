"""Region-level FPN (r-FPN): a coarse-to-fine pyramid on every region of interest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from dynamask.models.macs import conv_macs
from dynamask.models.masks.heads.base import MaskHead, RegionState, centred_rois, class_logits, start_small
from dynamask.models.tensor_functions import TensorFunction, region_function
from dynamask.ops.deform import DeformConv2d, deform_conv2d_at_cells
from dynamask.ops.listed import (
    band_cells,
    gather_cells,
    gather_patches,
    sample_crops,
    scatter_cells,
    upsample,
    write_cells,
)
from dynamask.ops.map_rows import (
    MapRows,
    apply_to_rows,
    crop_on_rows,
    from_rows,
    patch_weight,
    sample_weight,
    step_layer,
    to_rows,
    uses_rows,
)
from dynamask.ops.means import connected_zero
from dynamask.structures import MASK_SIZES

LEVEL_STRIDES = (4, 8, 16, 32)
STAGE_STRIDES = (16, 8, 4)
"""Strides of P4, P3 and P2, which the stages to 28, 56 and 112 read in the paper."""
CHECKPOINTED_ROIS = 16
"""Number of regions per recomputation in the backward pass, if stages are checkpointed."""
CACHED_BYTES = 2**23
"""Memory of the samples of a deformable convolution of the regions that are computed together in inference on a CPU."""

CELLS_PER_CROP = 5000
"""Cells of a feature map per crop up to which RoIAlign on rows is faster, with the map's change of layout."""


def level_key(stride: int) -> str:
    """Key of the image-level pyramid's map of a stride: "0" for P2 to "3" for P5."""
    return str(LEVEL_STRIDES.index(stride))


COMPILED_CHANNELS = 16
"""Channels of a stage from which a back end computes it: with fewer, its deformable convolution is slower than here."""


def crop_assigned_level(
    features: dict[str, Tensor], rois: Tensor, size: int, corner_cells: bool = False, training: bool = False
) -> Tensor:
    """RoIAlign (aligned, 2×2 samples per cell) from the pyramid level that each box is assigned to.

    Args:
        features: {"0": P2, …, "3": P5}, each (B, C, H_l, W_l).
        rois: (R, 5) batch index and xyxy in network-input pixels.
        size: side of the crops.
        corner_cells: see :class:`dynamask.config.ModelConfig`.
        training: compute passes without gradients as those with gradients, so that their values are equal bit for bit.

    Returns:
        (R, C, size, size).
    """
    first = features["0"]
    on_rows = not training and uses_rows(first)
    out = first.new_zeros((rois.shape[0], first.shape[1], size, size))
    if on_rows:
        out = out.contiguous(memory_format=torch.channels_last)
    levels = LevelMapper(2, 5, canonical_scale=224, canonical_level=4, eps=1e-6)([rois[:, 1:]])
    for level, stride in enumerate(LEVEL_STRIDES):  # no branch on the number of regions, for torch.export
        rows = torch.nonzero(levels == level)[:, 0]
        here = centred_rois(rois[rows], stride) if corner_cells else rois[rows]
        map_ = features[str(level)]
        if on_rows and map_[:, 0].numel() < CELLS_PER_CROP * len(here):
            crop = crop_on_rows(map_, here, stride, size)
        else:
            crop = roi_align(map_, here, size, 1.0 / stride, sampling_ratio=2, aligned=True)
        if on_rows:
            out[rows] = crop
        else:
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

    def forward(self, region: Tensor, image: Tensor, cells: Tensor | None = None) -> Tensor:
        """L and P, both (R, C, S, S) → fused feature (R, C, S, S), ReLU applied.

        With listed cells (R, n), P is (R, C, n) at these cells and zero elsewhere, the fused feature (R, C, n) is
        computed at these cells alone, and the second convolution reads L at the other cells.
        """
        if self.deformable and uses_rows(region) and not is_watched(*self.children()):
            return self._on_rows(region, image, cells)
        if cells is not None:
            return self._at_cells(region, image, cells)
        if not self.deformable:
            fused = F.relu(self.attend.plain(F.relu(self.align.plain(region)) + image))
            return fused + self._unused_offsets()
        aligned = F.relu(self.align(region, self.align_offsets(torch.cat([region, image], dim=1))))
        offsets = self.attend_offsets(torch.cat([aligned, image], dim=1))
        return F.relu(self.attend(aligned + image, offsets))

    def _at_cells(self, region: Tensor, image: Tensor, cells: Tensor) -> Tensor:
        """See :meth:`forward`."""
        image = image.to(region.dtype)
        if not self.deformable:
            aligned = F.relu(conv_at_cells(self.align, region, cells))
            filled = scatter_cells(region, cells, aligned + image)
            fused = F.relu(conv_at_cells(self.attend, filled, cells))
            return fused + self._unused_offsets()
        picture = scatter_cells(torch.zeros_like(region), cells, image)
        offsets = conv_at_cells(self.align_offsets, torch.cat([region, picture], dim=1), cells)
        aligned = F.relu(self.align.at_cells(region, offsets, cells))
        offsets = apply_at_cells(self.attend_offsets, torch.cat([aligned, image.to(aligned.dtype)], dim=1))
        return F.relu(self.attend.at_cells(scatter_cells(region, cells, aligned + image), offsets, cells))

    def _on_rows(self, region: Tensor, image: Tensor, cells: Tensor | None) -> Tensor:
        """See :meth:`forward`; for inference on a CPU."""
        count, channels, size = region.shape[:3]
        groups, picture = self.align.offset_groups, image.flatten(2).transpose(1, 2)  # (R, n, C)
        listed = torch.arange(size * size).expand(count, -1) if cells is None else cells
        rows = MapRows(region, listed)
        weight, bias = step_layer(self.align_offsets.weight, self.align_offsets.bias)
        if cells is None:
            steps = to_rows(F.conv2d(torch.cat([region, image], dim=1), weight, bias, padding=1))
        else:
            around = MapRows(torch.zeros_like(region), listed)
            around.write(picture)
            steps = apply_to_rows(rows.patches(), patch_weight(weight[:, :channels]), bias)
            steps = apply_to_rows(around.patches(), patch_weight(weight[:, channels:]), steps)
        aligned = apply_to_rows(rows.sample(steps, groups), sample_weight(self.align.weight, groups), self.align.bias)
        aligned = aligned.relu_()
        weight, bias = step_layer(self.attend_offsets.weight.flatten(1), self.attend_offsets.bias)
        steps = apply_to_rows(torch.cat([aligned, picture], dim=2), weight, bias)
        rows.write(aligned + picture)
        fused = apply_to_rows(rows.sample(steps, groups), sample_weight(self.attend.weight, groups), self.attend.bias)
        fused = fused.relu_()
        return from_rows(fused, size) if cells is None else fused.transpose(1, 2)

    def _unused_offsets(self) -> Tensor:
        """A zero that gives the parameters of the offsets a gradient of zeros."""
        return connected_zero([*self.align_offsets.parameters(), *self.attend_offsets.parameters()])


def is_watched(*modules: nn.Module) -> bool:
    """Return whether modules have hooks, which a computation that does not call them would skip."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def apply_at_cells(conv: nn.Conv2d | DeformConv2d, columns: Tensor) -> Tensor:
    """A convolution as a matrix product: columns (R, C·kernel, n) → (R, C_out, n)."""
    matrix = conv.weight.flatten(1).expand(columns.shape[0], -1, -1)  # torch.matmul would copy the columns
    return torch.bmm(matrix, columns) + conv.bias[:, None]


def conv_at_cells(conv: nn.Conv2d | DeformConv2d, maps: Tensor, cells: Tensor) -> Tensor:
    """A 3×3 convolution with "same" padding, without offsets, at cells (R, n) of maps (R, C, S, S): (R, C_out, n)."""
    if torch.jit.is_tracing():  # a single operator of other frameworks
        still = maps.new_zeros((maps.shape[0], 2 * conv.weight[0, 0].numel(), cells.shape[1]))
        return deform_conv2d_at_cells(maps, still, conv.weight, conv.bias, cells)
    return apply_at_cells(conv, gather_patches(maps, cells))


class RegionStage(nn.Module):
    """A stage of the r-FPN: halves the channels (1×1), doubles the side (bilinear), and aggregates the image's crop."""

    def __init__(self, channels: int, offset_groups: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(2 * channels, channels, 1)
        self.aggregate = FeatureAggregationModule(channels, offset_groups)

    def forward(self, coarse: Tensor, image: Tensor, cells: Tensor | None = None) -> Tensor:
        """(R, 2C, S/2, S/2) and (R, C, S, S) → (R, C, S, S).

        With listed cells (R, n) the image's crop is (R, C, n), and the other cells keep the upsampled feature.
        """
        if uses_rows(coarse) and not is_watched(self.reduce):
            rows = apply_to_rows(to_rows(coarse), self.reduce.weight.flatten(1), self.reduce.bias)
            region = from_rows(rows.relu_(), coarse.shape[-1])
        else:
            region = F.relu(self.reduce(coarse))
        region = F.interpolate(region, scale_factor=2.0, mode="bilinear", align_corners=False)
        fused = self.aggregate(region, image, cells)
        return fused if cells is None else write_cells(region, cells, fused)

    def macs(self, size: int, cells: int | None = None) -> int:
        """MACs of one region whose output has the given side, of which all or a number of cells are computed."""
        module, count = self.aggregate, size * size if cells is None else cells
        convs = conv_macs(module.align_offsets, 1, count) + conv_macs(module.attend_offsets, 1, count)
        deformable = (module.align.weight.numel() + module.attend.weight.numel()) * count
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
        projected = [projection(map_) for projection, map_ in zip(self.projections, maps)]
        return [map_.contiguous(memory_format=torch.channels_last) if uses_rows(map_) else map_ for map_ in projected]

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
        refine: see :class:`dynamask.config.ModelConfig`.

    Attributes:
        checkpoint_stages: recompute the activations inside the stages in the backward pass instead of storing them.
        listed: number of listed cells at 14, 28, 56 and 112; None where every cell is computed. At the cells of a size
            that are not listed, the feature is the reduced and upsampled one of the coarser size, and mask and edge
            logits are the upsampled coarser ones, without gradient.
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
        refine: tuple[float, float, float] | None = None,
    ) -> None:
        super().__init__()
        self.map_strides = map_strides
        self.listed = listed_counts(refine)
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

    def keeps_logits(self, size_index: int) -> bool:
        """Return whether mask logits are kept with the features of a size, because its cells or the next are listed."""
        return any(count is not None for count in self.listed[size_index : size_index + 2])

    def begin(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> RegionState:
        """Project the maps and compute the 14×14 feature of R regions; see :meth:`MaskHead.begin`."""
        maps = self.project(features)
        tiny = self.base(crop_assigned_level(features, rois, MASK_SIZES[0], self.corner_cells, self.training))
        every = torch.arange(len(rois), device=rois.device)
        none = every[:0]
        empty = [map_.new_zeros((0, map_.shape[1], size, size)) for map_, size in zip(maps, MASK_SIZES[1:])]
        logits = [self.kept_logits(0, tiny, labels), *(rois.new_zeros((0, 0, 0)) for _ in empty)]
        cells = [labels.new_zeros((len(rois), 0)), *(labels.new_zeros((0, 0)) for _ in empty)]
        return RegionState(rois, labels, maps, [tiny, *empty], [every, none, none, none], logits, cells)

    def advance(self, state: RegionState, size_index: int, rows: Tensor) -> None:
        """Compute the features of the regions ``rows`` (n,) up to a size, running only the stages they lack."""
        for k in range(1, size_index + 1):
            known = torch.isin(rows, state.rows[k])
            missing = rows[~known]
            if len(missing) == 0:
                continue
            coarse, logits = state.gather(k - 1, missing), state.gather(k - 1, missing, state.logits)
            computed = self.next_size(k, coarse, logits, state.maps[k - 1], state.rois[missing], state.labels[missing])
            state.add(k, missing, *computed)

    def next_size(
        self, size_index: int, coarse: Tensor, logits: Tensor, projected_map: Tensor, rois: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From one size of n regions to the next.

        Args:
            size_index: of the next size S, 1 to 3.
            coarse: (n, 2C, S/2, S/2).
            logits: mask logits (n, S/2, S/2); read only if cells are listed at S.
            projected_map: (B, C, H, W).
            rois: (n, 5).
            labels: (n,) int64 ≥ 1.

        Returns:
            The feature (n, C, S, S); mask logits (n, S, S), or (n, 0, 0) where :meth:`keeps_logits` is False; the
            listed cells (n, L) int64, or (n, 0).
        """
        count = self.listed[size_index]
        if count is None:
            fine = self.stage(size_index, coarse, projected_map, rois)
            return fine, self.kept_logits(size_index, fine, labels), labels.new_zeros((labels.shape[0], 0))
        cells = band_cells(logits, MASK_SIZES[size_index], count)
        fine = self.stage(size_index, coarse, projected_map, rois, cells)
        found = class_logits(self.mask_predictors[size_index], gather_cells(fine, cells), labels)
        return fine, self._completed(logits, size_index, cells, found), cells

    def kept_logits(self, size_index: int, feature: Tensor, labels: Tensor) -> Tensor:
        """Mask logits (n, S, S) at every cell from features (n, C, S, S); (n, 0, 0) if they are not kept."""
        if not self.keeps_logits(size_index):
            return feature.new_zeros((feature.shape[0], 0, 0), dtype=torch.float32)
        return class_logits(self.mask_predictors[size_index], feature, labels).float()

    def _completed(self, coarse: Tensor, size_index: int, cells: Tensor, found: Tensor) -> Tensor:
        """Logits (n, S, S): those found (n, L) at listed cells, elsewhere the upsampled coarse ones (n, S/2, S/2)."""
        return scatter_cells(upsample(coarse.detach().float(), MASK_SIZES[size_index]), cells, found)

    def mask_logits(self, state: RegionState, size_index: int, rows: Tensor) -> Tensor:
        """See :meth:`MaskHead.mask_logits`."""
        if not self.keeps_logits(size_index):
            return super().mask_logits(state, size_index, rows)
        self.advance(state, size_index, rows)
        return state.gather(size_index, rows, state.logits)

    def edge_logits(self, state: RegionState, size_index: int, rows: Tensor) -> Tensor:
        """See :meth:`MaskHead.edge_logits`."""
        if self.listed[size_index] is None:
            return super().edge_logits(state, size_index, rows)
        self.advance(state, size_index, rows)
        cells = state.gather(size_index, rows, state.cells)
        found = apply_at_cells(self.edge_predictors[size_index], gather_cells(state.gather(size_index, rows), cells))
        with torch.no_grad():
            coarse = self.edge_logits(state, size_index - 1, rows)
        return self._completed(coarse, size_index, cells, found[:, 0])

    def stage(
        self, size_index: int, coarse: Tensor, projected_map: Tensor, rois: Tensor, cells: Tensor | None = None
    ) -> Tensor:
        """Stage to ``MASK_SIZES[size_index]``: (n, 2C, S/2, S/2) → (n, C, S, S); P is cropped with its own stride.

        With listed cells (n, L) the other cells keep the reduced and upsampled feature.
        """
        recomputed = self.checkpoint_stages and torch.is_grad_enabled()
        if not recomputed and not uses_rows(coarse):
            return self._stage(size_index, projected_map, coarse, rois, cells)
        together = CHECKPOINTED_ROIS if recomputed else self._regions_in_cache(size_index)
        parts = [tensor.split(together) for tensor in (coarse, rois, *([] if cells is None else [cells]))]
        options = {"use_reentrant": False, "preserve_rng_state": False}  # nothing in a stage is random
        compute = partial(checkpoint, self._stage, **options) if recomputed else self._stage
        return torch.cat([compute(size_index, projected_map, *some) for some in zip(*parts)])

    def _regions_in_cache(self, size_index: int) -> int:
        """Number of regions whose samples in a stage fill ``CACHED_BYTES``, at least 1."""
        size, count = MASK_SIZES[size_index], self.listed[size_index]
        weight = self.stages[size_index - 1].aggregate.align.weight
        return max(1, CACHED_BYTES // (4 * weight[0].numel() * (size * size if count is None else count)))

    def _stage(
        self, size_index: int, projected_map: Tensor, coarse: Tensor, rois: Tensor, cells: Tensor | None = None
    ) -> Tensor:
        size, stride = MASK_SIZES[size_index], self.map_strides[size_index - 1]
        here, stage = self.on_map(rois, stride), self.stages[size_index - 1]
        if cells is not None:
            return stage(coarse, sample_crops(projected_map, here, stride, size, cells), cells)
        if uses_rows(coarse):
            every = torch.arange(size * size).expand(len(rois), -1)
            crop = sample_crops(projected_map, here, stride, size, every).transpose(1, 2)
            return stage(coarse, from_rows(crop, size))
        crop = roi_align(projected_map.float(), here, size, 1.0 / stride, sampling_ratio=1, aligned=True)
        return stage(coarse, crop.to(projected_map.dtype))

    def computed_cells(self) -> tuple[int, ...]:
        """See :meth:`MaskHead.computed_cells`."""
        return tuple(size * size if count is None else count for size, count in zip(MASK_SIZES, self.listed))

    def tensor_functions(self) -> Iterator[TensorFunction]:
        """See :meth:`MaskHead.tensor_functions`."""
        yield region_function("base", self.base, (self.base[0].in_channels, MASK_SIZES[0], MASK_SIZES[0]))
        for size, stage, count in zip(MASK_SIZES[1:], self.stages, self.listed[1:]):
            width, half = stage.reduce.out_channels, size // 2
            picture = (width, size, size) if count is None else (width, count)
            if width >= COMPILED_CHANNELS:
                yield region_function(f"stage-{size}", stage, (2 * width, half, half), picture, cells=count)

    def macs_per_instance(self) -> tuple[int, ...]:
        """Cumulative MACs of one region that stops at 14, 28, 56, 112; see :meth:`MaskHead.macs_per_instance`."""
        running = sum(conv_macs(conv, MASK_SIZES[0], MASK_SIZES[0]) for conv in (self.base[0], self.base[2]))
        cumulative = []
        for k, (size, count) in enumerate(zip(MASK_SIZES, self.computed_cells())):
            if k:
                running += self.stages[k - 1].macs(size, count)
            predictor = self.mask_predictors[k].in_channels * count
            cumulative.append(running + predictor)
            running += predictor if self.keeps_logits(k) else 0
        return tuple(cumulative)


def listed_counts(refine: Sequence[float] | None) -> tuple[int | None, ...]:
    """Number of listed cells at 14, 28, 56 and 112 for shares at the last three; None for a share of 1."""
    shares = (1.0, *(refine or (1.0,) * (len(MASK_SIZES) - 1)))
    return tuple(None if f == 1 else max(1, round(f * size * size)) for f, size in zip(shares, MASK_SIZES))
