"""Training batches: endless, seeded, and resumable with any number of workers and processes."""

import os
import random
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.labelled_scenes import Scenes, same, samples

from dynamask.data import CopyPaste, TrainingLoader, TrainingTransforms
from dynamask.structures import DynaMaskError


def ids(loader, batches: int) -> list[int]:
    return [target["image_id"] for _, target in samples(loader, batches)]


def plain() -> Scenes:
    return Scenes(TrainingTransforms(zoom_out=0.5, crop=0.5))


def pasting() -> CopyPaste:
    return CopyPaste(Scenes(TrainingTransforms(scale_jitter=(0.5, 2.0), crop=0.3)), 0.7)


def equal(first: list, second: list) -> bool:
    return all(same(a, b) for a, b in zip(first, second, strict=True))


def test_every_epoch_is_another_permutation_and_batches_run_across_epochs():
    order = ids(TrainingLoader(Scenes(), 2, seed=5), 14)
    epochs = [order[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert order != ids(TrainingLoader(Scenes(), 2, seed=6), 14)
    others = ids(TrainingLoader(Scenes(), 2, seed=6), 14)
    assert order[7:14] != others[:7], "the second epoch of a seed is not the first of the next seed"


def test_empty_pictures_stay_and_indices_restrict():
    found = samples(TrainingLoader(Scenes(), 2, indices=[0, 4, 5]), 3)
    assert Counter(target["image_id"] for _, target in found) == {0: 2, 4: 2, 5: 2}
    empty = [target for _, target in found if target["image_id"] == 0]
    assert all(target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 60, 80) for target in empty)


@pytest.mark.parametrize(
    ("data", "batch", "workers"), [(plain, 3, 0), (plain, 3, 2), (pasting, 1, 0), (pasting, 3, 2), (pasting, 4, 0)]
)
def test_a_run_is_the_same_resumed_and_with_any_number_of_workers(data, batch, workers):
    whole = samples(TrainingLoader(data(), batch, seed=1), 8)
    loader = TrainingLoader(data(), batch, seed=1, num_workers=workers)
    assert equal(samples(loader, 3), whole[: 3 * batch])
    state = loader.state_dict()
    assert state["position"] == 3 * batch, "only what was returned counts, not what the workers fetched ahead"
    resumed = TrainingLoader(data(), batch, seed=1, num_workers=workers)
    resumed.load_state_dict(state)
    assert equal(samples(resumed, 5), whole[3 * batch :])
    loader.load_state_dict(state)
    assert equal(samples(loader, 2), whole[3 * batch : 5 * batch])
    pasted = any((target["labels"] // 20 != target["image_id"]).any() for _, target in whole)
    assert pasted == (data is pasting)


def test_the_same_picture_is_drawn_differently_in_each_epoch():
    first, second = (samples(TrainingLoader(plain(), 7, seed=1, indices=[1] * 7), 1) for _ in range(2))
    assert equal(first, second)
    one = samples(TrainingLoader(plain(), 1, seed=1, indices=[1]), 6)
    assert len({(*image.shape, int(image.long().sum())) for image, _ in one}) > 2


def test_loading_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    ids(TrainingLoader(plain(), 2), 4)
    assert torch.equal(torch.rand(2), expected)


def test_the_state_of_another_run_is_refused():
    state = TrainingLoader(Scenes(), 2).state_dict()
    with pytest.raises(DynaMaskError, match="seed 0, not 1"):
        TrainingLoader(Scenes(), 2, seed=1).load_state_dict(state)
    with pytest.raises(DynaMaskError, match="pictures 7, not 2"):
        TrainingLoader(Scenes(), 2, indices=[1, 2]).load_state_dict(state)
    others = Scenes()
    others.image_ids = list("abcdefg")
    with pytest.raises(DynaMaskError, match="other image ids"):
        TrainingLoader(others, 2).load_state_dict(state)
    state = TrainingLoader(Drawn(), 2, indices=[1, 2]).state_dict()
    with pytest.raises(DynaMaskError, match="other image ids"):
        TrainingLoader(Drawn(), 2, indices=[1, 3]).load_state_dict(state)


class Endless(torch.utils.data.Dataset):
    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "a batch size of at least 1"),
        ({"num_workers": -1}, "no negative worker count"),
        ({"seed": -1}, "no negative worker count or seed"),
        ({"indices": []}, "no picture to train on"),
        ({"dataset": Endless()}, "with a length"),
        ({"batch_size": 4, "part": (0, 3)}, "a batch of 4 pictures cannot be shared by 3 processes"),
    ],
)
def test_settings_out_of_range_are_refused(options, sentence):
    with pytest.raises(DynaMaskError, match=sentence):
        TrainingLoader(**{"dataset": Scenes(), "batch_size": 1, **options})


class Drawn(torch.utils.data.Dataset):
    """Foreign data: float pictures drawn with NumPy, Python and torch, a tensor as id, no other attribute."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int):
        values = torch.tensor([np.random.rand(), random.random(), float(torch.rand(()))])
        return values[:, None, None].expand(3, 4, 4), {"image_id": torch.tensor([index])}


@pytest.mark.parametrize("workers", [0, 1])
def test_any_data_set_is_drawn_the_same_with_any_generator(workers):
    whole = [image for image, _ in samples(TrainingLoader(Drawn(), 2, seed=4), 4)]
    assert len({float(value) for image in whole for value in image[:, 0, 0]}) == 24
    np.random.seed(7), random.seed(7)
    before = np.random.get_state()[1].tolist(), random.getstate()
    loader = TrainingLoader(Drawn(), 2, seed=4, num_workers=workers)
    loader.load_state_dict({"position": 4, "seed": 4, "pictures": 5})
    found = [image for image, _ in samples(loader, 2)]
    assert all(torch.equal(a, b) for a, b in zip(found, whole[4:], strict=True))
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before


class Deadly(Scenes):
    """A scene kills the process that reads it."""

    def failure(self, index: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("data", "workers", "sentence"),
    [
        (Scenes, 0, "^picture 4 is truncated$"),
        (Scenes, 1, "^picture 4 is truncated$"),
        pytest.param(
            Deadly,
            1,
            "ended unexpectedly .*use fewer workers",
            marks=pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL"),
        ),
    ],
)
def test_after_an_error_which_is_one_sentence_the_same_batch_is_tried_again(data, workers, sentence):
    pictures, whole = data(broken=4), ids(TrainingLoader(Scenes(), 2), 4)
    loader, fetched = TrainingLoader(pictures, 2, num_workers=workers), []
    with pytest.raises(DynaMaskError, match=sentence):
        while True:
            fetched += ids(loader, 1)
    pictures.broken = None
    assert fetched + ids(loader, 4 - len(fetched) // 2) == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_the_parts_of_several_processes_make_the_batch_of_one(workers):
    whole = ids(TrainingLoader(Scenes(), 4, seed=3), 5)
    parts = [TrainingLoader(Scenes(), 4, seed=3, num_workers=workers, part=(number, 2)) for number in range(2)]
    first = [ids(part, 2) for part in parts]
    states = [part.state_dict() for part in parts]
    assert states[0] == states[1] and states[0]["position"] == 8
    resumed = [TrainingLoader(Scenes(), 4, seed=3, part=(number, 4)) for number in range(4)]
    for loader in resumed:  # by another number of processes
        loader.load_state_dict(states[0])
    rest = [ids(loader, 3) for loader in resumed]
    joint = [i for at in range(0, 4, 2) for part in first for i in part[at : at + 2]]
    joint += [part[at] for at in range(3) for part in rest]
    assert joint == whole


def test_processes_with_pairs_of_pictures_paste_as_one():
    whole = TrainingLoader(pasting(), 8, seed=1)
    parts = [TrainingLoader(pasting(), 8, seed=1, part=(rank, 4)) for rank in range(4)]
    for _ in range(3):
        assert equal(samples(whole, 1), [pair for loader in parts for pair in samples(loader, 1)])
    smaller = samples(TrainingLoader(pasting(), 4, seed=1), 4)
    assert equal(samples(TrainingLoader(pasting(), 8, seed=1), 2), smaller)


def test_a_batch_that_is_given_back_comes_again():
    loader = TrainingLoader(Scenes(), 2)
    ids(loader, 1)
    second = ids(loader, 1)
    loader.give_back()
    assert loader.position == 2 and ids(loader, 1) == second
