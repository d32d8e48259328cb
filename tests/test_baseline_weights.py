"""Baselines in the trainer, on the disk, in the predictor and on the command line."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.runs import flags
from helpers.small_models import TINY, picture, target, tiny_model
from safetensors.torch import load_file, save_file

from app import catalog as app_catalog
from dynamask import cli
from dynamask.config import MASK_BRANCHES
from dynamask.engine.train import freeze
from dynamask.models import weights
from dynamask.models.weights import initialise, read_header, save_branch, save_model
from dynamask.predict import TwoStagePredictor, load
from dynamask.structures import MASK_SIZES, DynaMaskError

BRANCH = "roi_heads.mask_branch."
BASELINES = [name for name in MASK_BRANCHES if name != "region_fpn"]


def changed(model, seed=9):
    """The same model with other weights everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def detector_model():
    return changed(tiny_model())


@pytest.fixture
def shelf(tmp_path, monkeypatch, detector_model):
    """A folder of bundled weights with one detector, "toy"."""
    folder = tmp_path / "checkpoints"
    save_model(detector_model, folder / "toy.safetensors")
    (folder / "manifest.json").write_text(json.dumps({"toy": {"file": "toy.safetensors"}}))
    monkeypatch.setattr(weights, "checkpoint_dir", lambda: folder)
    return folder


@pytest.fixture
def baseline(shelf, tmp_path):
    """A model "fcn:28" on the detector of "toy", its whole file, and its branch on the shelf as "toy-fcn-28"."""
    model = tiny_model(seed=1, mask_branch="fcn:28")
    initialise(model, shelf / "toy.safetensors")
    whole, branch = tmp_path / "whole.safetensors", shelf / "baselines" / "toy-fcn-28.safetensors"
    save_model(model.eval(), whole, training={"images_seen": 8})
    save_branch(whole, branch, "toy")
    (branch.parent / "manifest.json").write_text(json.dumps({"toy-fcn-28": {"file": branch.name}}))
    return model, whole, branch


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# -- training --------------------------------------------------------------------------------------------------------


def drawn_regions(name: str, shelf, steps: int = 3) -> list[torch.Tensor]:
    """The RoIs that the mask branch is given in some training steps from one seed."""
    model = tiny_model(seed=len(name), mask_branch=name).train()
    initialise(model, shelf / "toy.safetensors", "detector")
    freeze(model, "detector")
    torch.manual_seed(0)
    seen, begin = [], model.mask_branch.begin
    model.mask_branch.begin = lambda features, rois, labels: seen.append(rois) or begin(features, rois, labels)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        images = [picture(seed=step), picture(seed=step + 10)]
        losses = model(images, [target(objects=2), target(objects=1)])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(len(rois) for rois in seen)
    return seen


def test_every_branch_draws_the_same_regions_on_a_frozen_detector(shelf):
    ours = drawn_regions("region_fpn", shelf)
    for name in ("fcn:28", "pointrend", "panet"):
        for expected, found in zip(ours, drawn_regions(name, shelf), strict=True):
            assert torch.equal(expected, found), name


@pytest.mark.parametrize("name", BASELINES)
def test_a_whole_model_trains_and_predicts(name):
    model = tiny_model(mask_branch=name)
    losses = model.train()([picture(), picture(seed=1)], [target(), target(objects=0)])
    assert "loss_mask" in losses and not {"loss_budget", "loss_entropy", "loss_boundary"} & set(losses)
    assert all(torch.isfinite(loss) for loss in losses.values())
    found = model.eval()([picture(48, 80)])[0]
    assert found["masks"].shape == (5, 1, 48, 80)
    assert found["mask_size"].tolist() == [model.mask_branch.mask_sizes[-1]] * 5


def test_a_switch_that_is_not_there_cannot_be_all_that_trains():
    with pytest.raises(DynaMaskError, match="--freeze all-but-switch leaves nothing to train"):
        freeze(tiny_model(mask_branch="fcn:14"), "all-but-switch")


# -- first weights ---------------------------------------------------------------------------------------------------


def test_the_detector_is_taken_from_a_model_with_another_mask_branch(shelf, detector_model):
    model = tiny_model(seed=1, mask_branch="panet")
    before = {key: value.clone() for key, value in model.mask_branch.state_dict().items()}
    said = initialise(model, shelf / "toy.safetensors")
    assert "loaded the detector of" in said and "(region_fpn)" in said and "(panet) has random weights" in said
    assert same(before, model.mask_branch.state_dict())
    assert same(detector_model.detector.state_dict(), model.detector.state_dict())


def test_equal_models_share_everything_unless_the_detector_alone_is_asked_for(shelf, detector_model):
    model = tiny_model(seed=1)
    before = {key: value.clone() for key, value in model.mask_branch.state_dict().items()}
    initialise(model, shelf / "toy.safetensors", "detector")
    assert same(before, model.mask_branch.state_dict())
    assert "all weights" in initialise(model, shelf / "toy.safetensors")
    assert same(detector_model.state_dict(), model.state_dict())


def test_what_does_not_fit_is_refused_and_nothing_is_loaded(shelf):
    other = tiny_model(seed=1, mask_branch="fcn:28", box_head_channels=16)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(DynaMaskError, match=r"the detector of .* does not fit the model: 6 tensors differ"):
        initialise(other, shelf / "toy.safetensors")
    assert same(before, other.state_dict())
    with pytest.raises(DynaMaskError, match="do not fit the model"):
        initialise(tiny_model(mask_branch="fcn:28"), shelf / "toy.safetensors", "all")
    with pytest.raises(DynaMaskError, match="part 'head' is unknown; choose one of all, detector"):
        initialise(other, shelf / "toy.safetensors", "head")


# -- weights on the disk ---------------------------------------------------------------------------------------------


def test_a_branch_alone_is_joined_with_its_detector(baseline):
    model, whole, branch = baseline
    assert all(key.startswith(BRANCH) for key in load_file(branch))
    assert branch.stat().st_size < whole.stat().st_size / 5
    header = read_header(branch)
    assert header["detector"]["name"] == "toy" and header["training"] == {"images_seen": 8}
    for source in (branch, "toy-fcn-28"):
        predictor = load(source)
        assert same(model.state_dict(), predictor.model.state_dict())
    assert list(weights.list_baselines()) == ["toy-fcn-28"] and list(weights.list_bundled()) == ["toy"]
    with pytest.raises(DynaMaskError, match="choose from toy, toy-fcn-28"):
        load("toy-fcn-29")
    again = tiny_model(seed=4, mask_branch="fcn:28")
    initialise(again, branch)
    assert same(model.state_dict(), again.state_dict())


def test_another_detector_is_refused(baseline, shelf, detector_model):
    _, whole, branch = baseline
    save_model(changed(tiny_model(seed=3)), shelf / "toy.safetensors")
    with pytest.raises(DynaMaskError, match="another version of the detector 'toy'"):
        load(branch)
    with pytest.raises(DynaMaskError, match=r"the detector of .*whole.* is not that of 'toy': \d+ tensors differ"):
        save_branch(whole, branch.with_name("new.safetensors"), "toy")
    assert not branch.with_name("new.safetensors").exists()
    (shelf / "toy.safetensors").unlink()
    with pytest.raises(DynaMaskError, match=r"its detector is missing: the file toy\.safetensors"):
        load(branch)
    (shelf / "manifest.json").write_text("{}")
    with pytest.raises(DynaMaskError, match="its detector is missing: no bundled weights are called 'toy'"):
        load(branch)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("dynamask-branch-1", {}),
        ("dynamask-branch-1", {"detector": '"toy"'}),
        ("dynamask-branch-1", {"detector": '{"name": "toy"}'}),
        ("dynamask-1", {"config": "{"}),
        ("dynamask-1", {"training": ""}),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, name, entries):
    header = {"format": name, "config": "{}", "training": "{}", **entries}
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors", metadata=header)
    with pytest.raises(DynaMaskError, match=r"the header of .* is damaged"):
        load(tmp_path / "w.safetensors")


# -- prediction ------------------------------------------------------------------------------------------------------


def pixels() -> torch.Tensor:
    return (picture(64, 80) * 255).to(torch.uint8)


def test_a_branch_without_a_switch_takes_its_finest_size():
    one_size, four_sizes = (TwoStagePredictor(changed(tiny_model(mask_branch=name))) for name in ("fcn:28", "bifpn"))
    assert one_size.mask_sizes == (28,) and four_sizes.mask_sizes == MASK_SIZES
    assert not one_size.has_switch and TwoStagePredictor(tiny_model()).has_switch
    for predictor, size in ((one_size, 28), (four_sizes, 112)):
        p = predictor(pixels(), score=0.0, all_sizes=True)
        assert len(p) == 5 and p.mask_size.tolist() == [size] * 5 and p.masks.shape == (5, 64, 80)
        assert p.macs.tolist() == [predictor.costs.macs_per_instance[MASK_SIZES.index(size)]] * 5
        assert p.image_macs["switch"] == 0 and p.mask_sizes == predictor.mask_sizes
        assert p.switch_probs is None
        assert {result["mask_size"] for result in p.to_coco(1)} == {size}
    assert four_sizes.select(p, "fixed:28").mask_size.tolist() == [28] * 5
    with pytest.raises(DynaMaskError, match="these weights give no masks of 112; choose one of 28"):
        one_size(pixels(), score=0.0).mask_at(0, 112)
    with pytest.raises(DynaMaskError, match="'size' needs a switch.*fixed:14, fixed:28, fixed:56, fixed:112"):
        four_sizes(pixels(), policy="size")
    nothing = one_size(pixels(), boxes=np.zeros((0, 4)), all_sizes=True)
    assert len(nothing) == 0 and nothing.masks.shape == (0, 64, 80)


# -- command line ----------------------------------------------------------------------------------------------------


def run(capsys, *words) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_costs_of_a_baseline(capsys):
    words = ("costs", "--model", "dynamask_mobilenetv2_fpn_small")
    code, out, _ = run(capsys, *words, "--mask-branch", "fcn:28")
    assert code == 0 and "28 x 28" in out and "14 x 14" not in out and "switch" not in out
    _, out, _ = run(capsys, *words, "--mask-branch", "panet", "--json", "-")
    costs = json.loads(out)
    assert costs["mask_branch"] == "panet" and costs["sizes_given"] == costs["mask_sizes"] == [14, 28, 56, 112]
    assert costs["switch_macs"] == 0 and len(costs["macs_per_instance"]) == 4
    code, out, error = run(capsys, *words, "--mask-branch", "fcn:29")
    assert code == 2 and error.startswith("dynamask: error: mask branch 'fcn:29' is unknown") and error.count("\n") == 1


def test_train_from_a_bundled_detector_then_evaluate_and_predict(shelf, tmp_path, capsys):
    scenes = tmp_path / "scenes"
    assert cli.main(["shapes", "--images", "3", "--seed", "7", "--out", str(scenes)]) == 0
    known = json.loads((scenes / "annotations.json").read_text())["categories"]
    names = ("__background__", *(category["name"] for category in known))
    save_model(changed(tiny_model(class_names=names)), shelf / "toy.safetensors")
    capsys.readouterr()
    out = tmp_path / "run"
    words = ["train", "--data", scenes, "--model", "dynamask_mobilenetv2_fpn_small", "--mask-branch", "pointrend"]
    words += ["--init", "toy", "--freeze", "detector", "--iterations", 2, "--batch-size", 1, "--out", out]
    code, _, error = run(capsys, *words, *flags(TINY))
    assert code == 0 and "without its mask branch (region_fpn); the mask branch (pointrend) has random weights" in error
    weights = out / "last.safetensors"
    trained, start = load_file(weights), load_file(shelf / "toy.safetensors")
    assert all(torch.equal(trained[key], start[key]) for key in start if not key.startswith(BRANCH))
    save_branch(weights, tmp_path / "branch.safetensors", "toy")
    words = ("evaluate", "--weights", tmp_path / "branch.safetensors", "--data", scenes)
    code, text, _ = run(capsys, *words, "--boxes", "gt", "--json", "-")
    summary = json.loads(text)
    assert code == 0 and summary["size_shares"] == {"14": 0.0, "28": 0.0, "56": 0.0, "112": 1.0}
    assert math.isfinite(summary["mean_mask_iou"]) and summary["mean_macs_per_instance"] > 0
    for policy in (["--policy", "oracle"], ["--policy", "random"], ["--budget", "1", "--budget-scope", "dataset"]):
        code, _, error = run(capsys, "evaluate", "--weights", weights, "--data", scenes, *policy)
        assert code == 2 and "over a data set needs a switch" in error and error.count("\n") == 1
    image = next((scenes / "images").glob("*.png"))
    words = ["predict", "--weights", weights, "--image", image, "--out", tmp_path / "out", "--score", 0]
    code, text, _ = run(capsys, *words)
    assert code == 0 and "mask 112" in text and (tmp_path / "out" / f"{image.stem}.png").is_file()
    code, _, error = run(capsys, *words[:-4], "--out", tmp_path / "none", "--policy", "size")
    assert code == 2 and "the policy 'size' needs a switch" in error and not (tmp_path / "none").exists()
    words = ["report", "budget-curve", "--weights", weights, "--data", scenes, "--out", tmp_path / "r"]
    code, _, error = run(capsys, *words)
    assert code == 2 and "have no trained switch" in error and not (tmp_path / "r").exists()


def test_an_init_part_without_init_is_refused(tmp_path, capsys):
    words = ("train", "--data", "shapes:0:4", "--model", "dynamask_mobilenetv2_fpn_small", "--out", tmp_path / "run")
    code, _, error = run(capsys, *words, "--init-part", "detector")
    assert code == 2 and "--init-part needs --init" in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mask-branch fcn:28 --switch-weight 1", "branch fcn:28 has no switch, so --switch-weight"),
        ("--mask-branch panet --edge-weight 1 --budget-target 0.5", "has no switch, so --budget-target"),
        ("--mask-branch pointrend --edge-weight 1", "pointrend predicts no edges, so --edge-weight"),
        ("--model solov2_mobilenetv2_fpn_small --mask-weight 2", "has no mask branch, so --mask-weight"),
        ("--model solov2_mobilenetv2_fpn_small --no-detach-switch", "has no mask branch, so --detach-switch"),
    ],
)
def test_losses_that_a_model_does_not_have_are_refused(tmp_path, capsys, words, message):
    start = ("train", "--data", "shapes:0:4", "--model", "dynamask_mobilenetv2_fpn_small", "--out", tmp_path / "run")
    code, _, error = run(capsys, *start, *words.split())
    assert code == 2 and message in error and "would have no effect; leave it out or" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


# -- the app ---------------------------------------------------------------------------------------------------------


def test_the_app_offers_the_others_alone_and_needs_a_switch(baseline, monkeypatch):
    _, _, branch = baseline
    assert app_catalog.open_catalog("toy", "cpu", "torch").names == ["toy"]
    for name in ("toy-fcn-28", str(branch)):
        with pytest.raises(DynaMaskError, match=r"the page needs a switch, and these weights have none: .* fcn:28"):
            app_catalog.open_catalog(name, "cpu", "torch")


def test_the_bundled_baselines_are_whole_and_rest_on_the_bundled_detector():
    own, found = weights.list_bundled(), weights.list_baselines()
    assert not set(own) & set(found)
    for name, entry in found.items():
        header = read_header(weights.bundled_path(name))
        assert header["detector"] == entry["detector"] and header["config"]["mask_branch"] == entry["mask_branch"]
        assert entry["detector"]["sha256"] == weights.detector_digest(weights.bundled_path(entry["detector"]["name"]))
