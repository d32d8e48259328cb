"""Copy-paste augmentation: objects of another picture are pasted over a picture and hide what is below them.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation" (CVPR 2021): a random
subset of the objects of a second picture is pasted without blending; both pictures are augmented independently. The
second picture comes from the same batch, as in torchvision's references, so that no additional picture is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dynamask.data.transforms import is_visible, keep_visible, kept_objects, pixels_of, shrink_to_masks
from dynamask.structures import DynaMaskError

MIN_VISIBLE = 0.1
"""Objects are dropped if a smaller fraction than this remains visible."""
KEPT_OBJECTS = 0.5
"""Probability with which each object of the second picture is taken."""
Sample = tuple[Tensor, dict[str, Any]]


class CopyPaste(Dataset):
    """A data set with copy-paste between its pictures.

    The training loader calls :meth:`among` for a whole batch; indexing is for batches of one picture. All draws come
    from torch's global generator, which the loader seeds per sample, so that runs are reproducible and resumable. The
    attributes are those of the wrapped data set.
    """

    def __init__(self, dataset: Any, probability: float, indices: Sequence[int] | None = None) -> None:
        """Wrap a data set.

        Args:
            dataset: returns (image, target) like :class:`dynamask.data.instances.InstanceDataset`, augmented or not.
            probability: probability per picture that anything is pasted.
            indices: pictures whose objects may be pasted when indexing, to exclude those held out; None for all.

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

    def __getitem__(self, index: int) -> Sample:
        """Picture and target at ``index``, possibly with objects of another picture, which is read as well."""
        sample = self.dataset[index]
        if torch.rand(()) >= self.probability:
            return sample
        other = self.indices[int(torch.randint(len(self.indices), ()))]
        return _pasted(sample, self.dataset[other])

    def among(
        self, samples: Sequence[Sample], draws: Sequence[contextlib.AbstractContextManager[Any]] | None = None
    ) -> list[Sample]:
        """The pictures of a batch, each possibly with objects of its partner (:func:`partners`).

        Args:
            samples: of the wrapped data set, without pasting; they are not changed.
            draws: context managers in which the draws of each picture are made; None continues the global stream.
        """
        pasted: list[Sample] = []
        for sample, other, drawing in zip(samples, partners(len(samples)), draws or repeat(contextlib.nullcontext())):
            with drawing:
                pasted.append(_pasted(sample, samples[other]) if torch.rand(()) < self.probability else sample)
        return pasted


def partners(count: int) -> list[int]:
    """Index of the picture whose objects each picture of a batch gets.

    The pictures are taken in pairs; the last three of an odd number form a ring, and a single picture is its own
    partner. The order of a batch is random already. If several processes share a batch and each has an even number of
    its pictures, the partners are those of a single process.
    """
    if count == 1:
        return [0]
    others = [place ^ 1 for place in range(count)]
    if count % 2:
        others[-3:] = count - 2, count - 1, count - 3
    return others


def _pasted(sample: Sample, source: Sample) -> Sample:
    """A picture with about half of the objects of another one, crowds excluded, at a random place."""
    objects = source[1]
    chosen = (torch.rand(len(objects["masks"])) < KEPT_OBJECTS) & (objects["iscrowd"] == 0)
    places = torch.rand(2).tolist()
    return paste(*sample, source[0], kept_objects(objects, chosen), places)


def paste(
    image: Tensor,
    target: dict[str, Any],
    source: Tensor,
    objects: dict[str, Any],
    place: Sequence[float] = (0.0, 0.0),
    min_visible: float = MIN_VISIBLE,
) -> Sample:
    """Paste objects of one picture over another; the arguments are not changed.

    Args:
        image: (3, H, W).
        target: of the image. Its masks lose the covered pixels and its boxes shrink with them; objects with a smaller
            visible fraction than `min_visible`, or without a visible pixel, are dropped.
        source: (3, H', W'), the picture of the objects.
        objects: their targets in the source, with masks (M, H', W'). Those that lie outside the image are left out.
        place: offset of the source in the image, (down, across), each a fraction in 0–1 of the difference of the sides;
            a source that is larger than the image is cropped.
        min_visible: fraction of an object's pixels, 0–1.

    Returns:
        The image with the objects, and the target: its own remaining objects first, then the pasted ones.
    """
    height, width = image.shape[-2:]
    down, here, there_y = _along(height, source.shape[-2], place[0])
    across, at, there_x = _along(width, source.shape[-1], place[1])
    window = (slice(there_y, there_y + down), slice(there_x, there_x + across))
    boxes = objects["boxes"] - torch.tensor([there_x, there_y] * 2)
    moved = {**objects, "boxes": boxes, "masks": objects["masks"][:, *window]}
    moved = keep_visible(moved, pixels_of(objects["masks"]), 0.0)
    if not len(moved["masks"]):
        return image, target
    moved["boxes"] = moved["boxes"] + torch.tensor([at, here] * 2)
    cover = np.bitwise_or.reduce(moved["masks"].numpy(), axis=0)  # (down, across)
    (top, bottom), (left, right) = (_span(cover.any(axis=axis)) for axis in (1, 0))
    cover = torch.from_numpy(cover[top:bottom, left:right])  # the rest of the image is not touched
    inside = (slice(here + top, here + bottom), slice(at + left, at + right))
    seen = image.clone()
    seen[:, *inside] = torch.where(cover.bool(), source[:, *window][:, top:bottom, left:right], seen[:, *inside])
    own = _uncovered(target, cover, inside, min_visible, room=len(moved["masks"]))
    own["masks"][-len(moved["masks"]) :, here : here + down, at : at + across] = moved["masks"]
    both = {key: torch.cat([own[key], moved[key]]) for key in ("boxes", "labels", "area", "iscrowd")}
    return seen, {**own, **both}


def _uncovered(
    target: dict[str, Any], cover: Tensor, inside: tuple[slice, slice], min_visible: float, room: int
) -> dict[str, Any]:
    """The visible rest of a picture's own objects below a cover (h, w) at the window ``inside``.

    The masks are copies, followed by ``room`` empty masks.
    """
    masks = target["masks"]
    before = pixels_of(masks)
    after = before - pixels_of(masks[:, *inside] & cover)
    keep = is_visible(before, after, min_visible)
    left, count = kept_objects({key: target[key] for key in target if key != "masks"}, keep), int(keep.sum())
    bigger = masks.new_zeros((count + room, *masks.shape[1:]))
    for new, index in enumerate(torch.nonzero(keep).flatten().tolist()):
        bigger[new] = masks[index]
    bigger[:count, *inside] &= 1 - cover
    before, after = before[keep], after[keep]
    boxes = shrink_to_masks(left["boxes"], bigger[:count], whole=after == before)
    return {**left, "boxes": boxes, "masks": bigger, "area": left["area"] * (after / before)}


def _span(there: np.ndarray) -> tuple[int, int]:
    """First and one past the last index of the true values in a line, which has at least one."""
    places = np.flatnonzero(there)
    return int(places[0]), int(places[-1]) + 1


def _along(side: int, other: int, place: float) -> tuple[int, int, int]:
    """Along one side: number of shared pixels, and where they begin in the image and in the source."""
    shared = min(side, other)
    return shared, int(place * (side - shared + 1)) if place < 1 else side - shared, int(place * (other - shared))
