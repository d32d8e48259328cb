"""Cached features of a frozen model on scenes of the shapes world, shared by all visitors of the Train tab."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from dynamask.data.shapes.scene import make_scene
from dynamask.engine.frozen_features import FeatureCache, image_cache
from dynamask.predict import Predictor
from dynamask.structures import MASK_SIZES

LESSON_SEED = 7001
"""Seed of the world of these scenes; no bundled weights are trained or evaluated on it."""
STUDY_SCENE = 2
"""Index of the scene that is drawn in every frame; the scenes to learn from follow it."""


@dataclass(frozen=True)
class Study:
    """The scene that is drawn in every frame.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        features: of its N objects in their true boxes.
        masks: (N, 4, H, W) bool, the mask of each object at each size.
    """

    image: np.ndarray
    features: FeatureCache
    masks: np.ndarray


class LessonScenes:
    """Features of scenes to learn from and of scenes to evaluate on.

    They are computed one scene at a time, by :meth:`add_next`. An object to learn from is seen twice: in its true box,
    and with a jittered box in the flipped scene.

    Args:
        predictor: of the frozen model.
        count: number of scenes; about 0.4 MB each.
        held_out: number of scenes, the last ones, that are evaluated on and never learned from.
        seed: of the world.
    """

    def __init__(self, predictor: Predictor, count: int = 24, held_out: int = 6, seed: int = LESSON_SEED) -> None:
        self.predictor, self.macs = predictor, predictor.costs
        self.count, self.held_out, self.seed = count, held_out, seed
        self._scenes: list[FeatureCache | None] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.count

    @property
    def known(self) -> int:
        """Number of scenes whose features are computed."""
        return len(self._scenes)

    @property
    def ready(self) -> bool:
        """True when the features of all scenes are computed."""
        return self.known == self.count

    def add_next(self) -> None:
        """Compute the features of one more scene; nothing happens if all are known."""
        with self._lock:
            if not self.ready:
                self._scenes.append(self._features(self.known))

    def _features(self, index: int) -> FeatureCache | None:
        """The features of a scene; None for a scene without objects."""
        scene = make_scene(self.seed, STUDY_SCENE + 1 + index)
        if len(scene) == 0:
            return None
        image = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)
        boxes, masks = torch.from_numpy(scene.boxes), torch.from_numpy(scene.masks).to(torch.uint8)
        views = 1 if index < self.count - self.held_out else 0
        return image_cache(self.predictor, image, boxes, masks, None, views, self.seed, image_id=index)

    @cached_property
    def learned(self) -> FeatureCache:
        """The features to learn from; all scenes must be known."""
        return self._joined(self._scenes[: -self.held_out])

    @cached_property
    def evaluated(self) -> FeatureCache:
        """The features to evaluate on, in true boxes; all scenes must be known."""
        return self._joined(self._scenes[-self.held_out :])

    @staticmethod
    def _joined(scenes: list[FeatureCache | None]) -> FeatureCache:
        parts = [scene for scene in scenes if scene is not None]
        return FeatureCache.joined(parts, parts[0].about)

    @cached_property
    def study(self) -> Study:
        """The scene that is drawn in every frame."""
        scene = make_scene(self.seed, STUDY_SCENE, count=7)
        image = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)
        boxes, truth = torch.from_numpy(scene.boxes), torch.from_numpy(scene.masks).to(torch.uint8)
        with self._lock:
            features = image_cache(self.predictor, image, boxes, truth, None, views=0, seed=self.seed)
            prediction = self.predictor(scene.image, boxes=boxes, all_sizes=True)
        masks = [[prediction.mask_at(i, size).numpy() for size in MASK_SIZES] for i in range(len(scene))]
        return Study(scene.image, features, np.array(masks))
