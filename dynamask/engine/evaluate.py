"""Evaluation on a data set, for all model families: AP, mask quality in true boxes, and the MACs of the masks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dynamask.data.sources import Data
from dynamask.engine.distributed import SINGLE_PROCESS, Ranks
from dynamask.engine.scoring import score
from dynamask.evaluation.calibration import calibration_error
from dynamask.evaluation.choices import spearman, within_spearman
from dynamask.evaluation.mask_quality import border_share, boundary_iou, mask_iou
from dynamask.evaluation.matching import match_detections
from dynamask.models.masks import policies
from dynamask.models.masks.policies import LEARNED, QUALITY, Policy, default_policy
from dynamask.ops.knapsack import best_under_budget
from dynamask.ops.rle import encode_rle
from dynamask.predict import Prediction, Predictor
from dynamask.structures import MASK_SIZES, DynaMaskError

DATASET_POLICIES = ("random", "oracle")
"""Policies that choose over all images of a data set; the others choose image by image."""


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    Attributes:
        policy: "learned", "quality", "size", "fixed:S", "random" (the learned sizes permuted among all instances) or
            "oracle" (the sizes with the best mask IoU at the same or the budget's mean MACs; uses ground truth). None
            is "learned", and under a budget "quality" where the weights have a quality head.
        budget: mean GMACs per instance; with the policy "learned", "quality" or "oracle".
        budget_scope: "image" meets the budget on every image, "dataset" in the mean over all of them.
        boxes: "detected", or "gt" for masks in the true boxes.
        score: detections below this score are left out.
        seed: of the random policy.
        mask_nms: mask IoU from which the worse-scored of two detections of one class is left out; 0 leaves out none,
            and None is the value of the weights.
        rescore: multiply scores by the predicted mask IoU of the masks as they were predicted.
    """

    policy: str | None = None
    budget: float | None = None
    budget_scope: str = "image"
    boxes: str = "detected"
    score: float = 0.05
    seed: int = 0
    mask_nms: float | None = None
    rescore: bool = False

    def __post_init__(self) -> None:
        if self.policy is not None:
            Policy.parse(self.policy, DATASET_POLICIES).check_budget(self.budget)
        if self.budget_scope not in ("image", "dataset") or self.boxes not in ("detected", "gt"):
            raise DynaMaskError(
                "budget scope is 'image' or 'dataset', and boxes are 'detected' or 'gt'; choose one of each"
            )

    def for_weights(self, predictor: Predictor) -> EvaluationOptions:
        """The same options with a policy that these weights can follow.

        Raises:
            DynaMaskError: the weights cannot follow the policy or the budget.
        """
        if self.over_dataset:
            predictor.check_switch("choosing sizes over a data set")
        if self.policy in DATASET_POLICIES:
            predictor.check_choice(LEARNED, self.budget)
            return self
        policy, _ = predictor.check_choice(self.policy, self.budget)
        return replace(self, policy=self.policy or str(policy))

    @property
    def over_dataset(self) -> bool:
        """Whether sizes are chosen only after all images were predicted."""
        return self.policy in DATASET_POLICIES or (self.budget is not None and self.budget_scope == "dataset")


@dataclass
class Instances:
    """The predicted instances of a data set, each with its masks at one or more sizes.

    Masks and their quality are kept by index into ``MASK_SIZES``; those of models without sizes have the index 0.

    Attributes:
        results: COCO results without masks.
        rles: {size index: RLE} of each instance.
        switch_logits: (4,) of each instance; empty without a switch.
        predicted: (4, 2) predicted quality of each instance; empty without a quality head.
        mask_iou, boundary_iou: {size index: IoU} of each instance with its true mask; {} without one.
        choice: size index of each instance as it was predicted.
        truth: row of each instance's true instance in the target of its image; None where none is matched.
        macs: MACs of each instance's mask as it was predicted.
        border_share: {size index: share} of each instance's outline on the border of what its mask could cover, see
            :func:`dynamask.evaluation.mask_quality.border_share`; NaN for an empty mask.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    rles: list[dict[int, Any]] = field(default_factory=list)
    switch_logits: list[Tensor] = field(default_factory=list)
    predicted: list[Tensor] = field(default_factory=list)
    mask_iou: list[dict[int, float]] = field(default_factory=list)
    boundary_iou: list[dict[int, float]] = field(default_factory=list)
    choice: list[int] = field(default_factory=list)
    truth: list[int | None] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)
    border_share: list[dict[int, float]] = field(default_factory=list)

    @classmethod
    def joined(cls, parts: Sequence[Instances]) -> Instances:
        """The instances of several parts of a data set, in order."""
        if len(parts) == 1:
            return parts[0]
        names = [f.name for f in fields(cls)]
        return cls(**{name: [value for part in parts for value in getattr(part, name)] for name in names})

    def quality(self, measure: str) -> np.ndarray:
        """(N, 4) array of "mask_iou", "boundary_iou" or "border_share"; NaN where unknown."""
        rows: list[dict[int, float]] = getattr(self, measure)
        quality = [[row.get(k, math.nan) for k in range(len(MASK_SIZES))] for row in rows]
        return np.array(quality).reshape(-1, len(MASK_SIZES))

    def logits(self) -> Tensor:
        """(N, 4) switch logits."""
        return torch.stack(self.switch_logits) if self.switch_logits else torch.zeros(0, len(MASK_SIZES))

    def preferences(self, policy: Policy | None = None) -> Tensor:
        """(N, 4) float64, the sum of which a budget over the data set maximises.

        Predicted quality is weighted by the score of the detection: most detections with a low score are wrong, and a
        fine mask on them is wasted. Scores in true boxes are 1.

        Args:
            policy: "quality" or "learned"; by default "quality" where a quality head has predicted it.
        """
        policy = policy or default_policy(with_budget=True, with_quality=bool(self.predicted))
        values = policy.preferences(self.logits(), self.predicted_quality())
        if policy != QUALITY:
            return values
        return values * torch.tensor([result["score"] for result in self.results], dtype=torch.float64)[:, None]

    def predicted_quality(self) -> Tensor:
        """(N, 4, 2) predicted mask IoU and boundary IoU; (0, 4, 2) without a quality head."""
        return torch.stack(self.predicted) if self.predicted else torch.zeros(0, len(MASK_SIZES), 2)


def category_map(predictor: Predictor, dataset: Data) -> dict[int, int]:
    """Model label → category_id of the data set, by class name; no common class raises :class:`DynaMaskError`."""
    by_name = dict(zip(dataset.class_names[1:], dataset.category_ids))
    names = list(predictor.class_names)
    shared = {label: by_name[name] for label, name in enumerate(names) if label and name in by_name}
    if not shared:
        raise DynaMaskError(
            f"the weights know {', '.join(names[1:4])} and the annotations {', '.join(list(by_name)[:3])}: "
            "no class in common; evaluate on annotations with the weights' classes"
        )
    return shared


def class_differences(predictor: Predictor, dataset: Data) -> str | None:
    """A sentence about the classes that only the weights or only the annotations have; None without a difference."""
    ours, theirs = (list(dict.fromkeys(names[1:])) for names in (predictor.class_names, dataset.class_names))
    lacking = [name for name in theirs if name not in ours]
    unused = [name for name in ours if name not in theirs]
    parts = []
    if lacking:
        parts.append(f"the weights lack {_some(lacking)} of the annotations, which count as not found")
    if unused:
        parts.append(f"the annotations lack {_some(unused)} of the weights, whose detections are left out")
    folded = {name.casefold(): name for name in unused}
    pairs = [f"{folded[name.casefold()]!r} and {name!r}" for name in lacking if name.casefold() in folded]
    if pairs:
        parts.append(f"{', '.join(pairs)} differ in case only: write them in one way if they mean the same class")
    return "; ".join(parts) or None


def _some(names: Sequence[str]) -> str:
    """The first names, and how many others there are."""
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more classes" if len(names) > 5 else shown


def known_instances(
    target: dict[str, Any], categories: dict[int, int], category_ids: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The rows of a target whose classes the weights know, and their labels in the weights' numbering.

    Args:
        categories: from :func:`category_map`.
        category_ids: of the data set.
    """
    back = {category: label for label, category in categories.items()}
    labels = [back.get(category_ids[label - 1], 0) for label in target["labels"].tolist()]
    return [i for i, label in enumerate(labels) if label], [label for label in labels if label]


class Collector:
    """Predicts images of a data set one by one and keeps their instances.

    Args:
        every_size: keep the masks of all sizes that the model gives; by default only where the options need them.

    Attributes:
        instances: of the images so far, without those of classes that the data set does not have.
    """

    def __init__(
        self, predictor: Predictor, dataset: Data, options: EvaluationOptions, every_size: bool | None = None
    ) -> None:
        self.predictor, self.dataset, self.options = predictor, dataset, options
        self.categories = category_map(predictor, dataset)
        self.every_size = options.over_dataset if every_size is None else every_size
        self.instances = Instances()

    def add(self, image: Tensor, target: dict[str, Any]) -> Prediction:
        """Predict one item of the data set and keep its instances."""
        options = self.options
        choice: dict[str, Any] = {"policy": LEARNED if options.over_dataset else options.policy}
        choice |= {"mask_nms": options.mask_nms, "rescore": options.rescore}
        if not options.over_dataset:
            choice["budget"] = options.budget
        all_sizes = self.every_size and bool(self.predictor.mask_sizes)
        if options.boxes == "gt":
            truth, labels = known_instances(target, self.categories, self.dataset.category_ids)
            given = target["boxes"][truth]
            prediction = self.predictor(image, boxes=given, labels=labels, all_sizes=all_sizes, **choice)
        else:
            prediction = self.predictor(image, score=options.score, all_sizes=all_sizes, **choice)
            match = options.policy == "oracle" or prediction.quality is not None
            truth = self._match(prediction, target) if match else [None] * len(prediction)
        for i, label in enumerate(prediction.labels.tolist()):
            if label in self.categories:
                self._keep(prediction, i, target, truth[i])
        return prediction

    def _match(self, prediction: Prediction, target: dict[str, Any]) -> list[int | None]:
        """The true instance of each detection, None where there is none."""
        true_categories = [self.dataset.category_ids[label - 1] for label in target["labels"].tolist()]
        categories = [self.categories.get(label) for label in prediction.labels.tolist()]
        return match_detections(prediction.boxes, categories, target["boxes"], true_categories)

    def _keep(self, prediction: Prediction, i: int, target: dict[str, Any], truth: int | None) -> None:
        """Append one instance to all columns."""
        if prediction.mask_size is None:
            chosen, masks = 0, {0: prediction.mask(i)}
        else:
            size = int(prediction.mask_size[i])
            chosen, sizes = MASK_SIZES.index(size), prediction.mask_sizes if self.every_size else (size,)
            masks = {MASK_SIZES.index(each): prediction.mask_at(i, each) for each in sizes}
        box, found = prediction.boxes[i].tolist(), self.instances
        found.results.append(
            {
                "image_id": int(target["image_id"]),
                "category_id": self.categories[int(prediction.labels[i])],
                "score": float(prediction.scores[i]),
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            }
        )
        found.rles.append({k: encode_rle(mask) for k, mask in masks.items()})
        if prediction.switch_logits is not None:
            found.switch_logits.append(prediction.switch_logits[i])
        if prediction.quality is not None:
            found.predicted.append(prediction.quality[i])
        found.choice.append(chosen)
        found.truth.append(truth)
        found.macs.append(int(prediction.macs[i]))
        covered = prediction.mask_boxes[i].tolist()
        found.border_share.append({k: border_share(mask.numpy(), covered) for k, mask in masks.items()})
        for column, measure in ((found.mask_iou, mask_iou), (found.boundary_iou, boundary_iou)):
            if truth is None:
                column.append({})
            else:
                true_mask = target["masks"][truth].numpy()
                column.append({k: measure(mask.numpy(), true_mask) for k, mask in masks.items()})


def collect(
    predictor: Predictor,
    dataset: Data,
    indices: Sequence[int],
    options: EvaluationOptions,
    every_size: bool | None = None,
    progress: bool = False,
) -> Instances:
    """Predict the images at some indices of a data set, see :class:`Collector`."""
    collector = Collector(predictor, dataset, options, every_size)
    images: Iterable[int] = tqdm(indices, unit="picture", disable=not progress, dynamic_ncols=True)
    for index in images:
        collector.add(*dataset[index])
    return collector.instances


def choose(found: Instances, macs: tuple[int, ...], options: EvaluationOptions) -> np.ndarray:
    """(N,) size indices of instances collected under these options; policies over the data set choose here.

    Args:
        macs: cumulative MACs per size.
    """
    predicted = np.array(found.choice, dtype=np.int64)
    if not options.over_dataset or len(predicted) == 0:
        return predicted
    limit = None if options.budget is None else policies.budget_in_macs(options.budget, macs)
    if options.policy == "random":
        generator = torch.Generator().manual_seed(options.seed)
        return policies.random_permutation(torch.from_numpy(predicted), generator).numpy()
    if options.policy == "oracle":
        return oracle_choice(found, predicted, macs, limit)
    values = found.preferences(Policy.parse(options.policy or LEARNED))
    return policies.at_price(values, macs, policies.price_for_budget(values, macs, limit)).numpy()


def oracle_choice(
    found: Instances, predicted: np.ndarray, macs: tuple[int, ...], limit: float | None = None
) -> np.ndarray:
    """(N,) size indices with the best mean mask IoU at a mean cost over all N instances.

    Args:
        predicted: (N,) size indices.
        limit: mean MACs of all instances; those that match no true one get the cheapest size. By default the matched
            instances share what their predicted sizes cost, and the others keep theirs.
    """
    quality = found.quality("mask_iou")
    matched = ~np.isnan(quality).any(axis=1)
    if limit is not None:
        return best_under_budget(np.where(matched[:, None], quality, 0.0), macs, limit)
    choice = predicted.copy()
    if matched.any():
        spent = float(np.array(macs, dtype=np.float64)[predicted[matched]].mean())
        choice[matched] = best_under_budget(quality[matched], macs, spent)
    return choice


def run_evaluation(
    predictor: Predictor,
    dataset: Data,
    indices: Sequence[int] | None = None,
    options: EvaluationOptions | None = None,
    progress: bool = False,
    ranks: Ranks = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Evaluate a predictor of any family.

    Args:
        indices: dataset indices to evaluate on; all by default.
        options: policy, budget, boxes.
        ranks: processes that share the images and each call this; all get the same figures.

    Returns:
        See :func:`summarise`.

    Raises:
        DynaMaskError: an option that the weights cannot follow.
    """
    options = options or EvaluationOptions()
    indices = list(range(len(dataset))) if indices is None else list(indices)
    macs = () if predictor.costs is None else predictor.costs.macs_per_instance
    options = options.for_weights(predictor)
    own = ranks.together(lambda: collect(predictor, dataset, ranks.share(indices), options, progress=progress))
    found = Instances.joined(ranks.gather(own))

    def figures() -> dict[str, Any]:
        choice = choose(found, macs, options)
        return summarise(found, choice, macs, dataset, indices, true_boxes=options.boxes == "gt")

    return ranks.from_first(figures)


def summarise(
    found: Instances,
    choice: np.ndarray,
    macs: tuple[int, ...],
    dataset: Data,
    indices: Sequence[int],
    true_boxes: bool = False,
) -> dict[str, Any]:
    """The figures of instances under a choice of sizes.

    Args:
        choice: (N,) size indices, the masks of which must have been kept.
        macs: cumulative MACs per size; empty for models without sizes.
        indices: dataset indices of the evaluated images.
        true_boxes: the instances are in true boxes.

    Returns:
        ``images``, ``detections``, ``bbox`` / ``segm`` / ``boundary`` (AP, AP50, AP75, APS, APM, APL in 0–1 or None),
        ``mean_macs_per_instance``, ``border_share`` (mean over the detections whose masks are not empty); for models
        with sizes ``size_shares`` by size; with true boxes ``mean_mask_iou`` and ``mean_boundary_iou``; with a quality
        head the figures of :func:`quality_figures`. The means are None without an instance.
    """
    chosen = zip(found.results, found.rles, choice.tolist())
    results = [{**result, "segmentation": rles[k]} for result, rles, k in chosen]
    summary: dict[str, Any] = {"images": len(indices), "detections": len(results)}
    summary.update(score(dataset, results, indices))
    some = len(choice) > 0
    spent = np.array(macs, dtype=np.float64)[choice] if macs else np.array(found.macs, dtype=np.float64)
    summary["mean_macs_per_instance"] = float(spent.mean()) if some else None
    if found.border_share:
        on_border = found.quality("border_share")[np.arange(len(choice)), choice]
        summary["border_share"] = None if np.isnan(on_border).all() else float(np.nanmean(on_border))
    if macs:
        shares = {str(size): float((choice == k).mean()) if some else None for k, size in enumerate(MASK_SIZES)}
        summary["size_shares"] = shares
    if true_boxes:
        for measure in ("mask_iou", "boundary_iou"):
            quality = found.quality(measure)[np.arange(len(choice)), choice]
            summary[f"mean_{measure}"] = float(quality.mean()) if some else None
    return {**summary, **quality_figures(found, choice)} if found.predicted else summary


def quality_figures(found: Instances, choice: np.ndarray) -> dict[str, Any]:
    """Agreement of predicted and measured boundary IoU of the chosen masks, for instances with a true one.

    Returns:
        ``quality_calibration`` (expected calibration error), ``quality_spearman`` and ``quality_spearman_within``
        (within classes); None where undefined.
    """
    rows = np.arange(len(choice))
    measured = found.quality("boundary_iou")[rows, choice]
    known = np.flatnonzero(~np.isnan(measured))
    predicted = found.predicted_quality().double().numpy()[rows, choice, 1]
    labels = np.array([result["category_id"] for result in found.results])[known]
    pair = (predicted[known], measured[known])
    return {
        "quality_calibration": calibration_error(*pair),
        "quality_spearman": spearman(*pair),
        "quality_spearman_within": within_spearman(*pair, labels),
    }
