"""Inspection of the mask of one cell of a one-stage model: its neighbours, their representations and the result."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynamask.config import STRIDES
from dynamask.models.solo.aggregation import decode, sample_vectors
from dynamask.models.solo.inference import EncodedGrids
from dynamask.models.solo.model import SoloNet
from dynamask.structures import DynaMaskError


@dataclass(frozen=True)
class CellView:
    """The cell of one instance, and the parts of its mask.

    Attributes:
        level: 0 (fine) to 4 (coarse).
        stride: of the level, in network-input pixels.
        grid: G, cells along each side of the padded image.
        row, column: of the cell.
        frame: (H, W) of the padded image, which the grid covers, in image pixels.
        mask_grid: G′, side of the grid of representations.
        positions: (S, 2) (row, column) on that grid of the S neighbours in the order in which they are aggregated,
            after the model's offsets and clipped to the grid as the model clips them. Without aggregation (1, 2): the
            cell itself.
        base: (S, 2) positions without offsets.
        representations: (S, h, w) float32 logits of each neighbour.
        mask: (h, w) float32 in [0, 1], the result, on the same part of the image.
        neighbours: which neighbours are aggregated, a key of ``NEIGHBOURS``; None without aggregation. S is 0 where
            only the context is used.
    """

    level: int
    stride: int
    grid: int
    row: int
    column: int
    frame: tuple[float, float]
    mask_grid: int
    positions: Tensor
    base: Tensor
    representations: Tensor
    mask: Tensor
    neighbours: str | None


@torch.inference_mode()
def explain(model: SoloNet, encoded: EncodedGrids, level: int, index: int) -> CellView:
    """The parts of the mask of a cell.

    Args:
        encoded: of one image.
        level: of the cell.
        index: row · G + column of the cell.

    Raises:
        DynaMaskError: the model is CondInst, which has locations and no cells of a grid.
    """
    if model.config.kind == "condinst":
        raise DynaMaskError("CondInst has no grid cells to explain; use weights of SOLO, SOLOv2 or SODAR")
    config, grid = model.config, encoded.grids[level]
    side, mask_grid = config.grids[level], config.representation_grids[level]
    cell = torch.tensor([index], device=grid.category.device)
    image = torch.zeros_like(cell)
    if model.aggregation is None:
        neighbours, border = None, "clamp"
        base = positions = torch.stack([cell // side, cell % side], dim=1)[:, None].double()
    else:
        neighbours, border = model.aggregation.config.neighbours, model.aggregation.config.border
        offsets = None if grid.offsets is None else grid.offsets.flatten(2)[image, :, cell]
        base = model.aggregation.positions(cell, side, mask_grid)
        positions = model.aggregation.positions(cell, side, mask_grid, offsets)
    if border == "clamp":
        base, positions = base.clamp(0, mask_grid - 1), positions.clamp(0, mask_grid - 1)
    if model.aggregation is not None and model.aggregation.config.samples == 0:  # only the context is used
        base, positions = base[:, :0], positions[:, :0]
        representations = grid.features.new_zeros((0, *grid.features.shape[-2:]))
    else:
        representations = decode(sample_vectors(grid.vectors, image, positions, border), image, grid.features)[0]
    mask = model.mask_logits(encoded, level, image, cell)[0].sigmoid()
    (height, width), network = encoded.original_sizes[0], encoded.network_sizes[0]
    return CellView(
        level=level,
        stride=STRIDES[level],
        grid=side,
        row=index // side,
        column=index % side,
        frame=(encoded.frame[0] * height / network[0], encoded.frame[1] * width / network[1]),
        mask_grid=mask_grid,
        positions=positions[0].cpu(),
        base=base[0].cpu(),
        representations=representations.float().cpu(),
        mask=mask.float().cpu(),
        neighbours=neighbours,
    )
