"""Every recipe becomes configurations, its command parses, its steps follow from its epochs; flags given win."""

import argparse
import dataclasses
import json
import math
import re
import shlex

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models.detection import maskrcnn_resnet50_fpn

from dynamask import cli
from dynamask.cli.recipes import apply_recipe
from dynamask.cli.training import given_fields
from dynamask.config import LossConfig, ModelConfig, TrainConfig
from dynamask.presets import default_training, model_config
from dynamask.recipes import RECIPES, recipe_named
from dynamask.structures import DynaMaskError

PAPER = [r for r in RECIPES.values() if "path/to" in r.data_flags]


def words_of(command: str) -> list[str]:
    """Arguments of `dynamask` in a command, with or without torchrun."""
    words = shlex.split(command)
    if words[0] == "torchrun":
        assert words[1] == "--nproc-per-node" and words[2].isdecimal() and words[3:5] == ["-m", "dynamask"]
        return words[5:]
    assert words[0] == "dynamask"
    return words[1:]


def parsed(command: str) -> argparse.Namespace:
    arguments = cli.build_parser().parse_args(words_of(command))
    if arguments.command == "train":
        apply_recipe(arguments)
    return arguments


def configurations(arguments: argparse.Namespace) -> tuple[TrainConfig, LossConfig, ModelConfig]:
    """What the training command makes of its arguments."""
    base = default_training(arguments.model)
    return (
        dataclasses.replace(base[0], **given_fields(arguments, TrainConfig)),
        dataclasses.replace(base[1], **given_fields(arguments, LossConfig)),
        model_config(arguments.model, **given_fields(arguments, ModelConfig)),
    )


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipe_becomes_configurations_and_its_commands_parse(name):
    found = RECIPES[name]
    assert found.name == name
    arguments = parsed(found.command)
    train, losses, model = configurations(arguments)
    fields = {**vars(train), **vars(losses), **vars(model)}
    for key, value in found.values().items():
        assert fields.get(key, getattr(arguments, key)) == value, key
    for command in found.after:
        if command.startswith("dynamask"):
            assert parsed(command).recipe in RECIPES
        else:
            assert command.startswith("python tools/fit_switch.py ")
    assert found.expect and found.basis.startswith("estimate: ") and found.hours > 0


@pytest.mark.parametrize("found", PAPER, ids=lambda r: r.name)
def test_iterations_follow_from_epochs_images_and_batch(found):
    train = configurations(parsed(found.command))[0]
    assert train.iterations == math.ceil(found.epochs * found.images / found.batch_size)
    assert train.batch_size == found.batch_size and train.batch_size % found.processes == 0
    assert train.stop_at == 0 and train.optimizer == "sgd" and train.momentum == 0.9


@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_papers_schedule_in_epochs(times):
    train = configurations(parsed(RECIPES[f"coco-r50-{times}x"].command))[0]
    epoch = 118_287 / 16
    assert train.warm_start * train.iterations == pytest.approx(epoch, rel=1e-4)
    drops = [(milestone * train.iterations / epoch) - 1 for milestone in train.milestones]
    assert drops == pytest.approx([8 * times, 11 * times], rel=1e-4)
    assert train.iterations / epoch - 1 == pytest.approx(12 * times, rel=1e-4)


def test_the_papers_scales_and_budgets():
    plain, multi = (configurations(parsed(RECIPES[n].command))[2] for n in ("coco-r101-3x", "coco-r101-3x-ms"))
    assert plain.min_sizes == (800,) and (min(multi.min_sizes), max(multi.min_sizes)) == (640, 800)
    assert plain.test_min_size == multi.test_min_size == 800 and plain.max_size == 1333
    targets = [configurations(parsed(RECIPES[n].command))[1] for n in ("coco-r50-1x", "coco-r50-1x-low")]
    assert [losses.budget_target for losses in targets] == [0.71, 0.29]
    assert all((losses.edge_weight, losses.switch_weight) == (0.1, 0.4) for losses in targets)
    lvis = configurations(parsed(RECIPES["lvis-r50"].command))[2]
    assert lvis.class_agnostic_last and not lvis.class_agnostic and lvis.detections_per_img == 300


def test_the_small_recipes_are_the_cards_commands():
    cards = {
        name: [c for c in entry["commands"] if c.startswith("dynamask train")] for name, entry in manifest().items()
    }
    recipes = {"people": cards["people"][0], "people-switch": cards["people"][1], "objects": cards["objects"][0],
               "shapes-1": cards["shapes"][0], "shapes-2": cards["shapes"][1]}  # fmt: skip
    for name, card in recipes.items():
        mine, theirs = parsed(RECIPES[name].command), cli.build_parser().parse_args(words_of(card))
        given = {key: value for key, value in vars(theirs).items() if value is not None and key not in ("out", "run")}
        assert {key: as_list(getattr(mine, key)) for key in given} == {k: as_list(v) for k, v in given.items()}, name


def manifest() -> dict:
    from dynamask.models.weights import list_bundled

    return list_bundled()


def as_list(value):
    return list(value) if isinstance(value, tuple | list) else value


def test_flags_that_are_given_win_whatever_their_value():
    words = ["train", "--recipe", "shapes-1", "--data", "shapes:7:50", "--out", "x", "--warm-start", "0", "--jitter"]
    arguments = cli.build_parser().parse_args(words)
    apply_recipe(arguments)
    assert (arguments.warm_start, arguments.jitter, arguments.data) == (0.0, True, "shapes:7:50")
    assert (arguments.iterations, arguments.stop_at, arguments.model) == (2400, 1450, "dynamask_mobilenetv2_fpn_small")
    objects = cli.build_parser().parse_args(["train", "--recipe", "objects", "--out", "x"])
    apply_recipe(objects)
    assert objects.merge_classes is True
    started = cli.build_parser().parse_args(["train", "--recipe", "coco-r50-1x", "--init", "a.pth", "--out", "x"])
    apply_recipe(started)
    assert started.backbone_weights is None, "what is given brings its own backbone"


def test_a_recipe_or_a_model_is_needed():
    arguments = cli.build_parser().parse_args(["train", "--data", "shapes:1:5", "--out", "x"])
    with pytest.raises(DynaMaskError, match="give --model or --recipe"):
        apply_recipe(arguments)
    with pytest.raises(DynaMaskError, match="recipe 'coco' is unknown; `dynamask recipes` lists them"):
        recipe_named("coco")


def test_the_list_and_one_recipe(capsys):
    assert cli.main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^{re.escape(name)}\s", out, flags=re.MULTILINE) for name in RECIPES)
    assert cli.main(["recipes", "coco-r50-1x"]) == 0
    out = capsys.readouterr().out
    assert "37.6" in out and "torchrun --nproc-per-node 8 -m dynamask train --recipe coco-r50-1x" in out
    assert "estimate: 0.261 s per step" in out
    assert cli.main(["recipes", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(RECIPES) and rows[0]["iterations"] == 96_109
    assert cli.main(["recipes", "nonsense"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def photographs(tmp_path):
    """Two pictures of COCO's classes 1 and 18, by their ids there."""
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    for i in (1, 2):
        Image.new("RGB", (64, 64), (40 * i, 90, 60)).save(tmp_path / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        box = [8.0, 8.0, 40.0, 40.0]
        polygon = [8, 8, 48, 8, 48, 48, 8, 48]
        annotations.append({"id": i, "image_id": i, "category_id": (1, 18)[i - 1], "bbox": box, "area": 1600,
                            "iscrowd": 0, "segmentation": [polygon]})  # fmt: skip
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    return tmp_path


def short_road(folder, weights, *more) -> list[str]:
    return [
        *("train", "--recipe", "coco-r50-short", "--data", str(folder), "--init", str(weights)),
        *("--iterations", "1", "--batch-size", "1", "--min-sizes", "64", "--test-min-size", "64", "--mask-rois", "2"),
        *("--workers", "0", "--rpn-post-nms-train", "20", "--out", str(folder / "run"), *more),
    ]


@pytest.mark.slow
def test_the_short_road_trains_the_mask_branch_of_torchvisions_detector(photographs, capsys):
    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    torch.save(theirs, photographs / "detector.pth")
    assert cli.main(short_road(photographs, photographs / "detector.pth")) == 0, capsys.readouterr().err
    ours = load_file(photographs / "run" / "last.safetensors")
    rows = theirs["roi_heads.box_predictor.cls_score.weight"][[0, 1, 18]]
    assert torch.equal(ours["roi_heads.box_predictor.cls_score.weight"], rows)
    name = "backbone.fpn.layer_blocks.0.0.weight"
    assert torch.equal(ours[name], theirs[name])
    assert not any("mask_head" in key or "mask_predictor." in key for key in ours)


@pytest.mark.slow
def test_a_frozen_detector_must_know_the_classes(photographs, capsys):
    torch.save(maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict(), photographs / "detector.pth")
    path = photographs / "annotations.json"
    path.write_text(path.read_text().replace("dog", "unicorn"))
    assert cli.main(short_road(photographs, photographs / "detector.pth")) == 2
    assert "COCO has no unicorn, so a frozen detector would never find it" in capsys.readouterr().err
    assert not (photographs / "run").exists()
