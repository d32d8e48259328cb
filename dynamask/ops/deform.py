"""Deformable convolution: torchvision's operator on an accelerator, and an equal, faster implementation on the CPU.

torchvision's CPU kernel is single-threaded; bilinear sampling by ``grid_sample`` and one matrix product give the same
values and gradients several times faster.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d


def sampled_deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None, cells: Tensor | None = None
) -> Tensor:
    """Deformable convolution of stride 1 and "same" padding by ``grid_sample`` and a matrix product.

    Args:
        input: (N, C, H, W).
        offset: (N, 2·g·kh·kw, H, W) in pixels of the input, (Δy, Δx) pairs, g offset groups (torchvision's order).
        weight: (C_out, C, kh, kw), odd kernel sides.
        bias: (C_out,) or None.
        cells: (N, L) int64, row · W + column; only these cells are computed, and the offset is (N, 2·g·kh·kw, L).

    Returns:
        (N, C_out, H, W), or (N, C_out, L) at listed cells; samples outside the border are zero, as in
        ``torchvision.ops.deform_conv2d``. Positions are at least float32, because bfloat16 does not resolve half a
        pixel of 112.
    """
    n, channels, height, width = input.shape
    out_channels, _, kernel_h, kernel_w = weight.shape
    taps = kernel_h * kernel_w
    groups = offset.shape[1] // (2 * taps)
    exact = {"device": input.device, "dtype": torch.promote_types(input.dtype, torch.float32)}
    every = torch.arange(height * width, device=input.device)[None] if cells is None else cells  # (1 or N, L)
    count = every.shape[1]
    delta = offset.to(exact["dtype"]).reshape(n, groups, taps, 2, count)
    tap_y = torch.arange(kernel_h, **exact).repeat_interleave(kernel_w) - kernel_h // 2
    tap_x = torch.arange(kernel_w, **exact).repeat(kernel_h) - kernel_w // 2
    base_y = tap_y[:, None] + torch.div(every, width, rounding_mode="floor")[:, None, None]  # (1 or N, 1, taps, L)
    base_x = tap_x[:, None] + (every % width)[:, None, None]
    # align_corners=False: pixel i lies at (2i + 1) / side - 1, which is also defined for a side of one pixel
    grid_y = (delta[:, :, :, 0] + base_y) * (2.0 / height) + (1.0 / height - 1.0)
    grid_x = (delta[:, :, :, 1] + base_x) * (2.0 / width) + (1.0 / width - 1.0)
    grid = torch.stack([grid_x, grid_y], dim=-1).reshape(n * groups, taps, count, 2)
    sampled = F.grid_sample(
        input.to(exact["dtype"]).reshape(n * groups, channels // groups, height, width),
        grid,
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )  # (N*g, C/g, taps, L)
    columns_matrix = sampled.to(weight.dtype).reshape(n, channels * taps, count)
    matrix = weight.reshape(out_channels, channels * taps).expand(n, -1, -1)  # torch.matmul would copy the columns
    out = torch.bmm(matrix, columns_matrix)  # (N, C_out, L)
    if bias is not None:
        out = out + bias[:, None].to(out.dtype)
    return out.reshape(n, out_channels, height, width) if cells is None else out


def deform_conv2d(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Deformable convolution, stride 1, "same" padding; shapes as in :func:`sampled_deform_conv2d`.

    ``torch.jit.trace`` records torchvision's operator, which converters to other frameworks know.
    """
    if input.device.type == "cpu" and not torch.jit.is_tracing():
        return sampled_deform_conv2d(input, offset, weight, bias)
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    return torchvision_deform_conv2d(input, offset, weight, bias, padding=padding)


def deform_conv2d_at_cells(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, cells: Tensor) -> Tensor:
    """Deformable convolution at listed cells; shapes as in :func:`sampled_deform_conv2d`, of square maps.

    ``torch.jit.trace`` records torchvision's operator with an output of ⌈L / S⌉ rows, whose cells are the listed ones:
    the way from the place of an output to the listed cell is added to its offsets.
    """
    if not torch.jit.is_tracing():
        return sampled_deform_conv2d(input, offset, weight, bias, cells)
    size, count, pad = input.shape[3], cells.shape[1], weight.shape[3] // 2
    rows = math.ceil(count / size)
    stride = math.ceil(size / rows)
    over = max(0, math.ceil((stride * (rows - 1) - size + weight.shape[2]) / 2))  # padding that gives these rows
    places = torch.arange(rows * size, device=cells.device)
    listed = F.pad(cells, (0, rows * size - count))
    way_y = torch.div(listed, size, rounding_mode="floor") - (places // size * stride - over + weight.shape[2] // 2)
    way = torch.stack([way_y, listed % size - places % size], dim=1).to(offset.dtype)  # (N, 2, rows·S)
    moved = F.pad(offset, (0, rows * size - count)).unflatten(1, (-1, 2)) + way[:, None]
    field = moved.flatten(1, 2).unflatten(2, (rows, size))
    out = torchvision_deform_conv2d(input, field, weight, bias, stride=(stride, 1), padding=(over, pad))
    return out.flatten(2)[..., :count]


class DeformConv2d(nn.Module):
    """A deformable convolution of stride 1, whose offsets are an input.

    Args:
        offset_groups: number of groups of input channels, each with its own offsets; must divide ``in_channels``.
    """

    def __init__(self, in_channels: int, out_channels: int, offset_groups: int = 1, kernel_size: int = 3) -> None:
        super().__init__()
        if in_channels % offset_groups:
            raise ValueError(f"in_channels={in_channels} is not divisible by offset_groups={offset_groups}")
        self.offset_groups = offset_groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    @property
    def offset_channels(self) -> int:
        """Channels of the offset field: 2 · groups · kernel area."""
        return 2 * self.offset_groups * self.weight.shape[2] * self.weight.shape[3]

    def forward(self, input: Tensor, offset: Tensor) -> Tensor:
        """(N, C, H, W) and (N, offset_channels, H, W) → (N, C_out, H, W)."""
        return deform_conv2d(input, offset, self.weight, self.bias)

    def at_cells(self, input: Tensor, offset: Tensor, cells: Tensor) -> Tensor:
        """The output (N, C_out, L) at cells (N, L) alone; the offset is (N, offset_channels, L)."""
        return deform_conv2d_at_cells(input, offset, self.weight, self.bias, cells)

    def plain(self, input: Tensor) -> Tensor:
        """The same convolution with all offsets zero: (N, C, H, W) → (N, C_out, H, W)."""
        padding = (self.weight.shape[2] // 2, self.weight.shape[3] // 2)
        return F.conv2d(input, self.weight, self.bias, padding=padding)
