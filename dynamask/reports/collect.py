"""Predict every picture of a data set once and keep what the reports need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from dynamask.data.sources import Data
from dynamask.engine.evaluate import Collector, EvaluationOptions, Instances, category_map, known_instances
from dynamask.engine.frozen_features import view_generator, views_of
from dynamask.evaluation.mask_quality import quality_by_size
from dynamask.predict import Predictor
from dynamask.reports.options import CollectOptions
from dynamask.reports.picture_macs import count_detector_macs, picture_macs
from dynamask.reports.size_losses import SIZE_LOSSES, size_losses
from dynamask.structures import IOU_MEASURES, MASK_SIZES


@dataclass
class Collected:
    """The predictions of one weights file on a data set, with the masks of every size.

    Attributes:
        true_boxes: instances in the true boxes, without their masks.
        detections: detected instances; None if they were not asked for.
        views: quality (V, N, 4) of ``true_boxes`` in V other views of the same pictures, by measure.
        size_losses: losses (N, 4) of ``true_boxes`` by name in ``SIZE_LOSSES``; empty if they were not asked for.
        picture_macs: MACs of every picture by part, see :func:`dynamask.reports.picture_macs.picture_macs`.
    """

    true_boxes: Instances = field(default_factory=Instances)
    detections: Instances | None = None
    views: dict[str, np.ndarray] = field(
        default_factory=lambda: {measure: np.zeros((0, 0, len(MASK_SIZES))) for measure in IOU_MEASURES}
    )
    size_losses: dict[str, np.ndarray] = field(default_factory=dict)
    picture_macs: list[dict[str, int]] = field(default_factory=list)


def collect(
    predictor: Predictor,
    dataset: Data,
    indices: Sequence[int],
    options: CollectOptions,
    seed: int = 0,
    progress: bool = False,
) -> Collected:
    """Predict the pictures at some indices of a data set.

    Args:
        options: selects what is predicted; size losses need weights with an r-FPN.
        seed: seed of the other views, combined with the image id.
        progress: show a bar.
    """
    detected = EvaluationOptions(policy="oracle", score=options.score)  # the oracle's matching to true instances
    given = Collector(predictor, dataset, EvaluationOptions(boxes="gt"), every_size=True)
    found = Collector(predictor, dataset, detected, every_size=True)
    kept = Collected(given.instances, found.instances if options.detections else None)
    views: list[np.ndarray] = []
    losses: list[np.ndarray] = []
    pictures: Iterable[int] = tqdm(indices, unit="picture", disable=not progress, dynamic_ncols=True)
    for index in pictures:
        image, target = dataset[index]
        if options.true_boxes:
            prediction = given.add(image, target)
            if options.size_losses:
                rows, _ = known_instances(target, given.categories, dataset.category_ids)
                losses.append(size_losses(prediction.regions, prediction.boxes, target["masks"][rows]))
        if options.detections:
            with count_detector_macs(predictor) as detector:
                prediction = found.add(image, target)
            kept.picture_macs.append(picture_macs(prediction, detector))
        if options.views:
            views.append(quality_in_views(predictor, dataset, image, target, options.views, seed))
    kept.true_boxes.rles = [{} for _ in kept.true_boxes.rles]  # only detections are evaluated by AP
    if views:
        kept.views = dict(zip(IOU_MEASURES, np.concatenate(views, axis=2)))
    if losses:
        kept.size_losses = dict(zip(SIZE_LOSSES, np.concatenate(losses, axis=1)))
    return kept


def quality_in_views(
    predictor: Predictor, dataset: Data, image: Tensor, target: dict[str, Any], views: int, seed: int
) -> np.ndarray:
    """Mask and boundary IoU (2, V, n, 4) of the true instances of one picture in V other views of it.

    The first view and every other one after it show the picture flipped left to right; all have jittered boxes.
    """
    rows, labels = known_instances(target, category_map(predictor, dataset), dataset.category_ids)
    quality = np.zeros((2, views, len(rows), len(MASK_SIZES)))
    if not rows:
        return quality
    masks, generator = target["masks"][rows], view_generator(seed, int(target["image_id"]))
    for group in views_of(image, target["boxes"][rows], masks, range(1, views + 1), generator):
        truth = group.masks.numpy().astype(bool)
        prediction = predictor(group.image, boxes=group.boxes, labels=labels * len(group.numbers), all_sizes=True)
        for position, number in enumerate(group.numbers):
            part = range(position * len(rows), (position + 1) * len(rows))
            seen = [np.stack([prediction.mask_at(i, size).numpy() for i in part]) for size in MASK_SIZES]
            quality[:, number - 1] = quality_by_size(truth, seen)
    return quality


def annotations_of(instances: Instances, dataset: Data) -> list[dict[str, Any] | None]:
    """The annotation of every instance; None for a detection without a matching true instance."""
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in dataset.coco["annotations"]:
        if not annotation.get("iscrowd"):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    return [
        None if row is None else by_image[result["image_id"]][row]
        for result, row in zip(instances.results, instances.truth)
    ]
