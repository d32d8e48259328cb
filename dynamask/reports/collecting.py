"""Predict every picture once and keep what the reports need: true boxes, the same seen again, and detections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from dynamask.data.sources import Data
from dynamask.engine.evaluate import Collector, EvaluationOptions, Instances, category_map, known_instances
from dynamask.evaluation.mask_quality import quality_by_size
from dynamask.predict import Predictor
from dynamask.reports.signals import SIGNALS, size_signals
from dynamask.structures import MASK_SIZES

MEASURES = ("mask_iou", "boundary_iou")
SHIFT, STRETCH = 0.04, 0.08
"""Largest shift of a box (of its sides) and stretch (of each side) in another view."""


@dataclass
class Collected:
    """The instances of a data set with the masks of every size.

    Attributes:
        given: in their true boxes.
        found: detected; None where they were not wanted.
        views: by measure (V, N, 4) quality of ``given`` in V other views of the same pictures.
        signals: by name of ``SIGNALS`` (N, 4), what the losses of ``given`` say of each size; empty if not wanted.
    """

    given: Instances = field(default_factory=Instances)
    found: Instances | None = None
    views: dict[str, np.ndarray] = field(
        default_factory=lambda: {m: np.zeros((0, 0, len(MASK_SIZES))) for m in MEASURES}
    )
    signals: dict[str, np.ndarray] = field(default_factory=dict)


def collect_all(
    predictor: Predictor,
    dataset: Data,
    indices: Sequence[int],
    given: bool = True,
    detected: bool = True,
    views: int = 0,
    seed: int = 0,
    progress: bool = False,
    score: float = 0.05,
    signals: bool = False,
) -> Collected:
    """One pass over the pictures.

    Args:
        given: predict in the true boxes.
        detected: predict with the weights' own detections, matched to true instances.
        views: how often to see each picture again, flipped every other time, with shifted and stretched true boxes.
        seed: of the shifts, together with the image id.
        score: detections below it are left out.
        signals: keep the mask and edge losses of every size in the true boxes; the weights must have an r-FPN.
    """
    categories = category_map(predictor, dataset)
    true_boxes = Collector(predictor, dataset, EvaluationOptions(boxes="gt"), every_size=True)
    matched = Collector(predictor, dataset, EvaluationOptions(policy="oracle", score=score), every_size=True)
    seen: list[np.ndarray] = []
    signalled: list[np.ndarray] = []
    pictures: Iterable[int] = tqdm(indices, unit="picture", disable=not progress, dynamic_ncols=True)
    for index in pictures:
        image, target = dataset[index]
        if given:
            prediction = true_boxes.add(image, target)
            if signals:
                rows, _ = known_instances(target, categories, dataset.category_ids)
                signalled.append(size_signals(prediction.regions, prediction.boxes, target["masks"][rows]))
        if detected:
            matched.add(image, target)
        if views:
            seen.append(other_views(predictor, image, target, categories, dataset.category_ids, views, seed))
    kept = Collected(true_boxes.instances, matched.instances if detected else None)
    kept.given.rles = [{} for _ in kept.given.rles]  # only detections are judged by AP
    if views and seen:
        both = np.concatenate(seen, axis=2)  # (2, V, N, 4)
        kept.views = dict(zip(MEASURES, both))
    if signalled:
        kept.signals = dict(zip(SIGNALS, np.concatenate(signalled, axis=1)))
    return kept


def other_views(
    predictor: Predictor,
    image: Tensor,
    target: dict[str, Any],
    categories: dict[int, int],
    category_ids: Sequence[int],
    views: int,
    seed: int,
) -> np.ndarray:
    """Mask and boundary IoU (2, V, n, 4) of the true instances of one picture, seen again V times.

    View 0, 2, … shows the picture flipped left to right; every view has its own shifts and stretches of the boxes.
    """
    rows, labels = known_instances(target, categories, category_ids)
    quality = np.zeros((2, views, len(rows), len(MASK_SIZES)))
    if not rows:
        return quality
    rng = np.random.default_rng([seed, abs(int(target["image_id"]))])
    size = (int(image.shape[1]), int(image.shape[2]))
    boxes = [_jittered(target["boxes"][rows].numpy(), size, rng) for _ in range(views)]
    for flipped in (True, False):
        own = list(range(0 if flipped else 1, views, 2))
        if not own:
            continue
        seen = image.flip(2) if flipped else image
        truth = target["masks"][rows].numpy().astype(bool)
        given = np.concatenate([boxes[v] for v in own])
        if flipped:
            truth = truth[:, :, ::-1]
            given = given[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [size[1], 0, size[1], 0]
        prediction = predictor(seen, boxes=given.astype(np.float32), labels=labels * len(own), all_sizes=True)
        for position, view in enumerate(own):
            part = range(position * len(rows), (position + 1) * len(rows))
            masks = [np.stack([prediction.mask_at(i, s).numpy() for i in part]) for s in MASK_SIZES]
            quality[:, view] = quality_by_size(truth, masks)
    return quality


def _jittered(boxes: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Boxes (n, 4) xyxy, shifted and stretched, cut to a picture of (height, width); tiny ones stay as they are."""
    sides = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, 2:] + boxes[:, :2]) / 2 + rng.uniform(-SHIFT, SHIFT, sides.shape) * sides
    half = sides * rng.uniform(1 - STRETCH, 1 + STRETCH, sides.shape) / 2
    limit = np.array([size[1], size[0], size[1], size[0]])
    moved = np.clip(np.concatenate([centre - half, centre + half], axis=1), 0, limit)
    usable = (moved[:, 2:] - moved[:, :2]).min(axis=1) >= 1
    return np.where(usable[:, None], moved, boxes)


def annotations_of(found: Instances, dataset: Data) -> list[dict[str, Any] | None]:
    """The annotation of every instance, None for a detection that matches none."""
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in dataset.coco["annotations"]:
        if not annotation.get("iscrowd"):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    return [
        None if row is None else by_image[result["image_id"]][row] for result, row in zip(found.results, found.truth)
    ]
