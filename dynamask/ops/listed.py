"""Square maps at listed cells: choosing the cells nearest to an outline, and reading and writing values there.

Cells are row · S + column of an S×S map, int64, and ascending in each row of a list (n, L).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamask.ops.map_rows import uses_rows


def upsample(values: Tensor, size: int) -> Tensor:
    """Bilinear resize of (n, s, s) to (n, size, size), cell centres aligned."""
    return F.interpolate(values[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]


@torch.no_grad()
def band_cells(logits: Tensor, size: int, count: int) -> Tensor:
    """The cells of a finer grid whose logits, upsampled bilinearly, are nearest to zero.

    Of equal distances the lower cell comes first, so the choice depends neither on the batch nor on the algorithm of
    ``topk``. It has no gradient.

    Args:
        logits: (n, s, s) of the coarser grid.
        size: side S of the finer grid.
        count: number L of cells of each map, 1 to S².

    Returns:
        (n, L) int64, ascending.
    """
    distance = upsample(logits.float(), size).abs().flatten(1).contiguous()
    order = distance.view(torch.int32).to(torch.int64)  # bits of floats ≥ 0 have the order of the floats
    keys = order * distance.shape[1] + torch.arange(distance.shape[1], device=distance.device)
    return keys.topk(count, dim=1, largest=False, sorted=False).indices.sort(dim=1).values


def gather_cells(maps: Tensor, cells: Tensor) -> Tensor:
    """Values (n, C, L) of maps (n, C, S, S) at cells (n, L)."""
    if uses_rows(maps):
        rows, channels = _rows(maps, cells), maps.shape[1]
        found = maps.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, rows)
        return found.reshape(*cells.shape, channels).transpose(1, 2)
    return maps.flatten(2).gather(2, cells[:, None].expand(-1, maps.shape[1], -1))


def scatter_cells(maps: Tensor, cells: Tensor, values: Tensor) -> Tensor:
    """A copy of maps (n, C, S, S), or (n, S, S), with values (n, C, L), or (n, L), at cells (n, L)."""
    index = cells if maps.ndim == 3 else cells[:, None].expand(-1, maps.shape[1], -1)
    return maps.flatten(-2).scatter(-1, index, values.to(maps.dtype)).reshape(maps.shape)


def write_cells(maps: Tensor, cells: Tensor, values: Tensor) -> Tensor:
    """:func:`scatter_cells` for maps (n, C, S, S) that may be overwritten; they are if they are channels-last."""
    if not uses_rows(maps) or not maps.is_contiguous(memory_format=torch.channels_last):
        return scatter_cells(maps, cells, values)
    table = maps.permute(0, 2, 3, 1).view(-1, maps.shape[1])
    table.index_copy_(0, _rows(maps, cells), values.transpose(1, 2).reshape(-1, maps.shape[1]))
    return maps


def _rows(maps: Tensor, cells: Tensor) -> Tensor:
    """(n·L,) numbers of cells (n, L) among all cells of maps (n, C, S, S)."""
    first = torch.arange(len(cells), device=cells.device)[:, None] * (maps.shape[2] * maps.shape[3])
    return (cells + first).reshape(-1)


def gather_patches(maps: Tensor, cells: Tensor) -> Tensor:
    """The 3×3 surroundings of cells, zero outside the map: the columns of a convolution with "same" padding.

    Args:
        maps: (n, C, S, S).
        cells: (n, L).

    Returns:
        (n, C·9, L), ordered as ``weight.flatten(1)`` of a convolution with kernel 3.
    """
    count, channels, size = maps.shape[:3]
    padded = F.pad(maps, (1, 1, 1, 1)).flatten(2)  # (n, C, (S + 2)²)
    taps = torch.arange(3, device=cells.device)
    offsets = (taps[:, None] * (size + 2) + taps).reshape(1, 9, 1)
    corner = torch.div(cells, size, rounding_mode="floor") * (size + 2) + cells % size  # of the patch, (n, L)
    index = (corner[:, None] + offsets).reshape(count, 1, 9 * cells.shape[1])
    return padded.gather(2, index.expand(-1, channels, -1)).reshape(count, channels * 9, cells.shape[1])


def sample_crops(feature_map: Tensor, rois: Tensor, stride: int, size: int, cells: Tensor) -> Tensor:
    """RoIAlign (aligned, one sample per cell) at listed cells of the crops.

    Args:
        feature_map: (B, C, H, W).
        rois: (n, 5) batch index and xyxy in pixels.
        stride: pixels per cell of the map.
        size: side S of the crops.
        cells: (n, L).

    Returns:
        (n, C, L) float32, equal to those cells of ``roi_align(feature_map, rois, size, 1 / stride, 1, True)``.
    """
    channels, height, width = feature_map.shape[1:]
    count = cells.shape[0] * cells.shape[1]
    low, high = rois[:, 1:3] / stride, rois[:, 3:5] / stride
    side = (high - low) / size
    column, row = cells % size, torch.div(cells, size, rounding_mode="floor")
    x = low[:, :1] - 0.5 + (column + 0.5) * side[:, :1]  # (n, L)
    y = low[:, 1:] - 0.5 + (row + 0.5) * side[:, 1:]
    inside = (x >= -1) & (x <= width) & (y >= -1) & (y <= height)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    x0, y0 = x.floor(), y.floor()
    right, below = x - x0, y - y0
    first = rois[:, :1].long() * height
    tops = [(first + y0.long()) * width, (first + (y0.long() + 1).clamp(max=height - 1)) * width]
    lefts = [x0.long(), (x0.long() + 1).clamp(max=width - 1)]
    index = torch.stack([top + left for top in tops for left in lefts], dim=-1)  # (n, L, 4)
    shares = [(1 - below) * (1 - right), (1 - below) * right, below * (1 - right), below * right]
    weights = torch.stack(shares, dim=-1) * inside[..., None]
    table = feature_map.float().permute(0, 2, 3, 1).reshape(-1, channels)
    found = F.embedding_bag(
        index.reshape(count, 4), table, per_sample_weights=weights.reshape(count, 4).to(table.dtype), mode="sum"
    )
    return found.reshape(*cells.shape, channels).transpose(1, 2)
