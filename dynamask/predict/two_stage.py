"""Prediction with two-stage models: DynaMask and the baselines with another mask branch."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes

from dynamask.data.pictures import PictureSource, read_picture
from dynamask.models.masks.costs import MaskBranchCosts
from dynamask.models.masks.policies import LEARNED, Policy, budget_in_macs
from dynamask.predict.prediction import CachedRegions, Prediction, alternatives
from dynamask.predict.predictor import ModelPredictor, check_score
from dynamask.structures import DynaMaskError


class TwoStagePredictor(ModelPredictor):
    """Predicts with a two-stage model, see :class:`dynamask.predict.Predictor`.

    ``timings`` of its predictions are "detect", "regions", "masks" and, after ``all_sizes=True``, "all_sizes";
    ``image_macs`` are those of the projected feature maps and the switch.
    """

    family = "two-stage"
    takes_boxes = True

    @cached_property
    def costs(self) -> MaskBranchCosts:
        """MACs of the mask branch, derived from its layers."""
        return self.model.mask_branch.costs

    @property
    def score_threshold(self) -> float:
        """Score from which the model keeps detections."""
        return self.model.config.score_threshold

    @property
    def mask_sizes(self) -> tuple[int, ...]:
        """The sizes of ``MASK_SIZES`` that the mask branch gives, coarse to fine."""
        return self.model.mask_branch.mask_sizes

    @property
    def has_switch(self) -> bool:
        """Whether a switch chooses the sizes; without one "learned" is the finest size."""
        return self.model.mask_branch.switch is not None

    def check_switch(self, feature: str) -> None:
        """See :meth:`dynamask.predict.Predictor.check_switch`."""
        if not self.has_switch:
            raise DynaMaskError(
                f"{feature} needs a switch, and these weights have none: their mask branch is "
                f"{self.model.config.mask_branch}; give other weights, for example shapes, or ask for {self._fixed()}"
            )

    def _fixed(self) -> str:
        return alternatives([Policy.fixed(size) for size in self.mask_sizes])

    def check_choice(self, policy: str | Policy = LEARNED, budget: float | None = None) -> tuple[Policy, float | None]:
        """See :meth:`dynamask.predict.Predictor.check_choice`."""
        policy = Policy.parse(policy)
        policy.check_budget(budget)
        if budget is not None or policy.name == "size":
            self.check_switch("a budget" if budget is not None else "the policy 'size'")
        if policy.size is not None and policy.size not in self.mask_sizes:
            raise DynaMaskError(f"these weights cannot follow the policy {str(policy)!r}; choose {self._fixed()}")
        if policy == LEARNED and not self.has_switch:
            policy = Policy.fixed(self.mask_sizes[-1])
        return policy, None if budget is None else budget_in_macs(budget, self.costs.macs_per_instance)

    def __call__(
        self,
        image: PictureSource,
        policy: str | Policy = LEARNED,
        budget: float | None = None,
        score: float = 0.5,
        boxes: Sequence[Sequence[float]] | np.ndarray | Tensor | None = None,
        labels: Sequence[int] | None = None,
        all_sizes: bool = False,
    ) -> Prediction:
        """See :meth:`dynamask.predict.Predictor.__call__`."""
        choice = self.check_choice(policy, budget)
        check_score(score)
        if labels is not None and boxes is None:
            raise DynaMaskError("labels were given without boxes; give the boxes that they name, or neither")
        prediction = self._regions(read_picture(image), score, boxes, labels)
        if all_sizes:
            start = time.perf_counter()
            prediction.regions.ensure_all()
            prediction.timings["all_sizes"] = (time.perf_counter() - start) * 1e3
        return self._select(prediction, *choice)

    def select(self, prediction: Prediction, policy: str | Policy = LEARNED, budget: float | None = None) -> Prediction:
        """See :meth:`dynamask.predict.Predictor.select`."""
        return self._select(prediction, *self.check_choice(policy, budget))

    def _select(self, prediction: Prediction, policy: Policy, limit: float | None) -> Prediction:
        """Choose the sizes and run the stages that they need."""
        start = time.perf_counter()
        macs = self.costs.macs_per_instance
        choice = policy.choose(prediction.boxes, prediction.image_size, prediction.switch_logits, macs, limit)
        prediction.regions.ensure(choice)
        timings = {**prediction.timings, "masks": (time.perf_counter() - start) * 1e3}
        return dataclasses.replace(prediction.resized(choice, macs), timings=timings)

    @torch.inference_mode()
    def _regions(
        self, pixels: np.ndarray, score: float, boxes: Sequence[Sequence[float]] | None, labels: Sequence[int] | None
    ) -> Prediction:
        """Run backbone, detector (unless boxes are given) and the shared part of the mask branch; no size is chosen."""
        size = (int(pixels.shape[0]), int(pixels.shape[1]))
        start = time.perf_counter()
        encoded, _ = self.model.detector.encode([self.to_input(pixels)])
        network = encoded.images.image_sizes[0]
        if boxes is None:
            found = self.model.detector.detect(encoded)[0]
            kept = found["scores"] >= score
            inside, classes, scores = found["boxes"][kept], found["labels"][kept], found["scores"][kept]
            outside = resize_boxes(inside, network, size)
        else:
            outside = check_boxes(boxes, size).to(self.device)
            inside = resize_boxes(outside, size, network)
            classes = self._labels_of(encoded, inside, labels)
            scores = torch.ones(len(outside))
        detected = time.perf_counter()
        state = self.model.regions(encoded, [inside], [classes])
        done = time.perf_counter()
        return Prediction(
            boxes=outside.cpu().float(),
            labels=classes.cpu(),
            scores=scores.cpu().float(),
            macs=torch.zeros(len(outside), dtype=torch.int64),
            image_macs=self.costs.image_macs([tuple(m.shape[-2:]) for m in state.maps], len(outside)),
            image_size=size,
            picture=pixels,
            timings={"detect": (detected - start) * 1e3, "regions": (done - detected) * 1e3},
            class_names=self.class_names,
            category_ids=self.category_ids,
            switch_logits=state.switch_logits.cpu().float() if self.has_switch else None,
            regions=CachedRegions(self.model.mask_branch, state),
        )

    def _labels_of(self, encoded: object, boxes: Tensor, labels: Sequence[int] | None) -> Tensor:
        """(R,) int64 labels of given boxes: checked, or predicted by the box head."""
        count = len(self.class_names) - 1
        if labels is not None:
            given = _whole_numbers(labels)
            if len(given) != len(boxes) or bool(((given < 1) | (given > count)).any()):
                raise DynaMaskError(
                    f"labels do not fit; give one label from 1 to {count} for each of {len(boxes)} boxes"
                )
            return given.to(self.device)
        if count == 1 or len(boxes) == 0:
            return torch.ones(len(boxes), dtype=torch.int64, device=self.device)
        return self.model.detector.classify(encoded, [boxes])


def _whole_numbers(labels: Sequence[int] | np.ndarray | Tensor) -> Tensor:
    """Labels as (R,) int64; :class:`DynaMaskError` unless they are whole numbers."""
    try:
        values = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DynaMaskError("labels are no list of whole numbers; give one for each box") from error
    if values.numel() and (values.is_floating_point() or values.dtype == torch.bool):
        raise DynaMaskError("labels are no list of whole numbers; give one for each box")
    return values.to(torch.int64).reshape(-1)


def check_boxes(boxes: Sequence[Sequence[float]] | np.ndarray | Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes xyxy as (R, 4) float32, clipped to an image of (H, W) pixels.

    Raises:
        DynaMaskError: the boxes are not four numbers each, or one has no area inside the image.
    """
    try:
        given = torch.as_tensor(np.asarray(boxes, dtype=np.float32))
    except (TypeError, ValueError):
        given = None
    if given is None or (given.numel() and (given.ndim != 2 or given.shape[1] != 4)):
        raise DynaMaskError("boxes are no list of [x0, y0, x1, y1]; give four numbers for each")
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
