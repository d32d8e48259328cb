"""Copy-paste: objects of another picture are laid over a picture, and hide what lies below them.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation" (CVPR 2021): a random
subset of the objects of a second picture, both pictures jittered on their own, no blending at the seams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dynamask.data.transforms import keep_visible, pixels_of
from dynamask.structures import DynaMaskError

MIN_VISIBLE = 0.1
"""Objects of which a smaller share than this stays uncovered are dropped."""
KEPT_OBJECTS = 0.5
"""Probability with which each object of the second picture is taken."""


class CopyPaste(Dataset):
    """A data set whose pictures get objects of its other pictures pasted over them.

    Every draw comes from torch's global generator, which the training loader seeds per sample, so that runs stay
    reproducible and resumable. The attributes of the data set underneath are those of this one.
    """

    def __init__(self, dataset: Any, probability: float, indices: Sequence[int] | None = None) -> None:
        """Wrap a data set.

        Args:
            dataset: serves (image, target) as :class:`dynamask.data.instances.InstanceDataset` does, augmented or not.
            probability: of pasting at all, per picture.
            indices: pictures that objects are taken from, so that none comes from those kept back; None takes all.

        Raises:
            DynaMaskError: a probability outside 0-1, or no picture to take objects from.
        """
        if not 0 <= probability <= 1:
            raise DynaMaskError(f"the probability of copy-paste is {probability}; give one from 0 to 1")
        self.dataset, self.probability = dataset, probability
        self.indices = list(range(len(dataset)) if indices is None else indices)
        if not self.indices:
            raise DynaMaskError("there is no picture to copy objects from: give annotations that list some")
        self.image_ids = dataset.image_ids
        self.class_names, self.category_ids = dataset.class_names, dataset.category_ids

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Picture and target at `index`, perhaps with objects of another picture."""
        image, target = self.dataset[index]
        if torch.rand(()) >= self.probability:
            return image, target
        other = self.indices[int(torch.randint(len(self.indices), ()))]
        source, objects = self.dataset[other]
        chosen = (torch.rand(len(objects["masks"])) < KEPT_OBJECTS) & (objects["iscrowd"] == 0)
        places = torch.rand(2).tolist()
        return paste(image, target, source, _selected(objects, chosen), places)


def paste(
    image: Tensor,
    target: dict[str, Any],
    source: Tensor,
    objects: dict[str, Any],
    place: Sequence[float] = (0.0, 0.0),
    min_visible: float = MIN_VISIBLE,
) -> tuple[Tensor, dict[str, Any]]:
    """Lay objects of one picture over another; what was given stays as it is.

    Args:
        image: (3, H, W).
        target: of the image; its masks lose what is covered, its boxes shrink with them, and objects of which less than
            `min_visible` stays are dropped, together with those that are hidden altogether.
        source: (3, H', W'), the picture that the objects come from.
        objects: targets in the source, their masks (M, H', W'). Those that lie outside the image are left out.
        place: where the source's frame lies over the image's, (down, across), each 0-1 of the room there is; a source
            that is larger than the image is cut.
        min_visible: share of an object's pixels, 0-1.

    Returns:
        The image with the objects, and the target: first what is left of its own, then the pasted ones.
    """
    height, width = image.shape[-2:]
    down, here, there_y = _along(height, source.shape[-2], place[0])
    across, at, there_x = _along(width, source.shape[-1], place[1])
    moved = {**objects, "boxes": objects["boxes"] - torch.tensor([there_x, there_y, there_x, there_y])}
    moved["boxes"] = moved["boxes"] + torch.tensor([at, here, at, here])
    masks = target["masks"].new_zeros(len(objects["masks"]), height, width)
    inside = (slice(here, here + down), slice(at, at + across))
    masks[:, *inside] = objects["masks"][:, there_y : there_y + down, there_x : there_x + across]
    moved = keep_visible({**moved, "masks": masks}, pixels_of(objects["masks"]), 0.0)
    if not len(moved["masks"]):
        return image, target
    cover = moved["masks"].amax(0)  # (H, W)
    seen = image.clone()
    window = source[:, there_y : there_y + down, there_x : there_x + across]
    seen[:, *inside] = torch.where(cover[inside].bool(), window, seen[:, *inside])
    uncovered = {**target, "masks": target["masks"] & (1 - cover)}
    left = keep_visible(uncovered, pixels_of(target["masks"]), min_visible)
    both = {key: torch.cat([left[key], moved[key]]) for key in ("boxes", "labels", "masks", "area", "iscrowd")}
    return seen, {**target, **both}


def _along(side: int, other: int, place: float) -> tuple[int, int, int]:
    """Along one side: pixels that both frames share, where they begin in the image, and where in the source."""
    shared = min(side, other)
    return shared, int(place * (side - shared + 1)) if place < 1 else side - shared, int(place * (other - shared))


def _selected(target: dict[str, Any], chosen: Tensor) -> dict[str, Any]:
    """The chosen objects of a target; chosen is (N,) bool."""
    return {**target, **{key: target[key][chosen] for key in ("boxes", "labels", "masks", "area", "iscrowd")}}
