"""From a picture to masks: the one door for app, notebooks and command line."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes

from dynamask.data.pictures import read_picture
from dynamask.models.dynamask import DynaMask
from dynamask.models.hub import find_weights
from dynamask.models.masks import policies
from dynamask.models.masks.branch import MaskBranch
from dynamask.models.masks.costs import MaskBranchCosts
from dynamask.models.masks.heads.base import RegionState
from dynamask.models.solo.model import SoloNet
from dynamask.models.weights import load_model
from dynamask.ops.masks import paste_mask, paste_masks
from dynamask.ops.rle import encode_rle
from dynamask.solo_predictor import SoloPredictor
from dynamask.structures import MASK_SIZES, DynaMaskError

Picture = np.ndarray | Image.Image | str | Path


class Regions:
    """The mask branch's memory of one picture's instances, shared by all predictions selected from it.

    It lies in the host's memory and visits the branch's device only while stages run.
    """

    def __init__(self, branch: MaskBranch, state: RegionState) -> None:
        self.branch = branch
        self.state = state.to("cpu")
        self._probs: list[list[Tensor | None]] = [[None] * len(MASK_SIZES) for _ in range(len(state))]

    @torch.inference_mode()
    def ensure(self, size_index: Tensor) -> None:
        """Compute the masks of each instance at its index (R,) into ``MASK_SIZES``, where they are not known yet."""
        wanted = [
            [row for row in torch.nonzero(size_index == k)[:, 0].tolist() if self._probs[row][k] is None]
            for k in range(len(MASK_SIZES))
        ]
        if not any(wanted):
            return
        state = self.state.to(next(self.branch.parameters()).device)
        for k in range(len(MASK_SIZES) - 1, -1, -1):
            if wanted[k]:
                rows = torch.tensor(wanted[k], device=state.rois.device)
                probs = self.branch.head.mask_logits(state, k, rows).sigmoid().cpu()
                for row, values in zip(wanted[k], probs):
                    self._probs[row][k] = values
        self.state = state.to("cpu")

    def probs(self, row: int, size_index: int) -> Tensor:
        """(S, S) probabilities of one instance, computed now if they are not known."""
        if self._probs[row][size_index] is None:
            chosen = torch.full((len(self.state),), -1)
            chosen[row] = size_index
            self.ensure(chosen)
        return self._probs[row][size_index]


@dataclasses.dataclass
class Prediction:
    """The instances of one picture with the masks that were chosen.

    Attributes:
        boxes: (R, 4) float32 xyxy in pixels of the picture, best score first.
        labels: (R,) int64 ≥ 1.
        scores: (R,) float32 in [0, 1]; 1 for boxes that were given.
        class_names: names by label; index 0 is the background.
        category_ids: COCO category_id of label i at index i − 1.
        mask_size: (R,) int64, chosen side in mask pixels.
        switch_logits: (R, 4) float32.
        macs: (R,) int64, MACs of each instance's mask up to its size.
        image_macs: MACs of the whole picture by row: projections of the feature maps, the switch.
        image_size: (H, W) in pixels.
        timings: milliseconds of the steps that ran: "detect", "regions", "masks".
        regions: what the mask branch knows; lives as long as the prediction.
        picture: (H, W, 3) uint8 RGB, what was predicted on, for those who draw it.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    mask_size: Tensor
    switch_logits: Tensor
    macs: Tensor
    image_macs: dict[str, int]
    image_size: tuple[int, int]
    timings: dict[str, float]
    regions: Regions
    picture: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def switch_probs(self) -> Tensor:
        """(R, 4) float32, softmax of the switch's logits (Eq. 1)."""
        return self.switch_logits.softmax(dim=1)

    @cached_property
    def masks(self) -> Tensor:
        """(R, H, W) bool, pasted on first use."""
        probs = [self.mask_probs_at(i, size) for i, size in enumerate(self.mask_size.tolist())]
        return paste_masks(probs, self.boxes, self.image_size)

    def paste(self) -> None:
        """Paste all masks now instead of on first use."""
        len(self.masks)

    def mask(self, index: int) -> Tensor:
        """(H, W) bool of one instance at its chosen size."""
        return self.mask_at(index, int(self.mask_size[index]))

    @property
    def mask_sizes(self) -> tuple[int, ...]:
        """The sizes that can be asked for, coarse to fine, of ``MASK_SIZES``."""
        return self.regions.branch.mask_sizes

    def mask_at(self, index: int, size: int) -> Tensor:
        """(H, W) bool of one instance at a size of :attr:`mask_sizes`; a size not computed yet is computed now."""
        return paste_mask(self.mask_probs_at(index, size), self.boxes[index], self.image_size)

    def mask_probs_at(self, index: int, size: int) -> Tensor:
        """(size, size) float32 in [0, 1] of one instance.

        Raises:
            DynaMaskError: the size does not exist, or the mask branch does not give it.
        """
        if size not in MASK_SIZES:
            raise DynaMaskError(f"mask size {size} does not exist; choose one of {', '.join(map(str, MASK_SIZES))}")
        if size not in self.mask_sizes:
            raise DynaMaskError(f"these weights give no masks of {size}; choose {listed(self.mask_sizes)}")
        return self.regions.probs(index, MASK_SIZES.index(size))

    def to_coco(self, image_id: int) -> list[dict[str, object]]:
        """COCO results (xywh boxes, compressed RLE) with ``mask_size`` and ``macs`` beside them."""
        results = []
        for i, (box, label) in enumerate(zip(self.boxes.tolist(), self.labels.tolist())):
            results.append(
                {
                    "image_id": image_id,
                    "category_id": self.category_ids[label - 1],
                    "score": float(self.scores[i]),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "segmentation": encode_rle(self.mask(i)),
                    "mask_size": int(self.mask_size[i]),
                    "macs": int(self.macs[i]),
                }
            )
        return results


def select(prediction: Prediction, policy: str, budget: float | None, macs: tuple[int, ...]) -> Prediction:
    """The same instances under another policy or budget; only stages that were not computed yet are run.

    Args:
        policy: "learned", "size" (Eq. 8) or "fixed:S".
        budget: mean GMACs per instance; not together with another policy than "learned".
        macs: of an instance at each size.

    Raises:
        DynaMaskError: an unknown policy, or a budget that nothing can meet.
    """
    check_choice(policy, budget, macs)
    start = time.perf_counter()
    choice = choose(prediction, policy, budget, macs)
    prediction.regions.ensure(choice)
    sizes, spent = torch.tensor(MASK_SIZES)[choice], torch.tensor(macs)[choice]
    timings = {**prediction.timings, "masks": (time.perf_counter() - start) * 1e3}
    return dataclasses.replace(prediction, mask_size=sizes, macs=spent, timings=timings)


def choose(prediction: Prediction, policy: str, budget: float | None, macs: tuple[int, ...]) -> Tensor:
    """(R,) int64 indices into ``MASK_SIZES``, arguments as of :func:`select`; nothing is computed for them."""
    if budget is not None:
        return policies.budget(prediction.switch_logits, macs, budget)
    if policy == "learned":
        return policies.learned(prediction.switch_logits)
    if policy == "size":
        return policies.size_based(prediction.boxes, prediction.image_size)
    return policies.fixed(len(prediction), int(policy.removeprefix("fixed:")))


def load(name_or_path: str | Path = "people", device: str | torch.device = "cpu") -> Predictor | SoloPredictor:
    """A predictor from bundled weights ("people"), a .safetensors file, a saved folder, or hf://owner/name[@revision].

    Nothing is downloaded but what is named with hf://.
    """
    path = find_weights(name_or_path)
    try:
        target = torch.device(device)
        torch.zeros(1, device=target)
    except (RuntimeError, AssertionError) as error:
        raise DynaMaskError(f"device {device!r} is not available here; use cpu") from error
    return predictor_of(load_model(path, target))


def predictor_of(model: DynaMask | SoloNet) -> Predictor | SoloPredictor:
    """The predictor of a built model, by its family."""
    return SoloPredictor(model) if isinstance(model, SoloNet) else Predictor(model)


class Predictor:
    """Predicts on single pictures, and selects again without a new pass of the backbone.

    Args:
        model: in evaluation mode, on the device to use.
    """

    def __init__(self, model: DynaMask) -> None:
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

    @cached_property
    def costs(self) -> MaskBranchCosts:
        """MACs of the mask branch, derived from its layers."""
        return self.model.mask_branch.costs

    @property
    def score_threshold(self) -> float:
        """From which score the model keeps detections."""
        return self.model.config.score_threshold

    @property
    def mask_sizes(self) -> tuple[int, ...]:
        """The sizes that the mask branch gives, coarse to fine, of ``MASK_SIZES``."""
        return self.model.mask_branch.mask_sizes

    @property
    def has_switch(self) -> bool:
        """Whether a switch chooses the sizes; without one "learned" is the finest size."""
        return self.model.mask_branch.switch is not None

    def check_switch(self, what: str) -> None:
        """Refuse what needs a switch, named as a sentence's subject, where there is none: :class:`DynaMaskError`."""
        if not self.has_switch:
            raise DynaMaskError(
                f"{what} needs a switch, and these weights have none: their mask branch is "
                f"{self.model.config.mask_branch}; give other weights, for example shapes, or ask for "
                f"{listed([f'fixed:{size}' for size in self.mask_sizes])}"
            )

    def check_choice(self, policy: str, budget: float | None) -> None:
        """Refuse a policy or budget that is unknown or that these weights cannot follow: :class:`DynaMaskError`."""
        if budget is not None or policy == "size":
            self.check_switch("a budget" if policy != "size" else "the policy 'size'")
        check_choice(policy, budget, self.costs.macs_per_instance)
        if policy.startswith("fixed:") and int(policy.removeprefix("fixed:")) not in self.mask_sizes:
            own = listed([f"fixed:{size}" for size in self.mask_sizes])
            raise DynaMaskError(f"these weights cannot follow the policy {policy!r}; choose {own}")

    def __call__(
        self,
        image: Picture,
        policy: str = "learned",
        budget: float | None = None,
        score: float = 0.5,
        boxes: Sequence[Sequence[float]] | np.ndarray | Tensor | None = None,
        labels: Sequence[int] | None = None,
        all_sizes: bool = False,
    ) -> Prediction:
        """Predict on one picture.

        Args:
            image: (H, W, 3) uint8 RGB, a PIL image, or a path.
            policy: "learned", "size" (Eq. 8) or "fixed:S"; without a switch "learned" is the finest size, and there is
                no "size".
            budget: mean GMACs per instance, met exactly for this picture with the switch's preferences; not together
                with another policy, nor without a switch.
            score: detections below it are left out, 0–1.
            boxes: xyxy in pixels of the picture; masks for these, without detection.
            labels: of the given boxes, ≥ 1; without them the box head names the class.
            all_sizes: compute every size that the mask branch gives of every instance, for exploring.

        Raises:
            DynaMaskError: a picture, policy, budget, score, box or label that cannot be used.
        """
        self.check_choice(policy, budget)
        if not 0.0 <= score <= 1.0:
            raise DynaMaskError(f"score threshold {score} is out of range; give a number from 0 to 1")
        if labels is not None and boxes is None:
            raise DynaMaskError("labels were given without boxes; give the boxes that they name, or neither")
        pixels = read_picture(image)
        prediction = self._begin(pixels, score, boxes, labels)
        if all_sizes:
            start = time.perf_counter()
            for size in self.mask_sizes:
                prediction.regions.ensure(torch.full((len(prediction),), MASK_SIZES.index(size)))
            prediction.timings["all_sizes"] = (time.perf_counter() - start) * 1e3
        return self.select(prediction, policy, budget)

    def select(self, prediction: Prediction, policy: str = "learned", budget: float | None = None) -> Prediction:
        """The same instances under another policy or budget; only stages that were not computed yet are run."""
        self.check_choice(policy, budget)
        return select(prediction, policy, budget, self.costs.macs_per_instance)

    @torch.inference_mode()
    def _begin(
        self, pixels: np.ndarray, score: float, boxes: Sequence[Sequence[float]] | None, labels: Sequence[int] | None
    ) -> Prediction:
        """Backbone, boxes, and the mask branch's shared work."""
        size = (int(pixels.shape[0]), int(pixels.shape[1]))
        start = time.perf_counter()
        tensor = torch.from_numpy(pixels).to(self.device).permute(2, 0, 1).float() / 255.0
        encoded, _ = self.model.detector.encode([tensor])
        network = encoded.images.image_sizes[0]
        if boxes is None:
            found = self.model.detector.detect(encoded)[0]
            kept = found["scores"] >= score
            inside, classes, scores = found["boxes"][kept], found["labels"][kept], found["scores"][kept]
            given = resize_boxes(inside, network, size)
        else:
            given = check_boxes(boxes, size).to(self.device)
            inside = resize_boxes(given, size, network)
            classes = self._labels_of(encoded, inside, labels)
            scores = torch.ones(len(given))
        detected = time.perf_counter()
        state = self.model.regions(encoded, [inside], [classes])
        done = time.perf_counter()
        count = len(given)
        image_macs = self.costs.image_macs([tuple(m.shape[-2:]) for m in state.maps], count)
        timings = {"detect": (detected - start) * 1e3, "regions": (done - detected) * 1e3}
        return Prediction(
            given.cpu().float(),
            classes.cpu(),
            scores.cpu().float(),
            self.class_names,
            self.category_ids,
            torch.zeros(count, dtype=torch.int64),
            state.switch_logits.cpu().float(),
            torch.zeros(count, dtype=torch.int64),
            image_macs,
            size,
            timings,
            Regions(self.model.mask_branch, state),
            pixels,
        )

    def _labels_of(self, encoded: object, boxes: Tensor, labels: Sequence[int] | None) -> Tensor:
        """(R,) int64 labels of given boxes: checked, or named by the box head."""
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
    """Labels as (R,) int64; :class:`DynaMaskError` when they are no whole numbers."""
    try:
        values = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DynaMaskError("labels are no list of whole numbers; give one for each box") from error
    if values.numel() and (values.is_floating_point() or values.dtype == torch.bool):
        raise DynaMaskError("labels are no list of whole numbers; give one for each box")
    return values.to(torch.int64).reshape(-1)


def listed(values: Sequence[object]) -> str:
    """Values as a sentence lists alternatives: "1", "1 or 2", "1, 2 or 3"."""
    *some, last = map(str, values)
    return f"{', '.join(some)} or {last}" if some else last


def check_choice(policy: str, budget: float | None, macs: tuple[int, ...]) -> None:
    """Refuse an unknown policy, a budget that nothing can meet, or both at once, with :class:`DynaMaskError`."""
    known = ["learned", "size", *(f"fixed:{size}" for size in MASK_SIZES)]
    if policy not in known:
        raise DynaMaskError(f"policy {policy!r} is unknown; choose one of {', '.join(known)}")
    if budget is not None:
        if policy != "learned":
            raise DynaMaskError(f"a budget and the policy {policy!r} exclude each other; give one of them")
        policies.check_budget(budget, macs)


def check_boxes(boxes: Sequence[Sequence[float]] | np.ndarray | Tensor, image_size: tuple[int, int]) -> Tensor:
    """Given boxes as (R, 4) float32, cut to the picture; one without area inside it raises :class:`DynaMaskError`."""
    try:
        tensor = torch.as_tensor(np.asarray(boxes, dtype=np.float32))
    except (TypeError, ValueError):
        tensor = None
    if tensor is None or (tensor.numel() and (tensor.ndim != 2 or tensor.shape[1] != 4)):
        raise DynaMaskError("boxes are no list of [x0, y0, x1, y1]; give four numbers for each")
    tensor = tensor.reshape(-1, 4)
    height, width = image_size
    cut = torch.stack(
        [
            tensor[:, 0].clamp(0, width),
            tensor[:, 1].clamp(0, height),
            tensor[:, 2].clamp(0, width),
            tensor[:, 3].clamp(0, height),
        ],
        dim=1,
    )
    for given, box in zip(tensor.tolist(), cut.tolist()):
        if not all(math.isfinite(v) for v in given) or box[2] <= box[0] or box[3] <= box[1]:
            raise DynaMaskError(
                f"box {given} has no area inside the picture of {width} x {height} pixels; "
                "give [x0, y0, x1, y1] with x0 < x1 and y0 < y1"
            )
    return cut
