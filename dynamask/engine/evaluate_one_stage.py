"""Evaluation of one-stage models: average precision, and what decoding the masks costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm

from dynamask.data.coco import CocoDataset
from dynamask.engine.distributed import ALONE, Ranks
from dynamask.engine.evaluate import Predicts, category_map
from dynamask.engine.scoring import score as scored


def collect_results(
    predictor: Predicts, dataset: CocoDataset, indices: Sequence[int], score: float, progress: bool = False
) -> list[dict[str, Any]]:
    """COCO results of a predictor whose predictions have ``to_coco``, for the classes that the data set has.

    Detections below ``score`` are left out; each result has ``macs`` beside what COCO wants.
    """
    categories, results = category_map(predictor, dataset), []
    pictures: Iterable[int] = tqdm(indices, unit="picture", disable=not progress, dynamic_ncols=True)
    for index in pictures:
        image, target = dataset[index]
        prediction = predictor(image.permute(1, 2, 0).contiguous().numpy(), score=score)
        own = prediction.to_coco(int(target["image_id"]))
        for result, label in zip(own, prediction.labels.tolist()):
            if label in categories:
                results.append({**result, "category_id": categories[label]})
    return results


def run_one_stage_evaluation(
    predictor: Predicts,
    dataset: CocoDataset,
    indices: Sequence[int] | None = None,
    score: float = 0.05,
    progress: bool = False,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Evaluate a one-stage predictor; several processes share the pictures.

    Returns:
        ``images``, ``detections``, ``bbox`` / ``segm`` / ``boundary`` (AP, AP50, AP75, APS, APM, APL in 0–1 or None)
        and ``mean_macs_per_instance``, what decoding a mask costs (None without a detection).
    """
    indices = list(range(len(dataset))) if indices is None else list(indices)
    own = ranks.together(lambda: collect_results(predictor, dataset, ranks.share(indices), score, progress))
    results = [result for part in ranks.gather(own) for result in part]

    def figures() -> dict[str, Any]:
        summary: dict[str, Any] = {"images": len(indices), "detections": len(results)}
        summary.update(scored(dataset, results, indices))
        summary["mean_macs_per_instance"] = sum(r["macs"] for r in results) / len(results) if results else None
        return summary

    return ranks.from_first(figures)
