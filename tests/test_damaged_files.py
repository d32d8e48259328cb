"""Weights and states that are damaged, foreign or wrong: one sentence, and nothing is loaded."""

import json
import math

import pytest
import torch
from helpers.command_line import run
from helpers.runs import toy_run
from helpers.small_models import TINY_SOLO, tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dynamask.config import BaseModelConfig
from dynamask.engine.checkpoint import load_newest_run, load_run, run_file, save_run
from dynamask.engine.train import train
from dynamask.models.build import build_model
from dynamask.models.self_test import self_test, self_test_problems
from dynamask.models.weights import load_model, save_model, verify_file
from dynamask.structures import DynaMaskError


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "sound.safetensors"
    save_model(tiny_model(), path, training={"seed": 1})
    return path


def with_config(source, path, **changes):
    """A copy of weights with other values in its configuration."""
    with safe_open(source, "pt") as stored:
        header = stored.metadata()
    header["config"] = json.dumps({**json.loads(header["config"]), **changes})
    save_file(load_file(source), path, header)
    return path


def with_tensors(source, path, change):
    """A copy of weights with changed tensors."""
    with safe_open(source, "pt") as stored:
        header = stored.metadata()
    save_file({name: change(name, value) for name, value in load_file(source).items()}, path, header)
    return path


# Files


def test_equal_weights_give_equal_bytes(tmp_path):
    model, files = tiny_model(), [tmp_path / f"{number}.safetensors" for number in range(4)]
    for file in files:
        save_model(model, file, training={"seed": 1, "names": ["é"]})
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], "pt") as stored:
        assert json.loads(stored.metadata()["training"]) == {"seed": 1, "names": ["é"]}
    assert load_model(files[0]).config == model.config


# Headers


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"frozen_stride": "x"}, "frozen_stride is 'x' and not of the type int"),
        ({"class_names": math.nan}, "class_names is nan"),
        ({"class_names": ["a", 3]}, "class_names"),
        ({"fpn_channels": True}, "fpn_channels is True"),
        ({"fpn_channels": 10**300}, "fpn_channels is 1000"),
        ({"fpn_channels": -16}, None),
        ({"fpn_channels": 4000}, "fpn_channels is 4000, and no tensor is as wide"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is [0.5, 0.5]"),
        ({"image_std": [0.5, 0.5, math.inf]}, "image_std"),
        ({"min_sizes": [[64]]}, "min_sizes is [[64]]"),
        ({"refine": {"a": [1] * 99}}, "refine is {'a': [1, 1"),
        ({"detections_per_img": 1.5}, "detections_per_img is 1.5"),
        ({"anchor_sizes": []}, None),
        ({"aggregation": [1]}, "damaged: [1] is no object"),
        ({"family": {"a": 1}}, "of the family"),
        ({"family": "one-stage"}, "unknown keys"),
        ({"backbone": None}, "backbone is None"),
        ({"backbone": ""}, "is not the plain name of a timm model"),
        ({"backbone": "hf-hub:timm/resnet18.a1_in1k"}, "is not the plain name of a timm model"),
        ({"backbone": "local-dir:/tmp/x"}, "is not the plain name of a timm model"),
        ({"backbone": "timm/resnet18"}, "is not the plain name of a timm model"),
        ({"backbone": "no_such_backbone"}, "is not a timm model with feature maps"),
        ({"backbone": "vit_tiny_patch16_224"}, "backbone vit_tiny_patch16_224"),
    ],
)
def test_a_damaged_configuration_is_one_sentence(sound, tmp_path, monkeypatch, changes, problem):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    path = with_config(sound, tmp_path / "damaged.safetensors", **changes)
    with pytest.raises(DynaMaskError) as caught:
        load_model(path)
    assert problem is None or problem in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))
    (found,) = verify_file(path)
    assert found.startswith("it cannot be loaded: ")


@pytest.mark.parametrize("text", ["[" * 100_000, "[1, 2]", "null", '{"a": ', "{}x"])
def test_a_header_that_is_no_object_is_one_sentence(sound, tmp_path, capsys, text):
    path = tmp_path / "damaged.safetensors"
    save_file(load_file(sound), path, {"format": "dynamask-1", "config": text, "training": "{}"})
    code, _, err = run(capsys, "weights", "verify", path)
    assert code == 2 and len(err) == 1 and "damaged.safetensors is damaged" in err[0]


def test_settings_of_both_families_survive_the_check():
    for model in (tiny_model(), build_model(TINY_SOLO)):
        stored = json.loads(json.dumps(model.config.to_dict()))
        assert BaseModelConfig.from_dict(stored) == model.config


# Numbers


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda _, v: torch.zeros_like(v), "tensors hold only zeros"),
        (lambda _, v: v.to(torch.int32), "tensors hold numbers of another type than the model's"),
        (lambda _, v: torch.full_like(v, 1e30) if v.is_floating_point() else v, "tensors hold numbers above 1e+10"),
        (
            lambda n, v: v * math.nan if n == "rpn.head.conv.0.0.bias" else v,
            "1 tensors hold numbers that are not finite, first rpn.head.conv.0.0.bias",
        ),
    ],
)
def test_numbers_that_no_training_gives_are_refused(sound, tmp_path, change, problem):
    path = with_tensors(sound, tmp_path / "wrong.safetensors", change)
    with pytest.raises(DynaMaskError, match=r"wrong\.safetensors are damaged: ") as caught:
        load_model(path)
    assert problem in str(caught.value) and problem in verify_file(path)[0]


def test_half_precision_is_no_damage(sound, tmp_path):
    half = with_tensors(sound, tmp_path / "half.safetensors", lambda _, v: v.half() if v.is_floating_point() else v)
    assert verify_file(half) == []


@pytest.mark.parametrize("make", [tiny_model, lambda: build_model(TINY_SOLO)])
def test_the_self_test_finds_other_weights_and_forgives_rounding(make):
    model = make().eval()
    stored = json.loads(json.dumps(self_test(model)))
    assert self_test_problems(model, stored) == [] == self_test_problems(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1 + 1e-6 * torch.randn(value.shape, generator=generator))
    assert self_test_problems(model, stored) == []
    with torch.no_grad():
        for value in model.backbone.fpn.parameters():
            value.mul_(-1.1)
    (problem,) = self_test_problems(model, stored)
    assert problem.startswith("in the self-test its ") and "differ from the stored figures" in problem


def test_outputs_that_are_not_finite_fail_the_self_test(sound, tmp_path):
    negative = with_tensors(sound, tmp_path / "x.safetensors", lambda n, v: -v if n.endswith("running_var") else v)
    (problem,) = verify_file(negative)
    assert problem.startswith("its self-test fails (") or "are not finite" in problem


# States


DAMAGED = {
    "step": ["x", -1, True, 10**9, 3],
    "settings": [None, []],
    "model": [{}, {"weight": 1}, []],
    "average": [{}, {"state": {}, "updates": "x"}, None, {"state": {}, "updates": 1}],
    "optimizer": [{}, {"state": {}, "param_groups": []}, {"state": {0: {}}, "param_groups": [{}]}, 7],
    "loader": [{}, {"position": "x", "seed": 0, "pictures": 4}],
    "random": [{}, [], [{}], [{"cpu": torch.zeros(3, dtype=torch.uint8), "cuda": []}]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in DAMAGED.items() for value in values])
def test_a_damaged_state_is_one_sentence(tmp_path, key, value):
    run = toy_run(tmp_path)
    run.save()
    path = run_file(tmp_path, 0)
    torch.save({**load_run(path), key: value}, path)
    with pytest.raises(DynaMaskError) as caught:
        toy_run(tmp_path).resume()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + 2 * len(str(path))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("damage", [{}, {"exp_avg": 1.0}, {"momentum_buffer": "x"}, {"step": torch.zeros(3)}])
def test_a_damaged_state_of_the_optimizer_is_refused(tmp_path, optimizer, damage):
    run = toy_run(tmp_path, optimizer=optimizer)
    train(run, progress=False)
    path = run_file(tmp_path, run.step)
    state = load_run(path)
    whole = state["optimizer"]["state"][0]
    state["optimizer"]["state"][0] = {**whole, **damage} if damage else {"unknown": whole.popitem()[1]}
    torch.save(state, path)
    with pytest.raises(DynaMaskError, match="its state is damaged"):
        toy_run(tmp_path, optimizer=optimizer).resume()


def test_the_options_of_the_optimizer_come_from_the_settings(tmp_path):
    run = toy_run(tmp_path)
    train(run, progress=False)
    path = run_file(tmp_path, run.step)
    state = load_run(path)
    state["optimizer"]["param_groups"][0] |= {"betas": 0.5, "lr": "x", "initial_lr": None}
    torch.save(state, path)
    resumed = toy_run(tmp_path)
    resumed.resume()
    own, theirs = resumed.optimizer.param_groups[0], run.optimizer.param_groups[0]
    assert own["betas"] == theirs["betas"] and own["lr"] == theirs["initial_lr"]


def test_a_state_in_a_damaged_zip_is_one_sentence(tmp_path):
    run = toy_run(tmp_path)
    run.save()
    path = run_file(tmp_path, 0)
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # method 0, stored, becomes 8, deflated
        content[content.index(signature) + place] = 8
    path.write_bytes(content)
    with pytest.raises(DynaMaskError, match="cannot be read"):
        load_run(path)


def test_a_state_beyond_the_end_of_the_run_is_refused(tmp_path):
    run = toy_run(tmp_path)
    run.save()
    save_run(tmp_path, {**load_run(run_file(tmp_path, 0)), "step": 10**9}, keep=2)
    with pytest.raises(DynaMaskError, match="is that of step 1000000000, and the run has 4 steps"):
        toy_run(tmp_path).resume()


def test_optimizer_tensors_of_other_shapes_are_refused(tmp_path):
    run = toy_run(tmp_path)
    train(run, progress=False)
    state = load_newest_run(tmp_path)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(5)
    save_run(tmp_path, state, keep=2)
    with pytest.raises(DynaMaskError, match="its state is damaged .the optimizer's tensors have other shapes"):
        toy_run(tmp_path).resume()


def test_a_damaged_structure_gives_way_to_the_state_before(tmp_path):
    train(toy_run(tmp_path), progress=False)
    newest = run_file(tmp_path, 4)
    torch.save({**load_run(newest), "optimizer": {}}, newest)
    resumed = toy_run(tmp_path)
    with pytest.warns(UserWarning, match=r"run-000004\.pt cannot be read \(its optimizer cannot be used\)"):
        resumed.resume()
    assert resumed.step == 2
