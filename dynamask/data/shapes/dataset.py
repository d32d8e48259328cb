"""Data set of procedural scenes, and their export as pictures with COCO annotations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dynamask.data.instances import InstanceDataset, Target, Transforms
from dynamask.data.shapes.outlines import CLASSES
from dynamask.data.shapes.scene import SCENE_SIZE, SIDES, Scene, make_scene
from dynamask.files import system_reason, write_text
from dynamask.ops.rle import encode_rle
from dynamask.structures import DynaMaskError

CLASS_NAMES: tuple[str, ...] = ("__background__", *CLASSES)
"""Names by label; index 0 is the background."""
CATEGORIES = tuple({"id": label, "name": name} for label, name in enumerate(CLASS_NAMES) if label)
"""COCO's entries of the ten classes."""


class ShapesDataset(InstanceDataset):
    """Scenes ``first`` … ``first + count − 1`` of a world, with the items and attributes of :class:`InstanceDataset`.

    A scene is made when it is asked for. The image id is the index of the scene + 1, and `coco` makes every scene.
    """

    def __init__(
        self,
        count: int,
        seed: int = 0,
        size: tuple[int, int] = SCENE_SIZE,
        first: int = 0,
        transforms: Transforms | None = None,
        sides: tuple[float, float] = SIDES,
    ) -> None:
        """Choose the scenes; none is made yet.

        Args:
            count: number of scenes, at least 1.
            seed: of the world, ≥ 0.
            size: (height, width) in pixels.
            first: index of the first scene, ≥ 0.
            transforms: called as transforms(image, target) on every item.
            sides: smallest and largest side of an object relative to the scene's.

        Raises:
            DynaMaskError: a count below 1.
        """
        if count < 1:
            raise DynaMaskError(f"{count} scenes make no data set; give at least 1")
        super().__init__(CATEGORIES, transforms)
        self.count, self.seed, self.first = count, seed, first
        self.scene_size, self.sides = tuple(size), sides
        self.image_ids = list(range(first + 1, first + count + 1))

    def scene(self, index: int) -> Scene:
        """Scene at a dataset index; IndexError beyond the end."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        return make_scene(self.seed, self.first + index, self.scene_size, sides=self.sides)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of every scene in pixels."""
        return self.scene_size

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Picture (3, H, W) uint8 and target at ``index``."""
        scene = self.scene(index)
        image = torch.from_numpy(np.ascontiguousarray(scene.image.transpose(2, 0, 1)))
        target = self._target(scene, index)
        return self.transforms(image, target) if self.transforms is not None else (image, target)

    def target(self, index: int) -> Target:
        """Target at ``index`` before any transform."""
        return self._target(self.scene(index), index)

    def _target(self, scene: Scene, index: int) -> Target:
        return {
            "boxes": torch.from_numpy(scene.boxes),
            "labels": torch.from_numpy(scene.labels),
            "masks": torch.from_numpy(scene.masks.view(np.uint8)),
            "image_id": self.image_ids[index],
            "area": torch.from_numpy(scene.masks.sum(axis=(1, 2)).astype(np.float32)),
            "iscrowd": torch.zeros(len(scene), dtype=torch.int64),
        }

    @cached_property
    def coco(self) -> dict[str, Any]:
        """The COCO dict of all scenes; every annotation has ``complexity`` in 0–1. Makes every scene on first use."""
        records = coco_records(self.count, self.scene_size, self.first)
        for index, image in enumerate(records["images"]):
            records["annotations"].extend(_annotations(self.scene(index), image["id"], len(records["annotations"])))
        return records


def coco_records(count: int, size: tuple[int, int], first: int = 0) -> dict[str, Any]:
    """The COCO dict of ``count`` scenes without their annotations."""
    return {
        "info": {"description": "Procedural scenes of DynaMask's shapes world"},
        "images": [
            {"id": i + 1, "file_name": f"{i:06d}.png", "width": size[1], "height": size[0]}
            for i in range(first, first + count)
        ],
        "annotations": [],
        "categories": list(CATEGORIES),
    }


def _annotations(scene: Scene, image_id: int, taken: int) -> list[dict[str, Any]]:
    """COCO annotations of a scene, their ids from ``taken`` + 1."""
    found = []
    for number, (mask, box) in enumerate(zip(scene.masks, scene.boxes.tolist(), strict=True), start=1):
        found.append(
            {
                "id": taken + number,
                "image_id": image_id,
                "category_id": int(scene.labels[number - 1]),
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": float(np.count_nonzero(mask)),
                "iscrowd": 0,
                "segmentation": encode_rle(mask),
                "complexity": float(scene.complexity[number - 1]),
            }
        )
    return found


def export(
    out: Path,
    count: int,
    seed: int,
    size: tuple[int, int] = SCENE_SIZE,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Write scenes as ``out/images/*.png`` and ``out/annotations.json``; the annotations are written last, atomically.

    The pictures are in ``out/images.partial`` until all are written, and one that a killed export has left is removed.

    Args:
        out: a folder that is new or empty.
        count: number of scenes.
        seed: of the world.
        size: (height, width) in pixels.
        progress: wraps the iteration over the scenes.

    Returns:
        The COCO dict.

    Raises:
        DynaMaskError: `out` is a file or is not empty, or the scenes cannot be written. An export that fails leaves
            nothing behind.
    """
    partial = out / "images.partial"
    shutil.rmtree(partial, ignore_errors=True)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DynaMaskError(f"{out} is a file or holds something already; give a new or empty folder")
    dataset = ShapesDataset(count, seed, size)
    dataset.scene(0)  # refuses bad numbers before anything is written
    records, new = coco_records(count, size), not out.exists()
    try:
        partial.mkdir(parents=True)
        for index in progress(range(count)):
            scene, image = dataset.scene(index), records["images"][index]
            Image.fromarray(scene.image).save(partial / image["file_name"])
            records["annotations"].extend(_annotations(scene, image["id"], len(records["annotations"])))
        partial.rename(out / "images")
        write_text(out / "annotations.json", json.dumps(records) + "\n")
    except BaseException as error:
        for folder in (out,) if new else (partial, out / "images"):
            shutil.rmtree(folder, ignore_errors=True)
        reason = system_reason(error)
        if reason is None or isinstance(error, DynaMaskError):
            raise
        raise DynaMaskError(
            f"scenes cannot be written to {out} ({reason}); make room or choose another folder"
        ) from error
    return records
