"""Inputs of the measurements of speed: a photograph, boxes, training batches and smooth feature maps."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dynamask.cli.common import open_selected_data
from dynamask.data.loaders import TrainingLoader
from dynamask.data.pictures import read_picture
from dynamask.data.transforms import TrainingTransforms
from dynamask.structures import DynaMaskError

Batch = tuple[list[Tensor], list[dict[str, Any]]]
PHOTO = (480, 640)
"""Height and width of the photograph, pixels."""


def photograph(path: Path | None) -> np.ndarray:
    """The picture to predict on, (480, 640, 3) uint8 RGB: scikit-image's astronaut unless a file is given."""
    if path is not None:
        pixels = read_picture(path)
    else:
        try:
            from skimage import data
        except ImportError as error:
            raise DynaMaskError("scikit-image is missing; install it or give a photograph with --image") from error
        pixels = data.astronaut()
    return np.array(Image.fromarray(pixels).resize(PHOTO[::-1], Image.Resampling.BILINEAR))


def mixed_boxes(count: int, image_size: tuple[int, int], seed: int = 0) -> Tensor:
    """(count, 4) xyxy boxes inside an image of (height, width), sides log-uniform from 24 to 400 pixels."""
    rng = np.random.default_rng(seed)
    limit = np.array(image_size[::-1], dtype=np.float64)  # width, height
    sides = np.minimum(np.exp(rng.uniform(np.log(24), np.log(400), (count, 2))), limit)
    corner = rng.uniform(0, 1, (count, 2)) * (limit - sides)
    return torch.from_numpy(np.concatenate([corner, corner + sides], axis=1)).float()


def smooth_features(channels: int, image_size: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
    """A made-up feature pyramid {"0": P2, …, "3": P5} of one picture, each map (1, channels, H_l, W_l).

    Noise of N(0, 1) at every fourth cell, interpolated between. Masks that a model with random weights predicts from it
    have smooth outlines, so the cells along them lie together as they do in photographs.

    Args:
        image_size: (height, width) of the network input.
    """
    generator = torch.Generator().manual_seed(seed)
    features = {}
    for level, stride in enumerate((4, 8, 16, 32)):
        size = tuple(-(-side // stride) for side in image_size)
        noise = torch.randn(1, channels, *(side // 4 + 2 for side in size), generator=generator)
        features[str(level)] = F.interpolate(noise, size=size, mode="bilinear", align_corners=True)
    return features


def generated_batches(count: int, batch_size: int, seed: int = 0) -> list[Batch]:
    """Batches of noise pictures of 416 × 312 pixels with one to four ellipses each, for machines without data."""
    rng, (height, width) = np.random.default_rng(seed), (312, 416)
    rows, columns = np.mgrid[:height, :width]
    batches: list[Batch] = []
    for number in range(count):
        images, targets = [], []
        for place in range(batch_size):
            boxes = mixed_boxes(int(rng.integers(1, 5)), (height, width), seed=seed + number * batch_size + place)
            masks = []
            for x0, y0, x1, y1 in boxes.numpy():
                across = (columns + 0.5 - (x0 + x1) / 2) / (x1 - x0)
                down = (rows + 0.5 - (y0 + y1) / 2) / (y1 - y0)
                masks.append(across**2 + down**2 <= 0.25)
            pixels = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
            images.append(torch.from_numpy(pixels))
            targets.append(
                {
                    "boxes": boxes,
                    "labels": torch.ones(len(boxes), dtype=torch.int64),
                    "masks": torch.from_numpy(np.stack(masks).astype(np.uint8)),
                    "image_id": number * batch_size + place,
                }
            )
        batches.append((images, targets))
    return batches


def has_data(arguments: argparse.Namespace) -> bool:
    """Return whether a data set was given."""
    return any(value is not None for value in (arguments.data, arguments.images, arguments.annotations))


def real_batches(arguments: argparse.Namespace, count: int, batch_size: int) -> list[Batch]:
    """The first batches of a training run on the data that was given."""
    dataset, indices = open_selected_data(arguments, None, training=True, transforms=TrainingTransforms())
    loader = TrainingLoader(dataset, batch_size, 0, 0, indices)
    return [next(loader) for _ in range(count)]
