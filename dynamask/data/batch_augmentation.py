"""Augmentations that mix the pictures of a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import repeat
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dynamask.structures import DynaMaskError

Sample = tuple[Tensor, dict[str, Any]]


class BatchAugmentation(Dataset):
    """Base class of data sets that change a picture by means of another one of the same batch.

    The training loader calls :meth:`among` for a whole batch; indexing is for batches of one picture and reads a second
    one. All draws come from torch's global generator, which the loader seeds per sample and augmentation, so that runs
    are reproducible and resumable. One augmentation may wrap another; the inner one is applied first. The attributes
    are those of the wrapped data set.
    """

    TITLE: ClassVar[str]
    """Name in messages."""

    def __init__(self, dataset: Any, probability: float, indices: Sequence[int] | None = None) -> None:
        """Wrap a data set.

        Args:
            dataset: returns (image, target) like :class:`dynamask.data.instances.InstanceDataset`, augmented or not.
            probability: probability per picture that it is changed.
            indices: pictures that may be the second one when indexing, to exclude those held out; None for all.

        Raises:
            DynaMaskError: a probability outside 0-1, or no picture to take anything from.
        """
        if not 0 <= probability <= 1:
            raise DynaMaskError(f"the probability of {self.TITLE} is {probability}; give one from 0 to 1")
        self.dataset, self.probability = dataset, probability
        self.indices = list(range(len(dataset)) if indices is None else indices)
        if not self.indices:
            raise DynaMaskError("there is no picture to copy from: give annotations that list some")
        self.image_ids = dataset.image_ids
        self.class_names, self.category_ids = dataset.class_names, dataset.category_ids

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        """Picture and target at ``index``, possibly changed by means of another picture, which is read as well."""
        sample = self.dataset[index]
        if torch.rand(()) >= self.probability:
            return sample
        other = self.indices[int(torch.randint(len(self.indices), ()))]
        return self.changed(sample, self.dataset[other])

    def among(
        self, samples: Sequence[Sample], draws: Sequence[contextlib.AbstractContextManager[Any]] | None = None
    ) -> list[Sample]:
        """The pictures of a batch, each possibly changed by means of its partner (:func:`partners`).

        Args:
            samples: of the wrapped data set; they are not changed.
            draws: context managers in which the draws of each picture are made; None continues the global stream.
        """
        found: list[Sample] = []
        for sample, other, drawing in zip(samples, partners(len(samples)), draws or repeat(contextlib.nullcontext())):
            with drawing:
                found.append(self.changed(sample, samples[other]) if torch.rand(()) < self.probability else sample)
        return found

    def changed(self, sample: Sample, other: Sample) -> Sample:
        """The augmentation of a picture by means of another one; neither argument is changed."""
        raise NotImplementedError


def partners(count: int) -> list[int]:
    """Index of the other picture for each picture of a batch.

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
