"""A predictor that invents its answers: the app's tests need its interface, not a model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from app.catalog import WeightsCatalog
from dynamask.predict import check_boxes
from dynamask.structures import MASK_SIZES

MACS = (10_000_000, 17_000_000, 25_000_000, 32_000_000)


class FakePrediction:
    """What `Predictor` gives back, as far as the app reads it."""

    def __init__(
        self,
        boxes: torch.Tensor,
        scores: torch.Tensor,
        probs: torch.Tensor,
        grids: list[list[torch.Tensor]],
        class_names: tuple[str, ...],
    ) -> None:
        self.boxes, self.scores, self.switch_probs, self.grids = boxes, scores, probs, grids
        self.labels = torch.ones(len(boxes), dtype=torch.int64)
        self.class_names = class_names
        self.image_macs = {"projection_stride16": 1000, "projection_stride8": 2000, "switch": 500 * len(boxes)}
        self.timings = {"detect": 210.5, "regions": 12.5, "all_sizes": 30.71, "masks": 0.0}
        self.regions = SimpleNamespace(branch=None, state=None)

    def __len__(self) -> int:
        return len(self.boxes)

    def mask_probs_at(self, index: int, size: int) -> torch.Tensor:
        return self.grids[index][MASK_SIZES.index(size)]


def blob(size: int, petals: int, phase: float) -> torch.Tensor:
    """(size, size) probabilities of a soft flower that fills its box."""
    ys, xs = torch.meshgrid(*(2 * [(torch.arange(size) + 0.5) / size * 2 - 1]), indexing="ij")
    radius = 0.72 + 0.22 * torch.cos(petals * torch.atan2(ys, xs) + phase)
    return torch.sigmoid((radius - torch.hypot(xs, ys)) * 14)


class FakePredictor:
    """Finds `count` flowers in every picture, or one in each `given` box; remembers how it was called."""

    def __init__(
        self, count: int = 6, class_names: tuple[str, ...] = ("__background__", "person"), given: list | None = None
    ) -> None:
        self.count = count
        self.given = given
        self.class_names = class_names
        self.category_ids = tuple(range(1, len(class_names)))
        self.family = "two-stage"
        self.costs = SimpleNamespace(macs_per_instance=MACS, switch_macs=500)
        self.calls: list[dict] = []

    def check_switch(self, what: str) -> None:
        """It has one."""

    def __call__(self, image: np.ndarray, **options) -> FakePrediction:
        self.calls.append({"shape": image.shape, **options})
        height, width = image.shape[:2]
        limits = torch.tensor([width, height, width, height], dtype=torch.float32)
        generator = torch.Generator().manual_seed(3)
        if options.get("boxes") is not None:
            boxes = check_boxes(options["boxes"], (height, width))
            scores = torch.ones(len(boxes))
        elif self.given is not None:
            boxes = torch.tensor(self.given)
            scores = torch.linspace(0.97, 0.6, len(boxes))
        else:
            centres = torch.rand((self.count, 2), generator=generator) * limits[:2]
            halves = (0.08 + 0.22 * torch.rand((self.count, 2), generator=generator)) * limits[:2]
            boxes = torch.cat([centres - halves, centres + halves], dim=1).clamp(min=0).minimum(limits)
            scores = torch.linspace(0.97, 0.2, self.count)
        probs = torch.softmax(2 * torch.randn((len(boxes), 4), generator=generator), dim=1)
        grids = [[blob(size, 3 + i % 5, i) for size in MASK_SIZES] for i in range(len(boxes))]
        return FakePrediction(boxes, scores, probs, grids, self.class_names)


def fake_catalog(first: str = "people", others: tuple[str, ...] = (), **predictors) -> WeightsCatalog:
    """A shelf of fakes; `predictors` by name, where a particular one is wanted."""
    return WeightsCatalog(lambda name: predictors.get(name) or FakePredictor(), first, [first, *others])
