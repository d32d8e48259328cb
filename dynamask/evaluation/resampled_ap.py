"""Average precision of many choices of mask sizes and of resampled pictures; masks are compared only once.

The IoUs of every detection with the true instances of its picture and class are computed once, at every mask size. A
choice of sizes then needs only a new matching, and a resampled set of pictures only a new count. Without resampling the
results are those of :func:`dynamask.evaluation.coco_ap.evaluate_coco` (all areas, at most 100 detections a picture).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from dynamask.evaluation.coco_ap import true_instances
from dynamask.ops.masks import BOUNDARY_WIDTH_RATIO
from dynamask.structures import MASK_SIZES

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU thresholds; AP is the mean over them."""
RECALLS = np.linspace(0.0, 1.0, 101)
MASK_TYPES = ("segm", "boundary")
MOST_DETECTIONS = 100
_SETS_AT_ONCE = 100  # resampled sets that are counted together, to bound the memory


@dataclass(frozen=True)
class _Group:
    """Detections of one picture and class by falling score, and the IoUs with the true instances of that class.

    Attributes:
        detections: (D,) indices of detections.
        crowd: (G,) bool, true instances that are crowd regions.
        ious: IoUs (4, D, G) at every mask size, by IoU type; zero at sizes without masks.
    """

    detections: np.ndarray
    crowd: np.ndarray
    ious: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Class:
    """One category over all pictures.

    Attributes:
        category: its id.
        detections: (D,) indices of detections by falling score.
        pictures: (D,) position of each detection's picture.
        tied: (D,) number of the run of detections with equal scores in one picture; a run is contiguous.
        positives: (P,) true instances in each picture, crowd regions not counted.
    """

    category: int
    detections: np.ndarray
    pictures: np.ndarray
    tied: np.ndarray
    positives: np.ndarray

    def in_sets(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The detections (E,) in the order of resampled sets, and how often each comes there, (B, E).

        A picture that a set holds w times contributes each detection w times side by side, but a run of equal scores w
        times as a whole: the copies of such a run are entries of their own, which a set holds once or not at all.

        Args:
            weights: (B, P).
        """
        lengths = np.bincount(self.tied)
        if not (lengths > 1).any():
            return self.detections, weights[:, self.pictures]
        most, order, copies = int(weights.max()), [], []
        for rows in np.split(np.arange(len(self.tied)), np.cumsum(lengths)[:-1]):
            repeats = most if len(rows) > 1 else 1
            order.append(np.tile(rows, repeats))
            copies.append(np.repeat(np.arange(1, repeats + 1) if len(rows) > 1 else [0], len(rows)))
        where, copy = np.concatenate(order), np.concatenate(copies)
        drawn = weights[:, self.pictures[where]]
        return self.detections[where], np.where(copy > 0, drawn >= copy, drawn)


@dataclass(frozen=True)
class Matches:
    """The matching of detections to true instances for one choice of sizes and one IoU type.

    Attributes:
        hit: (10, N) bool, true positives at each threshold.
        ignored: (10, N) bool, unmatched detections in a crowd region, neither true nor false positives.
    """

    hit: np.ndarray
    ignored: np.ndarray


class ResampledAP:
    """Detections with masks at every size, compared once with the ground truth.

    Args:
        annotations: content of a COCO file.
        results: N COCO results without masks (``image_id``, ``category_id``, ``score``).
        rles: per result {size index: RLE}, the same sizes everywhere.
        image_ids: ids of the pictures to evaluate on.

    Attributes:
        image_ids: (P,) sorted.
        pictures: (N,) position in ``image_ids`` of each result's picture.

    Raises:
        DynaMaskError: malformed annotations.
    """

    def __init__(
        self,
        annotations: dict[str, Any],
        results: Sequence[dict[str, Any]],
        rles: Sequence[dict[int, Any]],
        image_ids: Sequence[int],
    ) -> None:
        self.image_ids = np.unique(np.asarray(image_ids, dtype=np.int64))
        self.pictures = np.searchsorted(self.image_ids, [result["image_id"] for result in results])
        self.known = sorted(rles[0]) if rles else []
        sizes = {image["id"]: (image["height"], image["width"]) for image in annotations["images"]}
        truths: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for truth in true_instances(annotations, image_ids):
            truths.setdefault((truth["category_id"], truth["image_id"]), []).append(truth)
        found: dict[tuple[int, int], list[int]] = {}
        for index, result in enumerate(results):
            found.setdefault((result["category_id"], result["image_id"]), []).append(index)
        scores = np.array([result["score"] for result in results])
        ordered = {
            key: np.array(rows)[np.argsort(-scores[rows], kind="stable")][:MOST_DETECTIONS]
            for key, rows in found.items()
        }
        self._classes = self._by_class(ordered, truths, scores)
        self._groups = [
            _compare(ordered[key], truths[key], rles, sizes[key[1]]) for key in sorted(ordered) if key in truths
        ]

    def _by_class(
        self, ordered: dict[tuple[int, int], np.ndarray], truths: dict[tuple[int, int], list[Any]], scores: np.ndarray
    ) -> list[_Class]:
        """The classes that have at least one true instance, crowd regions not counted."""
        classes = []
        for category in sorted({key[0] for key in truths}):
            positives = np.array(
                [sum(not t["iscrowd"] for t in truths.get((category, i), ())) for i in self.image_ids.tolist()]
            )
            none = np.zeros(0, dtype=np.int64)
            parts = [ordered.get((category, i), none) for i in self.image_ids.tolist()]
            detections = np.concatenate(parts).astype(np.int64)
            pictures = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            order = np.argsort(-scores[detections], kind="stable") if len(detections) else none
            detections, pictures = detections[order], pictures[order]
            if positives.any():
                tied = _runs(scores[detections] if len(detections) else none, pictures)
                classes.append(_Class(category, detections, pictures, tied, positives))
        return classes

    def match(self, choice: np.ndarray, iou_type: str) -> Matches:
        """Match the detections at their chosen sizes (N,) greedily by score, as COCO does, at every threshold."""
        if not np.isin(choice, self.known).all():
            raise ValueError(f"a chosen size has no masks; there are those of the indices {self.known}")
        hit = np.zeros((len(THRESHOLDS), len(self.pictures)), dtype=bool)
        ignored = np.zeros_like(hit)
        limits = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
        for group in self._groups:
            ious = group.ious[iou_type][choice[group.detections], np.arange(len(group.detections))]  # (D, G)
            real = np.flatnonzero(~group.crowd)
            taken = np.zeros((len(THRESHOLDS), len(real)), dtype=bool)
            for row in np.flatnonzero(ious.max(axis=1) >= THRESHOLDS[0]):
                detection = group.detections[row]
                fitting = (ious[row, real] >= limits) & ~taken  # (10, G)
                hit[:, detection] = fitting.any(axis=1)
                worth = np.where(fitting, ious[row, real], -1.0)[:, ::-1]
                where = np.flatnonzero(hit[:, detection])
                if len(where):
                    taken[where, len(real) - 1 - worth[where].argmax(axis=1)] = (
                        True  # the last of equal ones, as COCO does
                    )
                if group.crowd.any():
                    ignored[:, detection] = (ious[row, group.crowd].max() >= limits[:, 0]) & ~hit[:, detection]
        return Matches(hit, ignored)

    def average_precision(
        self, matches: Matches, weights: np.ndarray | None = None, categories: Collection[int] | None = None
    ) -> np.ndarray:
        """AP in 0–1 of sets of pictures; NaN where a set holds no true instance.

        Args:
            matches: result of :meth:`match`.
            weights: (B, P) integers, how often each picture of ``image_ids`` counts; once each by default.
            categories: ids of the categories to average over; all by default.

        Returns:
            (B,) float64, the mean over thresholds, recalls and the classes that have a true instance in the set.
        """
        return self.at_thresholds(matches, weights, categories).mean(axis=0)

    def at_thresholds(
        self, matches: Matches, weights: np.ndarray | None = None, categories: Collection[int] | None = None
    ) -> np.ndarray:
        """:meth:`average_precision` at each of ``THRESHOLDS``, (10, B)."""
        if weights is None:
            weights = np.ones((1, len(self.image_ids)), dtype=np.int64)
        parts = [weights[i : i + _SETS_AT_ONCE] for i in range(0, len(weights), _SETS_AT_ONCE)]
        return np.concatenate([self._counted(matches, part, categories) for part in parts], axis=1)

    def _counted(self, matches: Matches, weights: np.ndarray, categories: Collection[int] | None) -> np.ndarray:
        """:meth:`at_thresholds` for a part of the sets."""
        sums, classes = np.zeros((len(THRESHOLDS), len(weights))), np.zeros(len(weights))
        for one in self._classes:
            if categories is not None and one.category not in categories:
                continue
            positives = weights @ one.positives  # (B,)
            there = positives > 0
            if not there.any():
                continue
            sums[:, there] += _class_precision(one, matches, weights[there], positives[there])
            classes += there
        with np.errstate(invalid="ignore"):
            return sums / np.where(classes > 0, classes, np.nan)


def _runs(scores: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """(D,) numbers, from 0, of the runs of equal scores (D,) in one picture (D,)."""
    new = (np.diff(scores) != 0) | (np.diff(pictures) != 0)
    return np.concatenate([np.zeros(min(1, len(scores)), dtype=np.int64), np.cumsum(new)])


def _compare(
    detections: np.ndarray, truths: Sequence[dict[str, Any]], rles: Sequence[dict[int, Any]], size: tuple[int, int]
) -> _Group:
    """IoUs of a picture's detections of one class with its true instances, at every size."""
    crowd = [int(truth["iscrowd"]) for truth in truths]
    true_rles = [truth["segmentation"] for truth in truths]
    true_rims = _boundaries(true_rles, size)
    real = ~np.array(crowd, dtype=bool)
    masks = [np.zeros((len(detections), len(truths))) for _ in MASK_SIZES]
    rims = list(masks)
    for k in sorted(rles[detections[0]]):
        own = [rles[i][k] for i in detections]
        mask = np.asarray(coco_mask.iou(own, true_rles, crowd), dtype=np.float64)  # (D, G)
        rim = mask.copy()
        near = np.flatnonzero((mask[:, real] >= THRESHOLDS[0]).any(axis=1))  # boundary IoU is at most mask IoU here
        if len(near):
            edges = np.asarray(coco_mask.iou(_boundaries([own[i] for i in near], size), true_rims, crowd))
            rim[np.ix_(near, real)] = np.minimum(mask[near][:, real], edges[:, real])
        masks[k], rims[k] = mask, rim
    return _Group(detections, ~real, {"segm": np.stack(masks), "boundary": np.stack(rims)})


def _boundaries(rles: Sequence[dict[str, Any]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """RLEs of the inner rims of masks of one picture of (height, width)."""
    entries = [{"image_id": 0, "segmentation": rle} for rle in rles]
    coco_mask.calculateRleForAllAnnotations(entries, {0: size}, True, True, BOUNDARY_WIDTH_RATIO, 1)
    return [entry["boundary"] for entry in entries]


def _class_precision(one: _Class, matches: Matches, weights: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """(10, B) AP of one class at every threshold in resampled sets of pictures.

    Only the true positives matter: between them precision falls and recall is constant. Where a picture was drawn
    twice, the last of the equal detections side by side has the highest precision and recall.

    Args:
        weights: (B, P).
        positives: (B,) true instances of the class in each set, at least one.
    """
    count = len(weights)
    detections, drawn = one.in_sets(weights)  # (E,), (B, E)
    running = drawn.cumsum(axis=1)
    needed = _hits_needed(positives)  # (B, 101)
    offset = (int(positives.max()) + 2) * np.arange(count)[:, None]
    out = np.zeros((len(THRESHOLDS), count))
    for total, hit, ignored in zip(out, matches.hit[:, detections], matches.ignored[:, detections]):
        places = np.flatnonzero(hit)
        if len(places) == 0:
            continue
        found = drawn[:, places].cumsum(axis=1)  # (B, n)
        seen = running[:, places]
        without = np.flatnonzero(ignored)
        if len(without):
            passed = np.pad(drawn[:, without].cumsum(axis=1), ((0, 0), (1, 0)))
            seen = seen - passed[:, np.searchsorted(without, places)]
        precision = found / (seen + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        envelope = np.pad(envelope, ((0, 0), (0, 1)))  # precision is 0 beyond the last true positive
        first = np.searchsorted((found + offset).ravel(), (needed + offset).ravel()).reshape(count, -1)
        first -= len(places) * np.arange(count)[:, None]
        total += np.take_along_axis(envelope, first, axis=1).mean(axis=1)
    return out


def _hits_needed(positives: np.ndarray) -> np.ndarray:
    """(B, 101) fewest true positives that reach each recall, given (B,) true instances; in float64 as COCO compares."""
    needed = np.ceil(RECALLS * positives[:, None]).astype(np.int64)
    needed -= (needed > 0) & ((needed - 1) / positives[:, None] >= RECALLS)
    return needed + (needed / positives[:, None] < RECALLS)
