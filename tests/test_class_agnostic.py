"""Class-agnostic training: the classes of a file are merged, and their names kept for reports."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import flags
from helpers.small_models import TINY, pyramid, some_rois, tiny_model
from PIL import Image

from dynamask import cli
from dynamask.data.coco import CocoDataset, merge_categories
from dynamask.data.coco_format import read_coco
from dynamask.data.shapes import CLASS_NAMES
from dynamask.data.sources import open_data
from dynamask.models.weights import load_model, read_header, save_model
from dynamask.structures import MASK_SIZES
from tools import fit_switch


@pytest.fixture
def data(tmp_path) -> tuple[Path, Path]:
    """Two pictures with a cat (category 17) and two dogs (18)."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(images / name)

    def square(number: int, image: int, category: int) -> dict:
        x = 4.0 * number
        outline = [x, 5, x + 20, 5, x + 20, 25, x, 25]
        shape = {"bbox": [x, 5.0, 20.0, 20.0], "area": 400.0, "iscrowd": 0, "segmentation": [outline]}
        return {"id": number, "image_id": image, "category_id": category, **shape}

    coco = {
        "images": [{"id": i, "file_name": f, "width": 64, "height": 48} for i, f in ((1, "a.png"), (2, "b.png"))],
        "annotations": [square(1, 1, 17), square(2, 1, 18), square(3, 2, 18)],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    }
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(coco))
    return images, annotations


def test_merging_keeps_the_names_and_leaves_the_given_dict_alone(data):
    coco = read_coco(data[1]).coco
    one = merge_categories(coco)
    assert one["categories"] == [{"id": 1, "name": "object"}]
    assert [a["category_id"] for a in one["annotations"]] == [1, 1, 1]
    assert [a["class_name"] for a in one["annotations"]] == ["cat", "dog", "dog"]
    assert [a["category_id"] for a in coco["annotations"]] == [17, 18, 18]
    assert not any("class_name" in a for a in coco["annotations"])


def test_a_merged_data_set_has_the_same_masks_and_one_label(data):
    plain, one = CocoDataset(*data), CocoDataset(*data, merge_classes=True)
    assert one.class_names == ("__background__", "object")
    for index in range(2):
        assert torch.equal(plain.target(index)["masks"], one.target(index)["masks"])
        assert set(one.target(index)["labels"].tolist()) == {1}


def test_classes_are_merged_only_for_weights_with_the_one_class_object(data):
    assert open_data(None, *data, ("__background__", "object")).class_names == ("__background__", "object")
    for names in (("__background__", "cat"), ("__background__", "object", "cat")):
        assert open_data(None, *data, names).class_names == ("__background__", "cat", "dog")
    coco = json.loads(data[1].read_text())  # a file with a class of this name is not merged
    coco["categories"][0]["name"] = "object"
    data[1].write_text(json.dumps(coco))
    assert open_data(None, *data, ("__background__", "object")).class_names == ("__background__", "object", "dog")


def test_training_and_evaluating_with_merged_classes(data, tmp_path, capsys):
    images, annotations = map(str, data)
    out = tmp_path / "run"
    words = ["train", "--images", images, "--annotations", annotations, "--merge-classes", "--out", str(out)]
    settings = {**TINY, "model": "dynamask_mobilenetv2_fpn_small", "iterations": 1, "batch_size": 2}
    words += flags(settings)
    assert cli.main(words) == 0
    weights = out / "last.safetensors"
    assert read_header(weights)["config"]["class_names"] == ["__background__", "object"]
    capsys.readouterr()
    words = ["evaluate", "--weights", str(weights), "--images", images, "--annotations", annotations]
    assert cli.main([*words, "--boxes", "gt", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["detections"] == 3


def test_fitting_a_switch_changes_the_switch_alone(tmp_path, capsys):
    weights, out = tmp_path / "w.safetensors", tmp_path / "new.safetensors"
    save_model(tiny_model(class_names=CLASS_NAMES), weights, training={"images_seen": 0})
    words = ["--weights", str(weights), "--data", "shapes:5:2", "--out", str(out), "--steps", "3"]
    settings = ["switch_signal=boundary", "switch_selection=expected", "boundary_weight=5"]
    assert fit_switch.main([*words, "--cache", str(tmp_path / "c.safetensors"), "--set", *settings]) == 0
    before, after = load_model(weights).state_dict(), load_model(out).state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith("mask_branch.switch.") for key in changed)
    assert read_header(out)["training"]["switch"]["losses"]["boundary_weight"] == 5.0
    assert (tmp_path / "c.safetensors").is_file()
    capsys.readouterr()
    assert fit_switch.main([*words[:-4], "--out", str(tmp_path / "none" / "x.safetensors")]) == 2
    assert fit_switch.main([*words, "--set", "nonsense=1"]) == 2
    assert capsys.readouterr().err.count("fit_switch: error: ") == 2


def test_the_last_stage_alone_can_be_class_agnostic():
    model = tiny_model(class_agnostic_last=True).eval()
    branch = model.mask_branch
    assert [p.out_channels for p in branch.region_fpn.mask_predictors] == [3, 3, 3, 1]
    with torch.no_grad():
        for predictor in branch.region_fpn.mask_predictors:
            predictor.weight.normal_()
        features, rois = pyramid(channels=16), some_rois(2)
        for k, size in enumerate(MASK_SIZES):
            of_class = [
                branch.masks(branch.begin(features, rois, torch.full((2,), label)), torch.full((2,), k))[0]
                for label in (1, 3)
            ]
            assert of_class[0].shape == (size, size)
            assert torch.equal(*of_class) == (size == 112)
    assert model.mask_branch.costs.macs_per_instance == tiny_model().mask_branch.costs.macs_per_instance
