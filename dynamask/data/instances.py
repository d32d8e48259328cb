"""Base class of data sets of pictures with instance masks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dynamask.data.coco_checks import clipped_box
from dynamask.data.pictures import read_picture
from dynamask.ops.mask_windows import MaskWindows
from dynamask.ops.rle import Rle, decode_masks
from dynamask.structures import DynaMaskError

Target = dict[str, Any]
Transforms = Callable[[Tensor, Target], tuple[Tensor, Target]]

OBJECT = "object"
"""Name of the only class of class-agnostic models."""


class InstanceDataset(torch.utils.data.Dataset):
    """Pictures and instance masks; a subclass finds the files and the instances of each picture.

    ``dataset[i]`` is (image, target): image (3, H, W) uint8 RGB; target holds ``boxes`` (N, 4) float32 xyxy in pixels,
    ``labels`` (N,) int64 from 1, ``masks`` (N, H, W) uint8 0/1, ``image_id`` int, ``area`` (N,) float32 in pixels² (the
    field of the annotation) and ``iscrowd`` (N,) int64. N may be 0.

    Attributes:
        class_names: names by label; index 0 is "__background__".
        category_ids: category id of label i at index i - 1, ascending.
        image_ids: image id by dataset index.
        files: path of the picture by dataset index.
        coco: the COCO dict of all pictures, including crowds.
        skipped: number of annotations without area, which are left out.
        mask_windows: whether the masks of items are :class:`dynamask.ops.mask_windows.MaskWindows` instead of a tensor,
            which takes far less memory if there are many objects in a large picture.
    """

    files: list[Path]
    image_ids: list[int]
    coco: dict[str, Any]
    skipped: int = 0
    mask_windows: bool = False

    def __init__(self, categories: Sequence[dict[str, Any]], transforms: Transforms | None) -> None:
        """Number the categories (each with ``id`` and ``name``) by ascending id, from label 1."""
        ordered = sorted(categories, key=lambda category: category["id"])
        self.category_ids: tuple[int, ...] = tuple(category["id"] for category in ordered)
        self.class_names: tuple[str, ...] = ("__background__", *(category["name"] for category in ordered))
        self._labels = {category_id: label for label, category_id in enumerate(self.category_ids, start=1)}
        self.transforms = transforms

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels of the picture at ``index``, as its annotations say."""
        raise NotImplementedError

    def instances(self, index: int) -> list[tuple[dict[str, Any], Rle]]:
        """The annotations of the targets at ``index``, each with its compressed run-length mask."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Picture and target at ``index``; DynaMaskError if the picture cannot be read or has another size."""
        image, target = self.read_image(index), self.target(index)
        return self.transforms(image, target) if self.transforms is not None else (image, target)

    def read_image(self, index: int) -> Tensor:
        """Picture at ``index`` as (3, H, W) uint8 RGB, in the orientation in which it was annotated."""
        height, width = self.size(index)
        picture = read_in_size(self.files[index], (height, width))
        if picture.shape[:2] != (height, width):
            raise DynaMaskError(
                f"picture {self.files[index]} is {picture.shape[1]} x {picture.shape[0]} pixels and not {width} x "
                f"{height} as its annotations say: use the pictures that were annotated"
            )
        return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))

    def target(self, index: int) -> Target:
        """Target at ``index`` before any transform, without reading the picture."""
        size, objects = self.size(index), self.instances(index)
        boxes = [clipped_box(annotation["bbox"], size) for annotation, _ in objects]
        rles = [rle for _, rle in objects]
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([self._labels[a["category_id"]] for a, _ in objects], dtype=torch.int64),
            "masks": MaskWindows.from_rles(rles, size)
            if self.mask_windows
            else torch.from_numpy(decode_masks(rles, size)),
            "image_id": self.image_ids[index],
            "area": torch.tensor([a["area"] for a, _ in objects], dtype=torch.float32),
            "iscrowd": torch.tensor([a["iscrowd"] for a, _ in objects], dtype=torch.int64),
        }


def read_in_size(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The picture in the orientation that has ``size`` (height, width): upright by EXIF, else as stored.

    Some annotations were made without regard to EXIF. A picture of neither size comes as stored.
    """
    picture = read_picture(path)
    return picture if picture.shape[:2] == size else read_picture(path, upright=False)


class HasImageIds(Protocol):
    """A data set that has an image id for each index, and possibly ``source_ids`` that count instead."""

    image_ids: list[int]


def is_held_out(image_id: int, modulus: int) -> bool:
    """Return whether the SHA-256 of the decimal image id, read as an integer, is divisible by ``modulus``."""
    return int(hashlib.sha256(str(image_id).encode()).hexdigest(), 16) % modulus == 0


def split_by_image_id(dataset: HasImageIds, validation: bool, modulus: int = 8) -> list[int]:
    """Ascending indices of one side of the published split of a data set.

    A picture belongs to validation if and only if the SHA-256 of its decimal image id, read as an integer, is divisible
    by ``modulus``; nothing but the id counts. If several data sets were combined, it is the id that the picture has in
    its own one, so that pictures with the same id are on the same side.
    """
    ids = getattr(dataset, "source_ids", dataset.image_ids)
    return [index for index, image_id in enumerate(ids) if is_held_out(image_id, modulus) == validation]
