"""Base class of mask heads: maps RoIs to per-class mask logits and reports its MACs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from dynamask.models.masks import losses
from dynamask.models.tensor_functions import TensorFunction
from dynamask.ops.masks import mask_edges
from dynamask.structures import MASK_SIZES


@dataclass
class RegionState:
    """The features that a mask head has computed for R regions; predicting masks adds features where they are missing.

    Attributes:
        rois: (R, 5) batch index and xyxy in network-input pixels.
        labels: (R,) int64 ≥ 1, the class whose mask is predicted.
        maps: feature maps of whole pictures that later stages read, each (B, C_k, H, W).
        features: region features (n_k, C_k, S, S) for each k; in the r-FPN k is the index of the size.
        rows: (n_k,) int64 for each k, the regions of these features.
        logits: mask logits (n_k, S, S) float32 for each k, in the r-FPN with listed cells; (n_k, 0, 0) where a size has
            none. Empty in other heads.
        cells: (n_k, L) int64 for each k, the listed cells; (n_k, 0) where every cell is computed. Empty in other heads.
        switch_logits: (R, 4).
        quality_logits: (R, 4, 2) of the quality head; None without one.
    """

    rois: Tensor
    labels: Tensor
    maps: list[Tensor]
    features: list[Tensor]
    rows: list[Tensor]
    logits: list[Tensor] = field(default_factory=list)
    cells: list[Tensor] = field(default_factory=list)
    switch_logits: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    quality_logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rois)

    def to(self, device: torch.device | str) -> RegionState:
        """The state on another device; the same object if it is there already."""
        if self.rois.device == torch.device(device):
            return self
        groups = (self.maps, self.features, self.rows, self.logits, self.cells)
        lists = [[tensor.to(device) for tensor in group] for group in groups]
        quality = None if self.quality_logits is None else self.quality_logits.to(device)
        return RegionState(self.rois.to(device), self.labels.to(device), *lists, self.switch_logits.to(device), quality)

    def take(self, rows: Tensor) -> RegionState:
        """The state of the regions ``rows`` (n,), with the features that all of them have."""
        every = torch.arange(len(rows), device=rows.device)
        complete = [bool(torch.isin(rows, known).all()) for known in self.rows]
        features, logits, cells = (
            [self.gather(k, rows, values) if all_ else values[k][:0] for k, all_ in zip(range(len(values)), complete)]
            for values in (self.features, self.logits, self.cells)
        )
        kept = [every if all_ else every[:0] for all_ in complete]
        quality = None if self.quality_logits is None else self.quality_logits[rows]
        chosen = (self.switch_logits[rows], quality)
        return RegionState(self.rois[rows], self.labels[rows], self.maps, features, kept, logits, cells, *chosen)

    def add(self, k: int, rows: Tensor, feature: Tensor, logits: Tensor, cells: Tensor) -> None:
        """Append features k, logits and listed cells of regions ``rows`` (n,) that have none yet."""
        first = len(self.rows[k]) == 0
        for values, new in ((self.features, feature), (self.logits, logits), (self.cells, cells)):
            values[k] = new if first else torch.cat([values[k], new])
        self.rows[k] = rows if first else torch.cat([self.rows[k], rows])

    def gather(self, k: int, rows: Tensor, values: list[Tensor] | None = None) -> Tensor:
        """Features k (n, C, S, S) of the regions ``rows`` (n,), which must have been computed.

        Args:
            values: :attr:`logits` or :attr:`cells` instead of :attr:`features`.
        """
        values = self.features if values is None else values
        if len(rows) == len(self.rows[k]) and torch.equal(rows, self.rows[k]):
            return values[k]
        position = torch.full((len(self),), -1, dtype=torch.int64, device=rows.device)
        position[self.rows[k]] = torch.arange(len(self.rows[k]), device=rows.device)
        found = values[k]
        if found.ndim == 4 and found.is_contiguous(memory_format=torch.channels_last):  # keeps the layout
            return found.permute(0, 2, 3, 1)[position[rows]].permute(0, 3, 1, 2)
        return found[position[rows]]


class MaskHead(nn.Module):
    """Base class of the r-FPN and of the baselines, which are trained and counted in the same way.

    Attributes:
        NAME: name of the head as a submodule of the mask branch, and so of its tensors in weights files.
        mask_sizes: the sides of ``MASK_SIZES`` that it predicts, coarse to fine.
        has_edges: whether it predicts edges and is trained by L_edge (Eq. 4).
        map_strides: strides of the maps in :attr:`RegionState.maps`.
        trained_sizes: number of sizes, from the coarsest, that the losses are of; None trains all.
        dice_weight: weight of the Dice loss of :meth:`mask_losses`.
        corner_cells: whether cells of maps lie at their first pixel; see :class:`dynamask.config.ModelConfig`.
    """

    NAME: ClassVar[str]
    mask_sizes: tuple[int, ...] = MASK_SIZES
    has_edges: bool = True
    map_strides: tuple[int, ...] = ()
    trained_sizes: int | None = None
    dice_weight: float = 0.0
    corner_cells: bool = False

    def begin(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> RegionState:
        """Compute the features that all sizes of R regions share.

        Args:
            features: the image-level pyramid {"0": P2, …}.
            rois: (R, 5) batch index and xyxy in network-input pixels.
            labels: (R,) int64 ≥ 1.
        """
        raise NotImplementedError

    def mask_logits(self, state: RegionState, size_index: int, rows: Tensor) -> Tensor:
        """Mask logits (n, S, S) at ``MASK_SIZES[size_index]`` of the regions ``rows`` (n,), for their class."""
        raise NotImplementedError

    def edge_logits(self, state: RegionState, size_index: int, rows: Tensor) -> Tensor:
        """Edge logits (n, S, S); used by the losses and for inspection, not for prediction."""
        raise NotImplementedError

    def tensor_functions(self) -> Iterator[TensorFunction]:
        """The functions that a back end of inference can replace; by default none."""
        yield from ()

    def macs_per_instance(self) -> tuple[int, ...]:
        """MACs of one region up to 14, 28, 56, 112, including the mask predictor for one class.

        All four are equal for a head that cannot stop early or has a single size.
        """
        raise NotImplementedError

    def computed_cells(self) -> tuple[int, ...]:
        """Number of cells of the masks at 14, 28, 56 and 112 that are computed; the others keep the coarser mask."""
        return tuple(size * size for size in MASK_SIZES)

    def map_macs_per_pixel(self) -> tuple[int, ...]:
        """MACs per pixel of each of the maps in :attr:`RegionState.maps`, which all regions of a picture share."""
        return (0,) * len(self.map_strides)

    def on_map(self, rois: Tensor, stride: int) -> Tensor:
        """Boxes (R, 5) as RoIAlign needs them on a map of a stride, which takes cells to lie in their middle."""
        return centred_rois(rois, stride) if self.corner_cells else rois

    def check_size(self, size_index: int) -> None:
        """Raise ValueError if the head does not predict ``MASK_SIZES[size_index]``."""
        if MASK_SIZES[size_index] not in self.mask_sizes:
            raise ValueError(f"the head predicts masks of {self.mask_sizes[0]} only, not {MASK_SIZES[size_index]}")

    @property
    def size_indices(self) -> list[int]:
        """Indices into ``MASK_SIZES`` of the :attr:`mask_sizes` that are trained."""
        return [MASK_SIZES.index(size) for size in self.mask_sizes[: self.trained_sizes]]

    def mask_losses(self, state: RegionState, target_masks: list[Tensor]) -> Tensor:
        """Loss (N, K) of each region at each of the head's K sizes, float32: cross-entropy, plus Dice if weighted.

        Args:
            target_masks: (N, S, S) in {0, 1} for every index of ``MASK_SIZES``.
        """
        targets = [target_masks[k] for k in self.size_indices]
        logits = self._logits(self.mask_logits, state)
        values = losses.resolution_losses(logits, targets)
        return values + self.dice_weight * losses.dice_losses(logits, targets) if self.dice_weight else values

    def edge_losses(self, state: RegionState, target_masks: list[Tensor]) -> Tensor:
        """Cross-entropy (N, K) of the edges, float32; arguments as of :meth:`mask_losses`."""
        targets = [mask_edges(target_masks[k]) for k in self.size_indices]
        return losses.resolution_losses(self._logits(self.edge_logits, state), targets)

    def _logits(self, predict: Callable[[RegionState, int, Tensor], Tensor], state: RegionState) -> list[Tensor]:
        """Logits (N, S, S) of all regions at each of the head's sizes, float32."""
        every = torch.arange(len(state), device=state.rois.device)
        if len(state) == 0:
            return [state.rois.new_zeros((0, MASK_SIZES[k], MASK_SIZES[k])) for k in self.size_indices]
        return [predict(state, k, every).float() for k in self.size_indices]


def centred_rois(rois: Tensor, stride: int) -> Tensor:
    """Boxes (R, 5) on a map with cells at their first pixel → boxes as if they lay in the middle."""
    shift = rois.new_tensor([0.0, *[(stride - 1) / 2] * 4])
    return rois + shift


def class_logits(predictor: nn.Conv1d | nn.Conv2d, feature: Tensor, labels: Tensor) -> Tensor:
    """Logits (n, …) of the class of each region from (n, C, …); only the weights of that class are used.

    Args:
        predictor: a convolution of kernel 1 with a channel per class, or one channel for all classes.
        feature: (n, C, …) of n regions.
        labels: (n,) int64 ≥ 1.
    """
    channel = torch.zeros_like(labels) if predictor.out_channels == 1 else labels - 1
    weight = predictor.weight.flatten(1)[channel]  # (n, C)
    logits = torch.bmm(weight[:, None], feature.flatten(2))[:, 0]  # (n, S*S)
    return (logits + predictor.bias[channel][:, None]).reshape(feature.shape[0], *feature.shape[2:])


def start_small(*predictors: nn.Module) -> None:
    """Initialise predictors with weights from N(0, 0.01²) and zero biases."""
    for predictor in predictors:
        nn.init.normal_(predictor.weight, std=0.01)
        nn.init.zeros_(predictor.bias)
