"""The losses of the mask branch at every mask size, instance by instance (Fig. 5)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamask.engine.frozen_features import logits_of_sizes
from dynamask.models.masks.losses import resolution_losses
from dynamask.ops.masks import mask_edges
from dynamask.predict import CachedRegions
from dynamask.structures import MASK_SIZES

SIZE_LOSSES = {
    "edge_loss": "edge loss (Eq. 4)",
    "mask_loss": "mask loss (Eq. 3)",
    "edge_loss_112": "edge loss at one grid, 112",
    "mask_loss_112": "mask loss at one grid, 112",
}
"""Titles of the losses, each a mean cross-entropy over a grid. The paper's are taken on the grid of each size; for the
other two the logits of every size are resampled to the finest grid first."""


@torch.inference_mode()
def size_losses(regions: CachedRegions, boxes: Tensor, masks: Tensor) -> np.ndarray:
    """The losses of ``SIZE_LOSSES`` for the instances of one picture.

    Args:
        regions: regions of a prediction in true boxes, by an r-FPN.
        boxes: (n, 4) xyxy in picture pixels.
        masks: (n, H, W) true masks, 0 or 1.

    Returns:
        (4, n, 4) float64: loss, instance, size.
    """
    if len(boxes) == 0:
        return np.zeros((len(SIZE_LOSSES), 0, len(MASK_SIZES)))
    state = regions.state.to(next(regions.branch.parameters()).device)
    logits = logits_of_sizes(regions.branch, state, masks, boxes)
    edges = [mask_edges(target) for target in logits.targets]
    losses = [
        resolution_losses(logits.edges, edges),
        resolution_losses(logits.masks, logits.targets),
        resolution_losses(_at_finest_grid(logits.edges), [edges[-1]] * len(MASK_SIZES)),
        resolution_losses(_at_finest_grid(logits.masks), [logits.targets[-1]] * len(MASK_SIZES)),
    ]
    return torch.stack(losses).cpu().double().numpy()


def _at_finest_grid(logits: list[Tensor]) -> list[Tensor]:
    """Logits (n, S_k, S_k) of every size, resampled bilinearly to the finest grid."""
    size = MASK_SIZES[-1]
    return [F.interpolate(x[:, None], size=(size, size), mode="bilinear")[:, 0] for x in logits]
