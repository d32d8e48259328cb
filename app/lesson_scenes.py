"""What a frozen model says about the objects of shapes scenes: computed once a scene, kept for every visitor.

While the switch alone learns, all that comes before it and after it stays as it is: the 14×14 feature that it reads,
and the error of the mask at each of the four sizes. Both are kept, so that a training step costs the switch alone.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.models.detection.transform import resize_boxes

from dynamask.data.shapes.scene import Scene, make_scene
from dynamask.evaluation.mask_quality import boundary_width, quality_by_size
from dynamask.models.masks import losses
from dynamask.ops.masks import crop_mask_pyramid, mask_edges, paste_mask
from dynamask.predict import Predictor
from dynamask.structures import MASK_SIZES

LESSON_SEED = 7001
"""The world that the scenes of the lesson come from; no bundled weights are trained or judged on it."""

STUDY_SCENE = 2
"""The scene that is drawn again and again."""

JITTER = 0.06
"""Largest shift of a box's sides in the second look at every object, of the box's own sides."""


@dataclass(frozen=True)
class Study:
    """The fixed scene with everything that drawing it needs.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) float32 xyxy in pixels.
        features: (N, C, 14, 14), what the switch reads.
        masks: per instance the four (H, W) bool masks, coarse to fine.
        quality: (N, 4) float64, boundary IoU with the true mask at each size.
    """

    image: np.ndarray
    boxes: np.ndarray
    features: Tensor
    masks: list[list[np.ndarray]]
    quality: np.ndarray


class LessonScenes(Dataset):
    """Scenes as a data set for the switch: items are (empty picture, target), computed on first use and kept.

    A target holds `features` (n, C, 14, 14), `edge` (n, 4) cross-entropies of the edge maps, `error` (n, 4), one minus
    the boundary IoU of each size's mask at a common grid, and `image_id`.
    """

    def __init__(self, predictor: Predictor, count: int = 32, seed: int = LESSON_SEED) -> None:
        """Choose the scenes; none is made yet.

        Args:
            predictor: whose model is read, never changed.
            count: of scenes kept; about 0.4 MB each.
            seed: of their world.
        """
        self.model, self.macs, self.seed, self.count = predictor.model, predictor.costs, seed, count
        self.image_ids = list(range(count))
        self._known: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of scenes."""
        return self.count

    @property
    def known(self) -> int:
        """Scenes that were computed already."""
        return len(self._known)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """The item of a scene; IndexError beyond the end."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        with self._lock:
            if index not in self._known:
                self._known[index] = self._measure(make_scene(self.seed, STUDY_SCENE + 1 + index), index)
        return torch.zeros(3, 1, 1, dtype=torch.uint8), dict(self._known[index])

    @torch.no_grad()
    def _measure(self, scene: Scene, index: int) -> dict[str, Any]:
        """Two looks at every object: its true box, and the same box shifted a little."""
        count, branch = len(scene), self.model.mask_branch
        match = torch.arange(count).repeat(2)
        boxes = torch.from_numpy(_looks(scene, np.random.default_rng([self.seed, index])))
        state, inside = self._regions(scene, boxes)
        every = torch.arange(len(state), device=inside.device)
        truth = crop_mask_pyramid(torch.from_numpy(scene.masks).to(inside.device), boxes.to(inside.device), MASK_SIZES,
                                  match.to(inside.device))  # fmt: skip
        truth = [(crop >= 0.5).float() for crop in truth]
        sizes = range(len(MASK_SIZES))
        masks = [branch.region_fpn.mask_logits(state, k, every) for k in sizes]
        edges = [branch.region_fpn.edge_logits(state, k, every) for k in sizes]
        scale = float((inside[:, 2] - inside[:, 0]).sum() / (boxes[:, 2] - boxes[:, 0]).sum()) if count else 1.0
        width = inside.new_full((len(state),), boundary_width(scene.image.shape[:2]) * scale)
        target = {
            "features": state.features[0],
            "edge": losses.resolution_losses(edges, [mask_edges(t) for t in truth]),
            "error": branch.boundary_error(state, masks, truth[-1], width),
        }
        return {**{key: value.cpu() for key, value in target.items()}, "image_id": index}

    def _regions(self, scene: Scene, boxes: Tensor) -> tuple[Any, Tensor]:
        """The mask branch's state on boxes (n, 4) in pixels of the scene, and these boxes as the network sees them."""
        device = next(self.model.parameters()).device
        tensor = torch.from_numpy(scene.image.copy()).to(device).permute(2, 0, 1).float() / 255.0
        encoded, _ = self.model.encode([tensor])
        inside = resize_boxes(boxes.to(device), scene.image.shape[:2], encoded.images.image_sizes[0])
        labels = torch.ones(len(boxes), dtype=torch.int64, device=device)
        if len(self.model.config.class_names) > 2 and len(boxes):
            labels = self.model.roi_heads.classify(encoded.features, [inside], encoded.images.image_sizes)
        return self.model.regions(encoded, [inside], [labels]), inside

    @cached_property
    def study(self) -> Study:
        """The fixed scene, its objects in their true boxes."""
        scene = make_scene(self.seed, STUDY_SCENE, count=7)
        with self._lock, torch.no_grad():
            state, _ = self._regions(scene, torch.from_numpy(scene.boxes))
            every, fpn = torch.arange(len(state), device=state.rois.device), self.model.mask_branch.region_fpn
            probs = [fpn.mask_logits(state, k, every).sigmoid().cpu() for k in range(len(MASK_SIZES))]
        size = scene.image.shape[:2]
        masks = [[paste_mask(probs[k][i], scene.boxes[i], size).numpy() for k in range(len(MASK_SIZES))]
                 for i in range(len(scene))]  # fmt: skip
        by_size = [np.array([row[k] for row in masks]).reshape(-1, *size) for k in range(len(MASK_SIZES))]
        _, quality = quality_by_size(scene.masks, by_size)
        return Study(scene.image, scene.boxes, state.features[0].cpu(), masks, quality)


def _looks(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """(2N, 4) float32: the true boxes, then the same with every side moved a little, cut to the picture."""
    height, width = scene.image.shape[:2]
    sides = np.tile(scene.boxes[:, 2:] - scene.boxes[:, :2], 2)
    moved = scene.boxes + rng.uniform(-JITTER, JITTER, scene.boxes.shape) * sides
    limits = np.array([width, height, width, height])
    return np.concatenate([scene.boxes, np.clip(moved, 0, limits)]).astype(np.float32)
