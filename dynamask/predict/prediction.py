"""The instances of one image, as every predictor returns them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dynamask.models.masks.branch import MaskBranch
from dynamask.models.masks.heads.base import RegionState
from dynamask.models.solo.costs import decoding_macs, representation_macs
from dynamask.models.solo.explain import CellView, explain
from dynamask.models.solo.inference import EncodedGrids
from dynamask.models.solo.model import SoloNet
from dynamask.ops.masks import enlarge_boxes, paste_mask, paste_masks
from dynamask.ops.rle import encode_rle
from dynamask.structures import MASK_SIZES, DynaMaskError

if TYPE_CHECKING:
    import supervision


KEPT_REGIONS = 128
"""Largest number of regions of an image whose features at finer sizes are kept."""
REGIONS_AT_ONCE = 32
"""Regions whose masks are computed together where their features are not kept."""


class CachedRegions:
    """Features and masks of one image's regions, shared by all predictions that are selected from each other.

    The features are kept in CPU memory and moved to the branch's device only while a stage runs. For more than
    ``KEPT_REGIONS`` regions only the first feature is kept, and the others are computed anew for each choice of sizes,
    so that memory stays bounded.
    """

    def __init__(self, branch: MaskBranch, state: RegionState) -> None:
        self.branch = branch
        self.state = state.to("cpu")
        self._probs: dict[tuple[int, int], Tensor] = {}  # (S, S) by region and size index

    @torch.inference_mode()
    def ensure(self, size_index: Tensor) -> None:
        """Compute the mask of each region at its index (R,) into ``MASK_SIZES``, unless it is known or the index −1."""
        pairs = enumerate(size_index.tolist())
        missing = [(row, k) for row, k in pairs if k >= 0 and (row, k) not in self._probs]
        if not missing:
            return
        state = self.state.to(next(self.branch.parameters()).device)
        if len(state) <= KEPT_REGIONS:
            self._compute(state, range(len(state)), missing)
            self.state = state.to("cpu")
            return
        for start in range(0, len(missing), REGIONS_AT_ONCE):
            rows, sizes = zip(*missing[start : start + REGIONS_AT_ONCE])
            some = state.take(torch.tensor(rows, device=state.rois.device))
            self._compute(some, rows, list(enumerate(sizes)))

    def _compute(self, state: RegionState, regions: Sequence[int], pairs: list[tuple[int, int]]) -> None:
        """Compute the masks of some (row of the state, size index); ``regions`` are the state's rows here."""
        for size in sorted({k for _, k in pairs}, reverse=True):  # finer sizes compute the features of coarser ones
            rows = [row for row, k in pairs if k == size]
            logits = self.branch.head.mask_logits(state, size, torch.tensor(rows, device=state.rois.device))
            self._probs |= {(regions[row], size): probs for row, probs in zip(rows, logits.sigmoid().cpu())}

    def ensure_all(self) -> None:
        """Compute the masks of all regions at every size that the branch gives."""
        for size in self.branch.mask_sizes:
            self.ensure(torch.full((len(self.state),), MASK_SIZES.index(size)))

    def probs(self, row: int, size_index: int) -> Tensor:
        """(S, S) probabilities of one region, computed now unless they are known."""
        if (row, size_index) not in self._probs:
            chosen = torch.full((len(self.state),), -1)
            chosen[row] = size_index
            self.ensure(chosen)
        return self._probs[row, size_index]


@dataclass(frozen=True)
class Cells:
    """The grid cells that a one-stage model's instances come from.

    Attributes:
        level: (R,) int64, 0 (fine) to 4 (coarse).
        cell: (R,) int64, row · G + column on the level's grid.
        masks: (R, H, W) bool.
        encoded: the network's output for the image.
        model: the model.
    """

    level: Tensor
    cell: Tensor
    masks: Tensor
    encoded: EncodedGrids
    model: SoloNet

    @property
    def level_macs(self) -> tuple[int, ...]:
        """MACs that decode one mask of each level."""
        config = self.model.config
        shapes = [grid.features.shape[-2:] for grid in self.encoded.grids]
        return tuple(decoding_macs(*shape, representation_macs(config), config.aggregation) for shape in shapes)

    def explain(self, index: int) -> CellView:
        """The cell, its neighbours, their representations and the resulting mask of one instance."""
        return explain(self.model, self.encoded, int(self.level[index]), int(self.cell[index]))


@dataclass
class Prediction:
    """The instances of one image, best score first.

    Attributes:
        boxes: (R, 4) float32 xyxy in image pixels.
        labels: (R,) int64 ≥ 1.
        scores: (R,) float32 in [0, 1]; 1 for boxes that were given. Rescored, they are those of the detector times the
            predicted mask IoU at the chosen size.
        macs: (R,) int64, MACs of each instance's mask: the mask branch up to its size, or decoding it once.
        image_macs: MACs of the whole image by part.
        image_size: (H, W) in pixels.
        picture: (H, W, 3) uint8 RGB, the image.
        timings: milliseconds of each step.
        class_names: names by label; index 0 is the background.
        category_ids: COCO category_id of label i at index i − 1.
        class_ids: class id of label i at index i − 1 in :meth:`to_supervision`; () for the labels themselves.
        mask_size: (R,) int64, side of each mask in mask pixels; None for models whose masks have no size.
        switch_logits: (R, 4) float32; None without a switch.
        quality: (R, 4, 2) float32 in [0, 1], predicted mask IoU and boundary IoU at each size; None without a quality
            head.
        detector_scores: (R,) float32, the scores before rescoring; None where they are not rescored.
        regions: cached features of the mask branch; None for models without a mask branch.
        cells: the grid cells of the instances; None for models without a grid.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    macs: Tensor
    image_macs: dict[str, int]
    image_size: tuple[int, int]
    picture: np.ndarray
    timings: dict[str, float]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    class_ids: tuple[int, ...] = ()
    mask_size: Tensor | None = None
    switch_logits: Tensor | None = None
    quality: Tensor | None = None
    detector_scores: Tensor | None = None
    regions: CachedRegions | None = None
    cells: Cells | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def switch_probs(self) -> Tensor | None:
        """(R, 4) float32, softmax of the switch logits (Eq. 1); None without a switch."""
        return None if self.switch_logits is None else self.switch_logits.softmax(dim=1)

    @property
    def chosen_quality(self) -> Tensor | None:
        """(R, 2) float32, predicted mask IoU and boundary IoU of each instance's mask; None without a quality head."""
        if self.quality is None:
            return None
        index = torch.tensor([MASK_SIZES.index(size) for size in self.mask_size.tolist()], dtype=torch.int64)
        return self.quality[torch.arange(len(self)), index]

    @property
    def mask_sizes(self) -> tuple[int, ...]:
        """The sizes of ``MASK_SIZES`` that :meth:`mask_at` gives, coarse to fine; () where masks have no size."""
        return () if self.regions is None else self.regions.branch.mask_sizes

    @property
    def mask_boxes(self) -> Tensor:
        """(R, 4) float32 xyxy in image pixels: what each mask covers, the box enlarged by the weights' margin.

        It may reach beyond the image. Without a mask branch it is the box itself.
        """
        return self.boxes if self.regions is None else enlarge_boxes(self.boxes, self.regions.branch.region_margin)

    @cached_property
    def masks(self) -> Tensor:
        """(R, H, W) bool, pasted on first use."""
        if self.cells is not None:
            return self.cells.masks
        probs = [self.mask_probs_at(i, size) for i, size in enumerate(self.mask_size.tolist())]
        return paste_masks(probs, self.mask_boxes, self.image_size)

    def mask(self, index: int) -> Tensor:
        """(H, W) bool of one instance at its size."""
        return self.masks[index] if self.cells is not None else self.mask_at(index, int(self.mask_size[index]))

    def mask_at(self, index: int, size: int) -> Tensor:
        """(H, W) bool of one instance at a size of :attr:`mask_sizes`; a size not computed yet is computed now."""
        return paste_mask(self.mask_probs_at(index, size), self.mask_boxes[index], self.image_size)

    def mask_probs_at(self, index: int, size: int) -> Tensor:
        """(size, size) float32 in [0, 1] of one instance, the cells of its row of :attr:`mask_boxes`.

        Raises:
            DynaMaskError: these weights give no masks of this size.
        """
        if self.regions is None:
            raise DynaMaskError("the masks of a one-stage model have no sizes; use masks or mask(index)")
        if size not in self.mask_sizes:
            raise DynaMaskError(
                f"these weights give no masks of {size}; choose one of {', '.join(map(str, self.mask_sizes))}"
            )
        return self.regions.probs(index, MASK_SIZES.index(size))

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results (xywh boxes, compressed RLE) with ``macs`` and, where masks have a size, ``mask_size``.

        With a quality head ``quality`` is [mask IoU, boundary IoU] predicted for the mask.
        """
        results = []
        for i, (box, label) in enumerate(zip(self.boxes.tolist(), self.labels.tolist())):
            result: dict[str, Any] = {
                "image_id": image_id,
                "category_id": self.category_ids[label - 1],
                "score": float(self.scores[i]),
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "segmentation": encode_rle(self.mask(i)),
            }
            if self.mask_size is not None:
                result["mask_size"] = int(self.mask_size[i])
            if self.quality is not None:
                result["quality"] = [round(value, 4) for value in self.chosen_quality[i].tolist()]
            results.append({**result, "macs": int(self.macs[i])})
        return results

    def to_supervision(self) -> supervision.Detections:
        """The instances as ``supervision.Detections``.

        ``class_id`` is the label, or the class id of the detections that were given, and ``data`` holds ``class_name``,
        ``macs`` and, where masks have a size, ``mask_size``.

        Raises:
            DynaMaskError: the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise DynaMaskError("supervision is not installed; run pip install supervision") from error
        names = [self.class_names[label] for label in self.labels.tolist()]
        own = [self.class_ids[label - 1] if self.class_ids else label for label in self.labels.tolist()]
        data = {"class_name": np.array(names, dtype=str), "macs": self.macs.numpy()}
        if self.mask_size is not None:
            data["mask_size"] = self.mask_size.numpy()
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            mask=self.masks.numpy(),
            confidence=self.scores.numpy(),
            class_id=np.array(own, dtype=np.int64),
            data=data,
        )

    def resized(self, size_index: Tensor, macs: tuple[int, ...]) -> Prediction:
        """The same instances with the masks of other sizes.

        Args:
            size_index: (R,) int64 indices into ``MASK_SIZES``.
            macs: cumulative MACs per size.
        """
        sizes = torch.tensor(MASK_SIZES)[size_index]
        resized = dataclasses.replace(self, mask_size=sizes, macs=torch.tensor(macs)[size_index])
        if self.detector_scores is not None:
            resized.scores = self.detector_scores * resized.chosen_quality[:, 0]
        return resized
