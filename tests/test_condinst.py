"""CondInst with and without SODAR's aggregation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import finding_condinst, picture, target, tiny_condinst

from dynamask.config import AggregationConfig
from dynamask.models.build import create_model
from dynamask.models.solo.condinst import CondInst, anchors_of, conditional_masks, match_locations
from dynamask.models.solo.costs import mask_strides, network_macs, representation_macs
from dynamask.models.weights import load_model, save_model
from dynamask.ops.means import CountingMeans
from dynamask.predict import predictor_of
from dynamask.presets import list_models, model_config
from dynamask.structures import DynaMaskError

torch.set_num_threads(1)
STATIC = AggregationConfig(context="without", weights="static", neighbours="8")
MOVING = AggregationConfig(deformable=True, border="zero")
PRESETS = [name for name in list_models("one-stage") if "condinst" in name]


def test_presets_name_condinst_alone_and_with_aggregation():
    assert {"condinst_mobilenetv2_fpn_small", "condinst_resnet50_fpn"} <= set(PRESETS)
    assert {f"sodar_{name}" for name in PRESETS if not name.startswith("sodar")} <= set(PRESETS)
    for name in PRESETS:
        config = model_config(name)
        assert config.kind == "condinst" and (config.aggregation is not None) == name.startswith("sodar")
    model = create_model("sodar_condinst_mobilenetv2_fpn_small", num_classes=4)
    assert isinstance(model, CondInst) and model.aggregation is not None


@pytest.mark.parametrize("aggregation", [None, AggregationConfig(), STATIC, MOVING])
def test_losses_reach_every_parameter(aggregation):
    model = tiny_condinst(aggregation)
    losses = model([picture(64, 80)], [target(64, 80)])
    assert set(losses) == set(model.loss_weights)
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    sum(losses.values()).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None and grad.isfinite().all() for grad in trained.values())
    if aggregation is None:  # otherwise the last layer of the aggregation starts by ignoring most of its input
        assert all(grad.any() for name, grad in trained.items() if name.startswith("head."))


def test_a_picture_without_an_object_trains():
    model = tiny_condinst(AggregationConfig())
    losses = model([picture(64, 80)], [target(64, 80, objects=0)])
    assert losses["loss_dice"].item() == 0
    sum(losses.values()).backward()


def test_a_counting_pass_counts_what_the_losses_are_divided_by():
    model, images, targets = tiny_condinst(), [picture(64, 80), picture(64, 64)], [target(64, 80), target(64, 64)]
    model.means = counted = CountingMeans(lambda values: values)
    assert model(images, targets) == {}
    encoded, placed = model.encode(images, targets)
    anchors = torch.cat([anchors_of(grid.category.shape[-2:], s) for grid, s in zip(encoded.grids, (8, 16, 32, 64))])
    positive = sum(int((match_locations(anchors, each["boxes"]) >= 0).sum()) for each in placed)
    assert positive > 0 and counted.counts["locations"].item() == positive
    assert 0 < counted.counts["regions"].item() <= positive


@pytest.mark.parametrize("aggregation", [None, AggregationConfig()])
def test_detections_are_predicted_like_those_of_other_models(aggregation):
    predictor = predictor_of(finding_condinst(aggregation))
    pixels = np.random.default_rng(0).integers(0, 256, (48, 72, 3)).astype(np.uint8)
    found = predictor(pixels, score=0.0)
    count = len(found)
    assert predictor.family == "one-stage" and 0 < count <= 8
    assert found.masks.shape == (count, 48, 72) and found.masks.dtype == torch.bool
    assert found.boxes.shape == (count, 4) and (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
    assert (found.scores.diff() <= 0).all() and (found.labels >= 1).all() and (found.labels <= 3).all()
    assert (found.macs > 0).all() and set(found.image_macs) == {"body", "fpn", "head"}
    for level, cell in zip(found.cells.level.tolist(), found.cells.cell.tolist()):
        rows, columns = found.cells.encoded.grids[level].category.shape[-2:]
        assert cell < rows * columns
    with pytest.raises(DynaMaskError, match="no grid cells"):
        found.cells.explain(0)


@pytest.mark.parametrize("aggregation", [None, AggregationConfig()])
def test_a_saved_model_detects_the_same(aggregation, tmp_path):
    model, image = finding_condinst(aggregation), picture(64, 80)
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert type(again) is CondInst and again.config == model.config
    (ours,), (theirs,) = model([image]), again([image])
    assert len(ours["scores"]) and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert all(torch.equal(a, b) for a, b in zip(model.probe(image).values(), again.probe(image).values()))


def test_a_batch_of_two_sizes_gives_the_masks_of_single_pictures():
    model = finding_condinst()
    images = [picture(64, 96), picture(64, 64, seed=1)]
    together, alone = model(images)[0], model(images[:1])[0]
    assert torch.equal(together["cell"], alone["cell"]) and torch.equal(together["masks"], alone["masks"])


@pytest.mark.slow
def test_two_pictures_are_learned():
    model = tiny_condinst(score_threshold=0.2)
    images, targets = [picture(64, 80), picture(64, 64, seed=1)], [target(64, 80), target(64, 64)]
    optimizer, totals = torch.optim.AdamW(model.parameters(), lr=2e-3), []
    for _ in range(40):
        losses = model(images, targets)
        total = sum(losses[name] * weight for name, weight in model.loss_weights.items())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append({name: loss.item() for name, loss in losses.items()})
    assert totals[-1]["loss_dice"] < 0.6 * totals[0]["loss_dice"]
    assert totals[-1]["loss_category"] < 0.6 * totals[0]["loss_category"]
    assert totals[-1]["loss_box_reg"] < 0.8 * totals[0]["loss_box_reg"]


def test_costs_count_the_mask_network_and_all_parts():
    plain, more = (tiny_condinst(aggregation) for aggregation in (None, AggregationConfig()))
    assert representation_macs(plain.config) == 10 * 8 + 8 * 8 + 8 and mask_strides(plain.config) == (8, 8, 8, 8)
    ours, theirs = network_macs(plain, 64, 64), network_macs(more, 64, 64)
    assert ours["body"] > 0 and ours["head"] > 0 and ours["dense masks"] == 0
    # 1×1 convolutions: θ on 64 + 16 + 4 + 1 locations of 16 channels, and the context at stride 8
    assert theirs["head"] - ours["head"] == 85 * 16 * 945 + 64 * (16 * 16 + 16 * 16)


def test_settings_without_an_effect_are_refused():
    with pytest.raises(DynaMaskError, match="CondInst has no voting"):
        tiny_condinst(voting="score")
    with pytest.raises(DynaMaskError, match="no direct_weight"):
        tiny_condinst(AggregationConfig(direct_weight=1.0))
    with pytest.raises(DynaMaskError, match="fpn_channels is 18"):
        model_config("condinst_resnet50_fpn", fpn_channels=18)


def test_conditional_masks_against_a_loop():
    generator = torch.Generator().manual_seed(1)
    controllers = torch.randn(2, 169, 3, 4, generator=generator)
    feature = torch.randn(2, 8, 5, 6, generator=generator)
    image, positions = torch.tensor([0, 1]), torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[1.0, 0.0], [1.0, 2.0]]])
    found = conditional_masks(controllers, image, positions, feature, 16)
    for n in range(2):
        for s in range(2):
            row, column = positions[n, s].int().tolist()
            theta = controllers[n, :, row, column]
            y = ((torch.arange(5) + 0.5) * 8 - (row + 0.5) * 16) / 128
            x = ((torch.arange(6) + 0.5) * 8 - (column + 0.5) * 16) / 128
            maps = torch.cat([x.expand(5, 6)[None], y[:, None].expand(5, 6)[None], feature[n]])
            maps = F.conv2d(maps[None], theta[:80].view(8, 10, 1, 1), theta[80:88]).relu()
            maps = F.conv2d(maps, theta[88:152].view(8, 8, 1, 1), theta[152:160]).relu()
            expected = F.conv2d(maps, theta[160:168].view(1, 8, 1, 1), theta[168:169])[0, 0]
            assert torch.allclose(found[n, s], expected, atol=1e-4)


@pytest.mark.parametrize("border", ["clamp", "zero"])
def test_neighbours_outside_the_map(border):
    generator = torch.Generator().manual_seed(1)
    controllers, feature = torch.randn(1, 169, 3, 4, generator=generator), torch.randn(1, 8, 5, 6, generator=generator)
    positions = torch.tensor([[[-1.0, 2.0], [0.0, 2.0]]])
    outside, inside = conditional_masks(controllers, torch.tensor([0]), positions, feature, 16, border)[0]
    assert inside.any() and torch.equal(outside, inside if border == "clamp" else torch.zeros_like(inside))


def test_locations_learn_the_smallest_box_of_their_range():
    anchors = torch.cat([anchors_of((side, side), stride) for side, stride in ((16, 8), (8, 16))])
    boxes = torch.tensor([[20.0, 20.0, 60.0, 60.0], [30.0, 30.0, 50.0, 50.0], [0.0, 0.0, 124.0, 124.0]])
    matched = match_locations(anchors, boxes)
    assert matched[4 * 16 + 4].item() == 1  # (36, 36): in all three; the smallest
    assert matched[256 + 3 * 8 + 3].item() == 2  # (56, 56) of stride 16: the large one alone reaches 64 px
    assert matched[0].item() == -1 and match_locations(anchors, boxes[:0]).max() == -1
