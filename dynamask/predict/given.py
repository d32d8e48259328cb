"""Boxes, labels and detections that the caller gives instead of detecting: reading and checking them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dynamask.structures import DynaMaskError

Boxes = Sequence[Sequence[float]] | np.ndarray | Tensor


class SupervisionDetections(Protocol):
    """The attributes of a ``supervision.Detections`` that are read; the package itself is not needed.

    Attributes:
        xyxy: (R, 4) in image pixels.
        confidence: (R,) in 0–1, or None.
        class_id: (R,) whole numbers ≥ 0, or None.
        data: may hold ``class_name`` (R,).
    """

    xyxy: np.ndarray
    confidence: np.ndarray | None
    class_id: np.ndarray | None
    data: Mapping[str, Any]


Detections = SupervisionDetections | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class GivenDetections:
    """Detections of another model, best score first.

    Attributes:
        boxes: (R, 4) float32 xyxy in image pixels, clipped to the image.
        labels: (R,) int64 ≥ 1.
        scores: (R,) float32 in [0, 1].
        class_names: names by label; index 0 is the background.
        class_ids: the given class id of label i at index i − 1.
        named: whether the detections came with class names.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    named: bool

    def __len__(self) -> int:
        return len(self.boxes)

    def at_least(self, score: float) -> GivenDetections:
        """The detections with this score or a better one."""
        keep = self.scores >= score
        return GivenDetections(
            self.boxes[keep], self.labels[keep], self.scores[keep], self.class_names, self.class_ids, self.named
        )

    def labels_of(self, class_names: Sequence[str], category_ids: Sequence[int]) -> Tensor:
        """(R,) int64 labels in the numbering of weights: the same name, or without names the same category id.

        Args:
            class_names: of the weights; index 0 is the background.
            category_ids: category id of label i at index i − 1.

        Raises:
            DynaMaskError: the weights do not have a class.
        """
        keys = class_names[1:] if self.named else category_ids
        known = {key: label for label, key in enumerate(keys, start=1)}
        own = self.class_names[1:] if self.named else self.class_ids
        missing = [own[label - 1] for label in self.labels.tolist() if own[label - 1] not in known]
        if missing:
            raise DynaMaskError(
                f"these weights have masks for each class, but no class {missing[0]!r}; leave such detections out or "
                "use class-agnostic weights"
            )
        return torch.tensor([known[own[label - 1]] for label in self.labels.tolist()], dtype=torch.int64)


def read_detections(detections: Detections, image_size: tuple[int, int]) -> GivenDetections:
    """Read the detections of one image.

    Args:
        detections: a ``supervision.Detections``, or a list of COCO results: dicts with ``bbox`` (xywh) and optionally
            ``score``, ``category_id``, and ``category_name`` or ``class_name``. Missing scores are 1, a class without a
            name is called "class ID", and detections without class ids and names are of the class "object".
        image_size: (height, width) in pixels.

    Raises:
        DynaMaskError: the detections are not of one of these forms, or a box, score or class cannot be used; the
            sentence names the first one.
    """
    if hasattr(detections, "xyxy"):
        boxes, scores, ids, names = _from_supervision(detections)
    elif isinstance(detections, Sequence) and all(isinstance(one, Mapping) for one in detections):
        boxes, scores, ids, names = _from_coco(detections)
    else:
        raise DynaMaskError(
            "detections are neither a supervision.Detections nor a list of COCO results; give one of the two"
        )
    clipped = check_boxes(boxes, image_size)
    for name, values in (("scores", scores), ("class ids", ids), ("class names", names)):
        if len(values) != len(clipped):
            raise DynaMaskError(f"the detections have {len(clipped)} boxes and {len(values)} {name}; give one for each")
    order = sorted(range(len(clipped)), key=lambda row: -_checked_score(scores[row], row))
    labels, class_names, class_ids = _classes(ids, names)
    return GivenDetections(
        clipped[order],
        labels[order],
        torch.tensor([float(scores[row]) for row in order]),
        class_names,
        class_ids,
        any(name is not None for name in names),
    )


def _from_supervision(detections: Any) -> tuple[Any, Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Boxes xyxy, scores, class ids and class names; None for ids and names that are missing."""
    boxes = detections.xyxy
    count = len(boxes)
    names = (getattr(detections, "data", None) or {}).get("class_name")
    given = (getattr(detections, "confidence", None), getattr(detections, "class_id", None), names)
    scores, ids, names = (
        [default] * count if values is None else np.asarray(values).tolist()
        for values, default in zip(given, (1.0, None, None))
    )
    return boxes, scores, ids, names


def _from_coco(results: Sequence[Mapping[str, Any]]) -> tuple[Any, Sequence[Any], Sequence[Any], Sequence[Any]]:
    """The same of COCO results of one image."""
    images = {result["image_id"] for result in results if "image_id" in result}
    if len(images) > 1:
        raise DynaMaskError(f"the detections are of {len(images)} pictures (image_id); give those of one picture")
    boxes = []
    for number, result in enumerate(results, start=1):
        try:
            x, y, width, height = (float(value) for value in result["bbox"])
        except (KeyError, TypeError, ValueError) as error:
            raise DynaMaskError(f"detection {number} has no bbox of four numbers [x, y, width, height]") from error
        boxes.append([x, y, x + width, y + height])
    return (
        boxes,
        [result.get("score", 1.0) for result in results],
        [result.get("category_id") for result in results],
        [result.get("category_name", result.get("class_name")) for result in results],
    )


def _checked_score(score: Any, row: int) -> float:
    """A score as a number in 0–1."""
    if isinstance(score, bool) or not isinstance(score, Real) or not 0 <= score <= 1:
        raise DynaMaskError(f"detection {row + 1} has the score {score!r}; give a number from 0 to 1")
    return float(score)


def _classes(ids: Sequence[Any], names: Sequence[Any]) -> tuple[Tensor, tuple[str, ...], tuple[int, ...]]:
    """Labels (R,) of detections in a numbering of their own, with the names and ids of their classes.

    Classes are numbered by ascending id, or without ids in the order in which their names appear first.
    """
    if all(each is None for each in ids):
        known = list(dict.fromkeys(names))
        ids = [known.index(name) + 1 for name in names]
        names = ["object" if name is None else name for name in names]
    called: dict[int, str | None] = {}
    for number, (each, name) in enumerate(zip(ids, names), start=1):
        if isinstance(each, bool) or not isinstance(each, Integral) or each < 0:
            raise DynaMaskError(f"detection {number} has the class id {each!r}; give whole numbers of at least 0")
        if called.setdefault(each, name) is None:
            called[each] = name
        if name not in (None, called[each]):
            raise DynaMaskError(
                f"class {each} is called {called[each]!r} and {name!r}; give one name for each class id"
            )
    class_ids = tuple(sorted(map(int, called)))
    class_names = (
        "__background__",
        *(f"class {each}" if called[each] is None else str(called[each]) for each in class_ids),
    )
    return torch.tensor([class_ids.index(each) + 1 for each in ids], dtype=torch.int64), class_names, class_ids


def whole_numbers(labels: Sequence[int] | np.ndarray | Tensor) -> Tensor:
    """Labels as (R,) int64; :class:`DynaMaskError` unless they are whole numbers."""
    try:
        values = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        values = torch.tensor([math.nan])
    if values.numel() and (values.is_floating_point() or values.dtype == torch.bool):
        raise DynaMaskError("labels are not a list of whole numbers; give one for each box")
    return values.to(torch.int64).reshape(-1)


def check_boxes(boxes: Boxes, image_size: tuple[int, int]) -> Tensor:
    """Boxes xyxy as (R, 4) float32, clipped to an image of (H, W) pixels.

    Raises:
        DynaMaskError: the boxes are not four numbers each, or one has no area inside the image.
    """
    try:
        given = torch.as_tensor(np.asarray(boxes, dtype=np.float32))
    except (TypeError, ValueError):
        given = None
    if given is None or (given.numel() and (given.ndim != 2 or given.shape[1] != 4)):
        raise DynaMaskError("boxes are not a list of [x0, y0, x1, y1]; give four numbers for each")
    given = given.reshape(-1, 4)
    height, width = image_size
    clipped = torch.minimum(given.clamp_min(0), given.new_tensor([width, height, width, height]))
    for row, box in zip(given.tolist(), clipped.tolist()):
        if not all(map(math.isfinite, row)) or box[2] <= box[0] or box[3] <= box[1]:
            raise DynaMaskError(
                f"box {row} has no area inside the picture of {width} x {height} pixels; "
                "give [x0, y0, x1, y1] with x0 < x1 and y0 < y1"
            )
    return clipped
