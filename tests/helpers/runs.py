"""Small trainings for tests: a model of two numbers, a tiny whole model, and the command line on six pictures."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from dynamask.data import TrainingLoader, TrainingTransforms
from dynamask.engine.run import Run
from dynamask.training_config import LossConfig, TrainConfig
from helpers.small_models import TINY, picture, target, tiny_model

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where programs are started."""
LOSSES = LossConfig(budget_target=0.05)
SHORT = TrainConfig(
    batch_size=2,
    iterations=4,
    warm_start=0.25,
    optimizer="adamw",
    lr=1e-3,
    backbone_lr_factor=0.5,
    warmup=2,
    schedule="cosine",
    clip_norm=10.0,
    ema_decay=0.9,
    workers=0,
    save_every=2,
    log_every=1,
)
STEPS = 10
"""Steps of the training that :func:`arguments` describes."""
FLAGS = {**TINY, "batch_size": 2, "iterations": STEPS, "save_every": 2, "log_every": 1, "warmup": 2, "workers": 0}


class Rectangles(torch.utils.data.Dataset):
    """Four noisy pictures with brighter rectangles where the objects are; the last is empty."""

    def __init__(self, transforms=None) -> None:
        self.transforms = transforms

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        found = target(64, 64, objects=(2, 1, 1, 0)[index], image_id=100 + index)
        image = picture(64, 64, seed=index) * 80
        image[:, found["masks"].bool().any(0)] += 150
        sample = image.to(torch.uint8), {**found, "area": torch.ones(len(found["boxes"]))}
        sample[1]["iscrowd"] = torch.zeros(len(found["boxes"]), dtype=torch.int64)
        return self.transforms(*sample) if self.transforms else sample


class Toy(nn.Module):
    """Two losses of one weight; the loss named by ``broken`` is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, -1.0]))
        self.loss_weights = {"loss_mask": 1.0, "loss_edge": 0.1}
        self.still = nn.Parameter(torch.tensor([7.0]), requires_grad=False)
        self.broken: str | None = None

    def forward(self, images, targets):
        losses = {"loss_mask": (self.weight**2).sum(), "loss_edge": self.weight.abs().sum()}
        if self.broken:
            losses[self.broken] = losses[self.broken] * math.nan
        return losses


def toy_run(out: Path, **changes) -> Run:
    """A run of :class:`Toy`; ``changes`` are fields of the schedule."""
    config = dataclasses.replace(SHORT, **changes)
    return Run(Toy(), TrainingLoader(Rectangles(), config.batch_size), config, out)


def real_run(out: Path, seed: int = 0, settings: dict | None = None, **changes) -> Run:
    """A run of a tiny whole model; ``changes`` are fields of the schedule."""
    config = dataclasses.replace(SHORT, **changes)
    loader = TrainingLoader(Rectangles(TrainingTransforms()), config.batch_size, config.seed)
    model = tiny_model(seed=seed, loss_config=LOSSES, min_sizes=(48, 64))
    return Run(model, loader, config, out, settings=settings or {"model": "tiny"})


def log_of(out: Path) -> list[dict[str, float]]:
    """The rows of a run's ``log.csv``."""
    with (out / "log.csv").open() as stream:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]


def write_blocks(root: Path) -> Path:
    """Write six noisy 64 × 64 pictures with two bright rectangles each, but for the last, and return the folder."""
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, 7):
        pixels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
        for x, y in ((4, 6 + number), (36, 20 - number)) if number < 6 else ():
            pixels[y : y + 30, x : x + 22] = 230
            corners = [x, y, x + 22, y, x + 22, y + 30, x, y + 30]
            annotation = {"image_id": number, "category_id": 3, "segmentation": [corners], "bbox": [x, y, 22, 30]}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, "area": 660, **annotation})
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 64})
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "block"}]}
    (root / "annotations.json").write_text(json.dumps(coco))
    return root


def flags(settings: dict) -> list[str]:
    """Settings as flags of ``dynamask train``."""
    words = []
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def arguments(data: Path, out: Path, *more: str, **changed) -> list[str]:
    """Command line of a small training on :func:`write_blocks`; ``changed`` are flags."""
    paths = ["--images", str(data / "images"), "--annotations", str(data / "annotations.json"), "--out", str(out)]
    return ["train", "--model", "dynamask_mobilenetv2_fpn_small", *paths, *flags({**FLAGS, **changed}), *more]


def assert_equal_runs(out: Path, straight: Path) -> None:
    """The same log to the last character, the same weights to the last bit."""
    assert (out / "log.csv").read_text() == (straight / "log.csv").read_text()
    ours, theirs = (load_file(folder / "last.safetensors") for folder in (out, straight))
    assert set(ours) == set(theirs) and all(torch.equal(ours[key], value) for key, value in theirs.items())
