"""Batches for training (endless, seeded, resumable) and for evaluation (once through, in order).

Any data set will do that has a length and gives (image, target) for an index: an image (3, H, W), uint8 or float in
[0, 1], and a dict of tensors and an "image_id". If it has ``image_ids``, a resumed run checks that they are the same.
"""

from __future__ import annotations

import hashlib
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dynamask.data.copy_paste import CopyPaste, Sample
from dynamask.structures import DynaMaskError

Batch = tuple[list[Tensor], list[dict[str, Any]]]


def collate(samples: Sequence[Sample | DynaMaskError]) -> Batch | DynaMaskError:
    """Turn samples into (images, targets) lists; pictures keep their own sizes. The first error wins over the batch."""
    for sample in samples:
        if isinstance(sample, DynaMaskError):
            return sample
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def _raise_or_return(batch: Batch | DynaMaskError) -> Batch:
    """Raise an error that a worker handed over as a value, so that its message stays one sentence."""
    if isinstance(batch, DynaMaskError):
        raise batch
    return batch


@contextmanager
def _seeded(state: np.ndarray) -> Iterator[None]:
    """Seed every generator that a data set may draw from, torch's, NumPy's and Python's, and put all back after."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.random.default_generator.manual_seed(int(state[0]))
            random.seed(int(state[1]))  # of one seed Python and NumPy would draw the same numbers
            np.random.seed(state[2:].view(np.uint32))
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _start_worker(worker: int) -> None:
    """Leave Ctrl-C, which reaches the whole process group, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _running(loader: DataLoader) -> Iterator[Batch]:
    """Batches of a loader; what went wrong in a worker, its death included, comes as a DynaMaskError.

    torch's loader makes the death of a worker an exception wherever the main process happens to be, also in the middle
    of an optimiser's step. Its handler is taken out again: the next fetch notices the death as well.
    """
    main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    handler = signal.getsignal(signal.SIGCHLD) if main else None
    batches = iter(loader)
    if main and handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise DynaMaskError(
                "a process that reads the pictures ended unexpectedly (killed, or no memory left); use fewer workers"
            ) from error
        yield _raise_or_return(batch)


class _SeededSamples(Dataset):
    """Batches by (epoch, index) keys, the random draws of each sample fixed by (seed, epoch, index) alone.

    Under copy-paste the pictures of a batch give each other objects; one that is alone reads a further picture.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample | DynaMaskError]:
        """The samples of a batch in order, or errors; torch's loader asks for whole batches where it can."""
        shared = isinstance(self.dataset, CopyPaste) and len(keys) > 1
        samples = [self._read(self.dataset.dataset if shared else self.dataset, key) for key in keys]
        if not shared or any(isinstance(sample, DynaMaskError) for sample in samples):
            return samples
        return self.dataset.among(samples, [self._drawing(key, stage=1) for key in keys])

    def _read(self, dataset: Dataset, key: tuple[int, int]) -> Sample | DynaMaskError:
        with self._drawing(key):
            try:
                return dataset[key[1]]
            except DynaMaskError as error:
                return error

    def _drawing(self, key: tuple[int, int], *, stage: int = 0) -> AbstractContextManager[None]:
        """What draws are made in; those of another stage are others."""
        words = (self.seed, *key, *([stage] if stage else []))
        return _seeded(np.random.SeedSequence(words).generate_state(3, np.uint64))


class _PlainSamples(Dataset):
    """Samples by index, with errors handed over as values."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Sample | DynaMaskError:
        try:
            return self.dataset[index]
        except DynaMaskError as error:
            return error


class _EndlessBatches:
    """Batches of (epoch, index) keys from a sample position on; each epoch is one permutation of the indices.

    Of every batch, the part (number, of how many) is given.
    """

    def __init__(
        self, indices: Sequence[int], batch_size: int, seed: int, position: int, part: tuple[int, int] = (0, 1)
    ) -> None:
        self.indices, self.batch_size, self.seed, self.position = indices, batch_size, seed, position
        share = batch_size // part[1]
        self.mine = slice(part[0] * share, (part[0] + 1) * share)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, place = divmod(self.position, len(self.indices))
        batch: list[tuple[int, int]] = []
        while True:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            order = torch.randperm(len(self.indices), generator=generator).tolist()
            for at in order[place:]:
                batch.append((epoch, self.indices[at]))
                if len(batch) == self.batch_size:
                    yield batch[self.mine]
                    batch = []
            epoch, place = epoch + 1, 0


class TrainingLoader:
    """Endless iterator of (images, targets) batches that can be stopped and resumed at any batch.

    The n-th sample of a run depends on the seed and n alone, whatever the batch size and the number of workers; under
    copy-paste, whose objects come from the same batch, for batches of an even number of pictures. A batch may join the
    end of one epoch and the start of the next. Iterating again goes on where it stopped.
    Processes that share a run have loaders that differ in ``part`` alone: each hands out its run of every batch, and
    side by side these are the batch of one process.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        num_workers: int,
        indices: Sequence[int] | None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """See `training_loader`."""
        if indices is None and not hasattr(dataset, "__len__"):
            raise DynaMaskError("training needs a data set with a length, from which pictures can be drawn by index")
        self.indices = list(range(len(dataset)) if indices is None else indices)  # type: ignore[arg-type]
        if not self.indices:
            raise DynaMaskError("there is no picture to train on: give annotations that list some")
        if batch_size < 1 or num_workers < 0 or seed < 0:
            raise DynaMaskError("training needs a batch size of at least 1, and no negative worker count or seed")
        if batch_size % part[1]:
            raise DynaMaskError(
                f"a batch of {batch_size} pictures cannot be shared by {part[1]} processes; give a batch size that is "
                f"a multiple of {part[1]}"
            )
        self.part = part
        self.dataset, self.batch_size, self.seed, self.num_workers = dataset, batch_size, seed, num_workers
        self.position = 0
        self._batches: Iterator[Batch] | None = None

    @property
    def epoch(self) -> float:
        """Passes over the pictures so far, counted in batches handed out."""
        return self.position / len(self.indices)

    def __iter__(self) -> TrainingLoader:
        """The loader itself."""
        return self

    def __next__(self) -> Batch:
        """Next batch: lists of images and of targets; after an error the same batch is tried again."""
        if self._batches is None:
            self._batches = _running(
                DataLoader(
                    _SeededSamples(self.dataset, self.seed),
                    batch_sampler=_EndlessBatches(self.indices, self.batch_size, self.seed, self.position, self.part),
                    collate_fn=collate,
                    num_workers=self.num_workers,
                    worker_init_fn=_start_worker,
                    generator=torch.Generator(),  # the loader's own base seed must not draw from the global one
                )
            )
        try:
            batch = next(self._batches)
        except Exception:
            self._batches = None
            raise
        self.position += self.batch_size
        return batch

    def give_back(self) -> None:
        """Hand the last batch out again next time: it was not used."""
        self.position, self._batches = self.position - self.batch_size, None

    def _picture_ids(self) -> str:
        """Hash of the pictures in their order: of their ids, or of their indices where they have none."""
        ids = getattr(self.dataset, "image_ids", None)
        listed = self.indices if ids is None else [ids[index] for index in self.indices]
        return hashlib.sha256(",".join(str(value) for value in listed).encode()).hexdigest()

    def state_dict(self) -> dict[str, int | str]:
        """Position in samples handed out (not those prefetched), with what it is only valid for."""
        pictures = {"pictures": len(self.indices), "picture_ids": self._picture_ids()}
        return {"position": self.position, "seed": self.seed, **pictures}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on from `state`; DynaMaskError if it belongs to another seed or to other pictures."""
        for key, mine in (("seed", self.seed), ("pictures", len(self.indices))):
            if state[key] != mine:
                raise DynaMaskError(
                    f"the run to resume was made with {key} {state[key]}, not {mine}: use the same data and seed"
                )
        if state.get("picture_ids", self._picture_ids()) != self._picture_ids():
            raise DynaMaskError("the run to resume was made with pictures of other image ids: use the same data")
        self.position, self._batches = int(state["position"]), None


class EvaluationLoader:
    """Batches of (images, targets), once through the indices in order; the last one may be smaller."""

    def __init__(self, dataset: Dataset, batch_size: int, num_workers: int, indices: Sequence[int] | None) -> None:
        """See `evaluation_loader`."""
        self.indices = list(range(len(dataset)) if indices is None else indices)  # type: ignore[arg-type]
        self._loader = DataLoader(
            _PlainSamples(dataset),
            sampler=self.indices,
            batch_size=batch_size,
            collate_fn=collate,
            num_workers=num_workers,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order; DynaMaskError if a picture cannot be read."""
        return _running(self._loader)


def training_loader(
    dataset: Dataset,
    batch_size: int,
    seed: int = 0,
    num_workers: int = 0,
    indices: Sequence[int] | None = None,
    part: tuple[int, int] = (0, 1),
) -> TrainingLoader:
    """Endless, seeded, resumable batches over `indices` (dataset indices; None = all), a new permutation per epoch.

    Args:
        batch_size: of all processes together.
        part: (number, of how many): which process this is, of those that share every batch.

    Raises:
        DynaMaskError: no picture to train on, a batch size, worker count or seed that is out of range, or a batch that
            the processes cannot share evenly.
    """
    return TrainingLoader(dataset, batch_size, seed, num_workers, indices, part)


def evaluation_loader(
    dataset: Dataset, batch_size: int = 1, num_workers: int = 0, indices: Sequence[int] | None = None
) -> EvaluationLoader:
    """Batches over `indices` (dataset indices; None = all) in order, without shuffling and without random draws."""
    return EvaluationLoader(dataset, batch_size, num_workers, indices)
