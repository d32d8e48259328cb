"""Training batches: endless, seeded and resumable.

Any data set with a length works that returns (image, target) for an index: an image (3, H, W), uint8 or float in
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

from dynamask.data.batch_augmentation import BatchAugmentation, Sample
from dynamask.structures import DynaMaskError

Batch = tuple[list[Tensor], list[dict[str, Any]]]


def collate(samples: Sequence[Sample | DynaMaskError]) -> Batch | DynaMaskError:
    """Turn samples into lists of images and targets; images keep their sizes. Returns the first error, if any."""
    for sample in samples:
        if isinstance(sample, DynaMaskError):
            return sample
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


@contextmanager
def _seeded(state: np.ndarray) -> Iterator[None]:
    """Seed the generators that a data set may draw from (torch, NumPy and Python), and restore them afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.random.default_generator.manual_seed(int(state[0]))
            random.seed(int(state[1]))  # with one seed, Python and NumPy draw the same numbers
            np.random.seed(state[2:].view(np.uint32))
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _start_worker(worker: int) -> None:
    """Ignore Ctrl-C in a worker: it reaches the whole process group, and the main process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _running(loader: DataLoader) -> Iterator[Batch]:
    """Batches of a loader; errors in a worker, including its death, are raised as DynaMaskError.

    Workers return a DynaMaskError as a value, because torch adds a traceback to the message of a raised one. torch's
    handler of SIGCHLD raises the death of a worker wherever the main process is, even in an optimiser step; it is
    removed, since the next fetch notices the death as well.
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
        if isinstance(batch, DynaMaskError):
            raise batch
        yield batch


class _SeededSamples(Dataset):
    """Batches by (epoch, index) keys; the random draws of a sample depend on (seed, epoch, index) alone.

    Augmentations that mix pictures take the other pictures of the batch; for a batch of one picture they read another.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.plain, self.mixing = dataset, list[BatchAugmentation]()
        while isinstance(self.plain, BatchAugmentation):
            self.mixing.insert(0, self.plain)
            self.plain = self.plain.dataset

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample | DynaMaskError]:
        """The samples of a batch in order, or errors; torch's loader asks for whole batches where it can."""
        if len(keys) == 1:
            return [self._read(self.dataset, keys[0])]
        samples = [self._read(self.plain, key) for key in keys]
        if any(isinstance(sample, DynaMaskError) for sample in samples):
            return samples
        for stage, augmentation in enumerate(self.mixing, start=1):
            samples = augmentation.among(samples, [self._drawing(key, stage=stage) for key in keys])
        return samples

    def _read(self, dataset: Dataset, key: tuple[int, int]) -> Sample | DynaMaskError:
        with self._drawing(key):
            try:
                return dataset[key[1]]
            except DynaMaskError as error:
                return error

    def _drawing(self, key: tuple[int, int], *, stage: int = 0) -> AbstractContextManager[None]:
        """Context in which the draws of a sample are made; each stage has draws of its own."""
        words = (self.seed, *key, *([stage] if stage else []))
        return _seeded(np.random.SeedSequence(words).generate_state(3, np.uint64))


class _EndlessBatches:
    """Batches of (epoch, index) keys from a sample position on; each epoch is one permutation of the indices.

    Yields the ``part`` (number, of how many) of every batch.
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
            (state,) = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state))  # no two seeds share the order of an epoch
            order = torch.randperm(len(self.indices), generator=generator).tolist()
            for at in order[place:]:
                batch.append((epoch, self.indices[at]))
                if len(batch) == self.batch_size:
                    yield batch[self.mine]
                    batch = []
            epoch, place = epoch + 1, 0


class TrainingLoader:
    """Endless iterator of (images, targets) batches that can be stopped and resumed at any batch.

    Each epoch is a new permutation of the pictures; a batch may contain the end of one epoch and the start of the next.
    The n-th sample of a run depends on the seed and n alone, not on the batch size and the number of workers. With
    copy-paste and cut-outs, which use two pictures of the same batch, this holds for batches of an even number of
    pictures. Iterating again continues where it stopped. Processes that share a run have loaders that differ in
    ``part`` only, and their parts of a batch make up the batch of a single process.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        indices: Sequence[int] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare the loader; workers start with the first batch.

        Args:
            dataset: see the module.
            batch_size: of all processes together.
            seed: ≥ 0.
            num_workers: processes that read pictures; 0 reads in this one.
            indices: dataset indices to draw from; None for all.
            part: (number, of how many): this process among those that share every batch.

        Raises:
            DynaMaskError: no picture to train on, a batch size, worker count or seed out of range, or a batch that the
                processes cannot share evenly.
        """
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
        """Passes over the pictures so far, in batches that were returned."""
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
        """Return the last batch again next time: it was not used."""
        self.position, self._batches = self.position - self.batch_size, None

    def _picture_ids(self) -> str:
        """Hash of the image ids in order, or of the indices where there are no ids."""
        ids = getattr(self.dataset, "image_ids", None)
        listed = self.indices if ids is None else [ids[index] for index in self.indices]
        return hashlib.sha256(",".join(str(value) for value in listed).encode()).hexdigest()

    def state_dict(self) -> dict[str, int | str]:
        """Number of samples returned so far (not those prefetched), with the seed and pictures it is valid for."""
        pictures = {"pictures": len(self.indices), "picture_ids": self._picture_ids()}
        return {"position": self.position, "seed": self.seed, **pictures}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue from a state; DynaMaskError if it belongs to another seed or to other pictures."""
        for key, mine in (("seed", self.seed), ("pictures", len(self.indices))):
            if state[key] != mine:
                raise DynaMaskError(
                    f"the run to resume was made with {key} {state[key]}, not {mine}: use the same data and seed"
                )
        if state.get("picture_ids", self._picture_ids()) != self._picture_ids():
            raise DynaMaskError("the run to resume was made with pictures of other image ids: use the same data")
        self.position, self._batches = int(state["position"]), None
