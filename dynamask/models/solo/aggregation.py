"""SODAR's aggregation: neighbouring mask representations and a context feature → one mask (§ III of the paper).

The representations of SOLO and SOLOv2 are linear in a vector of their cell (a row of a 1×1 convolution with its bias,
or a predicted kernel). So vectors are gathered, or sampled bilinearly, and only the required representations are
decoded, which equals sampling the dense maps of all cells. The aggregation depends on no model: it needs a function
that decodes the representations of some instances; :mod:`dynamask.models.solo.condinst` is another user.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamask.config import NEIGHBOURS, AggregationConfig

Decoder = Callable[[slice], Tensor]
"""Function from a slice of the instances to their representations (n, S, h, w)."""
_CHUNK_VALUES = 12_000_000
"""Number of values of decoded representations that are held at a time if no gradient is needed."""


def base_positions(cell: Tensor, grid: int, mask_grid: int, interpolation: str = "rounded") -> Tensor:
    """Positions (N, 2) float (row, column) of classification cells on the grid of representations.

    Args:
        cell: (N,) int64, row · G + column.
        grid: G.
        mask_grid: G′.
        interpolation: "rounded": i·(G′−1)/(G−1), rounded half to even; "between": the same, not rounded; "floor":
            ⌊i·G′/G⌋, the paper's formula.
    """
    index = torch.stack([cell // grid, cell % grid], dim=1)
    if interpolation == "floor":
        return (index * mask_grid // grid).to(torch.float64)
    position = index.to(torch.float64) * ((mask_grid - 1) / max(grid - 1, 1))
    return position.round() if interpolation == "rounded" else position


def neighbour_positions(base: Tensor, neighbours: str, mask_grid: int) -> Tensor:
    """Positions (N, S, 2) float (row, column) of the neighbours of base positions (N, 2).

    "corners" are the floor and ceil corners in the order (low, high), (high, high), (high, low), (low, low) of
    (row, column); the other names are offsets, see ``NEIGHBOURS``. Positions may lie outside the grid.
    """
    if neighbours == "corners":
        low = base.floor()
        high = torch.minimum(base.ceil(), torch.full_like(base, mask_grid - 1))
        rows = torch.stack([low[:, 0], high[:, 0], high[:, 0], low[:, 0]], dim=1)
        columns = torch.stack([high[:, 1], high[:, 1], low[:, 1], low[:, 1]], dim=1)
        return torch.stack([rows, columns], dim=2)  # (N, 4, 2)
    return base[:, None] + base.new_tensor(NEIGHBOURS[neighbours])


def sample_vectors(vectors: Tensor, image: Tensor, positions: Tensor, border: str) -> Tensor:
    """Bilinear samples of per-cell vectors.

    Args:
        vectors: (B, V, rows, columns), or (1, V, rows, columns) shared by all images.
        image: (N,) int64.
        positions: (N, S, 2) (row, column); whole numbers give the vectors of the cells exactly.
        border: "clamp" moves positions outside the grid to its border; "zero" interpolates with zeros.

    Returns:
        (N, S, V).
    """
    batch, size, rows, columns = vectors.shape
    last = torch.tensor([rows - 1, columns - 1], dtype=positions.dtype, device=positions.device)
    if border == "clamp":
        positions = torch.minimum(positions.clamp_min(0), last)
    low = positions.detach().floor()
    share = (positions - low).to(vectors.dtype)
    corners = (0, 1) if share.requires_grad or bool(share.any()) else (0,)  # one cell for whole numbers
    flat = vectors.permute(0, 2, 3, 1).reshape(batch * rows * columns, size)
    first = (image if batch > 1 else torch.zeros_like(image))[:, None] * (rows * columns)
    out = vectors.new_zeros((*positions.shape[:2], size))
    for down in corners:
        for right in corners:
            row, column = low[..., 0].long() + down, low[..., 1].long() + right
            weight = (share[..., 0] if down else 1 - share[..., 0]) * (share[..., 1] if right else 1 - share[..., 1])
            inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            index = first + row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)
            out = out + flat[index] * (weight * inside)[..., None]
    return out


def decode(vectors: Tensor, image: Tensor, features: Tensor) -> Tensor:
    """Representations of sampled vectors: 1×1 convolutions of the feature of their image.

    Args:
        vectors: (N, S, V): C weights, and a bias if V = C + 1.
        image: (N,) int64, in rising order.
        features: (B, C, h, w).

    Returns:
        (N, S, h, w) logits; in memory the N · S values of a pixel are adjacent, as :func:`dynamic_network` expects.
    """
    channels, (height, width) = features.shape[1], features.shape[2:]
    parts = []
    for index, own in enumerate(torch.bincount(image, minlength=len(features)).tolist()):
        if own:
            rows = vectors[image == index].flatten(0, 1)  # (n·S, V)
            maps = features[index].flatten(1).T @ rows[:, :channels].T  # (h·w, n·S)
            parts.append(maps if rows.shape[1] == channels else maps + rows[:, channels:].sum(1))
    joint = _joined(parts, 1) if parts else features.new_zeros((height * width, 0))
    return joint.reshape(height, width, len(image), vectors.shape[1]).permute(2, 3, 0, 1)


def split_theta(theta: Tensor, widths: Sequence[int], kernel: int) -> list[tuple[Tensor, Tensor]]:
    """θ (N, D), weights and then biases of each layer → weight (N, out, in, k, k) and bias (N, out) per layer."""
    layers, start = [], 0
    for fan_in, fan_out in zip(widths, widths[1:]):
        end = start + fan_in * fan_out * kernel * kernel
        weight = theta[:, start:end].reshape(-1, fan_out, fan_in, kernel, kernel)
        layers.append((weight, theta[:, end : end + fan_out]))
        start = end + fan_out
    return layers


def starting_theta(config: AggregationConfig) -> Tensor:
    """Initial θ (D,) of a network that returns the centre representation, so that training starts from the plain model.

    Two hidden units pass the representation and its negative through the ReLUs; the others are random, and the last
    layer initially ignores them. "corners" are averaged. With only the context, or a single hidden unit, all weights
    are random. The paper initialises from N(0, 0.01²) instead.
    """
    middle, parts = config.kernel // 2, []
    for number, (fan_in, fan_out) in enumerate(zip(config.widths, config.widths[1:]), start=1):
        weight = torch.randn(fan_out, fan_in, config.kernel, config.kernel) / math.sqrt(fan_in * config.kernel**2)
        if config.samples and (config.hidden > 1 or config.layers == 1):
            first, last = number == 1, number == config.layers
            read = _carried(config)[None] if first else torch.eye(2, fan_in)
            rows = read * torch.tensor([[1.0], [-1.0]]) if first else read
            if last:
                rows = rows[:1] if first else rows[:1] - rows[1:]
            weight[: len(rows)] = 0
            weight[: len(rows), : rows.shape[1], middle, middle] = rows
        parts += [weight.flatten(), torch.zeros(fan_out)]
    return torch.cat(parts)


def _carried(config: AggregationConfig) -> Tensor:
    """(S,) initial weight of each representation."""
    if config.neighbours == "corners":
        return torch.full((config.samples,), 1 / config.samples)
    return torch.tensor([float(offset == (0, 0)) for offset in NEIGHBOURS[config.neighbours]])


def dynamic_network(
    representations: Tensor, context: Tensor | None, image: Tensor, theta: Tensor, widths: Sequence[int], kernel: int
) -> Tensor:
    """A small convolutional network with individual weights for every instance, evaluated by grouped convolutions.

    The input of the first layer are the representations and the context. Its part for the context, which the instances
    of a picture share, is one ordinary convolution per picture, so that the context is not copied. For speed, all
    tensors are channels-last, and the last layer, with a single output, is a depthwise convolution and a sum.

    Args:
        representations: (N, S, h, w); S may be 0.
        context: (B, K, h, w), or None.
        image: (N,) int64, in rising order.
        theta: (N, D), see :func:`split_theta`.
        widths: channels from S + K to 1; ReLU between the layers, none after the last.
        kernel: side, zero-padded.

    Returns:
        (N, h, w) logits.
    """
    count, samples, height, width = representations.shape
    if count == 0:
        return representations.new_zeros((0, height, width)) + theta.sum() * 0
    layers, padding = split_theta(theta, widths, kernel), kernel // 2
    weight, bias = layers[0]
    if samples:
        own = weight[:, :, :samples].flatten(0, 1)  # (N·out, S, k, k)
        x = F.conv2d(_folded(representations), own, bias.flatten(), padding=padding, groups=count)
    else:
        x = bias.reshape(1, -1, 1, 1)
    if context is not None:
        shared = weight[:, :, samples:].flatten(0, 1).split((torch.bincount(image) * weight.shape[1]).tolist())
        pixels = context.contiguous(memory_format=torch.channels_last)
        maps = [F.conv2d(pixels[i : i + 1], w, padding=padding) for i, w in enumerate(shared) if len(w)]
        x = x + _joined(maps, 1)  # (1, N·out, h, w)
    for weight, bias in layers[1:-1]:
        x = F.conv2d(F.relu_(x), weight.flatten(0, 1), bias.flatten(), padding=padding, groups=count)
    if len(layers) > 1:
        weight, bias = layers[-1]
        single = weight.flatten(0, 2)[:, None]  # (N·in, 1, k, k)
        x = F.conv2d(F.relu_(x), single, padding=padding, groups=len(single)).reshape(count, -1, height, width)
        x = sum(x.unbind(1), bias[:, :, None])  # faster than .sum(1) in channels-last layout
    return x.reshape(count, height, width)


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _folded(x: Tensor) -> Tensor:
    """(N, S, h, w) → (1, N·S, h, w), channels-last; the output of :func:`decode` is not copied."""
    pixels = x.permute(2, 3, 0, 1).flatten(2)[None]  # (1, h, w, N·S)
    return pixels.permute(0, 3, 1, 2)


def linear_decoder(vectors: Tensor, image: Tensor, features: Tensor) -> Decoder:
    """The decoder of SOLO and SOLOv2, from sampled vectors (N, S, V); see :func:`decode`."""
    return lambda part: decode(vectors[part], image[part], features)


class MultiLevelContext(nn.Module):
    """F_c: fuses all pyramid levels at the size of the finest into a few channels.

    Args:
        in_channels: of each level.
        out_channels: of the context.
        fusion: "sum" or "concat" of the levels.
        levels: number of levels.
        groups: of the GroupNorm.
    """

    def __init__(self, in_channels: int, out_channels: int, fusion: str, levels: int = 5, groups: int = 32) -> None:
        super().__init__()
        self.fusion = fusion
        fan_in = in_channels * (levels if fusion == "concat" else 1)
        self.reduce = nn.Sequential(nn.Conv2d(fan_in, in_channels, 1), nn.GroupNorm(groups, in_channels), nn.ReLU(True))
        self.out = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.ReLU())

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H_l, W_l), finest first → (B, out_channels, H_0, W_0)."""
        size = levels[0].shape[-2:]
        others = (_enlarged(x, size) for x in levels[1:])
        if self.fusion == "concat":
            joint = torch.cat([levels[0], *others], dim=1)
        else:
            joint = reduce(Tensor.add_, chain(others, levels[:1]))  # in place, into a resized level
        return self.out(self.reduce(joint))


def _enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly to (H, W) in channels-last layout, which is faster."""
    pixels = x.contiguous(memory_format=torch.channels_last)
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=True)


def instances_at_once(in_channels: int, height: int, width: int) -> int:
    """Number of instances that are aggregated together if no gradient is needed, to bound the memory."""
    return max(1, _CHUNK_VALUES // (in_channels * height * width))


class NeighbourAggregation(nn.Module):
    """Aggregates the representations around a cell and the context by a dynamic (or a static) network.

    Args:
        config: of the aggregation.
    """

    def __init__(self, config: AggregationConfig) -> None:
        super().__init__()
        self.config = config
        self.theta = None
        if config.weights == "static":
            self.theta = nn.Parameter(starting_theta(config))

    def positions(self, cell: Tensor, grid: int, mask_grid: int, offsets: Tensor | None = None) -> Tensor:
        """(N, S, 2) positions on the grid of representations; offsets (N, 2·S) are (Δrow, Δcolumn) pairs."""
        corners = self.config.neighbours == "corners"
        base = base_positions(cell, grid, mask_grid, "between" if corners else self.config.interpolation)
        positions = neighbour_positions(base, self.config.neighbours, mask_grid)
        return positions if offsets is None else positions + offsets.reshape(len(cell), -1, 2).to(positions.dtype)

    def forward(
        self, decoder: Decoder, image: Tensor, size: tuple[int, int], context: Tensor | None, theta: Tensor | None
    ) -> Tensor:
        """Mask logits (N, h, w), computed in chunks if no gradient is needed.

        Args:
            decoder: decodes the representations of a slice of the instances.
            image: (N,) int64, in rising order.
            size: (h, w).
            context: (B, context_channels, h, w); ignored by an aggregation without context.
            theta: (N, D); None for static weights.
        """
        together = instances_at_once(self.config.in_channels, *size)
        step = max(1, len(image)) if torch.is_grad_enabled() else together
        parts = [slice(start, start + step) for start in range(0, max(len(image), 1), step)]
        theta = self.theta.expand(len(image), -1) if theta is None else theta
        return _joined([self._part(decoder, part, image[part], size, context, theta[part]) for part in parts], 0)

    def _part(
        self,
        decoder: Decoder,
        part: slice,
        image: Tensor,
        size: tuple[int, int],
        context: Tensor | None,
        theta: Tensor,
    ) -> Tensor:
        config = self.config
        maps = decoder(part) if config.samples else theta.new_zeros((len(image), 0, *size))
        context = None if config.context == "without" else context
        return dynamic_network(maps, context, image, theta, config.widths, config.kernel)
