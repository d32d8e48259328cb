"""Targets of one-stage models (SOLO, § 3): the cells that learn each object, and its mask at the mask stride."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamask.ops.mask_windows import MaskWindows


@dataclass(frozen=True)
class Assignment:
    """The cells of one level that learn an object, one entry per cell.

    Attributes:
        image: (P,) int64, index in the batch.
        cell: (P,) int64, row · G + column.
        instance: (P,) int64, row in the targets of the image.
        label: (P,) int64 ≥ 1.
    """

    image: Tensor
    cell: Tensor
    instance: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.image)


def joined(levels: Sequence[Assignment]) -> tuple[Assignment, Tensor]:
    """The cells of several levels sorted by image, and the index (P,) of the level of each."""
    level = torch.repeat_interleave(torch.tensor([len(own) for own in levels]))
    fields = [torch.cat([getattr(own, name) for own in levels]) for name in ("image", "cell", "instance", "label")]
    order = fields[0].argsort(stable=True)
    return Assignment(*(field[order] for field in fields)), level[order]


def centres_of_mass(masks: Tensor | MaskWindows) -> Tensor:
    """(N, 2) float64 (x, y) in continuous mask pixels of (N, H, W) masks of 0 and 1; NaN for an empty mask."""
    if isinstance(masks, MaskWindows):
        centres = [centres_of_mass(part.dense()) for part in masks.batches()]
        return torch.cat([torch.zeros(0, 2, dtype=torch.float64), *centres])
    weights = masks.to(torch.float64)
    total = weights.sum((1, 2))
    rows = torch.arange(masks.shape[1], device=masks.device, dtype=torch.float64) + 0.5
    columns = torch.arange(masks.shape[2], device=masks.device, dtype=torch.float64) + 0.5
    x, y = (weights.sum(1) * columns).sum(1), (weights.sum(2) * rows).sum(1)
    return torch.stack([x, y], dim=1) / total[:, None]


def centre_cells(
    centre: tuple[float, float], sides: tuple[float, float], frame: tuple[int, int], grid: int, share: float
) -> list[int]:
    """Cells (row · G + column) of a G×G grid over the frame that learn an object: at most 3×3.

    Args:
        centre: (x, y) of the centre of mass of its mask, pixels of the frame.
        sides: (width, height) of its box.
        frame: (H, W) of the padded batch.
        share: σ; the cells cover centre ± σ/2 · sides, at most one cell from that of the centre.
    """
    spans = []
    for middle, side, extent in ((centre[1], sides[1], frame[0]), (centre[0], sides[0], frame[1])):
        own = min(grid - 1, max(0, math.floor(middle * grid / extent)))
        low = math.floor((middle - share * side / 2) * grid / extent)
        high = math.floor((middle + share * side / 2) * grid / extent)
        spans.append(range(max(0, low, own - 1), min(grid - 1, high, own + 1) + 1))
    return [row * grid + column for row in spans[0] for column in spans[1]]


def assign(
    targets: Sequence[dict[str, Tensor]],
    frame: tuple[int, int],
    grids: Sequence[int],
    ranges: Sequence[tuple[int, int]],
    share: float,
) -> list[Assignment]:
    """The cells of every level that learn an object; of several objects a cell learns the last one.

    Args:
        targets: per image ``centres`` (N, 2) (x, y) and ``boxes`` (N, 4) in network-input pixels, ``labels`` (N,). An
            object whose centre is NaN (an empty mask) is ignored.
        frame: (H, W) of the padded batch.
        grids: G of every level.
        ranges: √(w·h) of the objects of every level, inclusive.
        share: σ of :func:`centre_cells`.
    """
    levels = []
    for grid, (low, high) in zip(grids, ranges, strict=True):
        rows: list[tuple[int, int, int, int]] = []
        for image, target in enumerate(targets):
            taken: dict[int, tuple[int, int]] = {}
            objects = zip(target["centres"].tolist(), target["boxes"].tolist(), target["labels"].tolist())
            for instance, (centre, box, label) in enumerate(objects):
                width, height = box[2] - box[0], box[3] - box[1]
                if math.isnan(centre[0]) or not low <= math.sqrt(max(width * height, 0.0)) <= high:
                    continue
                for cell in centre_cells(tuple(centre), (width, height), frame, grid, share):
                    taken[cell] = (instance, label)
            rows += [(image, cell, *found) for cell, found in sorted(taken.items())]
        table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)
        levels.append(Assignment(*table.unbind(1)))
    return levels


def shrunk_masks(
    masks: Tensor | MaskWindows,
    network_size: tuple[int, int],
    frame: tuple[int, int],
    size: tuple[int, int],
    device: torch.device | None = None,
) -> Tensor:
    """Masks of one picture at the mask stride, at the top left of the padded frame.

    Args:
        masks: (N, H, W) of 0 and 1 in the pixels of the picture, a tensor or windows.
        network_size: (H, W) of the picture inside the padded batch.
        frame: (H, W) of the padded batch.
        size: (h, w) of the frame at the mask stride.
        device: of the result, for masks that are windows.

    Returns:
        (N, h, w) float of 0 and 1.
    """
    if isinstance(masks, MaskWindows):
        parts = [shrunk_masks(part.dense().to(device), network_size, frame, size) for part in masks.batches()]
        return torch.cat([torch.zeros(0, *size, device=device), *parts])
    inner = [max(1, round(n * s / f)) for n, s, f in zip(network_size, size, frame)]
    shrunk = F.interpolate(masks[:, None].float(), size=inner, mode="bilinear", align_corners=False, antialias=True)
    return (F.pad(shrunk, (0, size[1] - inner[1], 0, size[0] - inner[0]))[:, 0] >= 0.5).float()


def level_masks(
    targets: Sequence[dict[str, Tensor]],
    assigned: Assignment,
    network_sizes: Sequence[tuple[int, int]],
    frame: tuple[int, int],
    size: tuple[int, int],
) -> Tensor:
    """Target masks (P, h, w) of the cells of a level, see :func:`shrunk_masks`."""
    out = []
    for image, target in enumerate(targets):
        device = target["boxes"].device
        rows = assigned.instance[assigned.image == image].to(device)
        if len(rows):
            used, inverse = rows.unique(return_inverse=True)
            out.append(shrunk_masks(target["masks"][used], network_sizes[image], frame, size, device)[inverse])
    return torch.cat(out)
