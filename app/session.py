"""What the server keeps of a visitor's picture: plain arrays, no model state, a few megabytes at most."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import box_iou, masks_to_boxes

from app.source_pictures import SourcePicture
from dynamask.config import STRIDES
from dynamask.evaluation.mask_quality import quality_by_size
from dynamask.evaluation.matching import match_greedily
from dynamask.models.masks.policies import combined_quality, default_policy, learned, logits_of, nearly_best
from dynamask.ops.masks import paste_mask
from dynamask.ops.rle import decode_masks, decode_rle, encode_rle
from dynamask.predict import Prediction, Predictor

FloatArray = npt.NDArray[np.float64]
LOWEST_SCORE = 0.05
"""Detections below this score are not kept."""
LOWEST_SCORES = {"nanodet_plus": 0.2}
"""The same for detectors that give higher scores to wrong boxes: NanoDet-Plus has about 90 above 0.05 in a picture."""


@dataclass(frozen=True)
class SessionInstances:
    """R instances with their masks at S sizes; S is 1 for one-stage weights.

    Attributes:
        boxes: (R, 4) xyxy in pixels of the picture.
        mask_boxes: (R, 4) likewise, what the masks cover.
        labels: (R,) from 1.
        names: R names of classes.
        scores: (R,) 0–1; 1 for boxes that the visitor drew.
        drawn: (R,) bool, whether the visitor drew the box.
        mask_iou: (R, S) IoU with ground truth; NaN where none is known.
        boundary_iou: (R, S) likewise.
        grids: R lists of S (size, size) uint8 arrays, probability × 255, rounded; None for one-stage weights.
        switch_probs: (R, S), coarse to fine; None for one-stage weights.
        quality: (R, S, 2) predicted mask IoU and boundary IoU, coarse to fine; None without a quality head.
        rles: R masks in COCO's RLE; None for two-stage weights.
        level: (R,) 0 (fine) to 4 (coarse); None for two-stage weights.
        cell: (R,) row · G + column on the level's grid; None for two-stage weights.
    """

    boxes: FloatArray
    mask_boxes: FloatArray
    labels: npt.NDArray[np.int64]
    names: list[str]
    scores: FloatArray
    drawn: npt.NDArray[np.bool_]
    mask_iou: FloatArray
    boundary_iou: FloatArray
    grids: list[list[npt.NDArray[np.uint8]]] | None = None
    switch_probs: FloatArray | None = None
    quality: FloatArray | None = None
    rles: list[dict[str, Any]] | None = None
    level: npt.NDArray[np.int64] | None = None
    cell: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def of(cls, prediction: Prediction, drawn: bool = False) -> SessionInstances:
        """The instances of a prediction with all sizes, without ground truth."""
        count, sizes, cells = len(prediction), prediction.mask_sizes, prediction.cells
        common = {
            "boxes": prediction.boxes.double().numpy(),
            "mask_boxes": prediction.mask_boxes.double().numpy(),
            "labels": prediction.labels.numpy(),
            "names": [prediction.class_names[label] for label in prediction.labels.tolist()],
            "scores": prediction.scores.double().numpy(),
            "drawn": np.full(count, drawn),
            "mask_iou": np.full((count, max(1, len(sizes))), np.nan),
            "boundary_iou": np.full((count, max(1, len(sizes))), np.nan),
        }
        if cells is not None:
            rles = [encode_rle(mask) for mask in prediction.masks]
            return cls(**common, rles=rles, level=cells.level.numpy(), cell=cells.cell.numpy())
        grids = [
            [(prediction.mask_probs_at(i, size) * 255).round().byte().numpy() for size in sizes] for i in range(count)
        ]
        quality = None if prediction.quality is None else prediction.quality.double().numpy()
        return cls(**common, grids=grids, switch_probs=prediction.switch_probs.double().numpy(), quality=quality)

    def preferences(self) -> FloatArray:
        """(R, 4), the sum of which a budget maximises: the predicted quality, or without it log p of the switch."""
        quality = None if self.quality is None else torch.from_numpy(self.quality)
        policy = default_policy(with_budget=True, with_quality=quality is not None)
        return policy.preferences(logits_of(self.switch_probs), quality).numpy()

    def choices(self) -> dict[str, npt.NDArray[np.int64]]:
        """(R,) indices into ``MASK_SIZES`` under the policies that need the model, without a budget, by name."""
        chosen = {"learned": learned(logits_of(self.switch_probs)).numpy()}
        if self.quality is not None:
            chosen["quality"] = nearly_best(combined_quality(torch.from_numpy(self.quality))).numpy()
        return chosen

    def joined(self, others: SessionInstances) -> SessionInstances:
        """These instances, then others of the same weights."""

        def join(name: str) -> Any:
            first, second = getattr(self, name), getattr(others, name)
            if first is None:
                return None
            return first + second if isinstance(first, list) else np.concatenate([first, second])

        return SessionInstances(**{each.name: join(each.name) for each in fields(self)})

    def pasted(self, row: int, size_index: int, image_size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """(H, W) mask of one instance at one size, as the browser draws it."""
        if self.rles is not None:
            return decode_rle(self.rles[row])
        grid = torch.from_numpy(self.grids[row][size_index]).float() / 255
        return paste_mask(grid, self.mask_boxes[row].tolist(), image_size).numpy()

    def compared(self, truth: npt.NDArray[np.bool_]) -> SessionInstances:
        """The same instances with their quality at every size.

        Instances and true shapes are matched greedily, two-stage instances by the IoU of their boxes, one-stage
        instances by that of their masks. A box that the visitor drew leaves its true shape to other instances.

        Args:
            truth: (N, H, W) bool.
        """
        size = truth.shape[1:]
        mask_iou, boundary_iou = self.mask_iou.copy(), self.boundary_iou.copy()
        for row, match in enumerate(match_greedily(self._overlaps(truth), exclusive=~self.drawn)):
            if match is not None:
                masks = [self.pasted(row, k, size)[None] for k in range(mask_iou.shape[1])]
                ious, boundaries = quality_by_size(truth[match][None], masks)
                mask_iou[row], boundary_iou[row] = ious[0], boundaries[0]
        return replace(self, mask_iou=mask_iou, boundary_iou=boundary_iou)

    def _overlaps(self, truth: npt.NDArray[np.bool_]) -> FloatArray:
        """(R, N) IoU with each true shape."""
        if self.rles is None:
            boxes = masks_to_boxes(torch.from_numpy(truth)).double() + torch.tensor([0.0, 0.0, 1.0, 1.0])
            return box_iou(torch.from_numpy(self.boxes), boxes).numpy()
        size = truth.shape[1:]
        masks = decode_masks(self.rles, size).reshape(len(self), math.prod(size)).astype(np.float32)
        shapes = truth.reshape(len(truth), math.prod(size)).astype(np.float32)
        both = masks @ shapes.T
        return both / np.maximum(masks.sum(1)[:, None] + shapes.sum(1) - both, 1)


def lowest_score(predictor: Predictor) -> float:
    """Score from which the page keeps the detections of a predictor."""
    return LOWEST_SCORES.get(getattr(predictor.model.config, "detector", ""), LOWEST_SCORE)


@dataclass(frozen=True)
class Session:
    """The picture that a visitor looks at and what was found in it. Immutable: visitors may share it.

    Attributes:
        token: changes with every analysis; the browser repeats it, so that no answer meets another picture.
        weights: name of the weights.
        picture: that was analysed; an upload may be kept as a JPEG.
        image_size: (H, W) in pixels.
        category_ids: COCO category_id of label i at index i − 1.
        macs: MACs of an instance at each size, coarse to fine; for one-stage weights at each level, fine to coarse.
        image_macs: MACs of the picture, the switch left out.
        switch_macs: MACs of the switch per instance; 0 without a switch.
        display_score: score from which the page shows instances at first.
        lowest_score: score from which instances were kept.
        timings: milliseconds of "detect" and of the "mask_branch" with all sizes.
        instances: found and drawn, in the order of the browser's indices.
        levels: for one-stage weights the "strides", "grids" and "mask_grids" (the grids of representations) of the
            levels, and the padded picture's size "frame" (H, W) in pixels; None for two-stage weights.
        cells: number of cells that are computed at each mask size; empty for one-stage weights.
    """

    token: str
    weights: str
    picture: SourcePicture
    image_size: tuple[int, int]
    category_ids: tuple[int, ...]
    macs: tuple[int, ...]
    image_macs: int
    switch_macs: int
    display_score: float
    lowest_score: float
    timings: dict[str, float]
    instances: SessionInstances = field(repr=False)
    levels: dict[str, list[Any]] | None = None
    cells: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, token: str, weights: str, picture: SourcePicture, predictor: Predictor, prediction: Prediction
    ) -> Session:
        """The session of a prediction with all sizes."""
        found = SessionInstances.of(prediction)
        costs = predictor.costs
        first, *rest = prediction.timings.values()  # finding the objects comes first in every family
        return cls(
            token,
            weights,
            picture,
            prediction.image_size,
            tuple(prediction.category_ids),
            tuple(map(int, prediction.cells.level_macs if costs is None else costs.macs_per_instance)),
            int(sum(macs for part, macs in prediction.image_macs.items() if part != "switch")),
            0 if costs is None else int(costs.switch_macs),
            predictor.default_score,
            lowest_score(predictor),
            {"detect": round(first, 3), "mask_branch": round(sum(rest), 3)},
            found if picture.truth is None else found.compared(picture.truth),
            None if prediction.cells is None else _levels(prediction),
            () if costs is None else costs.cells,
        )

    @property
    def nbytes(self) -> int:
        """Memory of the picture and the masks of its instances, in bytes."""
        found, source = self.instances, self.picture.source
        size = len(source) if isinstance(source, bytes) else getattr(source, "nbytes", 0)
        size += 0 if self.picture.truth is None else self.picture.truth.nbytes
        size += sum(grid.nbytes for grids in found.grids or () for grid in grids)
        return size + sum(len(rle["counts"]) for rle in found.rles or ())

    def cell_of(self, row: int) -> tuple[int, int, int]:
        """Level from 0, row and column of the cell of an instance of one-stage weights."""
        level = int(self.instances.level[row])
        return level, *divmod(int(self.instances.cell[row]), self.levels["grids"][level])


def _levels(prediction: Prediction) -> dict[str, list[Any]]:
    """The levels of one-stage weights, see :class:`Session`."""
    config, encoded = prediction.cells.model.config, prediction.cells.encoded
    sides = zip(encoded.frame, prediction.image_size, encoded.network_sizes[0])
    return {
        "strides": list(STRIDES),
        "grids": list(config.grids),
        "mask_grids": list(config.representation_grids),
        "frame": [side * own / network for side, own, network in sides],
    }
