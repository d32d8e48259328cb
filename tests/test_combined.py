"""Several data sets in one training: classes united by name, unique image ids, one hold-out rule, one record."""

import json
from pathlib import Path

import pytest
import torch
from helpers.coco_files import rectangle
from helpers.runs import arguments, write_blocks
from PIL import Image

from dynamask.cli import main
from dynamask.data.combined import CombinedDataset
from dynamask.data.instances import split_by_image_id
from dynamask.data.sources import open_data, open_together
from dynamask.engine.scoring import score
from dynamask.models.weights import read_header
from dynamask.structures import DynaMaskError

FIRST = ((3, "cat"), (5, "dog"))
SECOND = ((5, "cat"), (3, "bird"), (9, "fish"))


def folder(root: Path, categories: tuple[tuple[int, str], ...], image_ids: list[int], seed: int = 0) -> Path:
    """A folder with a data set of pictures 32 × 40 that have one object of every category each."""
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for image_id in image_ids:
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 32, "width": 40})
        Image.new("RGB", (40, 32), (seed, image_id % 256, 0)).save(root / "images" / f"{image_id}.png")
        for place, (category_id, _) in enumerate(categories):
            found = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
            annotations.append({**found, "area": 80, **rectangle((32, 40), 10 * place, 4, 8, 10)})
    named = [{"id": category_id, "name": name} for category_id, name in categories]
    content = {"images": images, "annotations": annotations, "categories": named}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def roots(tmp_path) -> list[str]:
    first = folder(tmp_path / "first", FIRST, [7, 1, 4], seed=1)
    return [str(first), str(folder(tmp_path / "second", SECOND, [4, 5, 7, 6], seed=2))]


def test_classes_are_united_by_name_and_labels_follow(roots):
    dataset = open_together(roots, [], [])
    assert dataset.class_names == ("__background__", "cat", "dog", "bird", "fish")
    assert dataset.category_ids == (3, 5, 10, 9), "bird has the id of the first cat, and gets a free one"
    assert len(dataset) == 7
    names = [[dataset.class_names[label] for label in dataset[i][1]["labels"].tolist()] for i in range(7)]
    assert names == [["cat", "dog"]] * 3 + [["cat", "bird", "fish"]] * 4
    own = open_data(roots[1])
    for index in range(4):
        (image, target), (same, expected) = dataset[3 + index], own[index]
        assert torch.equal(image, same) and torch.equal(target["masks"], expected["masks"])
    assert list(iter(dataset))[6][1]["image_id"] == 6
    with pytest.raises(IndexError):
        dataset[7]


def test_image_ids_are_unique_and_the_hold_out_follows_those_of_the_files(roots):
    dataset = open_together(roots, [], [])
    assert dataset.source_ids == [7, 1, 4, 4, 5, 7, 6]
    assert dataset.image_ids == [7, 1, 4, 8, 5, 9, 6]
    assert [dataset[i][1]["image_id"] for i in range(7)] == dataset.image_ids
    sides = [[dataset.source_ids[i] for i in split_by_image_id(dataset, side, 2)] for side in (False, True)]
    assert sorted(sides[0] + sides[1]) == sorted(dataset.source_ids) and not set(sides[0]) & set(sides[1])
    for part in (0, 3):
        own = open_data(roots[part > 0])
        expected = [part + i for i in split_by_image_id(own, True, 2)]
        assert [i for i in split_by_image_id(dataset, True, 2) if part <= i < part + len(own)] == expected


def test_the_joint_annotations_describe_the_items(roots):
    dataset = open_together(roots, [], [])
    assert len({annotation["id"] for annotation in dataset.coco["annotations"]}) == 18
    name_of = {category["id"]: category["name"] for category in dataset.coco["categories"]}
    for index, image in enumerate(dataset.coco["images"]):
        found = [a for a in dataset.coco["annotations"] if a["image_id"] == dataset.image_ids[index] == image["id"]]
        labels = dataset[index][1]["labels"].tolist()
        assert [name_of[a["category_id"]] for a in found] == [dataset.class_names[label] for label in labels]
    keys = ("image_id", "category_id", "segmentation")
    results = [{**{key: a[key] for key in keys}, "score": 0.9} for a in dataset.coco["annotations"]]
    assert score(dataset, results, range(7))["segm"]["AP"] == pytest.approx(1)


def test_merged_classes_and_a_single_data_set(roots):
    merged = open_together(roots, [], [], merge_classes=True)
    assert merged.class_names == ("__background__", "object") and merged.category_ids == (1,)
    assert all(set(merged[i][1]["labels"].tolist()) == {1} for i in range(7))
    assert not isinstance(open_together(roots[:1], [], []), CombinedDataset)
    shapes = open_together(["shapes:1:3", roots[0]], [], [])
    assert shapes.class_names[-2:] == ("cat", "dog") and shapes[3][1]["labels"].tolist() == [11, 12]


@pytest.mark.parametrize(
    ("data", "images", "annotations", "sentence"),
    [
        ([], ["a", "b"], ["a.json"], "--images is given 2 times and --annotations 1 times; give both for every data"),
        ([], [], ["a.json"], "pictures and annotations belong together"),
        (["x"], ["a"], ["a.json"], "name the data in one way"),
        ([], [], [], "name the data in one way"),
    ],
)
def test_incomplete_data_are_refused(data, images, annotations, sentence):
    with pytest.raises(DynaMaskError, match=sentence):
        open_together(data, [Path(path) for path in images], [Path(path) for path in annotations])


def test_a_training_on_two_data_sets_is_recorded_and_validated_on_both(tmp_path, capsys):
    (tmp_path / "blocks").mkdir()
    blocks, other = write_blocks(tmp_path / "blocks"), folder(tmp_path / "other", SECOND, [1, 2, 3, 4, 5, 6])
    more = ["--images", str(other / "images"), "--annotations", str(other / "annotations.json"), "--holdout", "3"]
    assert main(arguments(blocks, tmp_path / "run", *more, iterations=1)) == 0, capsys.readouterr().err
    header = read_header(tmp_path / "run/last.safetensors")
    assert header["training"]["annotations"] == ["annotations.json", "annotations.json"]
    assert header["config"]["class_names"] == ["__background__", "block", "bird", "cat", "fish"]
    assert header["config"]["category_ids"] == [3, 10, 5, 9]
    dataset = open_together([str(blocks), str(other)], [], [])
    summary = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert summary["images"] == len(split_by_image_id(dataset, True, 3)) > 1
    assert main([*arguments(blocks, tmp_path / "new", iterations=1), "--images", "x"]) == 2
    assert "--images is given 2 times and --annotations 1 times" in capsys.readouterr().err
