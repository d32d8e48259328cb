"""Several data sets as one, with their classes united by name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamask.data.coco_format import FEDERATED_KEYS
from dynamask.data.instances import InstanceDataset, Target


class CombinedDataset(torch.utils.data.Dataset):
    """The pictures of several data sets one after another; items are those of :class:`InstanceDataset`.

    The classes are those of the first data set in its order, followed by the new names of the others. A class keeps the
    category id of the data set that names it first, or gets a free one if another class has that id. Image ids are
    unique: one that an earlier picture has is replaced by a free one.

    Attributes:
        parts: the data sets.
        class_names: names by label; index 0 is "__background__".
        category_ids: category id of label i at index i - 1, in no particular order.
        image_ids: unique image id by index.
        source_ids: image id by index as its data set has it, by which ``--holdout`` divides the pictures.
    """

    def __init__(self, parts: Sequence[InstanceDataset]) -> None:
        """Combine data sets, at least one; each keeps its own transforms."""
        self.parts = tuple(parts)
        first: dict[str, int] = {}
        for part in self.parts:
            for name, category_id in zip(part.class_names[1:], part.category_ids, strict=True):
                first.setdefault(name, category_id)
        self.class_names: tuple[str, ...] = (self.parts[0].class_names[0], *first)
        self.category_ids: tuple[int, ...] = tuple(_unique(list(first.values())))
        self._starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.source_ids = [image_id for part in self.parts for image_id in part.image_ids]
        self.image_ids: list[int] = _unique(self.source_ids)
        label_of = {name: label for label, name in enumerate(self.class_names)}
        self._labels = [torch.tensor([label_of[name] for name in part.class_names]) for part in self.parts]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Picture and target at ``index``; IndexError beyond the end."""
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        image, target = self.parts[part][index - int(self._starts[part])]
        return image, {**target, "labels": self._labels[part][target["labels"]], "image_id": self.image_ids[index]}

    @cached_property
    def coco(self) -> dict[str, Any]:
        """The COCO dict of all pictures, including crowds; LVIS' federated lists are dropped."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for part, start, labels in zip(self.parts, self._starts.tolist(), self._labels):
            image_id = dict(zip(part.image_ids, self.image_ids[start:]))
            category = {old: self.category_ids[label - 1] for old, label in zip(part.category_ids, labels[1:].tolist())}
            for image in part.coco["images"]:
                kept = {key: value for key, value in image.items() if key not in FEDERATED_KEYS}
                images.append({**kept, "id": image_id[image["id"]]})
            for annotation in part.coco["annotations"]:
                ids = {"image_id": image_id[annotation["image_id"]], "category_id": category[annotation["category_id"]]}
                annotations.append({**annotation, **ids, "id": len(annotations) + 1})
        categories = [{"id": c, "name": name} for c, name in zip(self.category_ids, self.class_names[1:])]
        return {"images": images, "annotations": annotations, "categories": categories}


def _unique(ids: Sequence[int]) -> list[int]:
    """The ids, each that occurred before replaced by one above the largest."""
    free, seen = count(max(ids, default=0) + 1), set()
    found = []
    for value in ids:
        found.append(next(free) if value in seen else value)
        seen.add(value)
    return found
