"""Pictures with instance masks: the items that every data set serves, whatever its files look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamask.data.pictures import read_picture
from dynamask.structures import DynaMaskError

Target = dict[str, Any]
Transforms = Callable[[Tensor, Target], tuple[Tensor, Target]]

OBJECT = "object"
"""The one class of class-agnostic models."""


class InstanceDataset(torch.utils.data.Dataset):
    """Pictures and instance masks; a subclass finds the files and the instances of each picture.

    `dataset[i]` is (image, target): image (3, H, W) uint8 RGB; target holds `boxes` (N, 4) float32 xyxy in pixels,
    `labels` (N,) int64 from 1, `masks` (N, H, W) uint8 0/1, `image_id` int, `area` (N,) float32 in pixels² (the
    field of the annotation) and `iscrowd` (N,) int64. N may be 0.

    Attributes:
        class_names: names by label; index 0 is "__background__".
        category_ids: category id of label i at index i - 1, ascending.
        image_ids: image id by dataset index.
        files: path of the picture by dataset index.
        coco: the COCO dict of all pictures; crowds are in it.
        skipped: how many annotations had no area.
    """

    files: list[Path]
    image_ids: list[int]
    coco: dict[str, Any]
    skipped: int = 0

    def __init__(self, categories: Sequence[dict[str, Any]], transforms: Transforms | None) -> None:
        """Number the categories (each with `id` and `name`) by ascending id, from label 1."""
        ordered = sorted(categories, key=lambda category: category["id"])
        self.category_ids: tuple[int, ...] = tuple(category["id"] for category in ordered)
        self.class_names: tuple[str, ...] = ("__background__", *(category["name"] for category in ordered))
        self._labels = {category_id: label for label, category_id in enumerate(self.category_ids, start=1)}
        self.transforms = transforms

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels of the picture at `index`, as its annotations say."""
        raise NotImplementedError

    def instances(self, index: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The annotations of the targets at `index`, each with its compressed run-length mask."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Picture and target at `index`; DynaMaskError if the picture cannot be read or has another size."""
        image, target = self.read_image(index), self.target(index)
        return self.transforms(image, target) if self.transforms is not None else (image, target)

    def read_image(self, index: int) -> Tensor:
        """Picture at `index` as (3, H, W) uint8 RGB, in the orientation that the annotations were made in."""
        size = self.size(index)
        picture = read_picture(self.files[index])
        if picture.shape[:2] != size:  # annotated on the stored rows, without regard to EXIF
            picture = read_picture(self.files[index], upright=False)
        if picture.shape[:2] != size:
            raise DynaMaskError(
                f"picture {self.files[index]} is {picture.shape[1]} x {picture.shape[0]} pixels and not {size[1]} x "
                f"{size[0]} as its annotations say: use the pictures that were annotated"
            )
        return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))

    def target(self, index: int) -> Target:
        """Target at `index` before any transform, without reading the picture."""
        size, objects = self.size(index), self.instances(index)
        boxes = [clipped_box(annotation["bbox"], size) for annotation, _ in objects]
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([self._labels[a["category_id"]] for a, _ in objects], dtype=torch.int64),
            "masks": torch.from_numpy(decode_masks([rle for _, rle in objects], size)),
            "image_id": self.image_ids[index],
            "area": torch.tensor([a["area"] for a, _ in objects], dtype=torch.float32),
            "iscrowd": torch.tensor([a["iscrowd"] for a, _ in objects], dtype=torch.int64),
        }


def decode_masks(rles: Sequence[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """Compressed run-length masks of `size` (height, width) as (N, H, W) uint8 0/1.

    Only the columns between an object's first and last pixel are written: the runs go down the columns, so that what
    lies beside an object costs nothing.
    """
    height, width = size
    masks = np.zeros((len(rles), height, width), dtype=np.uint8)
    for mask, rle in zip(masks, rles, strict=True):
        ends = np.cumsum(run_lengths(rle["counts"]))  # pixels, column by column; runs of 0 and 1 take turns
        if len(ends) < 2:
            continue
        left = int(ends[0]) // height
        last = int(ends[-1 if len(ends) % 2 == 0 else -2])  # one past the last 1
        right = (last + height - 1) // height
        inside = np.clip(ends, left * height, right * height)
        runs = np.diff(inside, prepend=left * height)
        values = np.arange(len(runs), dtype=np.uint8) & 1
        mask[:, left:right] = np.repeat(values, runs).reshape(-1, height).T  # (columns, H) → (H, columns)
    return masks


def run_lengths(counts: str | bytes) -> np.ndarray:
    """The run lengths that COCO's compressed text stands for, int64.

    Each is a little-endian number in base 32, a character 48 + digit with 32 for "goes on" and, in the last one, 16 for
    a negative; from the fourth on it is the difference to the run two before.
    """
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return codes
    last = (codes & 32) == 0
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(starts, append=len(codes))
    digit = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * digit), starts)
    runs -= np.where(codes[last] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def clipped_box(box: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """xywh to xyxy in pixels, clipped to a picture of `size` (height, width)."""
    x, y, box_width, box_height = box
    height, width = size
    return max(x, 0.0), max(y, 0.0), min(x + box_width, float(width)), min(y + box_height, float(height))
