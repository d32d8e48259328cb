"""The interface that the predictors of all model families implement, and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dynamask.data.pictures import PictureSource
from dynamask.models.masks.costs import MaskBranchCosts
from dynamask.models.masks.policies import Policy
from dynamask.predict.prediction import Prediction
from dynamask.structures import DynaMaskError


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
        mask_sizes: the sizes of ``MASK_SIZES`` that instances can get, coarse to fine; empty where masks have no size.
        costs: MACs of the mask branch; None without a mask branch.
        has_switch: whether a switch chooses the sizes. Without one "learned" is the finest size.
        takes_boxes: whether masks can be predicted in given boxes.
    """

    model: Any
    device: torch.device
    family: ClassVar[str]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    score_threshold: float
    mask_sizes: tuple[int, ...]
    costs: MaskBranchCosts | None
    has_switch: bool
    takes_boxes: ClassVar[bool]

    def check_switch(self, feature: str) -> None:
        """Raise :class:`DynaMaskError` if these weights have no switch, which ``feature`` needs."""

    def check_choice(
        self, policy: str | Policy = "learned", budget: float | None = None
    ) -> tuple[Policy, float | None]:
        """Check a policy and a budget in mean GMACs per instance.

        Returns:
            The policy that is followed, and the budget in mean MACs per instance or None.

        Raises:
            DynaMaskError: an unknown policy, a budget below the cheapest size, or a choice that these weights cannot
                follow.
        """

    def __call__(
        self,
        image: PictureSource,
        policy: str | Policy = "learned",
        budget: float | None = None,
        score: float = ...,
        boxes: Sequence[Sequence[float]] | np.ndarray | Tensor | None = None,
        labels: Sequence[int] | None = None,
        all_sizes: bool = False,
    ) -> Prediction:
        """Predict on one image.

        Args:
            image: (H, W, 3) uint8 RGB array, (3, H, W) uint8 RGB tensor, PIL image, path, or what else
                :func:`dynamask.data.pictures.read_picture` reads.
            policy: "learned", "size" (Eq. 8) or "fixed:S".
            budget: mean GMACs per instance, met exactly on this image by the sizes that the switch prefers; only with
                the policy "learned".
            score: detections below this score, 0–1, are left out; the default is 0.5, for one-stage models 0.3.
            boxes: (R, 4) xyxy in image pixels: predict masks in these boxes instead of detecting.
            labels: (R,) labels ≥ 1 of the given boxes; by default the box head classifies them.
            all_sizes: compute the masks of every size, so that :meth:`select` never has to.

        Raises:
            DynaMaskError: an image or argument that cannot be used.
        """

    def select(
        self, prediction: Prediction, policy: str | Policy = "learned", budget: float | None = None
    ) -> Prediction:
        """The same instances under another policy or budget; only stages that were not computed yet are run."""


class ModelPredictor:
    """Common part of the predictors, see :class:`Predictor`.

    Args:
        model: on the device to use; it is put into evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label; index 0 is the background."""
        return self.model.config.class_names

    @cached_property
    def category_ids(self) -> tuple[int, ...]:
        """COCO category_id of label i at index i − 1."""
        return self.model.config.category_ids or tuple(range(1, len(self.class_names)))

    def to_input(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 → (3, H, W) float32 in [0, 1] on the model's device."""
        return torch.from_numpy(pixels).to(self.device).permute(2, 0, 1).float() / 255.0


def check_score(score: float) -> None:
    """Raise :class:`DynaMaskError` for a score threshold outside 0–1."""
    if not 0.0 <= score <= 1.0:
        raise DynaMaskError(f"score threshold {score} is out of range; give a number from 0 to 1")
