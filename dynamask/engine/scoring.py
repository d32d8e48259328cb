"""The AP protocol of a data set: COCO's, LVIS', or COCO's with Cityscapes' beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamask.data.cityscapes import CityscapesDataset
from dynamask.data.sources import Data
from dynamask.evaluation.cityscapes import evaluate_cityscapes
from dynamask.evaluation.coco_ap import evaluate_coco
from dynamask.evaluation.lvis import evaluate_lvis, is_federated


def average_precision(
    annotations: dict[str, Any], results: Sequence[dict[str, Any]], image_ids: Sequence[int] | None = None
) -> dict[str, Any]:
    """``bbox``, ``segm`` and ``boundary`` by the protocol of the annotations; LVIS' is named under ``protocol``."""
    if is_federated(annotations):
        return {**evaluate_lvis(annotations, results, image_ids=image_ids), "protocol": "lvis"}
    return evaluate_coco(annotations, results, image_ids=image_ids)


def score(dataset: Data, results: Sequence[dict[str, Any]], indices: Sequence[int]) -> dict[str, Any]:
    """:func:`average_precision` on the images at some indices; for Cityscapes also its own AP, as ``cityscapes``.

    Cityscapes' AP is computed class by class, so merged classes have none.
    """
    image_ids = [dataset.image_ids[index] for index in indices]
    figures = average_precision(dataset.coco, results, image_ids)
    if isinstance(dataset, CityscapesDataset) and not dataset.merge_classes:
        index_of = dict(zip(image_ids, indices))
        classes = dict(zip(dataset.category_ids, dataset.class_names[1:]))
        figures["cityscapes"] = evaluate_cityscapes(
            lambda image_id: dataset.instance_ids(index_of[image_id]), image_ids, results, classes
        )
    return figures
