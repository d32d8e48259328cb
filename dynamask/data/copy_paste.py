"""Copy-paste: objects of another picture are laid over a picture, and hide what lies below them.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation" (CVPR 2021): a random
subset of the objects of a second picture, both pictures jittered on their own, no blending at the seams. In a batch the
second picture is another one of the batch, as in torchvision's references, so that nothing more is read.
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
"""Objects of which a smaller share than this stays uncovered are dropped."""
KEPT_OBJECTS = 0.5
"""Probability with which each object of the second picture is taken."""
Sample = tuple[Tensor, dict[str, Any]]


class CopyPaste(Dataset):
    """A data set whose pictures get objects of its other pictures pasted over them.

    The training loader asks for whole batches (:meth:`among`); indexing serves a picture that is alone in its batch.
    Every draw comes from torch's global generator, which the loader seeds per sample, so that runs stay reproducible
    and resumable. The attributes of the data set underneath are those of this one.
    """

    def __init__(self, dataset: Any, probability: float, indices: Sequence[int] | None = None) -> None:
        """Wrap a data set.

        Args:
            dataset: serves (image, target) as :class:`dynamask.data.instances.InstanceDataset` does, augmented or not.
            probability: of pasting at all, per picture.
            indices: pictures that may be read for their objects, so that none comes from those kept back; None takes
                all. A batch brings its own.

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
        """Picture and target at `index`, perhaps with objects of another picture, which is read for them."""
        sample = self.dataset[index]
        if torch.rand(()) >= self.probability:
            return sample
        other = self.indices[int(torch.randint(len(self.indices), ()))]
        return _pasted(sample, self.dataset[other])

    def among(
        self, samples: Sequence[Sample], draws: Sequence[contextlib.AbstractContextManager[Any]] | None = None
    ) -> list[Sample]:
        """The pictures of a batch, each perhaps with objects of its partner (:func:`partners`); no picture is read.

        Args:
            samples: of the data set underneath, as they are without pasting; they stay as they are.
            draws: for each picture, what is entered while its draws are made; None draws on.
        """
        pasted: list[Sample] = []
        for sample, other, drawing in zip(samples, partners(len(samples)), draws or repeat(contextlib.nullcontext())):
            with drawing:
                pasted.append(_pasted(sample, samples[other]) if torch.rand(()) < self.probability else sample)
        return pasted


def partners(count: int) -> list[int]:
    """Whose objects each of a batch's pictures gets: the other of its pair; of an odd number the last three in a ring.

    The order of a batch is random already. So a partner is, too, and it is the same however many processes share the
    batch, where each has an even number of its pictures. A picture that is alone is its own partner.
    """
    if count == 1:
        return [0]
    others = [place ^ 1 for place in range(count)]
    if count % 2:
        others[-3:] = count - 2, count - 1, count - 3
    return others


def _pasted(sample: Sample, source: Sample) -> Sample:
    """A picture with about half of the objects of another one, crowds left out, at a random place."""
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
    window = (slice(there_y, there_y + down), slice(there_x, there_x + across))
    boxes = objects["boxes"] - torch.tensor([there_x, there_y] * 2)
    moved = {**objects, "boxes": boxes, "masks": objects["masks"][:, *window]}
    moved = keep_visible(moved, pixels_of(objects["masks"]), 0.0)
    if not len(moved["masks"]):
        return image, target
    moved["boxes"] = moved["boxes"] + torch.tensor([at, here] * 2)
    cover = np.bitwise_or.reduce(moved["masks"].numpy(), axis=0)  # (down, across)
    (top, bottom), (left, right) = (_span(cover.any(axis=axis)) for axis in (1, 0))
    cover = torch.from_numpy(cover[top:bottom, left:right])  # nothing beyond it is touched
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
    """What is left of a picture's own objects under a cover (h, w) that lies at ``inside``.

    The masks are new ones, with ``room`` empty ones behind them.
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
    """From the first to one past the last of a line's true values; there is one."""
    places = np.flatnonzero(there)
    return int(places[0]), int(places[-1]) + 1


def _along(side: int, other: int, place: float) -> tuple[int, int, int]:
    """Along one side: pixels that both frames share, where they begin in the image, and where in the source."""
    shared = min(side, other)
    return shared, int(place * (side - shared + 1)) if place < 1 else side - shared, int(place * (other - shared))
