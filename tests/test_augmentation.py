"""Augmentation and copy-paste: picture, boxes and masks stay consistent, and nothing that is given changes."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.labelled_scenes import Scenes, check_consistent, copied, same, scene, target_of, tight
from torch import Tensor
from torchvision.transforms import v2

from dynamask.data.batch_augmentation import partners
from dynamask.data.copy_paste import CopyPaste, paste
from dynamask.data.loaders import TrainingLoader
from dynamask.data.transforms import GREY, TrainingTransforms
from dynamask.ops.mask_windows import MaskWindows
from dynamask.structures import DynaMaskError
from dynamask.training_config import TrainConfig

STILL = {"flip": 0.0, "photometric": False}


def rectangles(*windows: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """(N, H, W) uint8 masks of rectangles (top, bottom, left, right)."""
    masks = torch.zeros(len(windows), *size, dtype=torch.uint8)
    for mask, (top, bottom, left, right) in zip(masks, windows):
        mask[top:bottom, left:right] = 1
    return masks


def test_flip_moves_picture_boxes_and_masks_together():
    image, target = scene(1, 2)
    flipped, moved = TrainingTransforms(flip=1.0, photometric=False)(image, target)
    assert torch.equal(flipped, image.flip(2)) and torch.equal(moved["masks"], target["masks"].flip(2))
    check_consistent(flipped, moved)
    assert type(flipped) is Tensor and type(moved["boxes"]) is Tensor and type(moved["masks"]) is Tensor


@pytest.mark.parametrize("seed", range(6))
def test_masks_may_be_windows(seed):
    image, target = scene(seed, 4)
    source, objects = scene(seed + 50, 3, first=100)
    found = []
    for form in (lambda masks: masks, MaskWindows.of):
        torch.manual_seed(seed)
        transforms = TrainingTransforms(crop=0.5, zoom_out=0.5, scale_jitter=(0.4, 2.0))
        moved = transforms(image, {**target, "masks": form(target["masks"])})
        found.append(paste(*moved, source, {**objects, "masks": form(objects["masks"])}, (0.3, 0.7)))
    (tensor, plain), (same_tensor, windows) = found
    assert type(plain["masks"]) is Tensor and type(windows["masks"]) is MaskWindows
    assert same((tensor, plain), (same_tensor, {**windows, "masks": windows["masks"].dense()}))


def test_jitter_changes_colours_alone():
    image, target = scene(1, 2)
    torch.manual_seed(0)
    jittered, kept = TrainingTransforms(flip=0.0)(image, target)
    assert jittered.dtype == torch.uint8 and not torch.equal(jittered, image)
    assert same((image, kept), (image, target))
    red = torch.tensor([200, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
    for hue in (0.0, 0.1):
        torch.manual_seed(0)
        turned, _ = TrainingTransforms(flip=0.0, hue=hue)(red, scene(1, 0, (8, 8))[1])
        assert bool(turned[1].float().sub(turned[2].float()).any()) == (hue > 0), "red has equal green and blue"


@pytest.mark.parametrize(
    "options", [{"crop": 1.0, "crop_side": 0.3}, {"zoom_out": 1.0}, {"crop": 1.0, "zoom_out": 1.0}]
)
def test_crops_and_zooms_keep_everything_together(options):
    given = scene(0, 2)
    before, areas = copied(given), dict(zip(given[1]["labels"].tolist(), given[1]["area"].tolist()))
    transforms = TrainingTransforms(photometric=False, **options)
    counts = Counter()
    for draw in range(60):
        torch.manual_seed(draw)
        moved, found = transforms(*given)
        counts[len(found["boxes"])] += 1
        check_consistent(moved, found)
        assert all(area >= 0.25 * areas[label] for label, area in zip(found["labels"].tolist(), found["area"]))
    assert counts[2] > 0 and (counts[2] == 60) == ("crop" not in options)
    assert same(given, before)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"zoom_out": 1.0, "crop": 1.0}, (60, 80)),
        ({"crop": 1.0}, (1, 1)),
        *(({"scale_jitter": (0.1, 2.0), "jitter_size": 16}, size) for size in ((1, 1), (60, 80), (3, 200))),
    ],
)
def test_every_transform_takes_small_pictures_and_pictures_without_objects(options, size):
    moved, found = TrainingTransforms(**options)(*scene(0, 0, size))
    assert found["boxes"].shape == (0, 4) and found["masks"].shape == (0, *moved.shape[1:])
    assert found["masks"].dtype == torch.uint8 and found["labels"].shape == (0,)
    if "jitter_size" in options or size == (1, 1):
        assert moved.shape == (3, *(2 * [options.get("jitter_size", 1)]))


@pytest.mark.parametrize("options", [{}, {"jitter_size": 50}, {"jitter_size": 90}])
def test_scale_jitter_keeps_everything_together(options):
    transforms = TrainingTransforms(**STILL, scale_jitter=(0.3, 2.5), **options)
    labels = set()
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
        for label, mask, area in zip(found["labels"].tolist(), found["masks"], found["area"]):
            outside = torch.nn.functional.pad(1 - mask.float(), (3, 3, 3, 3), value=1.0)
            inner = torch.nn.functional.max_pool2d(outside[None], 7, 1)[0] == 0  # 3 pixels or more from any edge
            assert (moved[0][inner] == label).all()
            assert float(area) == pytest.approx(int(mask.sum()), rel=0.35, abs=30)
        labels.add(tuple(found["labels"].tolist()))
    assert len(labels) > 5


def test_scale_jitter_is_v2s_up_to_the_crop():
    image, target = scene(1, 3)
    moved, found = TrainingTransforms(**STILL, scale_jitter=(0.5, 0.5), jitter_size=120)(image, target)
    expected = v2.ScaleJitter((120, 120), (0.5, 0.5), antialias=True)(image)
    assert expected.shape == (3, 45, 60) and torch.equal(moved[:, :45, :60], expected)
    assert (moved[:, 45:] == GREY).all() and (moved[:, :, 60:] == GREY).all() and found["masks"][:, 45:].sum() == 0
    square, masks = image[:, :, :60], target["masks"][:, :, :60]
    same_size, kept = TrainingTransforms(**STILL, jitter_size=60)(square, {**target, "masks": masks})
    assert torch.equal(same_size, square) and kept["masks"].shape[1:] == (60, 60)


@pytest.mark.parametrize("seed", range(25))
def test_pasted_scenes_are_consistent(seed):
    rng = np.random.default_rng(seed)
    sides = [(int(rng.integers(40, 80)), int(rng.integers(40, 80))) for _ in range(2)]
    image, target = scene(2 * seed, int(rng.integers(0, 5)), sides[0])
    source, objects = scene(2 * seed + 1, int(rng.integers(0, 5)), sides[1], first=100)
    given = copied((image, target)), copied((source, objects))
    seen, found = paste(image, target, source, objects, rng.random(2).tolist(), min_visible=0.2)
    check_consistent(seen, found)
    assert found["image_id"] == target["image_id"] and seen.shape == image.shape
    assert found["masks"].sum(0).max() <= 1 if len(found["masks"]) else True, "no object shows through another"
    cover = found["masks"][found["labels"] >= 100].sum(0).bool()
    assert torch.equal(seen[:, ~cover], image[:, ~cover])
    for label, mask in zip(target["labels"].tolist(), target["masks"].bool()):
        left, kept = int((mask & ~cover).sum()), found["labels"] == label
        assert bool(kept.any()) == (left > 0 and left >= 0.2 * int(mask.sum()))
        assert not kept.any() or int(found["masks"][kept].sum()) == left
    assert same((image, target), given[0]) and same((source, objects), given[1])


def test_hidden_objects_are_dropped_and_half_hidden_ones_shrink():
    image, size = scene(0, 0, (20, 20))[0], (20, 20)
    target = target_of(rectangles((2, 6, 2, 6), (2, 12, 8, 18), (14, 18, 2, 18), size=size), [1, 2, 3], 9)
    objects = target_of(rectangles((0, 7, 0, 18), size=size), [7], 1)
    source = torch.full((3, *size), 50, dtype=torch.uint8)
    seen, found = paste(image, target, source, objects)
    assert found["labels"].tolist() == [2, 3, 7] and found["image_id"] == 9
    assert found["boxes"].tolist() == [[8, 7, 18, 12], [2, 14, 18, 18], [0, 0, 18, 7]]
    assert found["area"].tolist() == [50, 64, 126]
    assert (seen[:, 0:7, 0:18] == 50).all() and (seen[:, 7:] == image[:, 7:]).all()
    assert paste(image, target, source, objects, min_visible=0.6)[1]["labels"].tolist() == [3, 7]


def test_pasting_from_and_into_pictures_without_objects():
    empty, plain = scene(0, 0), scene(1, 3)
    assert same(paste(*plain, *empty), plain)
    seen, found = paste(*empty, *plain)
    check_consistent(seen, found)
    assert torch.equal(found["masks"], plain[1]["masks"])
    seen, found = paste(*empty, *empty)
    assert found["masks"].shape == (0, 60, 80) and torch.equal(seen, empty[0])


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
        check_consistent(image, target)
        labels |= set(target["labels"].tolist())
    assert labels and labels <= set(range(81, 84)), "only from the pictures that may be used"
    half = CopyPaste(pictures, 0.5, indices=[1])
    torch.manual_seed(0)
    share = sum(len(half[0][1]["labels"]) > 0 for _ in range(200)) / 200
    assert 0.3 < share < 0.55


class Crowds(Scenes):
    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        image, target = super().__getitem__(index)
        return image, {**target, "iscrowd": torch.ones_like(target["iscrowd"])}


def test_crowds_are_not_pasted():
    pictures = CopyPaste(Crowds(), 1.0)
    assert all(same(pictures[i], pictures.dataset[i]) for i in range(7))
    images, targets = next(TrainingLoader(pictures, 7))
    assert all(same(pair, Crowds()[pair[1]["image_id"]]) for pair in zip(images, targets))


def test_partners_are_pairs_and_three_at_an_odd_end():
    assert [partners(n) for n in (1, 2, 3, 4, 5)] == [[0], [1, 0], [1, 2, 0], [1, 0, 3, 2], [1, 0, 3, 4, 2]]
    for count in range(2, 12):
        assert sorted(partners(count)) == list(range(count)) and all(a != b for a, b in enumerate(partners(count)))
    assert partners(0) == []


def test_a_batch_pastes_its_own_pictures_and_reads_no_other():
    pictures = Scenes()
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
    before = [copied(sample) for sample in plain]
    torch.manual_seed(3)
    found = CopyPaste(Scenes(), 1.0).among(plain)
    torch.manual_seed(3)
    for (image, target), own, other in zip(found, plain, (1, 2, 0)):
        source, objects = plain[other]
        torch.rand(())
        chosen = torch.rand(len(objects["masks"])) < 0.5
        picked = {key: value[chosen] if isinstance(value, Tensor) else value for key, value in objects.items()}
        assert same((image, target), paste(*own, source, picked, torch.rand(2).tolist()))
        check_consistent(image, target)
    assert same(found[1], plain[1]), "its partner has no object"
    assert not same(found[0], plain[0]) and not same(found[2], plain[2])
    assert all(same(a, b) for a, b in zip(plain, before))


def test_a_picture_alone_in_its_batch_reads_another_one_that_may_be_used():
    pictures = Scenes()
    loader = TrainingLoader(CopyPaste(pictures, 1.0, indices=[1, 4]), 1, indices=[1, 4])
    labels = set()
    for _ in range(30):
        pictures.read.clear()
        _, (target,) = next(loader)
        assert len(pictures.read) == 2 and set(pictures.read) <= {1, 4}
        labels |= {(target["image_id"], (label - 1) // 20) for label in target["labels"].tolist()}
    assert {(1, 4), (4, 1)} <= labels


def test_a_broken_picture_in_a_batch_is_one_sentence():
    with pytest.raises(DynaMaskError, match="^picture 2 is truncated$"):
        next(TrainingLoader(CopyPaste(Scenes(broken=2), 1.0), 7))


@pytest.mark.parametrize(
    "wrong",
    [
        {"copy_paste": 1.5},
        {"crop": -0.1},
        {"hue": 0.6, "jitter": True},
        {"hue": 0.1},
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
    with pytest.raises(DynaMaskError, match="no picture to copy from"):
        CopyPaste(Scenes(), 0.5, indices=[])
