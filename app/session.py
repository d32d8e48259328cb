"""What the server remembers of one visitor's picture: plain arrays, no model state, a few megabytes at most."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from dynamask.ops.masks import paste_mask
from dynamask.structures import MASK_SIZES

if TYPE_CHECKING:
    from app.cells import CellInstances
    from dynamask.predict import Prediction

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Instances:
    """R instances with all four masks of each.

    Attributes:
        boxes: (R, 4) xyxy in pixels of the picture.
        labels: (R,) from 1.
        scores: (R,) 0-1; 1 for boxes that the visitor drew.
        drawn: (R,) bool, whether the visitor drew the box.
        switch_probs: (R, 4), coarse to fine.
        masks: R lists of four (S, S) uint8 arrays, probability × 255, rounded.
        mask_iou: (R, 4) IoU of each size with the truth; NaN where no truth is known.
        boundary_iou: (R, 4) likewise.
    """

    boxes: FloatArray
    labels: npt.NDArray[np.int64]
    scores: FloatArray
    drawn: npt.NDArray[np.bool_]
    switch_probs: FloatArray
    masks: list[list[npt.NDArray[np.uint8]]]
    mask_iou: FloatArray
    boundary_iou: FloatArray

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def of(cls, prediction: Prediction, drawn: bool = False) -> Instances:
        """The instances of a prediction made with `all_sizes=True`, as yet without truth."""
        count = len(prediction)
        masks = [
            [(prediction.mask_probs_at(i, size) * 255).round().byte().cpu().numpy() for size in MASK_SIZES]
            for i in range(count)
        ]
        unknown = np.full((count, len(MASK_SIZES)), np.nan)
        return cls(
            prediction.boxes.double().cpu().numpy(),
            prediction.labels.cpu().numpy(),
            prediction.scores.double().cpu().numpy(),
            np.full(count, drawn),
            prediction.switch_probs.double().cpu().numpy(),
            masks,
            unknown,
            unknown.copy(),
        )

    def joined(self, others: Instances) -> Instances:
        """These instances with others behind them."""
        names = ("boxes", "labels", "scores", "drawn", "switch_probs", "mask_iou", "boundary_iou")
        arrays = {name: np.concatenate([getattr(self, name), getattr(others, name)]) for name in names}
        return Instances(masks=self.masks + others.masks, **arrays)

    def pasted(self, row: int, size_index: int, image_size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """(H, W) mask of one instance at one size, as the browser draws it."""
        grid = torch.from_numpy(self.masks[row][size_index]).float() / 255
        return paste_mask(grid, self.boxes[row].tolist(), image_size).numpy()


@dataclass(frozen=True)
class Session:
    """The picture a visitor looks at, and what was found in it. Immutable: it may be shared between visitors.

    Attributes:
        token: changes with every analysis; the browser repeats it, so that no answer meets another picture.
        weights: name of the weights that analysed it.
        kind: "example", "scene" or "own".
        key: the example's file name, or "seed:index:difficulty" of a scene; empty for a visitor's own picture.
        title: what the page calls the picture; text from outside, never HTML.
        credit: author, licence and source, if known.
        source: what `read_picture` takes: the file's bytes, a path or an array.
        image_size: (H, W) in pixels.
        class_names: by label, index 0 the background.
        category_ids: COCO category of label i at index i − 1.
        macs: MACs per instance of each size, coarse to fine; of one-stage weights, of each level, fine to coarse.
        instances: found and drawn, in the order of the browser's indices.
        truth: (N, H, W) bool masks where the picture is a scene, else None.
        timings: milliseconds of "detect" and of the "mask_branch" with all sizes.
        levels: of one-stage weights "strides", "grids" and "mask_grids" (the grids of representations) of the levels,
            and "frame", (H, W) of the padded picture in pixels; None where the weights are two-stage.
    """

    token: str
    weights: str
    kind: str
    key: str
    title: str
    credit: str
    source: Any = field(repr=False)
    image_size: tuple[int, int]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    macs: tuple[int, ...]
    instances: Instances | CellInstances = field(repr=False)
    truth: npt.NDArray[np.bool_] | None = field(repr=False)
    timings: dict[str, float]
    levels: dict[str, list[Any]] | None = None

    def with_more(self, others: Instances) -> Session:
        """The same picture with more instances."""
        return replace(self, instances=self.instances.joined(others))
