"""Batches: endless, seeded, resumable whatever the number of workers; transforms that move everything together."""

import os
import random
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from dynamask.data import TrainingLoader, TrainingTransforms
from dynamask.structures import DynaMaskError


def sample(index: int, size: tuple[int, int] = (20, 30), objects: int = 2) -> tuple[Tensor, dict]:
    """A picture that is 0 but for rectangles of value 40 × (index of the object + 1), with their exact targets."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    masks = torch.zeros(objects, *size, dtype=torch.uint8)
    boxes = torch.zeros(objects, 4)
    for at in range(objects):
        x0, y0 = 3 + 12 * at, 4 + at
        masks[at, y0 : y0 + 9, x0 : x0 + 10] = 1
        boxes[at] = torch.tensor([x0, y0, x0 + 10, y0 + 9])
        image[:, masks[at].bool()] = 40 * (at + 1)
    target = {
        "boxes": boxes,
        "labels": torch.arange(1, objects + 1),
        "masks": masks,
        "image_id": index,
        "area": masks.flatten(1).sum(1).float(),
        "iscrowd": torch.zeros(objects, dtype=torch.int64),
    }
    return image, target


class Pictures(torch.utils.data.Dataset):
    """Seven pictures, every third one empty, number `broken` unreadable."""

    def __init__(self, transforms=None, broken: int | None = None) -> None:
        self.transforms, self.broken = transforms, broken

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        if index == self.broken:
            raise DynaMaskError(f"picture {index} is truncated")
        image, target = sample(index, objects=0 if index % 3 == 0 else 2)
        return self.transforms(image, target) if self.transforms else (image, target)


def ids(batches) -> list[int]:
    return [target["image_id"] for _, targets in batches for target in targets]


def take(loader, count: int) -> list:
    return [next(loader) for _ in range(count)]


def same(first: list, second: list) -> bool:
    return ids(first) == ids(second) and all(
        torch.equal(a, b) and torch.equal(s["masks"], t["masks"]) and torch.equal(s["boxes"], t["boxes"])
        for (images, targets), (others, other_targets) in zip(first, second)
        for a, b, s, t in zip(images, others, targets, other_targets)
    )


EVERYTHING = TrainingTransforms(zoom_out=0.5, crop=0.5)


def test_every_epoch_is_another_permutation_and_batches_run_across_epochs():
    order = ids(take(TrainingLoader(Pictures(), 2, seed=5), 14))
    epochs = [order[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert order != ids(take(TrainingLoader(Pictures(), 2, seed=6), 14))


def test_empty_pictures_stay_and_indices_restrict():
    loader = TrainingLoader(Pictures(), 2, seed=0, indices=[0, 4, 5])
    batches = take(loader, 3)
    assert Counter(ids(batches)) == {0: 2, 4: 2, 5: 2}
    empty = [target for _, targets in batches for target in targets if target["image_id"] == 0]
    assert all(target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 20, 30) for target in empty)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_is_the_same_resumed_and_whatever_the_workers(workers):
    whole = take(TrainingLoader(Pictures(EVERYTHING), 3, seed=1, num_workers=0), 8)
    loader = TrainingLoader(Pictures(EVERYTHING), 3, seed=1, num_workers=workers)
    assert same(take(loader, 3), whole[:3])
    state = loader.state_dict()
    assert state["position"] == 9, "only what was handed out counts, not what the workers fetched ahead"
    resumed = TrainingLoader(Pictures(EVERYTHING), 3, seed=1, num_workers=workers)
    resumed.load_state_dict(state)
    assert same(take(resumed, 5), whole[3:])
    loader.load_state_dict(state)
    assert same(take(loader, 2), whole[3:5])


def test_the_same_picture_is_drawn_differently_in_each_epoch_and_seed():
    first, second = (take(TrainingLoader(Pictures(EVERYTHING), 7, seed=1, indices=[1] * 7), 1)[0][0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    one = take(TrainingLoader(Pictures(EVERYTHING), 1, seed=1, indices=[1]), 6)
    assert len({tuple(images[0].shape) + (int(images[0].long().sum()),) for images, _ in one}) > 2


def test_loading_leaves_the_global_generator_alone():
    loader = TrainingLoader(Pictures(EVERYTHING), 2, seed=0)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    take(loader, 4)
    assert torch.equal(torch.rand(2), expected)


def test_state_of_another_run_is_refused():
    state = TrainingLoader(Pictures(), 2, seed=0).state_dict()
    with pytest.raises(DynaMaskError, match="seed 0, not 1"):
        TrainingLoader(Pictures(), 2, seed=1).load_state_dict(state)
    with pytest.raises(DynaMaskError, match="pictures 7, not 2"):
        TrainingLoader(Pictures(), 2, seed=0, indices=[1, 2]).load_state_dict(state)


def test_settings_out_of_range_are_refused():
    for options in ({"batch_size": 0}, {"num_workers": -1}, {"seed": -1}, {"indices": []}):
        with pytest.raises(DynaMaskError):
            TrainingLoader(Pictures(), **{"batch_size": 1, **options})


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_stays_one_sentence(workers):
    with pytest.raises(DynaMaskError) as caught:
        take(TrainingLoader(Pictures(broken=4), 2, 0, workers), 4)
    assert str(caught.value) == "picture 4 is truncated"


class Drawn(torch.utils.data.Dataset):
    """No data set of ours: float pictures drawn with NumPy, Python and torch, a tensor as id, no other attribute."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int):
        values = torch.tensor([np.random.rand(), random.random(), float(torch.rand(()))])
        return values[:, None, None].expand(3, 4, 4), {"image_id": torch.tensor([index])}


@pytest.mark.parametrize("workers", [0, 1])
def test_any_data_set_is_drawn_the_same_whatever_its_generator(workers):
    whole = [torch.stack(images) for images, _ in take(TrainingLoader(Drawn(), 2, seed=4), 4)]
    assert len({float(value) for batch in whole for value in batch[:, :, 0, 0].flatten()}) == 24
    np.random.seed(7), random.seed(7)
    before = np.random.get_state()[1].tolist(), random.getstate()
    loader = TrainingLoader(Drawn(), 2, seed=4, num_workers=workers)
    loader.load_state_dict({"position": 4, "seed": 4, "pictures": 5})
    found = [torch.stack(images) for images, _ in take(loader, 2)]
    assert all(torch.equal(a, b) for a, b in zip(found, whole[2:], strict=True))
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before


def test_a_data_set_without_a_length_is_refused():
    class Endless(torch.utils.data.Dataset):
        def __getitem__(self, index: int) -> int:
            return index

    with pytest.raises(DynaMaskError, match="with a length"):
        TrainingLoader(Endless(), 1)


def test_other_pictures_of_the_same_number_are_refused():
    state = TrainingLoader(Pictures(), 2, indices=[1, 2]).state_dict()
    with pytest.raises(DynaMaskError, match="other image ids"):
        TrainingLoader(Pictures(), 2, indices=[1, 3]).load_state_dict(state)
    named = Pictures()
    named.image_ids = list("abcdefg")
    state = TrainingLoader(named, 2).state_dict()
    TrainingLoader(named, 2).load_state_dict(state)
    named.image_ids = list("abcdefh")
    with pytest.raises(DynaMaskError, match="other image ids"):
        TrainingLoader(named, 2).load_state_dict(state)


def test_after_an_error_the_same_batch_is_tried_again():
    pictures = Pictures(broken=4)
    loader, whole = TrainingLoader(pictures, 2, seed=0), ids(take(TrainingLoader(Pictures(), 2, seed=0), 4))
    fetched = []
    with pytest.raises(DynaMaskError):
        while True:
            fetched.append(next(loader))
    pictures.broken = None
    assert ids([*fetched, *take(loader, 4 - len(fetched))]) == whole


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_worker_that_is_killed_is_one_sentence_and_the_run_can_go_on():
    class Deadly(Pictures):
        def __getitem__(self, index: int):
            if index == self.broken:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    pictures, whole = Deadly(broken=4), ids(take(TrainingLoader(Pictures(), 2, seed=0), 4))
    loader, fetched = TrainingLoader(pictures, 2, seed=0, num_workers=1), []
    with pytest.raises(DynaMaskError, match="ended unexpectedly .*use fewer workers"):
        while True:
            fetched.append(next(loader))
    pictures.broken = None
    assert ids([*fetched, *take(loader, 4 - len(fetched))]) == whole


def test_flip_moves_picture_boxes_and_masks_together():
    image, target = sample(0)
    flipped, moved = TrainingTransforms(flip=1.0, photometric=False)(image, target)
    assert torch.equal(flipped, image.flip(2)) and torch.equal(moved["masks"], target["masks"].flip(2))
    assert moved["boxes"].tolist() == [[17, 4, 27, 13], [5, 5, 15, 14]]
    assert type(flipped) is Tensor and type(moved["boxes"]) is Tensor and type(moved["masks"]) is Tensor


def test_jitter_changes_colours_alone():
    image, target = sample(0)
    torch.manual_seed(0)
    jittered, kept = TrainingTransforms(flip=0.0)(image, target)
    assert jittered.dtype == torch.uint8 and not torch.equal(jittered, image)
    assert torch.equal(kept["masks"], target["masks"]) and torch.equal(kept["boxes"], target["boxes"])


@pytest.mark.parametrize(
    "options", [{"crop": 1.0, "crop_side": 0.3}, {"zoom_out": 1.0}, {"crop": 1.0, "zoom_out": 1.0}]
)
def test_boxes_stay_around_their_masks_and_nothing_given_changes(options):
    image, target = sample(0)
    before = {key: value.clone() for key, value in target.items() if isinstance(value, Tensor)}
    transforms = TrainingTransforms(photometric=False, **options)
    counts = Counter()
    for draw in range(60):
        torch.manual_seed(draw)
        moved, found = transforms(image, target)
        counts[len(found["boxes"])] += 1
        assert found["masks"].shape == (len(found["boxes"]), *moved.shape[1:])
        assert all(len(found[key]) == len(found["boxes"]) for key in ("labels", "area", "iscrowd"))
        for box, mask, label, area in zip(found["boxes"], found["masks"], found["labels"], found["area"]):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert (moved[:, mask.bool()] == 40 * int(label)).all() and area == pytest.approx(int(mask.sum()))
            assert mask.sum() >= 0.25 * 90
    assert counts[2] > 0 and (counts[2] == 60) == ("crop" not in options)
    assert all(torch.equal(target[key], value) for key, value in before.items())


def test_every_transform_takes_a_picture_without_objects():
    image, target = sample(0, objects=0)
    moved, found = TrainingTransforms(zoom_out=1.0, crop=1.0)(image, target)
    assert found["boxes"].shape == (0, 4) and found["masks"].shape == (0, *moved.shape[1:])
    assert found["masks"].dtype == torch.uint8 and found["labels"].shape == (0,)


def test_one_pixel_picture_survives_every_transform():
    image, target = sample(0, size=(1, 1), objects=0)
    moved, found = TrainingTransforms(crop=1.0)(image, target)
    assert moved.shape == (3, 1, 1) and found["masks"].shape == (0, 1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_parts_of_several_processes_make_the_batch_of_one(workers):
    whole = ids(take(TrainingLoader(Pictures(), 4, seed=3), 5))
    parts = [TrainingLoader(Pictures(), 4, seed=3, num_workers=workers, part=(number, 2)) for number in range(2)]
    first = [ids(take(part, 2)) for part in parts]
    states = [part.state_dict() for part in parts]
    assert states[0] == states[1] and states[0]["position"] == 8
    resumed = [TrainingLoader(Pictures(), 4, seed=3, part=(number, 4)) for number in range(4)]
    for loader in resumed:  # by another number of processes
        loader.load_state_dict(states[0])
    rest = [ids(take(loader, 3)) for loader in resumed]
    joint = [i for at in range(0, 4, 2) for part in first for i in part[at : at + 2]]
    joint += [part[at] for at in range(3) for part in rest]
    assert joint == whole


def test_a_batch_that_is_given_back_comes_again():
    loader = TrainingLoader(Pictures(), 2, seed=0)
    take(loader, 1)
    second = ids(take(loader, 1))
    loader.give_back()
    assert loader.position == 2 and ids(take(loader, 1)) == second


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(DynaMaskError, match="a batch of 4 pictures cannot be shared by 3 processes"):
        TrainingLoader(Pictures(), 4, part=(0, 3))
