"""What every mask head has in common: regions in, mask logits of the class at hand out, MACs told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from dynamask.models.masks import losses
from dynamask.ops.masks import mask_edges
from dynamask.structures import MASK_SIZES


@dataclass
class RegionState:
    """What a mask head knows of R regions so far; asking for masks may add to it.

    Attributes:
        rois: (R, 5) batch index and xyxy in network-input pixels.
        labels: (R,) int64 ≥ 1, the class whose mask is predicted.
        maps: feature maps of whole pictures that the head goes on reading, each (B, C_k, H, W).
        features: the region features computed so far, (n_k, C_k, S, S) for each k; the r-FPN's k is the size index.
        rows: for each k, (n_k,) int64, which regions those are.
        switch_logits: (R, 4).
    """

    rois: Tensor
    labels: Tensor
    maps: list[Tensor]
    features: list[Tensor]
    rows: list[Tensor]
    switch_logits: Tensor = field(default_factory=lambda: torch.zeros(0, 4))

    def __len__(self) -> int:
        return len(self.rois)

    def to(self, device: torch.device | str) -> RegionState:
        """The same state on another device; itself where it is there already."""
        if self.rois.device == torch.device(device):
            return self
        lists = [[tensor.to(device) for tensor in group] for group in (self.maps, self.features, self.rows)]
        return RegionState(self.rois.to(device), self.labels.to(device), *lists, self.switch_logits.to(device))

    def gather(self, k: int, rows: Tensor) -> Tensor:
        """Features (len(rows), C, S, S) of regions whose k-th feature was computed."""
        if len(rows) == len(self.rows[k]) and torch.equal(rows, self.rows[k]):
            return self.features[k]
        position = torch.full((len(self),), -1, dtype=torch.int64, device=rows.device)
        position[self.rows[k]] = torch.arange(len(self.rows[k]), device=rows.device)
        return self.features[k][position[rows]]


class MaskHead(nn.Module):
    """A mask head: the r-FPN, or one of the baselines that are trained and counted in the same way.

    Attributes:
        NAME: under which the mask branch registers the head, so that weights say what they hold.
        mask_sizes: the sides of ``MASK_SIZES`` that it gives, coarse to fine.
        has_edges: whether it predicts edges, and learns from L_edge (Eq. 4).
        map_strides: strides of the maps in :attr:`RegionState.maps`.
    """

    NAME: ClassVar[str]
    mask_sizes: tuple[int, ...] = MASK_SIZES
    has_edges: bool = True
    map_strides: tuple[int, ...] = ()

    def begin(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> RegionState:
        """Shared work of R regions.

        Args:
            features: the image-level pyramid {"0": P2, …}.
            rois: (R, 5) batch index and xyxy in network-input pixels.
            labels: (R,) int64 ≥ 1.
        """
        raise NotImplementedError

    def mask_logits(self, state: RegionState, size_index: int, rows: Tensor) -> Tensor:
        """Mask logits (n, S, S) of the regions ``rows`` (n,), of their own class, at ``MASK_SIZES[size_index]``."""
        raise NotImplementedError

    def edge_logits(self, state: RegionState, size_index: int, rows: Tensor) -> Tensor:
        """Edge logits (n, S, S); used by the losses and by those who look inside, never to predict."""
        raise NotImplementedError

    def macs_per_instance(self) -> tuple[int, ...]:
        """MACs of one region up to 14, 28, 56, 112, its mask predictor for one class included.

        A head that cannot stop early, or gives one size alone, has all of its cost in each.
        """
        raise NotImplementedError

    def map_macs_per_pixel(self) -> tuple[int, ...]:
        """MACs per pixel of each of the maps in :attr:`RegionState.maps`, shared by all regions of a picture."""
        return (0,) * len(self.map_strides)

    @property
    def size_indices(self) -> list[int]:
        """Indices of :attr:`mask_sizes` into ``MASK_SIZES``."""
        return [MASK_SIZES.index(size) for size in self.mask_sizes]

    def mask_losses(self, state: RegionState, target_masks: list[Tensor]) -> Tensor:
        """Loss (N, K) of each region at each of the head's K sizes, float32; targets (N, S, S) in {0, 1} by index."""
        every = torch.arange(len(state), device=state.rois.device)
        if len(state) == 0:
            return every.new_zeros((0, len(self.mask_sizes)), dtype=torch.float32)
        logits = [self.mask_logits(state, k, every).float() for k in self.size_indices]
        return losses.resolution_losses(logits, [target_masks[k] for k in self.size_indices])

    def edge_losses(self, state: RegionState, target_masks: list[Tensor]) -> Tensor:
        """Cross-entropy (N, K) of the edges, arguments as of :meth:`mask_losses`."""
        every = torch.arange(len(state), device=state.rois.device)
        if len(state) == 0:
            return every.new_zeros((0, len(self.mask_sizes)), dtype=torch.float32)
        logits = [self.edge_logits(state, k, every).float() for k in self.size_indices]
        return losses.resolution_losses(logits, [mask_edges(target_masks[k]) for k in self.size_indices])


def class_logits(predictor: nn.Conv1d | nn.Conv2d, feature: Tensor, labels: Tensor) -> Tensor:
    """Logits (n, …) of each region's own class from (n, C, …); only that class's weights are used.

    Args:
        predictor: a convolution of kernel 1 with a channel per class, or one channel for all classes.
        feature: (n, C, …) of n regions.
        labels: (n,) int64 ≥ 1.
    """
    channel = torch.zeros_like(labels) if predictor.out_channels == 1 else labels - 1
    weight = predictor.weight.flatten(1)[channel]  # (n, C)
    logits = torch.bmm(weight[:, None], feature.flatten(2))[:, 0]  # (n, S*S)
    return (logits + predictor.bias[channel][:, None]).reshape(len(feature), *feature.shape[2:])


def start_small(*predictors: nn.Module) -> None:
    """Let predictors start near zero: normal weights of deviation 0.01, no bias."""
    for predictor in predictors:
        nn.init.normal_(predictor.weight, std=0.01)
        nn.init.zeros_(predictor.bias)
