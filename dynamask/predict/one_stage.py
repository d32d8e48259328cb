"""Prediction with one-stage models: SOLO, SOLOv2 and SODAR."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dynamask.data.pictures import PictureSource, read_picture
from dynamask.models.masks.policies import LEARNED, Policy
from dynamask.models.solo.costs import network_macs
from dynamask.models.solo.model import SoloNet
from dynamask.predict.prediction import Cells, Prediction
from dynamask.predict.predictor import ModelPredictor, check_score
from dynamask.structures import DynaMaskError


class OneStagePredictor(ModelPredictor):
    """Predicts with a one-stage model, see :class:`dynamask.predict.Predictor`.

    Its instances come from grid cells, and the boxes lie around their masks. ``timings`` of its predictions are
    "encode" and "masks"; ``image_macs`` are those of the backbone's body, the FPN and the head.
    """

    family = "one-stage"
    takes_boxes = False
    has_switch = False
    mask_sizes = ()
    costs = None

    def __init__(self, model: SoloNet) -> None:
        super().__init__(model)
        self._counted: dict[tuple[int, int], dict[str, int]] = {}

    @property
    def score_threshold(self) -> float:
        """Score from which the model keeps detections, after matrix NMS."""
        return self.model.config.update_threshold

    def check_switch(self, feature: str) -> None:
        """See :meth:`dynamask.predict.Predictor.check_switch`."""
        raise DynaMaskError(f"{feature} needs a switch, and one-stage models have none; give DynaMask's weights")

    def check_choice(self, policy: str | Policy = LEARNED, budget: float | None = None) -> tuple[Policy, float | None]:
        """See :meth:`dynamask.predict.Predictor.check_choice`; every choice but the default is refused."""
        if str(policy) != str(LEARNED) or budget is not None:
            raise DynaMaskError("a one-stage model has one mask size; give neither a policy nor a budget")
        return LEARNED, None

    @torch.inference_mode()
    def __call__(
        self,
        image: PictureSource,
        policy: str | Policy = LEARNED,
        budget: float | None = None,
        score: float = 0.3,
        boxes: Sequence[Sequence[float]] | np.ndarray | Tensor | None = None,
        labels: Sequence[int] | None = None,
        all_sizes: bool = False,
    ) -> Prediction:
        """See :meth:`dynamask.predict.Predictor.__call__`."""
        self.check_choice(policy, budget)
        check_score(score)
        if boxes is not None or labels is not None:
            raise DynaMaskError("a one-stage model takes no boxes; leave boxes and labels away")
        if all_sizes:
            raise DynaMaskError("a one-stage model has one mask size; leave all_sizes away")
        pixels = read_picture(image)
        start = time.perf_counter()
        encoded, _ = self.model.encode([self.to_input(pixels)])
        encoded_at = time.perf_counter()
        found = self.model.predict_one(encoded, 0)
        found = {key: value[found["scores"] >= score].cpu() for key, value in found.items()}
        timings = {"encode": (encoded_at - start) * 1e3, "masks": (time.perf_counter() - encoded_at) * 1e3}
        cells = Cells(found["level"], found["cell"], found["masks"], encoded, self.model)
        return Prediction(
            boxes=found["boxes"],
            labels=found["labels"],
            scores=found["scores"],
            macs=torch.tensor(cells.level_macs, dtype=torch.int64)[cells.level],
            image_macs=self._image_macs(encoded.frame),
            image_size=(int(pixels.shape[0]), int(pixels.shape[1])),
            picture=pixels,
            timings=timings,
            class_names=self.class_names,
            category_ids=self.category_ids,
            cells=cells,
        )

    def select(self, prediction: Prediction, policy: str | Policy = LEARNED, budget: float | None = None) -> Prediction:
        """See :meth:`dynamask.predict.Predictor.select`; there is nothing to choose, so the prediction is returned."""
        self.check_choice(policy, budget)
        return prediction

    def _image_macs(self, frame: tuple[int, int]) -> dict[str, int]:
        """MACs of backbone, FPN and head on a padded image (H, W), counted once per size."""
        if frame not in self._counted:
            parts = network_macs(self.model, *frame)
            self._counted[frame] = {part: macs for part, macs in parts.items() if part != "dense masks"}
        return self._counted[frame]
