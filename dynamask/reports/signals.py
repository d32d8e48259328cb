"""What the losses of the mask branch say of each mask size, instance by instance (Fig. 5)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamask.models.masks.losses import resolution_losses
from dynamask.ops.masks import crop_mask_pyramid, mask_edges
from dynamask.predict import CachedRegions
from dynamask.structures import MASK_SIZES

SIGNALS = {
    "edge_loss": "edge loss (Eq. 4)",
    "mask_loss": "mask loss (Eq. 3)",
    "edge_loss_112": "edge loss at one grid, 112",
    "mask_loss_112": "mask loss at one grid, 112",
}
"""Signals by name: cross-entropies, each a mean over a grid, lower is better. The paper's are taken on each size's own
grid; the other two bring the logits of every size to the finest grid first."""


@torch.inference_mode()
def size_signals(regions: CachedRegions, boxes: Tensor, masks: Tensor) -> np.ndarray:
    """The signals of ``SIGNALS`` for the instances of one picture.

    Args:
        regions: of a prediction in true boxes, by an r-FPN.
        boxes: (n, 4) xyxy in picture pixels.
        masks: (n, H, W) true masks, 0 or 1.

    Returns:
        (4, n, 4) float64: signal, instance, size.
    """
    if len(boxes) == 0:
        return np.zeros((len(SIGNALS), 0, len(MASK_SIZES)))
    pyramid = regions.branch.region_fpn
    state = regions.state.to(next(pyramid.parameters()).device)
    every = torch.arange(len(boxes), device=state.rois.device)
    sizes = range(len(MASK_SIZES))
    mask_logits = [pyramid.mask_logits(state, k, every).cpu() for k in sizes]
    edge_logits = [pyramid.edge_logits(state, k, every).cpu() for k in sizes]
    truth = [(crop >= 0.5).float() for crop in crop_mask_pyramid(masks, boxes, MASK_SIZES)]
    edges = [mask_edges(t) for t in truth]
    found = [
        resolution_losses(edge_logits, edges),
        resolution_losses(mask_logits, truth),
        resolution_losses(_at_finest(edge_logits), [edges[-1]] * len(MASK_SIZES)),
        resolution_losses(_at_finest(mask_logits), [truth[-1]] * len(MASK_SIZES)),
    ]
    return torch.stack(found).double().numpy()


def _at_finest(logits: list[Tensor]) -> list[Tensor]:
    """Logits (n, S_k, S_k) of every size, brought to the finest grid bilinearly."""
    size = MASK_SIZES[-1]
    return [F.interpolate(x[:, None], size=(size, size), mode="bilinear")[:, 0] for x in logits]
