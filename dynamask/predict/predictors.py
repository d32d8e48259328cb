"""The predictors of the model families, and the interface that they implement."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes

from dynamask.data.pictures import PictureSource, read_picture
from dynamask.models.detectors.base import EncodedImages
from dynamask.models.dynamask import DynaMask
from dynamask.models.masks.costs import MaskBranchCosts
from dynamask.models.masks.heads.base import RegionState
from dynamask.models.masks.policies import LEARNED, QUALITY, Policy, budget_in_macs, default_policy
from dynamask.models.solo.costs import network_macs
from dynamask.models.solo.model import SoloNet
from dynamask.ops.mask_nms import distinct_masks
from dynamask.predict.given import Boxes, Detections, GivenDetections, check_boxes, read_detections, whole_numbers
from dynamask.predict.prediction import CachedRegions, Cells, Prediction
from dynamask.structures import MASK_SIZES, DynaMaskError


class Predictor(Protocol):
    """Predicts instances on single images.

    All families take the same arguments. A family that lacks a feature accepts the argument's default and refuses any
    other value with a :class:`DynaMaskError` that names the feature; unknown arguments raise TypeError.

    Attributes:
        model: the model, in evaluation mode.
        device: where it computes.
        family: "two-stage" or "one-stage".
        class_names: names by label; index 0 is the background.
        category_ids: COCO category_id of label i at index i − 1.
        score_threshold: score from which the model keeps detections.
        default_score: score from which a call returns detections unless another is given.
        mask_sizes: the sizes of ``MASK_SIZES`` that instances can get, coarse to fine; empty where masks have no size.
        costs: MACs of the mask branch; None without a mask branch.
        has_switch: whether a switch chooses the sizes. Without one "learned" is the finest size.
        has_quality: whether a quality head predicts the quality of every size.
        takes_boxes: whether masks can be predicted in given boxes.
    """

    model: Any
    device: torch.device
    family: ClassVar[str]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    score_threshold: float
    default_score: float
    mask_sizes: tuple[int, ...]
    costs: MaskBranchCosts | None
    has_switch: bool
    has_quality: bool
    takes_boxes: ClassVar[bool]

    def check_switch(self, feature: str) -> None:
        """Raise :class:`DynaMaskError` if these weights have no switch, which ``feature`` needs."""

    def check_choice(
        self, policy: str | Policy | None = None, budget: float | None = None
    ) -> tuple[Policy, float | None]:
        """Check a policy and a budget in mean GMACs per instance.

        Returns:
            The policy to follow, and the budget in mean MACs per instance or None.

        Raises:
            DynaMaskError: an unknown policy, a budget below the cheapest size, or a choice that these weights cannot
                follow.
        """

    def check_objects(
        self,
        boxes: Boxes | None = None,
        labels: Sequence[int] | None = None,
        detections: object | None = None,
        mask_nms: float | None = None,
    ) -> None:
        """Check that a call can have these arguments together; what is in boxes and detections is not looked at.

        Raises:
            DynaMaskError: the model does not take one of them, they exclude each other, or ``mask_nms`` is out of
                range.
        """

    def __call__(
        self,
        image: PictureSource,
        policy: str | Policy | None = None,
        budget: float | None = None,
        score: float | None = None,
        boxes: Boxes | None = None,
        labels: Sequence[int] | None = None,
        all_sizes: bool = False,
        detections: Detections | None = None,
        mask_nms: float | None = None,
        rescore: bool = False,
    ) -> Prediction:
        """Predict on one image.

        Args:
            image: (H, W, 3) uint8 RGB array, (3, H, W) uint8 RGB tensor, PIL image, path, or what else
                :func:`dynamask.data.pictures.read_picture` reads.
            policy: "learned", "quality", "size" (Eq. 8) or "fixed:S"; the default is "learned", and under a budget
                "quality" where the weights have a quality head.
            budget: mean GMACs per instance, met exactly on this image: the sizes with the largest predicted quality,
                or under "learned" the largest Σ log p of the switch, within it. Only with these two policies.
            score: detections below this score, 0–1, are left out; by default ``default_score``, for given ones 0.
            boxes: (R, 4) xyxy in image pixels: predict masks in these boxes instead of detecting.
            labels: (R,) labels ≥ 1 of the given boxes; by default the box head classifies them.
            all_sizes: compute the masks of every size, so that :meth:`select` never has to.
            detections: of another model: predict masks in their boxes. The prediction has their scores and classes,
                best score first. See :func:`dynamask.predict.given.read_detections` for the forms; weights with a mask
                for each class need the class names of the detections, or without names their category ids.
            mask_nms: mask IoU from which the worse-scored of two objects of one class is left out, 0–1; 0 leaves out
                none, and None is the value of the weights. Masks are compared at the coarsest size before sizes are
                chosen, so all policies get the same objects. Given boxes and detections are never left out.
            rescore: multiply the scores by the predicted mask IoU at the chosen size, also in :meth:`select`; objects
                keep their order.

        Raises:
            DynaMaskError: an image or argument that cannot be used.
        """

    def select(
        self, prediction: Prediction, policy: str | Policy | None = None, budget: float | None = None
    ) -> Prediction:
        """The same instances under another policy or budget; only stages that were not computed yet are run."""


class _ModelPredictor:
    """What the predictors of all families share: checks of the arguments, and the order of the steps."""

    takes_boxes: ClassVar[bool]

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.class_names = model.config.class_names
        self.default_score = model.config.display_score
        self.category_ids = model.config.category_ids or tuple(range(1, len(self.class_names)))

    def __call__(
        self,
        image: PictureSource,
        policy: str | Policy | None = None,
        budget: float | None = None,
        score: float | None = None,
        boxes: Boxes | None = None,
        labels: Sequence[int] | None = None,
        all_sizes: bool = False,
        detections: Detections | None = None,
        mask_nms: float | None = None,
        rescore: bool = False,
    ) -> Prediction:
        """See :meth:`Predictor.__call__`."""
        choice = self.check_choice(policy, budget)
        if score is None:
            score = self.default_score if detections is None else 0.0
        if not 0.0 <= score <= 1.0:
            raise DynaMaskError(f"score threshold {score} is out of range; give a number from 0 to 1")
        self.check_objects(boxes, labels, detections, mask_nms)
        if all_sizes and not self.mask_sizes:
            raise DynaMaskError("a one-stage model has one mask size; omit all_sizes")
        if rescore and not self.has_quality:
            raise DynaMaskError("rescoring needs a quality head, and these weights have none; omit rescore")
        prediction = self._predict(read_picture(image), score, boxes, labels, detections, mask_nms)
        if rescore:
            prediction.detector_scores = prediction.scores
        if all_sizes:
            start = time.perf_counter()
            prediction.regions.ensure_all()
            prediction.timings["all_sizes"] = _milliseconds(start)
        return self._select(prediction, *choice)

    def check_objects(
        self,
        boxes: Boxes | None = None,
        labels: Sequence[int] | None = None,
        detections: object | None = None,
        mask_nms: float | None = None,
    ) -> None:
        """See :meth:`Predictor.check_objects`."""
        if labels is not None and boxes is None:
            raise DynaMaskError("labels were given without boxes; give the boxes as well, or neither")
        if boxes is not None and detections is not None:
            raise DynaMaskError("boxes and detections were both given; give one of the two")
        if boxes is not None and not self.takes_boxes:
            raise DynaMaskError("a one-stage model takes no boxes; omit boxes and labels")
        if detections is not None and not self.takes_boxes:
            raise DynaMaskError("a one-stage model takes no detections; omit them")
        if mask_nms is None:
            return
        if not self.takes_boxes:
            raise DynaMaskError("a one-stage model has matrix NMS; omit mask_nms")
        if not 0.0 <= mask_nms <= 1.0:
            raise DynaMaskError(f"mask_nms is {mask_nms}; give a mask IoU from 0 to 1, or 0 to leave out none")
        if mask_nms and (boxes is not None or detections is not None):
            raise DynaMaskError("mask_nms leaves out no given boxes; omit it, or let the model detect")

    def select(
        self, prediction: Prediction, policy: str | Policy | None = None, budget: float | None = None
    ) -> Prediction:
        """See :meth:`Predictor.select`."""
        return self._select(prediction, *self.check_choice(policy, budget))

    def _to_input(self, pixels: np.ndarray) -> list[Tensor]:
        """A batch of one (3, H, W) float32 in [0, 1] on the model's device, from (H, W, 3) uint8."""
        return [torch.from_numpy(pixels).to(self.device).permute(2, 0, 1).float() / 255.0]


@dataclass(frozen=True)
class _Objects:
    """The objects of one image before the mask branch runs.

    Attributes:
        boxes: (R, 4) xyxy in image pixels.
        inside: (R, 4) the same in network-input pixels.
        labels: (R,) int64 ≥ 1.
        mask_labels: (R,) int64 ≥ 1, the classes of the weights whose masks are predicted.
        scores: (R,) in [0, 1].
        class_names, category_ids, class_ids: as of :class:`Prediction`.
    """

    boxes: Tensor
    inside: Tensor
    labels: Tensor
    mask_labels: Tensor
    scores: Tensor
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    class_ids: tuple[int, ...] = ()

    def take(self, keep: Tensor) -> _Objects:
        """The objects where ``keep`` (R,) is True."""
        columns = ("boxes", "inside", "labels", "mask_labels", "scores")
        return dataclasses.replace(self, **{name: getattr(self, name)[keep] for name in columns})


class TwoStagePredictor(_ModelPredictor):
    """Predicts with DynaMask or a baseline, see :class:`Predictor`.

    ``timings`` of its predictions are "detect", "regions", "masks" and, after ``all_sizes=True``, "all_sizes";
    ``image_macs`` are those of the projected feature maps and the switch, and with ``mask_nms`` of the coarsest masks
    of the "duplicates".

    Args:
        model: on the device to use; it is put into evaluation mode.
    """

    family = "two-stage"
    takes_boxes = True

    def __init__(self, model: DynaMask) -> None:
        super().__init__(model)
        self.score_threshold = model.config.score_threshold
        self.mask_sizes = model.mask_branch.mask_sizes
        self.costs = model.mask_branch.costs
        self.has_switch = model.mask_branch.switch is not None
        self.has_quality = model.mask_branch.quality is not None

    def check_switch(self, feature: str) -> None:
        """See :meth:`Predictor.check_switch`."""
        if not self.has_switch:
            raise DynaMaskError(
                f"{feature} needs a switch, and these weights have none: their mask branch is "
                f"{self.model.config.mask_branch}; use other weights, for example shapes, or one of {self._fixed()}"
            )

    def check_choice(
        self, policy: str | Policy | None = None, budget: float | None = None
    ) -> tuple[Policy, float | None]:
        """See :meth:`Predictor.check_choice`."""
        if policy is None:
            policy = default_policy(budget is not None, self.has_quality)
        policy = Policy.parse(policy)
        policy.check_budget(budget)
        if budget is not None or policy.name == "size":
            self.check_switch("a budget" if budget is not None else "the policy 'size'")
        if policy == QUALITY and not self.has_quality:
            raise DynaMaskError("the policy 'quality' needs a quality head, and these weights have none; use 'learned'")
        if policy.size is not None and policy.size not in self.mask_sizes:
            raise DynaMaskError(
                f"these weights cannot follow the policy {str(policy)!r}; choose one of {self._fixed()}"
            )
        if policy == LEARNED and not self.has_switch:
            policy = Policy.fixed(self.mask_sizes[-1])
        return policy, None if budget is None else budget_in_macs(budget, self.costs.macs_per_instance)

    def _fixed(self) -> str:
        """The policies of one size that these weights can follow."""
        return ", ".join(str(Policy.fixed(size)) for size in self.mask_sizes)

    def _select(self, prediction: Prediction, policy: Policy, limit: float | None) -> Prediction:
        """Choose the sizes and run the stages that they need."""
        start = time.perf_counter()
        macs = self.costs.macs_per_instance
        known = (prediction.boxes, prediction.image_size, prediction.switch_logits)
        choice = policy.choose(*known, macs, limit, prediction.quality)
        prediction.regions.ensure(choice)
        timings = {**prediction.timings, "masks": _milliseconds(start)}
        return dataclasses.replace(prediction.resized(choice, macs), timings=timings)

    @torch.inference_mode()
    def _predict(
        self,
        pixels: np.ndarray,
        score: float,
        boxes: Boxes | None,
        labels: Sequence[int] | None,
        detections: Detections | None,
        mask_nms: float | None,
    ) -> Prediction:
        """Run backbone, detector (unless boxes are given) and the shared part of the mask branch; no size is chosen."""
        image_size = pixels.shape[:2]
        start = time.perf_counter()
        encoded, _ = self.model.detector.encode(self._to_input(pixels))
        if detections is not None:
            found = self._given(encoded, read_detections(detections, image_size).at_least(score))
        elif boxes is not None:
            found = self._in_boxes(encoded, check_boxes(boxes, image_size), labels)
        else:
            found = self._detected(encoded, score)
        detect_time = _milliseconds(start)
        start = time.perf_counter()
        state = self.model.regions(encoded, [found.inside], [found.mask_labels])
        image_macs = self.costs.image_macs([tuple(m.shape[-2:]) for m in state.maps], len(found.boxes))
        threshold = self.model.config.mask_nms if mask_nms is None else mask_nms
        if threshold and boxes is None and detections is None:
            keep = self._distinct(state, found, threshold)
            image_macs["duplicates"] = int((~keep).sum()) * self.costs.macs_per_instance[0]
            state, found = state.take(torch.nonzero(keep)[:, 0]), found.take(keep)
        return Prediction(
            boxes=found.boxes.cpu().float(),
            labels=found.labels.cpu(),
            scores=found.scores.cpu().float(),
            macs=torch.zeros(len(found.boxes), dtype=torch.int64),
            image_macs=image_macs,
            image_size=image_size,
            picture=pixels,
            timings={"detect": detect_time, "regions": _milliseconds(start)},
            class_names=found.class_names,
            category_ids=found.category_ids,
            class_ids=found.class_ids,
            switch_logits=state.switch_logits.cpu().float() if self.has_switch else None,
            quality=state.quality_logits.sigmoid().cpu().float() if self.has_quality else None,
            regions=CachedRegions(self.model.mask_branch, state),
        )

    def _detected(self, encoded: EncodedImages, score: float) -> _Objects:
        """The objects that the detector finds."""
        found = self.model.detector.detect(encoded)[0]
        found = {key: values[found["scores"] >= score] for key, values in found.items()}
        boxes = resize_boxes(found["boxes"], encoded.image_sizes[0], encoded.original_sizes[0])
        labels, names = found["labels"], self.class_names
        return _Objects(boxes, found["boxes"], labels, labels, found["scores"], names, self.category_ids)

    def _distinct(self, state: RegionState, found: _Objects, threshold: float) -> Tensor:
        """(R,) bool, False for the duplicates among found objects, by their masks at the coarsest size."""
        if len(state) == 0:
            return torch.ones(0, dtype=torch.bool, device=self.device)
        branch = self.model.mask_branch
        rows, coarsest = torch.arange(len(state), device=self.device), MASK_SIZES.index(branch.mask_sizes[0])
        probs = branch.head.mask_logits(state, coarsest, rows).sigmoid()
        return distinct_masks(probs, state.rois[:, 1:], found.labels, threshold)

    def _in_boxes(self, encoded: EncodedImages, boxes: Tensor, labels: Sequence[int] | None) -> _Objects:
        """The objects in given boxes (R, 4) in image pixels."""
        boxes = boxes.to(self.device)
        inside = resize_boxes(boxes, encoded.original_sizes[0], encoded.image_sizes[0])
        classes = self._labels_of(encoded, inside, labels)
        return _Objects(boxes, inside, classes, classes, torch.ones(len(boxes)), self.class_names, self.category_ids)

    def _given(self, encoded: EncodedImages, given: GivenDetections) -> _Objects:
        """The objects that another model has found."""
        if self.model.config.class_agnostic or len(self.class_names) == 2:
            mask_labels = torch.ones(len(given), dtype=torch.int64)
        else:
            mask_labels = given.labels_of(self.class_names, self.category_ids)
        boxes = given.boxes.to(self.device)
        inside, ids = resize_boxes(boxes, encoded.original_sizes[0], encoded.image_sizes[0]), given.class_ids
        mask_labels = mask_labels.to(self.device)
        return _Objects(boxes, inside, given.labels, mask_labels, given.scores, given.class_names, ids, ids)

    def _labels_of(self, encoded: EncodedImages, boxes: Tensor, labels: Sequence[int] | None) -> Tensor:
        """(R,) int64 labels of given boxes: checked, or predicted by the box head."""
        count = len(self.class_names) - 1
        if labels is not None:
            given = whole_numbers(labels)
            if len(given) != len(boxes) or bool(((given < 1) | (given > count)).any()):
                raise DynaMaskError(
                    f"labels do not fit; give one label from 1 to {count} for each of {len(boxes)} boxes"
                )
            return given.to(self.device)
        if count == 1 or len(boxes) == 0:
            return torch.ones(len(boxes), dtype=torch.int64, device=self.device)
        return self.model.detector.classify(encoded, [boxes])


class OneStagePredictor(_ModelPredictor):
    """Predicts with SOLO, SOLOv2, SODAR or CondInst, see :class:`Predictor`.

    Instances come from grid cells, and their boxes lie around their masks (CondInst's come from locations of FCOS, with
    their boxes). ``timings`` of its predictions are "encode" and "masks"; ``image_macs`` are those of the backbone's
    body, the FPN and the head.

    Args:
        model: on the device to use; it is put into evaluation mode.
    """

    family = "one-stage"
    takes_boxes = False
    mask_sizes = ()
    costs = None
    has_switch = False
    has_quality = False

    def __init__(self, model: SoloNet) -> None:
        super().__init__(model)
        self.score_threshold = model.config.update_threshold
        self._image_macs: dict[tuple[int, int], dict[str, int]] = {}

    def check_switch(self, feature: str) -> None:
        """See :meth:`Predictor.check_switch`."""
        raise DynaMaskError(f"{feature} needs a switch, and one-stage models have none; use weights of DynaMask")

    def check_choice(
        self, policy: str | Policy | None = None, budget: float | None = None
    ) -> tuple[Policy, float | None]:
        """See :meth:`Predictor.check_choice`; every choice but the default is refused."""
        if str(policy or LEARNED) != str(LEARNED) or budget is not None:
            raise DynaMaskError("a one-stage model has one mask size; omit the policy and the budget")
        return LEARNED, None

    @torch.inference_mode()
    def _predict(
        self,
        pixels: np.ndarray,
        score: float,
        boxes: Boxes | None,
        labels: Sequence[int] | None,
        detections: Detections | None,
        mask_nms: float | None,
    ) -> Prediction:
        """Run the network; there are no boxes, labels and detections."""
        start = time.perf_counter()
        encoded, _ = self.model.encode(self._to_input(pixels))
        encode_time = _milliseconds(start)
        start = time.perf_counter()
        found = self.model.detect(encoded, 0)
        found = {key: value[found["scores"] >= score].cpu() for key, value in found.items()}
        cells = Cells(found["level"], found["cell"], found["masks"], encoded, self.model)
        return Prediction(
            boxes=found["boxes"],
            labels=found["labels"],
            scores=found["scores"],
            macs=torch.tensor(cells.level_macs, dtype=torch.int64)[cells.level],
            image_macs=self._count_image(encoded.frame),
            image_size=pixels.shape[:2],
            picture=pixels,
            timings={"encode": encode_time, "masks": _milliseconds(start)},
            class_names=self.class_names,
            category_ids=self.category_ids,
            cells=cells,
        )

    def _select(self, prediction: Prediction, policy: Policy, limit: float | None) -> Prediction:
        """The prediction itself: there is nothing to choose."""
        return prediction

    def _count_image(self, frame: tuple[int, int]) -> dict[str, int]:
        """MACs of backbone, FPN and head on a padded image (H, W), counted once per size."""
        if frame not in self._image_macs:
            parts = network_macs(self.model, *frame)
            self._image_macs[frame] = {part: macs for part, macs in parts.items() if part != "dense masks"}
        return self._image_macs[frame]


def _milliseconds(start: float) -> float:
    """Time since a reading of ``time.perf_counter``."""
    return (time.perf_counter() - start) * 1e3
