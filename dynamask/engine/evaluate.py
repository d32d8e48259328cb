"""Evaluation on a data set: average precision, mask quality on true boxes, and what the masks cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor
from tqdm import tqdm

from dynamask.data.coco import CocoDataset
from dynamask.engine.distributed import ALONE, Ranks
from dynamask.engine.scoring import score
from dynamask.evaluation.mask_quality import boundary_iou, mask_iou
from dynamask.models.masks import policies
from dynamask.ops.knapsack import best_under_budget
from dynamask.structures import MASK_SIZES, DynaMaskError

PICTURE_POLICIES = ("learned", "size", *(f"fixed:{size}" for size in MASK_SIZES))
"""Decided from one picture; "random", "oracle" and a budget over the data set need all of them."""
MATCH_IOU = 0.5
"""Box IoU from which a detection counts as a true instance, for the oracle."""


class Predicts(Protocol):
    """What evaluation needs of a predictor; see :class:`dynamask.predict.Predictor`."""

    class_names: tuple[str, ...]
    costs: Any
    check_choice: Callable[[str, float | None], None]
    check_switch: Callable[[str], None]
    __call__: Callable[..., Any]


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    Attributes:
        policy: "learned", "size", "fixed:S", "random" (the learned sizes permuted among all instances) or "oracle".
        budget: mean GMACs per instance; with the policy "learned" or, as the oracle's limit, "oracle".
        budget_scope: "image" keeps it on every picture, "dataset" in the mean over all of them.
        boxes: "detected", or "gt" for masks in the true boxes.
        score: detections below it are left out.
        seed: of the random policy.
    """

    policy: str = "learned"
    budget: float | None = None
    budget_scope: str = "image"
    boxes: str = "detected"
    score: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        known = (*PICTURE_POLICIES, "random", "oracle")
        if self.policy not in known:
            raise DynaMaskError(f"policy {self.policy!r} is unknown; choose one of {', '.join(known)}")
        if self.budget is not None and self.policy not in ("learned", "oracle"):
            raise DynaMaskError(f"a budget and the policy {self.policy!r} exclude each other; give one of them")
        if self.budget_scope not in ("image", "dataset") or self.boxes not in ("detected", "gt"):
            raise DynaMaskError(
                "budget scope is 'image' or 'dataset', and boxes are 'detected' or 'gt'; choose one of each"
            )

    @property
    def over_dataset(self) -> bool:
        """Whether sizes can be chosen only after all pictures were seen."""
        return self.policy in ("random", "oracle") or (self.budget is not None and self.budget_scope == "dataset")


@dataclass
class Instances:
    """All instances of a data set, before sizes are chosen.

    Attributes:
        results: per instance its COCO result without a mask.
        rles: per instance {size index: RLE}.
        switch_logits: (4,) each.
        mask_iou, boundary_iou: per instance {size index: quality} against the true mask; empty without one.
        choice: per instance the size index, once chosen.
        truth: per instance its row in the target of its picture, None where it is not matched to one.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    rles: list[dict[int, Any]] = field(default_factory=list)
    switch_logits: list[Tensor] = field(default_factory=list)
    mask_iou: list[dict[int, float]] = field(default_factory=list)
    boundary_iou: list[dict[int, float]] = field(default_factory=list)
    choice: list[int] = field(default_factory=list)
    truth: list[int | None] = field(default_factory=list)

    @classmethod
    def joined(cls, parts: Sequence[Instances]) -> Instances:
        """The instances of several parts of a data set, one after another."""
        if len(parts) == 1:
            return parts[0]
        names = [f.name for f in fields(cls)]
        return cls(**{name: [value for part in parts for value in getattr(part, name)] for name in names})

    def quality(self, measure: str) -> np.ndarray:
        """(N, 4) array of "mask_iou" or "boundary_iou"; NaN where unknown."""
        rows: list[dict[int, float]] = getattr(self, measure)
        return np.array([[row.get(k, math.nan) for k in range(len(MASK_SIZES))] for row in rows]).reshape(
            -1, len(MASK_SIZES)
        )

    def logits(self) -> Tensor:
        """(N, 4) switch logits."""
        return torch.stack(self.switch_logits) if self.switch_logits else torch.zeros(0, len(MASK_SIZES))


def category_map(predictor: Predicts, dataset: CocoDataset) -> dict[int, int]:
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


def collect(
    predictor: Predicts,
    dataset: CocoDataset,
    indices: Sequence[int],
    options: EvaluationOptions,
    every_size: bool | None = None,
    progress: bool = False,
) -> Instances:
    """Predict every picture; keep the chosen masks, or all sizes where they are chosen later.

    Args:
        every_size: keep all sizes that the mask branch gives; by default only where the options need them.
    """
    wanted = options.over_dataset if every_size is None else every_size
    found, categories = Instances(), category_map(predictor, dataset)
    pictures: Iterable[int] = tqdm(indices, unit="picture", disable=not progress, dynamic_ncols=True)
    for index in pictures:
        image, target = dataset[index]
        add_picture(found, predictor, image, target, categories, dataset.category_ids, options, wanted)
    return found


def add_picture(
    found: Instances,
    predictor: Predicts,
    image: Tensor,
    target: dict[str, Any],
    categories: dict[int, int],
    category_ids: Sequence[int],
    options: EvaluationOptions,
    every_size: bool,
) -> Any:
    """Predict one item of a data set and append its instances; returns the prediction.

    Args:
        image: (3, H, W) uint8 RGB.
        target: of the picture, as :class:`CocoDataset` serves it.
        categories: from :func:`category_map`.
        category_ids: of the data set.
        every_size: keep the masks of all sizes that the mask branch gives.
    """
    pixels = image.permute(1, 2, 0).contiguous().numpy()  # (H, W, 3)
    policy = {"policy": "learned"} if options.over_dataset else {"policy": options.policy, "budget": options.budget}
    if options.boxes == "gt":
        truth, labels = known_instances(target, categories, category_ids)
        prediction = predictor(pixels, boxes=target["boxes"][truth], labels=labels, all_sizes=every_size, **policy)
    else:
        prediction = predictor(pixels, score=options.score, all_sizes=every_size, **policy)
        truth = [None] * len(prediction)
        if options.policy == "oracle":
            own = (prediction.boxes, prediction.labels)
            truth = match(*own, target["boxes"], target["labels"], categories, category_ids)
    add(found, prediction, target, truth, categories, every_size)
    return prediction


def known_instances(
    target: dict[str, Any], categories: dict[int, int], category_ids: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Rows of a target whose class the weights know, and their labels in the weights' numbering."""
    back = {category: label for label, category in categories.items()}
    labels = [back.get(category_ids[label - 1], 0) for label in target["labels"].tolist()]
    return [i for i, label in enumerate(labels) if label], [label for label in labels if label]


def match(
    boxes: Tensor,
    labels: Tensor,
    true_boxes: Tensor,
    true_labels: Tensor,
    categories: dict[int, int],
    category_ids: Sequence[int],
) -> list[int | None]:
    """The true instance of each detection, best score first, each true one once: same class, box IoU ≥ 0.5."""
    taken: set[int] = set()
    out: list[int | None] = []
    for box, label in zip(boxes, labels.tolist()):
        left_top, right_bottom = torch.max(box[:2], true_boxes[:, :2]), torch.min(box[2:], true_boxes[:, 2:])
        overlap = (right_bottom - left_top).clamp_min(0).prod(1)
        union = (box[2:] - box[:2]).prod() + (true_boxes[:, 2:] - true_boxes[:, :2]).prod(1) - overlap
        order = torch.argsort(overlap / union, descending=True).tolist()
        fitting = (
            i
            for i in order
            if i not in taken
            and overlap[i] / union[i] >= MATCH_IOU
            and category_ids[int(true_labels[i]) - 1] == categories.get(label)
        )
        out.append(next(fitting, None))
        taken.add(out[-1])
    return out


def add(
    found: Instances,
    prediction: Any,
    target: dict[str, Any],
    truth: Sequence[int | None],
    categories: dict[int, int],
    every_size: bool,
) -> None:
    """Append the instances of one picture; those of classes the data set does not have are left out."""
    for i, (box, label) in enumerate(zip(prediction.boxes.tolist(), prediction.labels.tolist())):
        if label not in categories:
            continue
        chosen = MASK_SIZES.index(int(prediction.mask_size[i]))
        sizes = prediction.mask_sizes if every_size else [MASK_SIZES[chosen]]
        masks = {MASK_SIZES.index(size): prediction.mask_at(i, size).numpy() for size in sizes}
        true_mask = None if truth[i] is None else target["masks"][truth[i]].numpy().astype(bool)
        found.results.append(
            {
                "image_id": int(target["image_id"]),
                "category_id": categories[label],
                "score": float(prediction.scores[i]),
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            }
        )
        found.rles.append({k: coco_mask.encode(np.asfortranarray(m, dtype=np.uint8)) for k, m in masks.items()})
        found.switch_logits.append(prediction.switch_logits[i])
        found.mask_iou.append({} if true_mask is None else {k: mask_iou(m, true_mask) for k, m in masks.items()})
        found.boundary_iou.append(
            {} if true_mask is None else {k: boundary_iou(m, true_mask) for k, m in masks.items()}
        )
        found.choice.append(chosen)
        found.truth.append(truth[i])


def choose(found: Instances, macs: tuple[int, ...], options: EvaluationOptions) -> np.ndarray:
    """(N,) size indices; the policies that look at the whole data set decide here."""
    learned = np.array(found.choice, dtype=np.int64)
    if not options.over_dataset or len(learned) == 0:
        return learned
    if options.policy == "random":
        generator = torch.Generator().manual_seed(options.seed)
        return policies.random_permutation(torch.from_numpy(learned), generator).numpy()
    if options.policy == "oracle":
        quality = found.quality("mask_iou")
        matched = ~np.isnan(quality).any(axis=1)
        choice = learned.copy()
        if matched.any():
            own = float(np.array(macs, dtype=np.float64)[learned[matched]].mean())
            limit = own if options.budget is None else policies.check_budget(options.budget, macs)
            choice[matched] = best_under_budget(quality[matched], macs, limit)
        return choice
    price = policies.price_for_budget(found.logits(), macs, options.budget)
    return policies.at_price(found.logits(), macs, price).numpy()


def run_evaluation(
    predictor: Predicts,
    dataset: CocoDataset,
    indices: Sequence[int] | None = None,
    options: EvaluationOptions | None = None,
    progress: bool = False,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Evaluate a predictor.

    Args:
        indices: dataset indices to evaluate on; all by default.
        options: policy, budget, boxes.
        ranks: processes that share the pictures and each call this; all get the figures that one process finds.

    Returns:
        ``images``, ``detections``, ``bbox`` / ``segm`` / ``boundary`` (AP, AP50, AP75, APS, APM, APL in 0–1 or None),
        ``mean_macs_per_instance``, ``size_shares`` by size; with true boxes also ``mean_mask_iou`` and
        ``mean_boundary_iou``. The means are None where there is no instance.
    """
    options = options or EvaluationOptions()
    indices = list(range(len(dataset))) if indices is None else list(indices)
    macs = tuple(predictor.costs.macs_per_instance)
    if options.over_dataset:
        predictor.check_switch("choosing sizes over a data set")
    predictor.check_choice("learned" if options.over_dataset else options.policy, options.budget)
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
    dataset: CocoDataset,
    indices: Sequence[int],
    true_boxes: bool = False,
) -> dict[str, Any]:
    """The figures of :func:`run_evaluation` for chosen sizes (N,), each of which must have been kept."""
    results = [
        {**result, "segmentation": rles[k]} for result, rles, k in zip(found.results, found.rles, choice.tolist())
    ]
    summary: dict[str, Any] = {"images": len(indices), "detections": len(results)}
    summary.update(score(dataset, results, indices))
    some = len(choice) > 0
    summary["mean_macs_per_instance"] = float(np.array(macs, dtype=np.float64)[choice].mean()) if some else None
    summary["size_shares"] = {
        str(size): float((choice == k).mean()) if some else None for k, size in enumerate(MASK_SIZES)
    }
    if true_boxes:
        for measure in ("mask_iou", "boundary_iou"):
            quality = found.quality(measure)
            summary[f"mean_{measure}"] = float(quality[np.arange(len(choice)), choice].mean()) if some else None
    return summary
