"""Cut-outs: exact masks, what they cover, their mark in targets, and their draws."""

import numpy as np
import pytest
import torch
from helpers.labelled_scenes import Scenes, copied, same, samples, scene, target_of, tight
from helpers.runs import arguments, write_blocks
from torch import Tensor

from dynamask.cli import main
from dynamask.data import CopyPaste, CutOuts, TrainingLoader, TrainingTransforms
from dynamask.data.copy_paste import paste
from dynamask.data.cut_outs import put_cut_out
from dynamask.data.shapes.numbers import Stream
from dynamask.data.transforms import mask_only
from dynamask.structures import DynaMaskError
from dynamask.training_config import TrainConfig


def grown(mask: Tensor, pixels: int) -> Tensor:
    """(H, W) bool: the pixels within a square of the mask."""
    return torch.nn.functional.max_pool2d(mask[None].float(), 2 * pixels + 1, 1, pixels)[0] > 0


def plain(size: tuple[int, int], value: int) -> tuple[Tensor, dict]:
    return torch.full((3, *size), value, dtype=torch.uint8), scene(0, 0, size)[1]


@pytest.mark.parametrize("seed", range(12))
def test_the_mask_is_where_the_picture_shows_the_texture(seed):
    image, target = plain((240, 320), 10)
    seen, found = put_cut_out(image, target, plain((50, 400), 120)[0], Stream(seed))
    (mask,) = found["masks"].bool()
    assert torch.equal(found["boxes"], tight(found["masks"])) and int(found["area"][0]) == int(mask.sum()) > 0
    assert torch.equal(seen[:, ~grown(mask, 2)], image[:, ~grown(mask, 2)])
    assert (seen[:, ~grown(~mask, 1)] > 70).all() and seen.amax() > 120, "brighter, away from the background"
    halfway = seen[0].float() >= (10 + float(seen[0].max())) / 2
    assert int((halfway & mask).sum()) > 0.8 * int((halfway | mask).sum())
    assert ((seen[0] > 10) & (seen[0] < seen[0].max())).any(), "the edge is blended"
    assert (image == 10).all() and len(target["labels"]) == 0


def test_covered_objects_lose_pixels_and_hidden_ones_are_dropped():
    counts = set()
    for seed in range(40):
        image, target = scene(seed, 4, (80, 100))
        before = copied((image, target))
        _, found = put_cut_out(image, target, scene(99, 0)[0], Stream(seed, 1))
        assert same((image, target), before)
        own, cover = found["masks"][:-1], found["masks"][-1].bool()
        assert mask_only(found).tolist() == [False] * len(own) + [True] and found["masks"].sum(0).max() <= 1
        assert torch.equal(found["boxes"], tight(found["masks"]))
        left = {int(label): int((mask.bool() & ~cover).sum()) for label, mask in zip(target["labels"], target["masks"])}
        whole = dict(zip(target["labels"].tolist(), target["masks"].flatten(1).sum(1).tolist()))
        kept = {label: pixels for label, pixels in left.items() if pixels and pixels >= 0.1 * whole[label]}
        assert dict(zip(found["labels"][:-1].tolist(), own.flatten(1).sum(1).tolist())) == kept
        counts.add(len(kept) - len(whole))
    assert len(counts) > 1, "some objects are hidden"


@pytest.mark.parametrize("size", [(1, 1), (20, 300), (35, 90)])
def test_very_small_pictures_stay_as_they_are(size):
    sample = scene(1, 0, size)
    assert same(put_cut_out(*sample, scene(2, 1)[0], Stream(0)), sample)
    seen, found = put_cut_out(*scene(1, 0, (36, 36)), torch.zeros(3, 1, 1, dtype=torch.uint8), Stream(0))
    assert len(found["masks"]) == 1 and seen.shape == (3, 36, 36)


def test_the_mark_is_carried_through_pasting_and_windows():
    masks = torch.zeros(2, 40, 40, dtype=torch.uint8)
    masks[0, 2:12, 2:12] = masks[1, 20:30, 20:30] = 1
    marked = {**target_of(masks, [1, 2], 3), "mask_only": torch.tensor([True, False])}
    image, bare = scene(5, 2, (40, 40), first=5)
    assert paste(image, bare, image, marked)[1]["mask_only"].tolist()[-2:] == [True, False]
    found = paste(image, marked, image, bare, min_visible=0.0)[1]
    assert found["mask_only"].sum() == (found["labels"] == 1).sum() and len(found["mask_only"]) == len(found["labels"])
    assert "mask_only" not in paste(image, bare, image, bare)[1]
    torch.manual_seed(0)
    lengths = set()
    for _ in range(10):
        _, moved = TrainingTransforms(crop=1.0, crop_side=0.3)(image, marked)
        assert moved["mask_only"].tolist() == [label == 1 for label in moved["labels"].tolist()]
        lengths.add(len(moved["labels"]))
    assert len(lengths) > 1


def test_one_or_two_with_the_given_probability():
    images = [scene(i, 0, (60, 80)) for i in range(40)]
    torch.manual_seed(0)
    counts = [int(mask_only(target).sum()) for _, target in CutOuts(Scenes(), 0.6).among(images)]
    assert set(counts) == {0, 1, 2} and 8 < counts.count(0) < 24
    assert not any(mask_only(target).any() for _, target in CutOuts(Scenes(), 0.0).among(images))


def test_cut_outs_follow_copy_paste_with_draws_of_their_own():
    pasted = samples(TrainingLoader(CopyPaste(Scenes(), 0.7), 4, seed=3), 3)
    never = samples(TrainingLoader(CutOuts(CopyPaste(Scenes(), 0.7), 0.0), 4, seed=3), 3)
    assert all(same(a, b) for a, b in zip(pasted, never, strict=True))
    pictures = Scenes()
    both = next(TrainingLoader(CutOuts(CopyPaste(pictures, 0.7), 1.0), 4, seed=3))
    assert len(pictures.read) == 4, "no other picture is read"
    for image, target, before in zip(*both, pasted):
        cover = target["masks"][mask_only(target)].sum(0) > 0
        assert cover.any() and not target["masks"][~mask_only(target)][:, cover].any()
        changed = (image != before[0]).any(0)
        assert int((changed & ~grown(cover, 2)).sum()) < 0.1 * int((changed & cover).sum())
        assert set(target["labels"][~mask_only(target)].tolist()) <= set(before[1]["labels"].tolist())


@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (3, 2), (4, 0)])
def test_a_run_is_the_same_resumed_and_with_any_number_of_workers(batch, workers):
    def loader() -> TrainingLoader:
        pictures = Scenes(TrainingTransforms(scale_jitter=(0.7, 1.5)))
        return TrainingLoader(CutOuts(CopyPaste(pictures, 0.7), 0.8), batch, seed=1, num_workers=workers)

    whole = samples(loader(), 8)
    resumed = loader()
    resumed.load_state_dict({**loader().state_dict(), "position": 3 * batch})
    rest = samples(resumed, 5)
    assert all(same(a, b) for a, b in zip(rest, whole[3 * batch :], strict=True))
    assert all(torch.equal(mask_only(a[1]), mask_only(b[1])) for a, b in zip(rest, whole[3 * batch :], strict=True))
    assert any(mask_only(target).any() for _, target in rest)


def test_settings_out_of_range_are_refused():
    with pytest.raises(DynaMaskError, match="cut_outs is 1.5; give a number from 0 to 1"):
        TrainConfig(cut_outs=1.5)
    with pytest.raises(DynaMaskError, match="the probability of cut-outs is -1; give one from 0 to 1"):
        CutOuts(Scenes(), -1)


def test_only_class_agnostic_models_train_with_cut_outs(tmp_path, capsys):
    (tmp_path / "blocks").mkdir()
    blocks = write_blocks(tmp_path / "blocks")
    assert main(arguments(blocks, tmp_path / "run", cut_outs=0.5)) == 2
    err = capsys.readouterr().err
    assert "cut-outs have no class; give --class-agnostic or --merge-classes" in err and err.count("\n") == 1
    words = arguments(blocks, tmp_path / "run", "--class-agnostic", iterations=1, cut_outs=1, copy_paste=1)
    assert main(words) == 2 and "give --freeze detector or --merge-classes" in capsys.readouterr().err
    words += ["--freeze", "detector"]
    assert main(words) == 0, capsys.readouterr().err
    rows = np.genfromtxt(tmp_path / "run/log.csv", delimiter=",", names=True)
    assert np.isfinite(rows["loss"]).all()
