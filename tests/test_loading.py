"""The loader's benchmark: what it compares is equal, value for value, and it runs."""

import json

import pytest
import torch

from benchmarks import harness, loading
from dynamask.data.batch_augmentation import partners
from dynamask.data.coco import CocoDataset
from dynamask.data.copy_paste import CopyPaste
from dynamask.data.transforms import TrainingTransforms
from dynamask.engine.step import as_float


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return loading.generate(tmp_path_factory.mktemp("pictures"), pictures=3)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_both_sides_make_the_same_pictures_boxes_and_masks(files, flip):
    theirs, own = loading.transforms()
    reference = loading.Reference(*files, flip=flip)
    ours = CocoDataset(*files, TrainingTransforms(flip=flip, photometric=False))
    for index in range(3):
        (image, target), (expected, truth) = (
            loading.resized(own, *ours[index]),
            loading.resized(theirs, *reference[index]),
        )
        assert image.shape == expected.shape == (3, 800, 1066)
        assert torch.allclose(image, expected, atol=1e-5, rtol=0)  # one divides by 255, the other multiplies
        assert target["masks"].shape == (8, 800, 1066) and torch.equal(target["masks"], truth["masks"])
        assert torch.allclose(target["boxes"], truth["boxes"], atol=1e-3) and torch.equal(
            target["labels"], truth["labels"]
        )


def test_both_sides_paste_the_same_objects_over_the_same_pictures(files):
    reference = loading.Reference(*files, flip=0.0)
    ours = CocoDataset(*files, TrainingTransforms(flip=0.0, photometric=False))
    changed = 0
    for seed in range(4):
        torch.manual_seed(seed)
        samples = [reference[index] for index in range(3)]
        expected = [loading.pasted(s, samples[o], 0.7) for s, o in zip(samples, partners(3))]
        torch.manual_seed(seed)
        plain = [ours[index] for index in range(3)]
        found = CopyPaste(ours, 0.7).among(plain)
        for (image, target), (wanted, truth), (before, _) in zip(found, expected, plain):
            assert torch.allclose(as_float(image), wanted, atol=1e-6, rtol=0)
            assert torch.equal(target["masks"], truth["masks"]) and torch.equal(target["labels"], truth["labels"])
            assert (target["boxes"] - truth["boxes"]).abs().max() < 1.5  # polygons' boxes against those of masks
            changed += not torch.equal(image, before)
    assert 4 < changed < 12


def test_without_objects_the_transform_is_torchvisions_too():
    theirs, own = loading.transforms()
    image, target = torch.rand(3, 40, 60), {"boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 40, 60).byte()}
    (ours, found), (expected, truth) = own.resize(image, dict(target)), theirs.resize(image, dict(target))
    assert torch.equal(ours, expected) and found["masks"].shape == truth["masks"].shape == (0, 800, 1200)
    assert own.resize(image)[1] is None and "masks" not in own.resize(image, {"boxes": target["boxes"]})[1]


def test_the_command(files, tmp_path, capsys):
    words = ["--images", str(files[0]), "--annotations", str(files[1]), "--rounds", "1", "--pictures", "1"]
    assert harness.run(loading.build_parser(), [*words, "--json", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["case"].split(",")[0] for row in rows] == ["torchvision", "dynamask"] * 3
    assert all(row["images_per_s"] > 0 for row in rows) and rows[0]["ratio"] == 1.0
    assert "one core" in capsys.readouterr().out
    assert harness.run(loading.build_parser(), ["--images", str(files[0])]) == 2
    assert capsys.readouterr().err.startswith("loading: error: --images and --annotations belong together")
