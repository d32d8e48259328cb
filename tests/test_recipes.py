"""Every recipe becomes configurations, its command parses, its steps follow from its epochs; flags given win."""

import argparse
import dataclasses
import json
import math
import re
import shlex

import pytest
import torch
from helpers.command_line import check_command, refusal, run
from PIL import Image
from safetensors.torch import load_file
from torchvision.models.detection import maskrcnn_resnet50_fpn

from dynamask import cli
from dynamask.cli.recipes import apply_recipe
from dynamask.cli.training import given_fields, with_epochs
from dynamask.config import ModelConfig
from dynamask.engine.distributed import Ranks
from dynamask.models.weights import list_bundled
from dynamask.presets import default_training, model_config
from dynamask.recipes import RECIPES, recipe_named
from dynamask.structures import DynaMaskError
from dynamask.training_config import LossConfig, TrainConfig

PAPER = [r for r in RECIPES.values() if "path/to" in r.data_flags]


def parsed(command: str) -> argparse.Namespace:
    """Arguments of `dynamask` in a command, with or without torchrun, its recipe applied."""
    words = shlex.split(command)
    arguments = cli.build_parser().parse_args(words[words.index("dynamask") + 1 :])
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
        expected = None if (key, value) == ("refine", (1.0, 1.0, 1.0)) else value  # dense
        assert fields.get(key, getattr(arguments, key)) == expected, key
    for command in found.after:
        check_command(command)
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
    papers = [name for name in RECIPES if name.startswith(("coco", "cityscapes", "lvis"))]
    assert all(RECIPES[name].flags["switch_gradient"] == 64 for name in papers), "Eq. 4 as a sum over 64 regions"
    lvis = configurations(parsed(RECIPES["lvis-r50"].command))[2]
    assert lvis.class_agnostic_last and not lvis.class_agnostic and lvis.detections_per_img == 300


SMALL = {
    f"{weights}-{number}": (weights, number - 1)
    for weights, steps in (("things", 8), ("shapes", 2))
    for number in range(1, steps + 1)
}


@pytest.mark.parametrize("name", SMALL)
def test_the_small_recipes_are_the_commands_of_the_cards(name):
    weights, place = SMALL[name]
    trainings = [c for c in list_bundled()[weights]["commands"] if c.startswith("dynamask train")]
    recipe, card = (parsed(command) for command in (RECIPES[name].command, trainings[place]))
    given = {key: value for key, value in vars(card).items() if value is not None and key not in ("out", "run")}
    assert {key: as_list(getattr(recipe, key)) for key in given} == {k: as_list(v) for k, v in given.items()}


def as_list(value):
    return list(value) if isinstance(value, tuple | list) else value


def test_flags_that_are_given_win_whatever_their_value():
    given = parsed("dynamask train --recipe shapes-1 --data shapes:7:50 --out x --warm-start 0 --jitter")
    assert (given.warm_start, given.jitter, given.data) == (0.0, True, ["shapes:7:50"])
    assert (given.iterations, given.stop_at, given.model) == (2400, 1450, "dynamask_mobilenetv2_fpn_small")
    assert parsed("dynamask train --recipe shapes-1 --data shapes:7:50 --out x").jitter is False
    initialised = parsed("dynamask train --recipe coco-r50-1x --init a.pth --out x")
    assert initialised.backbone_weights is None, "the initial weights include the backbone"


def test_epochs_replace_the_steps_of_a_recipe():
    given = parsed("dynamask train --recipe shapes-1 --data shapes:7:50 --out x --epochs 3")
    assert (given.epochs, given.iterations, given.stop_at) == (3, None, None)


@pytest.mark.parametrize(("epochs", "pictures", "steps"), [(3, 50, 38), (1, 4, 1), (2, 3, 2), (None, 50, 3000)])
def test_epochs_become_steps_rounded_up(epochs, pictures, steps, capsys):
    config = with_epochs(TrainConfig(batch_size=4, iterations=3000), epochs, pictures, Ranks())
    assert (config.iterations, config.batch_size) == (steps, 4)
    assert (f"--epochs {epochs} with {pictures} " in capsys.readouterr().err) == (epochs is not None)


def test_a_recipe_or_a_model_is_needed():
    with pytest.raises(DynaMaskError, match="give --model or --recipe"):
        parsed("dynamask train --data shapes:1:5 --out x")
    with pytest.raises(DynaMaskError, match="recipe 'coco' is unknown; `dynamask recipes` lists them"):
        recipe_named("coco")


def test_the_list_and_one_recipe(capsys):
    code, out, _ = run(capsys, "recipes")
    assert code == 0 and all(re.search(rf"^{re.escape(name)}\s", out, flags=re.MULTILINE) for name in RECIPES)
    code, out, _ = run(capsys, "recipes", "coco-r50-1x")
    assert code == 0 and "37.6" in out and "estimate: 0.261 s per step" in out
    assert "torchrun --nproc-per-node 8 -m dynamask train --recipe coco-r50-1x" in out
    rows = json.loads(run(capsys, "recipes", "--json", "-")[1])
    assert [row["name"] for row in rows] == list(RECIPES) and rows[0]["iterations"] == 96_109
    assert "recipe 'nonsense' is unknown" in refusal(capsys, "recipes", "nonsense")


@pytest.fixture
def photographs(tmp_path):
    """Two pictures of COCO's classes 1 and 18, by their ids there."""
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    polygon = [8, 8, 48, 8, 48, 48, 8, 48]
    square = {"bbox": [8.0, 8.0, 40.0, 40.0], "area": 1600, "iscrowd": 0, "segmentation": [polygon]}
    for i, category in ((1, 1), (2, 18)):
        Image.new("RGB", (64, 64), (40 * i, 90, 60)).save(tmp_path / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        annotations.append({"id": i, "image_id": i, "category_id": category, **square})
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    return tmp_path


@pytest.fixture
def short_training(photographs):
    """The words of the short recipe on these pictures, with torchvision's detector at random."""
    torch.manual_seed(0)
    torch.save(maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict(), photographs / "detector.pth")
    words = f"train --recipe coco-r50-short --data {photographs} --init {photographs}/detector.pth --iterations 1 "
    words += "--batch-size 1 --min-sizes 64 --test-min-size 64 --mask-rois 2 --workers 0 --rpn-post-nms-train 20 "
    return f"{words}--out {photographs}/run".split()


@pytest.mark.slow
def test_the_short_recipe_trains_the_mask_branch_of_torchvisions_detector(photographs, short_training, capsys):
    code, _, err = run(capsys, *short_training)
    assert code == 0, err
    theirs = torch.load(photographs / "detector.pth")
    ours = load_file(photographs / "run" / "last.safetensors")
    rows = theirs["roi_heads.box_predictor.cls_score.weight"][[0, 1, 18]]
    assert torch.equal(ours["roi_heads.box_predictor.cls_score.weight"], rows)
    name = "backbone.fpn.layer_blocks.0.0.weight"
    assert torch.equal(ours[name], theirs[name])
    assert not any("mask_head" in key or "mask_predictor." in key for key in ours)


@pytest.mark.slow
def test_a_frozen_detector_must_know_the_classes(photographs, short_training, capsys):
    path = photographs / "annotations.json"
    path.write_text(path.read_text().replace("dog", "unicorn"))
    message = refusal(capsys, *short_training)
    assert "COCO has no unicorn" in message and not (photographs / "run").exists()
