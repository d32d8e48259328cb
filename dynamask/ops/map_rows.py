"""Square maps as rows of a table, for inference on a CPU: convolutions at listed cells by gathering rows.

The channels of a cell are one row, so that gathering, bilinear sampling (``embedding_bag``) and writing move whole
rows, which is several times faster than with channels first. Nothing here has a gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 9
"""Taps of a 3×3 kernel."""


def uses_rows(maps: Tensor) -> bool:
    """Return whether maps (n, …) are computed on as rows: float32 on a CPU, without gradients, autocast and tracing."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    plain = (
        maps.device.type == "cpu"
        and maps.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_autocast_enabled("cpu")
    )
    return plain and not traced and not torch.is_grad_enabled() and len(maps) > 0


class MapRows:
    """Maps (n, C, S, S) as a table of rows, with zeros around each map.

    Args:
        maps: (n, C, S, S); the layout is not changed if they are channels-last.
        cells: (n, L) int64, the listed cells, row · S + column.

    Attributes:
        table: (n · (S + 3)², C); a map begins at row and column 1, and its border is one cell wide at the top and left,
            two at the bottom and right.
        rows: (n, L) int64, the rows of the table of the listed cells.
    """

    def __init__(self, maps: Tensor, cells: Tensor) -> None:
        self.count, self.channels, self.size = maps.shape[:3]
        self.side = self.size + 3
        padded = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 2, 1, 2))
        self.table = padded.reshape(self.count * self.side**2, self.channels)
        y, x = torch.div(cells, self.size, rounding_mode="floor") + 1, cells % self.size + 1
        first = torch.arange(self.count, device=maps.device)[:, None] * self.side**2
        self.rows = first + y * self.side + x
        self.centres = torch.stack([y, x]).float()[..., None]  # (2, n, L, 1)
        self.first = first.to(torch.int32)[..., None]  # (n, 1, 1)

    def write(self, values: Tensor) -> None:
        """Replace the listed cells by values (n, L, C)."""
        rows = self.rows.reshape(self.rows.shape[0] * self.rows.shape[1])
        self.table.index_copy_(0, rows, values.reshape(rows.shape[0], self.channels).to(self.table.dtype))

    def patches(self) -> Tensor:
        """The 3×3 surroundings of the listed cells: (n, L, 9·C), tap by tap."""
        near = torch.arange(3, device=self.rows.device) - 1
        steps = (near[:, None] * self.side + near).reshape(TAPS)
        rows = self.rows[..., None] + steps  # (n, L, 9)
        found = self.table.index_select(0, rows.reshape(rows.shape[0] * rows.shape[1] * TAPS))
        return found.reshape(*self.rows.shape, TAPS * self.channels)

    def sample(self, steps: Tensor, groups: int) -> Tensor:
        """Bilinear values around the listed cells, zero outside the map.

        Args:
            steps: (n, L, 2·groups·9) from a cell to where its taps are read, in cells: all Δy, then all Δx; see
                :func:`step_layer`.
            groups: number of groups of channels with steps of their own.

        Returns:
            (n, L, groups·9·(C / groups)).
        """
        count, length, half = *self.rows.shape, groups * TAPS
        place = torch.empty((2, count, length, half), device=steps.device)
        for axis in range(2):
            torch.add(steps[..., axis * half : (axis + 1) * half], self.centres[axis], out=place[axis])
        place.clamp_(0, self.size + 1)
        low = place.floor()
        far = place.sub_(low)
        near = 1 - far
        weights = torch.empty((count, length, half, 4), device=steps.device)
        for corner, (y, x) in enumerate(((near, near), (near, far), (far, near), (far, far))):
            torch.mul(y[0], x[1], out=weights[..., corner])
        first = torch.add(low[1], low[0], alpha=self.side).to(torch.int32).add_(self.first)
        if groups > 1:
            group = torch.arange(groups, dtype=torch.int32, device=steps.device).repeat_interleave(TAPS)
            first = first.mul_(groups).add_(group)
        jumps = (1, self.side, self.side + 1)
        corners = torch.stack([first, *(first + groups * jump for jump in jumps)], dim=-1)
        bags = count * length * half
        found = F.embedding_bag(
            corners.reshape(bags, 4),
            self.table.reshape(self.table.shape[0] * groups, self.channels // groups),
            per_sample_weights=weights.reshape(bags, 4).to(self.table.dtype),
            mode="sum",
        )
        return found.reshape(count, length, TAPS * self.channels)


def crop_on_rows(feature_map: Tensor, rois: Tensor, stride: int, size: int, samples: int = 2) -> Tensor:
    """RoIAlign (aligned) with samples² samples per cell, as one weighted sum of rows for each cell.

    Args:
        feature_map: (B, C, H, W); without a copy if it is channels-last.
        rois: (n, 5) batch index and xyxy in pixels.
        stride: pixels per cell of the map.
        size: side S of the crops.
        samples: samples along a side of a cell.

    Returns:
        (n, C, S, S), channels-last.
    """
    channels, height, width = feature_map.shape[1:]
    low, high = rois[:, 1:3] / stride, rois[:, 3:5] / stride
    steps = torch.arange(size * samples, device=rois.device) + 0.5
    found = []
    for axis, limit in ((1, height), (0, width)):
        start, end = low[:, axis : axis + 1], high[:, axis : axis + 1]
        place = start - 0.5 + steps * ((end - start) / (size * samples))  # (n, S·samples)
        inside = (place >= -1) & (place <= limit)
        place = place.clamp_(0, limit - 1)
        first = place.floor()
        far = place - first
        share = torch.stack([1 - far, far], dim=-1) * inside[..., None]
        near = torch.stack([first, (first + 1).clamp_(max=limit - 1)], dim=-1).to(torch.int32)
        found.append((near.unflatten(1, (size, samples)).flatten(2), share.unflatten(1, (size, samples)).flatten(2)))
    (y, down), (x, right) = found  # (n, S, 2·samples) each
    y = (y + (rois[:, 0].to(torch.int32) * height)[:, None, None]) * width
    bags, corners = len(rois) * size * size, (2 * samples) ** 2
    table = to_rows(feature_map.contiguous(memory_format=torch.channels_last)).reshape(-1, channels)
    crops = F.embedding_bag(
        (y[:, :, None, :, None] + x[:, None, :, None]).reshape(bags, corners),
        table,
        per_sample_weights=(down[:, :, None, :, None] * right[:, None, :, None] / samples**2).reshape(bags, corners),
        mode="sum",
    )
    return from_rows(crops.reshape(len(rois), size * size, channels), size)


def to_rows(maps: Tensor) -> Tensor:
    """Maps (n, C, S, S) as rows (n, S², C); a view if they are channels-last."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, maps.shape[1])


def from_rows(rows: Tensor, size: int) -> Tensor:
    """Rows (n, S², C) as channels-last maps (n, C, S, S), a view."""
    return rows.unflatten(1, (size, size)).permute(0, 3, 1, 2)


def apply_to_rows(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(n, L, K) times weight (C_out, K), plus bias (C_out,) or (n, L, C_out): (n, L, C_out)."""
    return torch.baddbmm(bias, values, weight.t().expand(len(values), -1, -1))


def patch_weight(weight: Tensor) -> Tensor:
    """Weight (C_out, C, 3, 3) of a convolution for :meth:`MapRows.patches`: (C_out, 9·C)."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def sample_weight(weight: Tensor, groups: int) -> Tensor:
    """Weight (C_out, C, 3, 3) of a deformable convolution for :meth:`MapRows.sample`: (C_out, 9·C), by groups."""
    return weight.reshape(weight.shape[0], groups, -1, TAPS).transpose(2, 3).flatten(1)


def step_layer(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A layer of offsets in torchvision's order as one of steps for :meth:`MapRows.sample`.

    Args:
        weight: (groups·9·2, …), the layer's weight.
        bias: (groups·9·2,).

    Returns:
        The weight and the bias; a step is the distance from the cell to the tap plus the offset.
    """
    weight = weight.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
    near = torch.arange(3, dtype=bias.dtype, device=bias.device) - 1
    taps = torch.stack([near.repeat_interleave(3), near.repeat(3)])  # (2, 9)
    return weight, (bias.reshape(-1, TAPS, 2).permute(2, 0, 1) + taps[:, None]).flatten()
