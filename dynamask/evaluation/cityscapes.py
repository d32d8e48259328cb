"""Average precision as defined by the Cityscapes benchmark, implemented from its published rules.

It differs from COCO's: a prediction must overlap by more than the threshold; the precision–recall curve has one point
per distinct score, ends at recall 0 with precision 1, and is integrated by trapezoids, without interpolation; instances
below 100 pixels and groups do not have to be found; and a false positive does not count if a larger fraction of it than
the threshold is on ignored pixels: void, groups of its class, and small instances of its class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynamask.ops.rle import decode_rle

OVERLAPS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""IoU thresholds .50:.05:.95."""
MIN_REGION = 100
"""Pixels of the smallest instances that have to be found."""
VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""Label ids that are not evaluated; only their pixels without an instance number count as void."""


@dataclass
class _Scores:
    """True and false positives of one class at one threshold, over all pictures.

    Attributes:
        hits, misses: scores of the true and of the false positives.
        missed: number of instances that were not found.
        instances, predictions: number of instances to find, and of predictions.
    """

    hits: list[float] = field(default_factory=list)
    misses: list[float] = field(default_factory=list)
    missed: int = 0
    instances: int = 0
    predictions: int = 0

    def average_precision(self) -> float | None:
        """Area under the curve; None without an instance to find."""
        if not self.instances:
            return None
        return area_under_curve(self.hits, self.misses, self.missed) if self.predictions else 0.0


def evaluate_cityscapes(
    labels: Callable[[int], np.ndarray],
    image_ids: Iterable[int],
    results: Sequence[dict[str, Any]],
    classes: dict[int, str],
) -> dict[str, Any]:
    """Average precision of COCO results by the rules of Cityscapes.

    Args:
        labels: returns the (H, W) instance labels of an image id: 1000 · label + number, or a label alone.
        image_ids: pictures to evaluate; results on others are left out.
        results: with ``image_id``, ``category_id`` (the label id), ``score`` and ``segmentation`` (compressed RLE).
        classes: name by label id of the classes to evaluate.

    Returns:
        ``AP`` (mean over ten overlaps and the classes), ``AP50``, and the same under ``classes`` by name; each 0–1, or
        None where there is no instance to find.
    """
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    scores = {(label, overlap): _Scores() for label in classes for overlap in OVERLAPS}
    for image_id in image_ids:
        _add_picture(labels(image_id), by_image[image_id], classes, scores)
    ap = {name: [scores[label, overlap].average_precision() for overlap in OVERLAPS] for label, name in classes.items()}
    return {
        "AP": _mean(value for values in ap.values() for value in values),
        "AP50": _mean(values[0] for values in ap.values()),
        "classes": {name: {"AP": _mean(values), "AP50": values[0]} for name, values in ap.items()},
    }


def area_under_curve(hits: Sequence[float], misses: Sequence[float], missed: int) -> float:
    """Area under the precision–recall curve by trapezoids, with one point per distinct score.

    Args:
        hits, misses: scores of true and of false positives.
        missed: number of instances that were not found.

    The curve ends at recall 0 with precision 1, as in the benchmark's script.
    """
    true, false = np.sort(np.asarray(hits, dtype=float)), np.sort(np.asarray(misses, dtype=float))
    thresholds = np.unique(np.concatenate([true, false]))
    if not len(thresholds):
        return 0.0
    found = len(true) - np.searchsorted(true, thresholds)  # true positives at or above each threshold
    wrong = len(false) - np.searchsorted(false, thresholds)
    precision = found / (found + wrong)
    recall = found / (len(true) + missed)
    precision, recall = np.append(precision, 1.0), np.append(recall, 0.0)
    return float(np.sum((precision[:-1] + precision[1:]) / 2 * (recall[:-1] - recall[1:])))


def _add_picture(
    labels: np.ndarray,
    results: list[dict[str, Any]],
    classes: dict[int, str],
    scores: dict[tuple[int, float], _Scores],
) -> None:
    """Add the predictions and instances of one picture to the scores of every class and threshold."""
    values, places = np.unique(labels, return_inverse=True)
    places, sizes = places.reshape(labels.shape), np.bincount(places.reshape(-1))
    owner = np.where(values >= 1000, values // 1000, values)
    void = np.isin(values, VOID)
    predictions: dict[int, list[tuple[float, np.ndarray]]] = defaultdict(list)
    for result in results:
        mask = decode_rle(result["segmentation"])
        if mask.any() and result["category_id"] in classes:
            shared = np.bincount(places[mask], minlength=len(values))  # pixels of the prediction on each value
            predictions[result["category_id"]].append((float(result["score"]), shared))
    for label in classes:
        own = owner == label
        sought = own & (values >= 1000) & (sizes >= MIN_REGION)
        # a small group counts twice, as in the arithmetic of the benchmark
        ignored = void.astype(int) + (own & (values < 1000)) + (own & (sizes < MIN_REGION))
        for overlap in OVERLAPS:
            _count(predictions[label], sizes, own, sought, ignored, overlap, scores[label, overlap])


def _count(
    predictions: list[tuple[float, np.ndarray]],
    sizes: np.ndarray,
    own: np.ndarray,
    sought: np.ndarray,
    ignored: np.ndarray,
    overlap: float,
    scores: _Scores,
) -> None:
    """Sort the predictions of one class in one picture into true and false positives at one threshold.

    Args:
        predictions: score and (V,) pixels on each value.
        sizes: (V,) pixels of each value in the labels.
        own, sought: (V,) bool: values of the class, and of instances to find.
        ignored: (V,) number of times that a pixel of a value counts as ignored.
    """
    matched: dict[int, list[float]] = defaultdict(list)
    for score, shared in predictions:
        area = int(shared.sum())
        reached = own & (shared / (sizes + area - shared) > overlap)
        for value in np.flatnonzero(reached & sought):
            matched[int(value)].append(score)
        if not reached.any() and (shared * ignored).sum() / area <= overlap:
            scores.misses.append(score)
    for found in matched.values():  # the one with the highest score is a true positive, the others are false
        scores.hits.append(max(found))
        scores.misses += sorted(found)[:-1]
    scores.instances += int(sought.sum())
    scores.missed += int(sought.sum()) - len(matched)
    scores.predictions += len(predictions)


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None, None without any."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
