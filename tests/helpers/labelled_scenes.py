"""Scenes of rectangles whose pixels say which object they show, so that pictures and masks can be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamask.structures import DynaMaskError

Sample = tuple[Tensor, dict[str, Any]]


def scene(seed: int, objects: int, size: tuple[int, int] = (60, 80), first: int = 1) -> Sample:
    """Rectangles over each other; red is the label of the object at each pixel, from ``first``, and 0 elsewhere."""
    rng = np.random.default_rng(seed)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    image[1] = seed % 250
    owner = torch.zeros(size, dtype=torch.int64)
    for number in range(objects):
        height, width = (int(v) for v in rng.integers(8, 30, 2))
        y, x = int(rng.integers(0, size[0] - height + 1)), int(rng.integers(0, size[1] - width + 1))
        owner[y : y + height, x : x + width] = first + number
    image[0] = owner.to(torch.uint8)
    labels = [n for n in range(first, first + objects) if (owner == n).any()]
    masks = torch.stack([owner == n for n in labels]).to(torch.uint8) if labels else torch.zeros(0, *size).byte()
    return image, target_of(masks, labels, seed)


def target_of(masks: Tensor, labels: list[int], image_id: int) -> dict[str, Any]:
    """The target of (N, H, W) uint8 masks."""
    return {
        "boxes": tight(masks),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
        "image_id": image_id,
        "area": masks.flatten(1).sum(1).float(),
        "iscrowd": torch.zeros(len(labels), dtype=torch.int64),
    }


def tight(masks: Tensor) -> Tensor:
    """(N, 4) xyxy boxes around masks."""
    boxes = torch.zeros(len(masks), 4)
    for i, mask in enumerate(masks):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        boxes[i] = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    return boxes


class Scenes(torch.utils.data.Dataset):
    """Seven scenes of different sizes, every third one without an object; notes which ones are read.

    Reading scene ``broken`` fails with ``failure``.
    """

    class_names, category_ids = ("__background__", "thing"), (1,)

    def __init__(self, transforms: Callable[..., Sample] | None = None, broken: int | None = None) -> None:
        self.transforms, self.broken, self.image_ids = transforms, broken, list(range(7))
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.image_ids)

    def failure(self, index: int) -> None:
        raise DynaMaskError(f"picture {index} is truncated")

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            self.failure(index)
        self.read.append(index)
        size = (60 + 4 * (index % 3), 80 - 6 * (index % 2))
        image, target = scene(index, 0 if index % 3 == 0 else 3, size, 1 + 20 * index)
        return self.transforms(image, target) if self.transforms else (image, target)


def same(first: Sample, second: Sample) -> bool:
    """Whether two samples are equal."""
    (image, target), (other, found) = first, second
    keys = ("boxes", "labels", "masks", "area", "iscrowd")
    return torch.equal(image, other) and all(torch.equal(target[key], found[key]) for key in keys)


def copied(sample: Sample) -> Sample:
    """A deep copy of a sample."""
    image, target = sample
    return image.clone(), {key: value.clone() if isinstance(value, Tensor) else value for key, value in target.items()}


def check_consistent(image: Tensor, target: dict[str, Any]) -> None:
    """Lengths and types agree, boxes are tight, areas are those of the masks, and red is the label."""
    count = len(target["labels"])
    assert target["masks"].shape == (count, *image.shape[1:]) and target["masks"].dtype == torch.uint8
    assert all(len(target[key]) == count for key in ("boxes", "area", "iscrowd"))
    assert target["boxes"].dtype == torch.float32 and target["labels"].dtype == torch.int64
    assert torch.equal(target["boxes"], tight(target["masks"]))
    assert torch.allclose(target["area"], target["masks"].flatten(1).sum(1).float())
    for label, mask in zip(target["labels"].tolist(), target["masks"].bool()):
        assert mask.any() and (image[0][mask] == label).all()


def samples(loader: Any, batches: int) -> list[Sample]:
    """The samples of the next batches."""
    return [pair for _ in range(batches) for pair in zip(*next(loader), strict=True)]
