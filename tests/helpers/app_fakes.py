"""A predictor with invented answers: the app's tests need its interface, not a model."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from app.catalog import WeightsCatalog
from app.handlers import ExploreHandlers
from app.session import Session
from app.source_pictures import SourcePicture
from dynamask.data.pictures import PictureSource, read_picture
from dynamask.models.masks.costs import MaskBranchCosts
from dynamask.predict import Prediction, check_boxes
from dynamask.reports.classes import class_rows
from dynamask.structures import MASK_SIZES

MACS = (10_000_000, 17_000_000, 25_000_000, 32_000_000)
CELLS = (196, 784, 1254, 2509)


def blob(size: int, petals: int, phase: float) -> torch.Tensor:
    """(size, size) probabilities of a soft flower that fills its box."""
    ys, xs = torch.meshgrid(*(2 * [(torch.arange(size) + 0.5) / size * 2 - 1]), indexing="ij")
    radius = 0.72 + 0.22 * torch.cos(petals * torch.atan2(ys, xs) + phase)
    return torch.sigmoid((radius - torch.hypot(xs, ys)) * 14)


def rising_quality(count: int) -> torch.Tensor:
    """(count, 4, 2) predicted mask IoU and boundary IoU that rise with the size, by less and less."""
    steps = torch.rand((count, 4, 2), generator=torch.Generator().manual_seed(11))
    return (0.5 + 0.1 * (steps * torch.tensor([1.0, 1.0, 0.5, 0.2])[:, None]).cumsum(1)).float()


class FakeRegions:
    """The masks of `count` flowers, as a prediction reads them."""

    branch = SimpleNamespace(mask_sizes=MASK_SIZES, region_margin=0.0)

    def __init__(self, count: int) -> None:
        self.grids = [[blob(size, 3 + i % 5, i) for size in MASK_SIZES] for i in range(count)]

    def probs(self, row: int, size_index: int) -> torch.Tensor:
        return self.grids[row][size_index]


class FakePredictor:
    """Finds `count` flowers in every picture, or one in each `given` box; records how it was called."""

    family, mask_sizes, has_switch, default_score = "two-stage", MASK_SIZES, True, 0.5
    costs = MaskBranchCosts(MACS, 500, (), (), CELLS)
    model = SimpleNamespace(config=SimpleNamespace(detector="faster_rcnn"))

    def __init__(
        self,
        count: int = 6,
        class_names: tuple[str, ...] = ("__background__", "person"),
        given: list | None = None,
        has_quality: bool = False,
    ) -> None:
        self.count, self.given, self.class_names, self.has_quality = count, given, class_names, has_quality
        self.calls: list[dict] = []

    def check_switch(self, feature: str) -> None:
        """It has one."""

    def __call__(self, source: PictureSource, **options) -> Prediction:
        image = read_picture(source)
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
        count = len(boxes)
        return Prediction(
            boxes=boxes,
            labels=torch.ones(count, dtype=torch.int64),
            scores=scores,
            macs=torch.full((count,), MACS[0]),
            image_macs={"projection_stride16": 1000, "projection_stride8": 2000, "switch": 500 * count},
            image_size=(height, width),
            picture=image,
            timings={"detect": 210.5, "regions": 12.5, "all_sizes": 30.71, "masks": 0.0},
            class_names=self.class_names,
            category_ids=tuple(range(1, len(self.class_names))),
            mask_size=torch.full((count,), MASK_SIZES[0]),
            switch_logits=2 * torch.randn((count, 4), generator=generator),
            quality=rising_quality(count) if self.has_quality else None,
            regions=FakeRegions(count),
        )


def class_counts(*sizes: tuple[str, int]) -> list[dict]:
    """Rows of classes for a table, from the class and the size index of each instance."""
    unknown = np.full((len(sizes), len(MASK_SIZES)), np.nan)
    return class_rows([name for name, _ in sizes], np.array([size for _, size in sizes]), unknown)


def fake_catalog(first: str = "things", others: tuple[str, ...] = (), **predictors) -> WeightsCatalog:
    """Fakes by name; `predictors` where a particular one is wanted."""
    return WeightsCatalog(lambda name: predictors.get(name) or FakePredictor(), first, [first, *others])


def fake_handlers(examples: Sequence[SourcePicture] = (), **predictors) -> ExploreHandlers:
    """Handlers with the weights things and shapes, invented unless they are given."""
    return ExploreHandlers(fake_catalog("things", ("shapes",), **predictors), list(examples))


def ask(handlers: ExploreHandlers, session: Session | None = None, folder: Path = Path(), **request) -> tuple:
    """The answer to a request, decoded, and the session after it."""
    if session is not None:
        request = {"token": session.token, **request}
    text, session = handlers.answer(request, session, folder)
    return json.loads(text), session


def open_upload(handlers: ExploreHandlers, path: Path, name: str = "photo.png", weights: str = "things") -> tuple:
    """The view of an uploaded file and its session."""
    return ask(handlers, None, path.parent, ask="open", kind="upload", path=str(path), name=name, weights=weights)


def exported(handlers: ExploreHandlers, session: Session, what: str, picks: list, **more) -> tuple[str, bytes]:
    """Name and bytes of an exported file."""
    answer, _ = ask(handlers, session, ask="export", what=what, picks=picks, **more)
    return answer["name"], base64.b64decode(answer["data"])
