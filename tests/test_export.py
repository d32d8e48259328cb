"""The exported mask branch equals the eager one for any number of regions, pictures and map sizes."""

import json
import subprocess
import sys

import pytest
import torch
from helpers.small_models import count_rows, pyramid, some_rois, tiny_branch, tiny_model
from torch import nn

from dynamask.models.masks.export import (
    RoutedMasks,
    export_mask_branch,
    load_exported,
    save_exported,
)
from dynamask.structures import MASK_SIZES, DynaMaskError


def model_with(branch) -> nn.Module:
    """A tiny model around a mask branch whose predictors, offsets and switch are far from their start."""
    model = tiny_model()
    model.mask_branch = branch
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return model_with(tiny_branch())


@pytest.fixture(scope="module")
def routed(model):
    return export_mask_branch(model)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def inputs(count: int, pictures: int, side: int) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Maps, rois and labels; the regions are of every pyramid level."""
    rois = some_rois(count, pictures, side, seed=count)
    return pyramid(8, pictures, side), rois, torch.arange(count) % 3 + 1


def check_routed(program, branch, count: int, pictures: int, side: int, choice: torch.Tensor) -> dict:
    features, rois, labels = inputs(count, pictures, side)
    out = program(*features.values(), rois, labels, choice)
    state = branch.begin(features, rois, labels)
    used = torch.where(choice < 0, state.switch_logits.argmax(dim=1), choice)
    expected = branch.masks(state, used)
    assert torch.equal(out["size_index"], used)
    torch.testing.assert_close(out["switch_logits"], state.switch_logits, atol=1e-5, rtol=1e-5)
    for k, size in enumerate(MASK_SIZES):
        rows = torch.nonzero(used == k)[:, 0]
        assert torch.equal(out[f"rows_{size}"], rows) and out[f"masks_{size}"].shape == (len(rows), size, size)
        for row, probs in zip(rows.tolist(), out[f"masks_{size}"]):
            torch.testing.assert_close(probs, expected[row], atol=1e-5, rtol=0)
    return out


@pytest.mark.parametrize(
    ("count", "pictures", "side"), [(0, 1, 128), (1, 1, 128), (2, 2, 192), (5, 3, 160), (9, 1, 320)]
)
def test_routed_program_equals_the_branch(model, routed, count, pictures, side):
    check_routed(routed.module(), model.mask_branch, count, pictures, side, torch.arange(count) % 4)
    check_routed(routed.module(), model.mask_branch, count, pictures, side, torch.full((count,), count % 4))


def test_the_switch_chooses_where_no_size_is_given(model, routed):
    out = check_routed(routed.module(), model.mask_branch, 8, 2, 256, torch.full((8,), -1))
    assert len(set(out["size_index"].tolist())) > 1
    mixed = check_routed(routed.module(), model.mask_branch, 8, 2, 256, torch.tensor([-1, 3, -1, 0, 0, -1, 2, 1]))
    assert mixed["size_index"][1] == 3


def test_a_stage_runs_for_its_regions_alone(model):
    calls = []
    module = RoutedMasks(model.mask_branch)
    handles = count_rows(module.region_fpn.stages, calls)
    features, rois, labels = inputs(5, 1, 128)
    module(*features.values(), rois, labels, torch.tensor([0, 3, 1, 2, 1]))
    for handle in handles:
        handle.remove()
    assert calls == [(0, 4), (1, 2), (2, 1)]


@pytest.mark.parametrize("size", [14, 112])
def test_fixed_program_equals_the_branch(model, size):
    program = export_mask_branch(model, size).module()
    for count in (0, 1, 4):
        features, rois, labels = inputs(count, 2, 128)
        found = program(*features.values(), rois, labels)
        assert found.shape == (count, size, size)
        state = model.mask_branch.begin(features, rois, labels)
        expected = model.mask_branch.masks(state, torch.full((count,), MASK_SIZES.index(size)))
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_class_agnostic_branch_is_exported_too():
    model = model_with(tiny_branch(classes=1, agnostic=True))
    check_routed(export_mask_branch(model).module(), model.mask_branch, 4, 1, 128, torch.tensor([3, 0, 1, 2]))


def test_a_program_is_saved_and_loaded(model, routed, tmp_path):
    path = save_exported(routed, tmp_path / "branch.pt2", model)
    assert [file.name for file in tmp_path.iterdir()] == ["branch.pt2"]
    program, about = load_exported(path)
    check_routed(program, model.mask_branch, 3, 2, 160, torch.tensor([2, -1, 0]))
    assert about["mask_sizes"] == [14, 28, 56, 112] and about["size"] is None
    assert about["class_names"] == list(model.config.class_names) and about["inputs"][-1] == "size_index"


@pytest.mark.slow
def test_loading_a_program_needs_only_torchvision(model, routed, tmp_path):
    path = save_exported(routed, tmp_path / "branch.pt2", model)
    script = (
        "import json, sys, torch, torchvision\n"
        f"program = torch.export.load({str(path)!r}).module()\n"
        "maps = [torch.zeros(1, 8, 128 // s, 128 // s) for s in (4, 8, 16, 32)]\n"
        "rois, label = torch.tensor([[0., 10., 10., 70., 90.]]), torch.tensor([2])\n"
        "out = program(*maps, rois, label, torch.tensor([3]))\n"
        "print(json.dumps([list(out['masks_112'].shape), 'dynamask' in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env={})
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [[1, 112, 112], False]


def test_what_cannot_be_exported_or_read_is_refused(model, routed, tmp_path):
    with pytest.raises(DynaMaskError, match="mask size 30 does not exist; choose one of 14"):
        export_mask_branch(model, 30)
    with pytest.raises(DynaMaskError, match="does not end in .pt2; ONNX"):
        save_exported(routed, tmp_path / "branch.onnx", model)
    with pytest.raises(DynaMaskError, match="does not exist"):
        load_exported(tmp_path / "none.pt2")
    (tmp_path / "text.pt2").write_text("nothing")
    with pytest.raises(DynaMaskError, match="holds no exported mask branch"):
        load_exported(tmp_path / "text.pt2")
