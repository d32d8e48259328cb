"""Scale jitter and copy-paste: picture, boxes and masks stay consistent, and every draw is seeded and resumable."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from dynamask.config import TrainConfig
from dynamask.data.copy_paste import CopyPaste, partners, paste
from dynamask.data.loaders import TrainingLoader
from dynamask.data.transforms import GREY, TrainingTransforms
from dynamask.structures import DynaMaskError

COLOURS = 200


def scene(seed: int, objects: int, size: tuple[int, int] = (60, 80), first: int = 1) -> tuple[Tensor, dict]:
    """Rectangles over each other; red says which object a pixel shows, so that picture and masks can be compared."""
    rng = np.random.default_rng(seed)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    image[1] = seed % 250
    owner = torch.zeros(size, dtype=torch.int64)
    for number in range(objects):
        height, width = (int(v) for v in rng.integers(8, 30, 2))
        y, x = int(rng.integers(0, size[0] - height + 1)), int(rng.integers(0, size[1] - width + 1))
        owner[y : y + height, x : x + width] = first + number
    image[0] = owner.to(torch.uint8)
    labels = [n for n in range(first, first + objects) if (owner == n).any()]
    masks = torch.stack([owner == n for n in labels]).to(torch.uint8) if labels else torch.zeros(0, *size).byte()
    target = {
        "boxes": tight(masks),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
        "image_id": seed,
        "area": masks.flatten(1).sum(1).float(),
        "iscrowd": torch.zeros(len(labels), dtype=torch.int64),
    }
    return image, target


def tight(masks: Tensor) -> Tensor:
    boxes = torch.zeros(len(masks), 4)
    for i, mask in enumerate(masks):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        boxes[i] = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    return boxes


class Scenes(torch.utils.data.Dataset):
    """Scenes by seed, every third one without an object."""

    class_names, category_ids = ("__background__", "thing"), (1,)

    def __init__(self, transforms=None, count: int = 7, empty: bool = False) -> None:
        self.transforms, self.image_ids, self.empty = transforms, list(range(count)), empty

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        size = (60 + 4 * (index % 3), 80 - 6 * (index % 2))
        objects = 0 if self.empty or index % 3 == 0 else 3
        image, target = scene(index, objects, size, 1 + 20 * index)
        return self.transforms(image, target) if self.transforms else (image, target)


def same(first: tuple, second: tuple) -> bool:
    (image, target), (other, found) = first, second
    keys = ("boxes", "labels", "masks", "area", "iscrowd")
    return torch.equal(image, other) and all(torch.equal(target[key], found[key]) for key in keys)


def consistent(image: Tensor, target: dict) -> None:
    """Everything is of one length and type, boxes are tight, areas those of the masks, and red names the object."""
    count = len(target["labels"])
    assert target["masks"].shape == (count, *image.shape[1:]) and target["masks"].dtype == torch.uint8
    assert all(len(target[key]) == count for key in ("boxes", "area", "iscrowd"))
    assert target["boxes"].dtype == torch.float32 and target["labels"].dtype == torch.int64
    assert torch.equal(target["boxes"], tight(target["masks"]))
    assert torch.allclose(target["area"], target["masks"].flatten(1).sum(1).float())
    for label, mask in zip(target["labels"].tolist(), target["masks"].bool()):
        assert mask.any() and (image[0][mask] == label).all()


@pytest.mark.parametrize("seed", range(25))
def test_pasted_scenes_are_consistent(seed):
    rng = np.random.default_rng(seed)
    sides = [(int(rng.integers(40, 80)), int(rng.integers(40, 80))) for _ in range(2)]
    image, target = scene(2 * seed, int(rng.integers(0, 5)), sides[0])
    source, objects = scene(2 * seed + 1, int(rng.integers(0, 5)), sides[1], first=100)
    given = [
        (image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()})
        for image, target in ((image, target), (source, objects))
    ]
    seen, found = paste(image, target, source, objects, rng.random(2).tolist(), min_visible=0.2)
    consistent(seen, found)
    assert found["image_id"] == target["image_id"] and seen.shape == image.shape
    assert found["masks"].sum(0).max() <= 1 if len(found["masks"]) else True, "nothing shows through"
    pasted = found["labels"] >= 100
    cover = found["masks"][pasted].sum(0).bool()
    assert torch.equal(seen[:, ~cover], image[:, ~cover])
    for label in target["labels"].tolist():
        before = int(target["masks"][target["labels"] == label].sum())
        left = int((target["masks"][target["labels"] == label][0].bool() & ~cover).sum())
        kept = found["labels"] == label
        assert bool(kept.any()) == (left > 0 and left >= 0.2 * before)
        assert not kept.any() or int(found["masks"][kept].sum()) == left
    assert same((image, target), given[0]) and same((source, objects), given[1]), "nothing given changes"


def test_hidden_objects_go_and_half_hidden_ones_shrink():
    image, _ = scene(0, 0, (20, 20))
    masks = torch.zeros(3, 20, 20, dtype=torch.uint8)
    masks[0, 2:6, 2:6], masks[1, 2:12, 8:18], masks[2, 14:18, 2:18] = 1, 1, 1
    target = {
        "boxes": tight(masks),
        "labels": torch.tensor([1, 2, 3]),
        "masks": masks,
        "image_id": 9,
        "area": torch.tensor([16.0, 100.0, 64.0]),
        "iscrowd": torch.zeros(3, dtype=torch.int64),
    }
    over = torch.zeros(1, 20, 20, dtype=torch.uint8)
    over[0, 0:7, 0:18] = 1
    objects = {
        "boxes": tight(over),
        "labels": torch.tensor([7]),
        "masks": over,
        "image_id": 1,
        "area": torch.tensor([126.0]),
        "iscrowd": torch.zeros(1, dtype=torch.int64),
    }
    source = torch.full((3, 20, 20), 50, dtype=torch.uint8)
    seen, found = paste(image, target, source, objects)
    assert found["labels"].tolist() == [2, 3, 7] and found["image_id"] == 9
    assert found["boxes"].tolist() == [[8, 7, 18, 12], [2, 14, 18, 18], [0, 0, 18, 7]]
    assert found["area"].tolist() == [50, 64, 126]
    assert (seen[:, 0:7, 0:18] == 50).all() and (seen[:, 7:] == image[:, 7:]).all()
    assert paste(image, target, source, objects, min_visible=0.6)[1]["labels"].tolist() == [3, 7]


def test_pictures_without_objects_on_either_side():
    empty, plain = scene(0, 0), scene(1, 3)
    assert same(paste(*plain, *empty), plain)
    seen, found = paste(*empty, *plain)
    consistent(seen, found)
    assert torch.equal(found["masks"], plain[1]["masks"])
    seen, found = paste(*empty, *empty)
    assert found["masks"].shape == (0, 60, 80) and torch.equal(seen, empty[0])
    nothing = CopyPaste(Scenes(empty=True), 1.0)
    assert all(same(nothing[i], nothing.dataset[i]) for i in range(7))


def test_objects_outside_a_smaller_picture_are_left_out():
    small, objects = scene(0, 0, (10, 10)), scene(3, 1, (60, 80))
    box = objects[1]["boxes"][0]
    far = (0.0, 0.0) if box[0] >= 10 or box[1] >= 10 else (1.0, 1.0)
    seen, found = paste(*small, *objects, far)
    assert len(found["labels"]) == 0 and torch.equal(seen, small[0])


def test_how_often_and_from_where():
    pictures = Scenes()
    never, always = CopyPaste(pictures, 0.0), CopyPaste(pictures, 1.0, indices=[4])
    assert always.image_ids == pictures.image_ids and always.class_names == pictures.class_names
    assert len(always) == 7
    labels = set()
    for draw in range(40):
        torch.manual_seed(draw)
        assert same(never[1], pictures[1])
        image, target = always[0]
        consistent(image, target)
        labels |= set(target["labels"].tolist())
    assert labels and labels <= set(range(81, 84)), "only from the pictures that may be used"
    half = CopyPaste(pictures, 0.5, indices=[1])
    torch.manual_seed(0)
    share = sum(len(half[0][1]["labels"]) > 0 for _ in range(200)) / 200
    assert 0.3 < share < 0.55


def test_crowds_are_not_pasted():
    class Crowds(Scenes):
        def __getitem__(self, index: int) -> tuple[Tensor, dict]:
            image, target = super().__getitem__(index)
            return image, {**target, "iscrowd": torch.ones_like(target["iscrowd"])}

    pictures = CopyPaste(Crowds(), 1.0)
    assert all(same(pictures[i], pictures.dataset[i]) for i in range(7))


class Counted(Scenes):
    """Scenes that note which of them are read; number ``broken`` cannot be."""

    def __init__(self, *arguments, broken: int | None = None, **more) -> None:
        super().__init__(*arguments, **more)
        self.read, self.broken = [], broken

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        if index == self.broken:
            raise DynaMaskError(f"picture {index} is truncated")
        self.read.append(index)
        return super().__getitem__(index)


def test_partners_are_pairs_and_three_at_an_odd_end():
    assert [partners(n) for n in (1, 2, 3, 4, 5)] == [[0], [1, 0], [1, 2, 0], [1, 0, 3, 2], [1, 0, 3, 4, 2]]
    for count in range(2, 12):
        assert sorted(partners(count)) == list(range(count)) and all(a != b for a, b in enumerate(partners(count)))
    assert partners(0) == []


def test_a_batch_pastes_its_own_pictures_and_reads_no_other():
    pictures = Counted()
    loader = TrainingLoader(CopyPaste(pictures, 1.0), 4, seed=3)
    pairs = Counter()
    for _ in range(12):
        pictures.read.clear()
        _, targets = next(loader)
        ids = [target["image_id"] for target in targets]
        assert pictures.read == ids
        for target, other in zip(targets, partners(4)):
            assert {(label - 1) // 20 for label in target["labels"].tolist()} <= {target["image_id"], ids[other]}
            pairs[target["image_id"], ids[other]] += any(label > 20 * ids[other] for label in target["labels"].tolist())
    assert len(pairs) > 20, "partners change"


def test_pasting_in_a_batch_is_paste_of_the_partner_as_it_was():
    plain = [scene(1, 2), scene(2, 3, (50, 90), first=50), scene(3, 0)]
    torch.manual_seed(3)
    found = CopyPaste(Scenes(), 1.0).among(plain)
    torch.manual_seed(3)
    for (image, target), own, other in zip(found, plain, (1, 2, 0)):
        source, objects = plain[other]
        torch.rand(())
        chosen = torch.rand(len(objects["masks"])) < 0.5
        picked = {key: value[chosen] if isinstance(value, Tensor) else value for key, value in objects.items()}
        assert same((image, target), paste(*own, source, picked, torch.rand(2).tolist()))
        consistent(image, target)
    assert same(found[1], plain[1]), "its partner has no object"
    assert not same(found[0], plain[0]) and not same(found[2], plain[2])
    assert same(plain[0], scene(1, 2)) and same(plain[1], scene(2, 3, (50, 90), first=50)), "nothing given changes"


def test_a_picture_alone_in_its_batch_reads_a_further_one_that_may_be_used():
    pictures = Counted()
    loader = TrainingLoader(CopyPaste(pictures, 1.0, indices=[1, 4]), 1, seed=0, indices=[1, 4])
    labels = set()
    for _ in range(30):
        pictures.read.clear()
        _, (target,) = next(loader)
        assert len(pictures.read) == 2 and set(pictures.read) <= {1, 4}
        labels |= {(target["image_id"], (label - 1) // 20) for label in target["labels"].tolist()}
    assert {(1, 4), (4, 1)} <= labels


def test_crowds_and_broken_pictures_in_a_batch():
    class Crowds(Scenes):
        def __getitem__(self, index: int) -> tuple[Tensor, dict]:
            image, target = super().__getitem__(index)
            return image, {**target, "iscrowd": torch.ones_like(target["iscrowd"])}

    for images, targets in (next(TrainingLoader(CopyPaste(Crowds(), 1.0), 7, seed=0)),):
        assert all(same(pair, Crowds()[pair[1]["image_id"]]) for pair in zip(images, targets))
    with pytest.raises(DynaMaskError, match="picture 2 is truncated"):
        next(TrainingLoader(CopyPaste(Counted(broken=2), 1.0), 7, seed=0))


def loader_of(batch: int, workers: int = 0, part: tuple[int, int] = (0, 1)):
    transforms = TrainingTransforms(scale_jitter=(0.5, 2.0), crop=0.3)
    return TrainingLoader(CopyPaste(Scenes(transforms), 0.7), batch, seed=1, num_workers=workers, part=part)


def take(batches, count: int) -> list[tuple]:
    return [pair for _ in range(count) for pair in zip(*next(batches))]


@pytest.mark.parametrize(("workers", "batch"), [(0, 1), (0, 3), (2, 3), (0, 4)])
def test_a_run_is_the_same_resumed_and_whatever_the_workers(workers, batch):
    whole, part = take(loader_of(batch), 8), loader_of(batch, workers)
    begun = take(part, 2)
    resumed = loader_of(batch, workers)
    resumed.load_state_dict(part.state_dict())
    assert all(same(a, b) for a, b in zip(whole, [*begun, *take(resumed, 6)], strict=True))
    assert any((target["labels"] // 20 != target["image_id"]).any() for _, target in whole), "something was pasted"


def test_processes_with_pairs_of_pictures_share_the_batch_of_one():
    whole, parts = loader_of(8), [loader_of(8, part=(rank, 4)) for rank in range(4)]
    for _ in range(3):
        shared = [pair for loader in parts for pair in take(loader, 1)]
        assert all(same(a, b) for a, b in zip(take(whole, 1), shared, strict=True))
    assert all(same(a, b) for a, b in zip(take(loader_of(8), 2), take(loader_of(4), 4), strict=True))


@pytest.mark.parametrize("options", [{}, {"jitter_size": 50}, {"jitter_size": 90}])
def test_scale_jitter_keeps_everything_together(options):
    transforms = TrainingTransforms(flip=0.0, photometric=False, scale_jitter=(0.3, 2.5), **options)
    sizes = set()
    for draw in range(40):
        image, target = scene(draw, 3)
        torch.manual_seed(draw)
        moved, found = transforms(image, target)
        frame = (options["jitter_size"],) * 2 if options else (60, 80)
        assert moved.shape == (3, *frame) and moved.dtype == torch.uint8
        assert found["masks"].shape == (len(found["labels"]), *frame)
        assert all(len(found[key]) == len(found["labels"]) for key in ("boxes", "area", "iscrowd"))
        off = (found["boxes"] - tight(found["masks"])).abs().amax() if len(found["boxes"]) else 0
        assert off <= 2.51, "a box is its mask's to within a pixel of the smaller picture"
        for label, mask in zip(found["labels"].tolist(), found["masks"]):
            outside = torch.nn.functional.pad(1 - mask.float(), (3, 3, 3, 3), value=1.0)
            inner = torch.nn.functional.max_pool2d(outside[None], 7, 1)[0] == 0  # 3 pixels or more from any edge
            assert (moved[0][inner] == label).all()
        for area, mask in zip(found["area"], found["masks"]):
            assert float(area) == pytest.approx(int(mask.sum()), rel=0.35, abs=30)
        sizes.add(tuple(found["labels"].tolist()))
    assert len(sizes) > 5


def test_scale_jitter_is_v2s_up_to_the_cut():
    image, target = scene(1, 3)
    transforms = TrainingTransforms(flip=0.0, photometric=False, scale_jitter=(0.5, 0.5), jitter_size=120)
    moved, found = transforms(image, target)
    expected = v2.ScaleJitter((120, 120), (0.5, 0.5), antialias=True)(image)
    assert expected.shape == (3, 45, 60) and torch.equal(moved[:, :45, :60], expected)
    assert (moved[:, 45:] == GREY).all() and (moved[:, :, 60:] == GREY).all() and found["masks"][:, 45:].sum() == 0
    same_size, kept = TrainingTransforms(flip=0.0, photometric=False, jitter_size=60)(
        image[:, :, :60], {**target, "masks": target["masks"][:, :, :60]}
    )
    assert torch.equal(same_size, image[:, :, :60]) and kept["masks"].shape[1:] == (60, 60)


def test_scale_jitter_takes_empty_and_tiny_pictures():
    transforms = TrainingTransforms(scale_jitter=(0.1, 2.0), jitter_size=16)
    for size in ((1, 1), (60, 80), (3, 200)):
        image, target = torch.zeros(3, *size, dtype=torch.uint8), scene(0, 0, (60, 80))[1]
        moved, found = transforms(image, {**target, "masks": torch.zeros(0, *size, dtype=torch.uint8)})
        assert moved.shape == (3, 16, 16) and found["masks"].shape == (0, 16, 16) and found["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"copy_paste": 1.5},
        {"crop": -0.1},
        {"scale_jitter": (2.0, 0.5)},
        {"scale_jitter": (0.0, 1.0)},
        {"scale_jitter": (1.0,)},
        {"jitter_size": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(DynaMaskError, match=f"{next(iter(wrong))} is .*; give"):
        TrainConfig(**wrong)


def test_copy_paste_that_cannot_be_is_refused():
    with pytest.raises(DynaMaskError, match="give one from 0 to 1"):
        CopyPaste(Scenes(), 2.0)
    with pytest.raises(DynaMaskError, match="no picture to copy objects from"):
        CopyPaste(Scenes(), 0.5, indices=[])
