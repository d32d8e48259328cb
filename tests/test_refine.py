"""Boundary refinement: stages on listed cells equal the dense stages there, and masks depend on no other region."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from helpers.command_line import run
from helpers.small_models import branch_of, picture, pyramid, some_rois, target, tiny_branch, tiny_model, tiny_solo
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d, roi_align

import dynamask
from dynamask.config import ModelConfig, parse_refine
from dynamask.engine.optimizer import build_optimizer
from dynamask.models.build import create_model
from dynamask.models.masks import region_fpn
from dynamask.models.masks.export import export_mask_branch
from dynamask.models.weights import load_model, save_model
from dynamask.ops.listed import band_cells, gather_cells, gather_patches, sample_crops, scatter_cells, upsample
from dynamask.ops.map_rows import MapRows, apply_to_rows, patch_weight, sample_weight, step_layer
from dynamask.presets import model_config
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.training_config import LossConfig, TrainConfig

REFINE = (0.5, 0.4, 0.2)
LABELS = torch.tensor([1, 2, 3, 1, 2])
EVERY = torch.arange(5)


def started(branch, count: int = 5):
    return branch.begin(pyramid(), some_rois(5)[:count], LABELS[:count])


# Listed cells


def test_the_cells_nearest_to_zero_are_listed_in_order():
    logits = torch.randn(3, 7, 7, generator=torch.Generator().manual_seed(0))
    cells = band_cells(logits, 14, 50)
    distance = upsample(logits, 14).abs().flatten(1)
    assert cells.shape == (3, 50) and cells.dtype == torch.int64 and bool((cells.diff(dim=1) > 0).all())
    for listed, values in zip(cells, distance):
        rest = torch.ones(196, dtype=torch.bool).index_fill(0, listed, False)
        assert values[listed].max() < values[rest].min()


def test_of_equal_distances_the_lower_cell_is_listed():
    assert band_cells(torch.zeros(2, 4, 4), 8, 5).tolist() == [[0, 1, 2, 3, 4]] * 2
    signs = torch.ones(1, 4, 4)
    signs[0, :, 1::2] = -1  # the upsampled values are ±0.25, ±0.5 and ±1
    distance = upsample(signs, 8).abs().flatten()
    expected = sorted(sorted(range(64), key=lambda i: (float(distance[i]), i))[:20])
    assert band_cells(signs, 8, 20)[0].tolist() == expected
    assert band_cells(torch.zeros(0, 4, 4), 8, 5).shape == (0, 5)


def test_values_are_read_and_written_at_cells():
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    cells = torch.tensor([[0, 5, 15], [3, 4, 8]])
    values = gather_cells(maps, cells)
    assert torch.equal(values[1, :, 2], maps[1, :, 2, 0])
    written = scatter_cells(maps, cells, values + 1)
    assert torch.equal(gather_cells(written, cells), values + 1) and int((written != maps).sum()) == 18
    columns = F.unfold(maps, 3, padding=1)  # (2, 27, 16)
    assert torch.equal(gather_patches(maps, cells), columns.gather(2, cells[:, None].expand(-1, 27, -1)))


def test_crops_at_cells_are_those_of_roi_align():
    map_ = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    rois = torch.tensor(
        [
            [0, 3.0, 5.0, 40.0, 30.0],
            [1, -30.0, -20.0, 60.0, 50.0],
            [1, 80.0, 50.0, 130.0, 99.0],
            [0, 5.0, 5.0, 5.5, 6.0],
        ]
    )
    cells = torch.arange(0, 196, 3).repeat(4, 1)
    expected = gather_cells(roi_align(map_, rois, 14, 1 / 8, sampling_ratio=1, aligned=True), cells)
    assert (expected == 0).any(), "cells outside the map"
    torch.testing.assert_close(sample_crops(map_, rois, 8, 14, cells), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_rows_are_convolved_as_maps(groups):
    generator = torch.Generator().manual_seed(0)
    maps, weight = torch.randn(2, 4, 6, 6, generator=generator), torch.randn(3, 4, 3, 3, generator=generator)
    cells, bias = torch.tensor([[0, 1, 5, 20, 35], [6, 7, 8, 29, 30]]), torch.randn(3, generator=generator)
    rows = MapRows(maps, cells)
    plain = gather_cells(F.conv2d(maps, weight, bias, padding=1), cells)
    found = apply_to_rows(rows.patches(), patch_weight(weight), bias).transpose(1, 2)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)
    layer = torch.nn.Conv2d(4, 18 * groups, 1)
    offsets = 5 * layer(maps)
    moved = gather_cells(deform_conv2d(maps, offsets, weight, bias, padding=1), cells)
    steps = apply_to_rows(
        gather_cells(maps, cells).transpose(1, 2), *step_layer(5 * layer.weight.flatten(1), 5 * layer.bias)
    )
    found = apply_to_rows(rows.sample(steps, groups), sample_weight(weight, groups), bias).transpose(1, 2)
    torch.testing.assert_close(found, moved, atol=1e-4, rtol=0)


# Stages


@pytest.mark.parametrize("deformable", [True, False])
def test_with_every_cell_listed_values_and_gradients_are_those_of_the_dense_stages(deformable):
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(5, size, size, generator=generator) for size in MASK_SIZES]
    found = []
    for refine in (None, REFINE):
        branch = tiny_branch(refine=refine)
        fpn = branch.region_fpn
        fpn.set_deformable(deformable)
        if refine is not None:
            fpn.listed = (None, *(size * size for size in MASK_SIZES[1:]))
        features = {key: map_.requires_grad_() for key, map_ in pyramid().items()}
        state = branch.begin(features, some_rois(), LABELS)
        logits = [fpn.mask_logits(state, k, EVERY) for k in range(4)]
        logits += [fpn.edge_logits(state, k, EVERY) for k in range(4)]
        loss = sum((values * weight).sum() / 1000 for values, weight in zip(logits, 2 * weights))
        loss.backward()
        gradients = {name: p.grad for name, p in branch.named_parameters()} | {k: v.grad for k, v in features.items()}
        found.append((logits, gradients))
    for ours, dense in zip(found[1][0], found[0][0]):
        torch.testing.assert_close(ours, dense, atol=1e-4, rtol=0)
    for name, dense in found[0][1].items():
        if dense is not None:
            scale = float(dense.abs().max()) + 1e-3
            torch.testing.assert_close(found[1][1][name] / scale, dense / scale, atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("refine", [None, REFINE])
def test_masks_without_gradients_are_those_of_training(monkeypatch, refine):
    monkeypatch.setattr(region_fpn, "CACHED_BYTES", 3 * 4 * 72 * 28 * 28)  # several parts of several regions
    branch = tiny_branch(refine=refine)
    fpn, state = branch.region_fpn, started(branch)
    trained = [fpn.mask_logits(state, k, EVERY) for k in range(4)]
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            fast = started(branch)
            for k, expected in enumerate(trained):
                torch.testing.assert_close(fpn.mask_logits(fast, k, EVERY), expected, atol=1e-4, rtol=0)
            for found, expected in zip(fast.features, state.features):
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_elsewhere_the_feature_and_the_logits_are_the_upsampled_coarse_ones():
    branch = tiny_branch(refine=REFINE).eval()
    fpn, state = branch.region_fpn, started(branch)
    for k, size in enumerate(MASK_SIZES[1:], start=1):
        logits, edges = fpn.mask_logits(state, k, EVERY), fpn.edge_logits(state, k, EVERY)
        cells = state.cells[k]
        assert cells.shape == (5, round(REFINE[k - 1] * size * size))
        region = torch.relu(fpn.stages[k - 1].reduce(state.features[k - 1]))
        region = F.interpolate(region, scale_factor=2.0, mode="bilinear", align_corners=False)
        zero = torch.zeros(cells.shape)
        pairs = [(state.features[k], region), (logits, upsample(state.logits[k - 1], size))]
        pairs.append((edges, upsample(fpn.edge_logits(state, k - 1, EVERY), size)))
        for found, elsewhere in pairs:
            blank = zero if found.ndim == 3 else zero[:, None].expand(-1, found.shape[1], -1)
            torch.testing.assert_close(scatter_cells(found, cells, blank), scatter_cells(elsewhere, cells, blank))
            assert not torch.equal(found, elsewhere)


@torch.no_grad()
@pytest.mark.parametrize("agnostic", [False, True])
def test_a_mask_depends_on_no_other_region_and_not_on_the_order_of_sizes(agnostic):
    branch = tiny_branch(refine=(1.0, 0.4, 0.2), agnostic=agnostic).eval()
    whole = branch.masks(started(branch), torch.full((5,), 3))
    steps = started(branch)
    for choice in ([0, 0, 1, 0, 3], [1, 2, 0, 0, 0], [3, 3, 3, 3, 3]):
        masks = branch.masks(steps, torch.tensor(choice))
    for row in range(5):
        alone = branch.begin(pyramid(), some_rois()[row : row + 1], LABELS[row : row + 1])
        torch.testing.assert_close(branch.masks(alone, torch.tensor([3]))[0], whole[row], atol=1e-4, rtol=0)
        torch.testing.assert_close(masks[row], whole[row], atol=1e-4, rtol=0)


@torch.no_grad()
def test_some_regions_of_a_state_keep_their_logits_and_cells():
    branch = tiny_branch(refine=REFINE).eval()
    state = started(branch)
    full = branch.masks(state, torch.tensor([3, 2, 1, 0, 3]))
    some = state.take(torch.tensor([4, 0]))
    assert [len(rows) for rows in some.rows] == [2, 2, 2, 2] and some.cells[3].shape == (2, 2509)
    again = branch.masks(some, torch.tensor([3, 3]))
    assert torch.equal(again[0], full[4]) and torch.equal(again[1], full[0])
    assert [len(rows) for rows in state.take(torch.tensor([1])).rows] == [1, 1, 1, 0]


@torch.no_grad()
def test_a_branch_with_a_class_agnostic_last_size_refines():
    config = dataclasses.replace(model_config("dynamask_mobilenetv2_fpn_small"), class_agnostic_last=True)
    config = dataclasses.replace(config, region_channels=16, fpn_channels=8, refine=REFINE)
    branch = branch_of(dataclasses.replace(config, class_names=tuple("-abc"))).eval()
    assert branch.masks(started(branch), torch.full((5,), 3))[0].shape == (112, 112)


# Costs


@torch.no_grad()
@pytest.mark.parametrize("refine", [(1.0, 0.4, 0.2), (0.5, 0.25, 0.125), (0.3, 1.0, 1.0), (0.5, 1.0, 0.1)])
@pytest.mark.parametrize("choice", [[0], [1], [2], [3], [2, 0, 3, 1], []])
def test_the_stated_macs_are_those_executed(refine, choice):
    branch = tiny_branch(refine=refine).eval()
    costs, features = branch.costs, pyramid()
    with FlopCounterMode(display=False) as counter:
        state = branch.begin(features, some_rois(len(choice)), torch.arange(len(choice)) % 3 + 1)
        branch.masks(state, torch.tensor(choice, dtype=torch.int64))
    image = costs.image_macs([(128 // stride,) * 2 for stride in costs.projection_strides], len(choice))
    switch = image.pop("switch")
    expected = sum(costs.macs_per_instance[k] for k in choice) + switch + 2 * sum(image.values())
    assert counter.get_total_flops() == 2 * expected


def test_costs_of_the_papers_widths_shrink_as_the_shares():
    dense = branch_of(model_config("dynamask_resnet50_fpn")).costs.macs_per_instance
    refined = branch_of(model_config("dynamask_resnet50_fpn", refine=(1.0, 0.4, 0.2))).costs.macs_per_instance
    assert refined[:2] == dense[:2]
    assert refined[2] / 1e9 == pytest.approx(0.770, abs=0.003) and refined[3] / 1e9 == pytest.approx(0.852, abs=0.003)
    ones = branch_of(model_config("dynamask_resnet50_fpn", refine=(1.0, 1.0, 1.0))).costs.macs_per_instance
    assert ones == dense


# Training


def test_every_parameter_has_a_gradient_and_a_size_only_that_of_its_own_loss():
    branch = tiny_branch(refine=REFINE)
    branch.switch_enabled = False
    fpn, generator = branch.region_fpn, torch.Generator().manual_seed(0)
    targets = [(torch.rand(5, size, size, generator=generator) > 0.5).float() for size in MASK_SIZES]
    sum(branch.losses(started(branch), targets).values()).backward()
    assert all(float(p.grad.abs().max()) > 0 for p in fpn.parameters())
    fpn.zero_grad()
    fpn.mask_logits(started(branch), 3, EVERY).sum().backward()
    assert fpn.mask_predictors[2].weight.grad is None, "the coarse logits have their own loss"


def test_the_signal_boundary_trains_the_switch():
    branch = tiny_branch(loss_config=LossConfig(switch_signal="boundary"), refine=REFINE)
    targets = [torch.ones(5, size, size) for size in MASK_SIZES]
    losses = branch.losses(started(branch), targets, torch.zeros(5, 4), torch.full((5,), 2.0))
    losses["loss_boundary"].backward()
    assert float(branch.switch.fc[2].weight.grad.abs().max()) > 0


@pytest.mark.parametrize("count", [0, 5])
def test_checkpointed_stages_have_equal_gradients(count):
    branch = tiny_branch(refine=REFINE)
    targets = [torch.ones(count, size, size) for size in MASK_SIZES]
    found = []
    for checkpointed in (False, True):
        branch.region_fpn.checkpoint_stages = checkpointed
        branch.zero_grad()
        losses = branch.losses(started(branch, count), targets, torch.zeros(count, 4))
        sum(losses.values()).backward()
        found.append([p.grad.clone() for p in branch.parameters()])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("deformable", [True, False])
def test_a_step_in_bfloat16_has_float32_losses_near_those_of_float32(deformable):
    branch = tiny_branch(refine=REFINE)
    branch.region_fpn.set_deformable(deformable)
    targets = [torch.ones(5, size, size) for size in MASK_SIZES]
    exact = branch.losses(started(branch), targets, torch.zeros(5, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = branch.losses(started(branch), targets, torch.zeros(5, 4))
    sum(half.values()).backward()
    for name in ("loss_mask", "loss_edge"):
        assert half[name].dtype == torch.float32
        assert float(half[name].detach()) == pytest.approx(float(exact[name].detach()), rel=0.05)


def test_a_model_trains_a_step():
    model = tiny_model(refine=REFINE).train()
    optimizer = build_optimizer(model, TrainConfig(lr=0.01))
    losses = model([picture()], [target()])
    sum(losses.values()).backward()
    before = model.mask_branch.region_fpn.stages[2].aggregate.attend.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.mask_branch.region_fpn.stages[2].aggregate.attend.weight)


# Export, files and commands


@torch.no_grad()
@pytest.mark.parametrize("size", [None, pytest.param(112, marks=pytest.mark.slow)])
def test_exported_programs_equal_the_branch(size):
    model = tiny_model(refine=REFINE)
    model.mask_branch = tiny_branch(refine=REFINE)
    program = export_mask_branch(model.eval(), size).module()
    for count in (0, 1, 4):
        features, rois, labels = pyramid(side=160), some_rois(count, side=160), torch.arange(count) % 3 + 1
        choice = torch.arange(count).flip(0) if size is None else torch.full((count,), 3)
        state = model.mask_branch.begin(features, rois, labels)
        expected = model.mask_branch.masks(state, choice)
        out = program(*features.values(), rois, labels, *([choice] if size is None else []))
        for row, k in enumerate(choice.tolist()):
            found = (
                out[row] if size else out[f"masks_{MASK_SIZES[k]}"][out[f"rows_{MASK_SIZES[k]}"].tolist().index(row)]
            )
            torch.testing.assert_close(found, expected[row], atol=1e-4, rtol=0)


def test_shares_are_checked():
    assert ModelConfig(refine=(1, 1.0, 1)).refine is None and parse_refine("dense") == (1.0, 1.0, 1.0)
    for wrong in ((0.5, 0.5), (0.0, 0.5, 0.5), (0.5, 0.5, 1.5)):
        with pytest.raises(DynaMaskError, match="give three shares of cells above 0 and up to 1"):
            ModelConfig(refine=wrong)
    with pytest.raises(DynaMaskError, match="mask branch fcn:28 has no stages to refine"):
        ModelConfig(refine=REFINE, mask_branch="fcn:28")
    with pytest.raises(DynaMaskError, match="give three shares as 1,0.4,0.2, or dense"):
        parse_refine("half")


def test_a_weights_file_keeps_the_shares_and_loading_can_change_them(tmp_path):
    refined, plain = tmp_path / "refined.safetensors", tmp_path / "solo.safetensors"
    save_model(tiny_model(refine=REFINE), refined)
    assert load_model(refined).config.refine == REFINE
    assert (
        dynamask.load(refined).costs.macs_per_instance[3]
        < dynamask.load(refined, refine="dense").costs.macs_per_instance[3]
    )
    assert dynamask.load(refined, refine="1,0.4,0.2").model.config.refine == (1.0, 0.4, 0.2)
    older = {key: value for key, value in tiny_model().config.to_dict().items() if key != "refine"}
    assert ModelConfig.from_dict(older).refine is None
    save_model(tiny_solo(), plain)
    with pytest.raises(DynaMaskError, match="one-stage model has no stages to refine"):
        dynamask.load(plain, refine="dense")


def test_costs_states_the_shares(capsys):
    command = ("costs", "--model", "dynamask_mobilenetv2_fpn_small", "--json", "-")
    dense = json.loads(run(capsys, *command)[1])
    refined = json.loads(run(capsys, *command, "--refine", "1,0.4,0.2")[1])
    assert dense["refine"] is None and refined["refine"] == [1.0, 0.4, 0.2]
    assert refined["macs_per_instance"][3] < 0.65 * dense["macs_per_instance"][3]
    assert refined["cells"] == [196, 784, 1254, 2509] and dense["cells"] == [size * size for size in MASK_SIZES]
    assert refined["dense_macs_per_instance"] == dense["macs_per_instance"] == dense["dense_macs_per_instance"]
    line = run(capsys, *command[:-2], "--refine", "1,0.4,0.2")[1].splitlines()[4]
    assert line.split()[:3] == ["112", "x", "112"] and line.endswith("of dense, 2509 cells")
    code, _, err = run(capsys, *command, "--refine", "1,2")
    assert code == 2 and "give three shares of cells" in err[0]
    code, _, err = run(capsys, *command, "--refine", "half")
    assert code == 2 and "give three shares as 1,0.4,0.2, or dense" in err[0]


def test_a_preset_that_refines_can_have_another_mask_branch():
    name = "dynamask_nanodet_plus_m"
    assert model_config(name).refine is not None and model_config(name, mask_branch="fcn:28").refine is None
    with pytest.raises(DynaMaskError, match="no stages to refine"):
        model_config(name, mask_branch="fcn:28", refine=(1.0, 0.4, 0.2))
    head = create_model(name, 2, mask_branch="panet", fpn_channels=8, region_channels=16).mask_branch.head
    assert head.map_strides == model_config(name).stage_strides
