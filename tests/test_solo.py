"""The one-stage family: assignment, losses, suppression, aggregation, whole models, and the constants of Table VII."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import picture, target
from helpers.small_models import tiny_solo as small
from scipy.ndimage import map_coordinates
from torch.utils.flop_counter import FlopCounterMode

from dynamask.config import NEIGHBOURS, AggregationConfig, SoloConfig
from dynamask.models.build import build_solo
from dynamask.models.solo.aggregation import (
    NeighbourAggregation,
    base_positions,
    decode,
    dynamic_network,
    neighbour_positions,
    sample_vectors,
    split_theta,
    starting_theta,
)
from dynamask.models.solo.costs import network_macs, trainable_parameters
from dynamask.models.solo.inference import mask_ious, matrix_nms, points_nms, voting_weights
from dynamask.models.solo.losses import category_loss, dice_loss
from dynamask.models.solo.targets import assign, centre_cells, centres_of_mass
from dynamask.models.weights import initialise, save_model
from dynamask.presets import model_config
from dynamask.structures import DynaMaskError

torch.set_num_threads(1)

AGGREGATIONS = [
    None,
    AggregationConfig(),
    AggregationConfig(neighbours="none", context="without", layers=1),
    AggregationConfig(neighbours="column", weights="static", layers=2, kernel=1),
    AggregationConfig(neighbours="row", context_fusion="concat", layers=4),
    AggregationConfig(neighbours="8", deformable=True, border="zero", theta_kernel=3),
    AggregationConfig(context="only"),
    AggregationConfig(direct_weight=1.0),
]


# --- which cells learn what ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("centre", "sides", "frame", "grid", "cells"),
    [
        ((50, 50), (10, 10), (100, 100), 10, [44, 45, 54, 55]),  # centre ± 1 px straddles four cells
        ((55, 55), (10, 10), (100, 100), 10, [55]),
        ((55, 55), (500, 500), (100, 100), 10, [44, 45, 46, 54, 55, 56, 64, 65, 66]),  # never more than 3×3
        ((2, 2), (60, 60), (100, 100), 10, [0]),  # −4 … 8 px, cut at the border
        ((99.9, 99.9), (10, 10), (100, 100), 10, [99]),
        ((100, 100), (1, 1), (100, 100), 10, [99]),  # on the far border itself
        ((75, 25), (2, 2), (50, 100), 4, [6, 7, 10, 11]),  # the frame counts: rows of 12.5, columns of 25 px
    ],
)
def test_centre_region_against_hand_cases(centre, sides, frame, grid, cells):
    assert centre_cells(centre, sides, frame, grid, 0.2) == cells


def test_ranges_include_both_ends_and_a_size_can_have_three_levels():
    grids, ranges = (4,) * 5, SoloConfig().scale_ranges
    for side, levels in ((40, [0]), (48, [0, 1]), (96, [0, 1, 2]), (97, [1, 2]), (800, [4]), (0, [])):
        target = {
            "centres": torch.tensor([[200.0, 200.0]]),
            "boxes": torch.tensor([[0.0, 0.0, side, side]]),
            "labels": torch.tensor([1]),
        }
        found = [level for level, own in enumerate(assign([target], (400, 400), grids, ranges, 0.2)) if len(own)]
        assert found == levels


def test_one_cell_has_one_object_the_later_one():
    target = {
        "centres": torch.tensor([[55.0, 55.0], [56.0, 56.0], [math.nan, math.nan]]),
        "boxes": torch.tensor([[50.0, 50.0, 60.0, 60.0]] * 3),
        "labels": torch.tensor([1, 2, 3]),
    }
    own = assign([{k: v[:0] for k, v in target.items()}, target], (100, 100), (10,), ((1, 96),), 0.2)[0]
    assert own.image.tolist() == [1] and own.cell.tolist() == [55]
    assert own.instance.tolist() == [1] and own.label.tolist() == [2]


def test_centre_of_mass_is_in_continuous_pixels():
    masks = torch.zeros(3, 10, 12)
    masks[0, 2:4, 4:8] = 1
    masks[1, 9, 11] = 1
    centres = centres_of_mass(masks)
    assert centres[:2].tolist() == [[6.0, 3.0], [11.5, 9.5]] and centres[2].isnan().all()


# --- losses and suppression ------------------------------------------------------------------------------------------


def test_dice_of_a_constant_prediction_and_in_half_precision():
    truth = torch.zeros(1, 250, 256)
    truth[:, :20, :25] = 1
    logits = torch.full((1, 250, 256), math.log(0.01 / 0.99))
    p, n, t = 0.01, 64_000, 500
    assert dice_loss(logits, truth).item() == pytest.approx(1 - 2 * p * t / (n * p * p + t + 0.002), abs=1e-5)
    wide = torch.full((1, 512, 512), 20.0, dtype=torch.float16)  # the sum of squares, 262,144, is no float16
    assert dice_loss(wide, torch.ones(1, 512, 512)).item() == pytest.approx(0.0, abs=1e-5)


def test_category_loss_against_the_formula():
    logits, labels = torch.tensor([[0.3, -1.2], [2.0, 0.1], [-0.4, 0.9]]).double(), torch.tensor([0, 1, 2])
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist()):
        for index, value in enumerate(row):
            p = 1 / (1 + math.exp(-value))
            right = label == index + 1
            total += -0.25 * (1 - p) ** 2 * math.log(p) if right else -0.75 * p**2 * math.log(1 - p)
    assert category_loss(logits, labels).item() == pytest.approx(total / 3, rel=1e-5)
    assert category_loss(logits, labels * 0).item() > 0


def test_points_nms_looks_up_left_and_up_left_alone():
    scores = torch.tensor([[0.5, 0.6, 0.1], [0.4, 0.3, 0.7], [0.9, 0.2, 0.7]])[None, None]
    kept = points_nms(scores)[0, 0] > 0
    expected = [[True, True, False], [False, False, True], [True, False, True]]
    assert kept.tolist() == expected


def naive_matrix_nms(ious, labels, scores, kernel, sigma):
    out = []
    for j in range(len(scores)):
        decay = 1.0
        for i in range(j):
            if labels[i] != labels[j]:
                continue
            own = max([ious[k][i] for k in range(i) if labels[k] == labels[i]], default=0.0)
            if kernel == "gaussian":
                decay = min(decay, math.exp(-sigma * ious[i][j] ** 2) / math.exp(-sigma * own**2))
            elif own < 1:
                decay = min(decay, (1 - ious[i][j]) / (1 - own))
        out.append(scores[j] * decay)
    return out


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_matrix_nms_against_a_loop(kernel, count):
    generator = torch.Generator().manual_seed(count)
    masks = torch.rand(count, 6, 7, generator=generator) > 0.4
    labels = torch.randint(1, 3, (count,), generator=generator)
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    ious = mask_ious(masks)
    found = matrix_nms(ious, labels, scores, kernel, 2.0)
    expected = naive_matrix_nms(ious.tolist(), labels.tolist(), scores.tolist(), kernel, 2.0)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_three_equal_masks_and_an_unknown_kernel():
    ious, ones = torch.ones(3, 3), torch.ones(3)
    assert matrix_nms(ious, ones.long(), ones).tolist() == pytest.approx([1, math.exp(-2), math.exp(-2)])
    assert matrix_nms(ious, ones.long(), ones, "linear").tolist() == [1, 0, 0]
    assert matrix_nms(ious, torch.tensor([1, 2, 3]), ones).tolist() == [1, 1, 1]
    with pytest.raises(DynaMaskError, match="choose 'gaussian' or 'linear'"):
        matrix_nms(ious, ones.long(), ones, "soft")


def test_votes_of_each_scheme():
    ious = torch.tensor([[1.0, 0.8, 0.75, 0.9, 0.2]])
    same, scores = torch.tensor([[True, True, True, False, True]]), torch.tensor([0.9, 0.3, 0.6, 0.5, 0.8])
    for scheme, raw in (("average", [1, 1, 1]), ("score", [0.9, 0.3, 0.6]), ("iou", [1.0, 0.8, 0.75])):
        found = voting_weights(ious, same, scores, scheme, 0.7)[0]
        assert found.tolist() == pytest.approx([value / sum(raw) for value in raw] + [0, 0])
    with pytest.raises(DynaMaskError, match="choose one of average, score, iou"):
        voting_weights(ious, same, scores, "loudest", 0.7)


def test_a_single_vote_changes_nothing():
    settings = {"score_threshold": 0.0, "update_threshold": 0.0, "detections_per_img": 5}
    model, image = small(None).eval(), picture(64, 80, 3)
    found = {}
    for voting, iou in (("none", 0.7), ("average", 1.0)):
        model.config = dataclasses.replace(model.config, voting=voting, voting_iou=iou, **settings)
        found[voting] = model([image])[0]
    assert torch.equal(found["none"]["masks"], found["average"]["masks"])


def test_mask_ious_over_more_pixels_than_one_product_takes():
    masks = torch.rand(3, 200, 210, generator=torch.Generator().manual_seed(0)) > 0.5
    masks[2] = False
    ious = mask_ious(masks)
    assert ious[0, 1].item() == pytest.approx(((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()).item())
    assert ious[2].tolist() == [0, 0, 0]


# --- aggregation -----------------------------------------------------------------------------------------------------


def test_theta_is_split_layer_by_layer_weights_before_biases():
    lengths = [AggregationConfig(neighbours=name).parameters for name in ("4", "corners", "8", "none")]
    assert lengths == [945, 909, 1089, 801]
    layers = split_theta(torch.arange(945.0)[None], AggregationConfig().widths, 3)
    assert [tuple(w.shape[1:]) for w, _ in layers] == [(4, 21, 3, 3), (4, 4, 3, 3), (1, 4, 3, 3)]
    assert layers[0][1][0].tolist() == [756, 757, 758, 759] and layers[2][1].item() == 944
    assert layers[1][0].flatten()[0].item() == 760


@pytest.mark.parametrize(("samples", "channels"), [(0, 3), (1, 0), (5, 0), (5, 3)])
def test_grouped_network_equals_a_loop_over_instances(samples, channels):
    generator = torch.Generator().manual_seed(1)
    image, widths = torch.tensor([0, 0, 2]), (samples + channels, 4, 4, 1)
    maps = torch.randn(3, samples, 9, 7, generator=generator)
    context = torch.randn(3, channels, 9, 7, generator=generator) if channels else None
    length = sum(a * b * 9 + b for a, b in zip(widths, widths[1:]))
    theta = torch.randn(3, length, generator=generator)
    found = dynamic_network(maps, context, image, theta, widths, 3)
    for row, index in enumerate(image.tolist()):
        x = torch.cat([maps[row], context[index]]) if channels else maps[row]
        start = 0
        for layer, (fan_in, fan_out) in enumerate(zip(widths, widths[1:])):
            size = fan_in * fan_out * 9
            weight = theta[row, start : start + size].view(fan_out, fan_in, 3, 3)
            x = F.conv2d(x[None], weight, theta[row, start + size : start + size + fan_out], padding=1)[0]
            x = x.relu() if layer < 2 else x
            start += size + fan_out
        assert torch.allclose(found[row], x[0], atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        AggregationConfig(neighbours="4"),
        AggregationConfig(neighbours="8", layers=4, kernel=1, context="without"),
        AggregationConfig(neighbours="none", layers=2),
        AggregationConfig(neighbours="row", layers=1),
        AggregationConfig(neighbours="corners"),
    ],
)
def test_the_initial_network_returns_the_centre_or_the_mean_of_the_corners(config):
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(2, config.samples, 6, 7, generator=generator)
    context = None if config.context == "without" else torch.randn(1, config.context_channels, 6, 7)
    theta, image = starting_theta(config).expand(2, -1), torch.zeros(2, dtype=torch.int64)
    found = dynamic_network(maps, context, image, theta, config.widths, config.kernel)
    corners = config.neighbours == "corners"
    expected = maps.mean(1) if corners else maps[:, NEIGHBOURS[config.neighbours].index((0, 0))]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("border", ["clamp", "zero"])
def test_sampling_vectors_and_decoding_equals_sampling_dense_maps(border):
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(2, 6, 5, 5, generator=generator, dtype=torch.float64)
    features = torch.randn(2, 5, 4, 3, generator=generator, dtype=torch.float64)
    image = torch.tensor([0, 1, 1])
    positions = torch.rand(3, 4, 2, generator=generator, dtype=torch.float64) * 7 - 1.5  # some beyond the grid
    lazy = decode(sample_vectors(vectors, image, positions, border), image, features)
    dense = torch.einsum("bvyx,bvhw->byxhw", vectors[:, :5], features) + vectors[:, 5, :, :, None, None]
    mode = "nearest" if border == "clamp" else "constant"
    for row, index in enumerate(image.tolist()):
        for sample, (y, x) in enumerate(positions[row].tolist()):
            padded = F.pad(dense[index].permute(2, 3, 0, 1), (2, 2, 2, 2)) if border == "zero" else None
            for i in range(4):
                for j in range(3):
                    plane = dense[index, :, :, i, j] if padded is None else padded[i, j]
                    shift = 0 if padded is None else 2
                    expected = map_coordinates(plane.numpy(), [[y + shift], [x + shift]], order=1, mode=mode)[0]
                    assert lazy[row, sample, i, j].item() == pytest.approx(expected, abs=1e-10)


def test_index_maps_of_equal_finer_and_halved_grids():
    cells = torch.arange(40 * 40)
    assert torch.equal(base_positions(cells, 40, 40)[:, 1].long(), cells % 40)
    finer = base_positions(torch.arange(50), 50, 40)[:, 1]
    assert finer.tolist() == [round(i * 39 / 49) for i in range(50)]
    floor = base_positions(torch.arange(50), 50, 40, "floor")[:, 1]
    assert (floor != finer).sum() == 15  # the two rules differ there
    halves = base_positions(torch.arange(40), 40, 20, "between")
    corners = neighbour_positions(halves, "corners", 20)
    assert corners.min() == 0 and corners.max() == 19
    assert corners[1, :, 1].tolist() == [1, 1, 0, 0] and corners[0].tolist() == [[0, 0]] * 4


@pytest.mark.parametrize("grid", [2, 10, 16, 24, 36, 80])
@pytest.mark.parametrize("mask_grid", [1, 2, 10, 16, 36, 40, 80])
def test_corners_never_leave_the_grid(grid, mask_grid):
    cells = torch.arange(grid * grid)
    corners = neighbour_positions(base_positions(cells, grid, mask_grid, "between"), "corners", mask_grid)
    assert corners.min() >= 0 and corners.max() <= mask_grid - 1


def test_border_rules_differ_at_the_border_alone():
    vectors = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    inner, edge = (neighbour_positions(base_positions(torch.tensor([c]), 3, 3), "4", 3) for c in (4, 0))
    zero = torch.zeros(1, dtype=torch.int64)
    for positions, clamped, zeroed in (
        (inner, [2, 4, 5, 6, 8], [2, 4, 5, 6, 8]),
        (edge, [1, 1, 1, 2, 4], [0, 0, 1, 2, 4]),
    ):
        assert sample_vectors(vectors, zero, positions, "clamp").flatten().tolist() == clamped
        assert sample_vectors(vectors, zero, positions, "zero").flatten().tolist() == zeroed


def test_gradient_of_the_offsets():
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64)
    offsets = (torch.rand(2, 10, generator=generator, dtype=torch.float64) * 0.6 + 0.2).requires_grad_()
    module = NeighbourAggregation(AggregationConfig(deformable=True))
    cells, image = torch.tensor([5, 6]), torch.zeros(2).long()

    def sampled(moved):
        return sample_vectors(vectors, image, module.positions(cells, 4, 4, moved), "clamp")

    assert torch.autograd.gradcheck(sampled, (offsets,))


def test_chunks_change_nothing(monkeypatch):
    model = small(AggregationConfig()).eval()
    with torch.no_grad():
        encoded, _ = model.encode([picture(64, 80, 3), picture(64, 80, 3).flip(2)])
        image, cell = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([3, 9, 20, 1, 63])
        whole = model.mask_logits(encoded, 0, image, cell)
        monkeypatch.setattr("dynamask.models.solo.aggregation._CHUNK_VALUES", 1)
        assert torch.allclose(whole, model.mask_logits(encoded, 0, image, cell), atol=1e-5)


def test_zero_offsets_equal_fixed_neighbours():
    fixed, moving = small(AggregationConfig()).eval(), small(AggregationConfig(deformable=True)).eval()
    moving.load_state_dict({**moving.state_dict(), **fixed.state_dict()})
    cells = (1, torch.zeros(36).long(), torch.arange(36))
    with torch.no_grad():
        outputs = [m.mask_logits(m.encode([picture(64, 80, 3)])[0], *cells) for m in (fixed, moving)]
    assert torch.allclose(*outputs, atol=1e-6)


# --- whole models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["solo", "solov2"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_losses_reach_every_parameter_and_detections_have_their_shapes(kind, aggregation):
    model = small(aggregation, kind)
    image = picture(64, 80, 3)
    losses = model([image, picture(50, 60)], [target(64, 80), target(50, 60, objects=0)])
    names = {"loss_category", "loss_dice"} | ({"loss_direct"} if aggregation and aggregation.direct_weight else set())
    assert set(losses) == names
    sum(losses.values()).backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trainable.values())
    assert model.head.category.weight.grad.abs().sum() > 0
    model.eval()
    model.config = dataclasses.replace(model.config, score_threshold=0.0, update_threshold=0.0)
    for found, size in zip(model([image, picture(50, 60)]), ((64, 80), (50, 60))):
        count = len(found["scores"])
        assert found["masks"].shape == (count, *size) and found["boxes"].shape == (count, 4)
        assert found["masks"].flatten(1).any(1).all()


@pytest.mark.parametrize("kind", ["solo", "solov2"])
def test_a_batch_without_any_object_gives_connected_losses(kind):
    model = small(AggregationConfig(), kind)
    losses = model([picture(64, 80, 3)], [target(64, 80, objects=0)])
    assert losses["loss_dice"].item() == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_one_pixel_mask_and_objects_at_every_border_train():
    model = small(AggregationConfig())
    masks = torch.zeros(5, 64, 80)
    for i, (y, x) in enumerate([(0, 0), (0, 70), (54, 0), (54, 70)]):
        masks[i, y : y + 10, x : x + 10] = 1
    masks[4, 30, 40] = 1
    boxes = torch.tensor([[0, 0, 10, 10], [70, 0, 80, 10], [0, 54, 10, 64], [70, 54, 80, 64], [40, 30, 41, 31]]).float()
    losses = model([picture(64, 80, 3)], [{"boxes": boxes, "labels": torch.tensor([1, 2, 3, 1, 2]), "masks": masks}])
    assert all(torch.isfinite(value) for value in losses.values()) and losses["loss_dice"] > 0


def test_a_batch_equals_its_pictures_one_by_one_where_the_frame_is_the_same():
    model = small(AggregationConfig()).eval()
    model.config = dataclasses.replace(model.config, score_threshold=0.0)
    first, second = picture(64, 80, 3), picture(64, 96, 3)
    with torch.no_grad():
        joint, _ = model.encode([first, second])
        padded = F.pad(model.transform.normalize(first), (0, 16))
        alone = model.head(model.backbone(padded[None]))
    assert joint.frame == (64, 96)
    for together, own in zip(joint.grids, alone):
        assert torch.allclose(together.category[:1], own.category, atol=1e-5)
        assert torch.allclose(together.vectors[:1], own.vectors, atol=1e-5)


def test_more_candidates_than_are_kept():
    model = small(None).eval()
    model.config = dataclasses.replace(
        model.config, score_threshold=0.0, update_threshold=0.0, candidates=20, detections_per_img=7
    )
    found = model([picture(64, 80, 3)])[0]
    assert len(found["scores"]) <= 7 and found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)


def test_lazy_decoding_equals_dense_maps():
    model = small(None, "solo").eval()
    with torch.no_grad():
        encoded, _ = model.encode([picture(64, 80, 3)])
        for level, grid in enumerate(encoded.grids):
            dense = model.head.masks[level](grid.features)[0]  # (G², h, w), the way SOLO is written
            cells = torch.arange(len(dense))
            assert torch.allclose(model.mask_logits(encoded, level, torch.zeros_like(cells), cells), dense, atol=1e-5)


def scene(height=64, width=80, objects=2):
    boxes = torch.tensor([[8.0, 10.0, 38.0, 50.0], [42.0, 20.0, 72.0, 60.0]])[:objects]
    masks = torch.zeros(objects, height, width, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
        mask[y0:y1, x0:x1] = 1
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(3))
    return image, {"boxes": boxes, "labels": torch.arange(objects) + 1, "masks": masks}


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", [None, AggregationConfig()])
def test_two_pictures_are_learned_by_heart(aggregation):
    model = small(aggregation, grids=(12, 8, 6, 4, 3))
    (image, first), other = scene(), scene()
    pictures = [image, other[0].flip(2)]
    mirrored = {**first, "boxes": 80 - first["boxes"][:, [2, 1, 0, 3]], "masks": first["masks"].flip(2)}
    targets = [first, mirrored]
    mirrored["boxes"][:, [1, 3]] = first["boxes"][:, [1, 3]]
    for pixels, marked in zip(pictures, targets):
        for label, mask in zip(marked["labels"], marked["masks"]):
            pixels[:, mask.bool()] = torch.tensor([0.2, 0.9])[label - 1]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(150):
        losses = model(pictures, targets)
        optimizer.zero_grad()
        (losses["loss_category"] + 3 * losses["loss_dice"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
    found = model.eval()(pictures)
    for detections, marked in zip(found, targets):
        for label, mask in zip(marked["labels"], marked["masks"].bool()):
            own = detections["masks"][(detections["labels"] == label) & (detections["scores"] > 0.3)]
            ious = [(m & mask).sum() / (m | mask).sum() for m in own]
            assert max(ious, default=0.0) > 0.8


# --- Table VII -------------------------------------------------------------------------------------------------------


def coco_sized(name):
    names = ("__background__", *(f"class {i}" for i in range(80)))
    with torch.device("meta"):
        return build_solo(dataclasses.replace(model_config(name), class_names=names))


@pytest.mark.slow
def test_parameters_and_macs_of_table_vii():
    names = ("solo", "sodar", "sodar_cls", "sodar_mask")
    models = {name: coco_sized(f"{name}_resnet101_fpn") for name in names}
    counted = {name: trainable_parameters(model) / 1e6 for name, model in models.items()}
    assert [round(counted[name], 3) for name in ("solo", "sodar", "sodar_mask")] == [55.068, 55.381, 54.626]
    macs = {name: sum(network_macs(model, rule="table7").values()) / 1e9 for name, model in models.items()}
    assert macs["solo"] == pytest.approx(442.75, rel=1e-4)  # 422.8 in the paper, which no rule explains
    assert macs["sodar"] - macs["solo"] == pytest.approx(5.50, rel=0.01)
    assert macs["sodar_cls"] - macs["sodar"] == pytest.approx(5.50, rel=0.01)
    assert macs["sodar_mask"] - macs["sodar"] == pytest.approx(-37.85, rel=0.01)
    assert sum(p.numel() for p in models["solo"].head.parameters()) == 9_448_816


def test_macs_are_what_the_flop_counter_finds():
    model = small(AggregationConfig()).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.head(model.backbone(torch.zeros(1, 3, 64, 96)))
    assert sum(network_macs(model, 64, 96).values()) == counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neighbours": "6"}, "neighbours is '6'; choose 'none', 'column', 'row', '4', '8' or 'corners'"),
        ({"layers": 5}, "1 to 4 layers"),
        ({"kernel": 2}, "kernels of 1 or 3"),
        ({"neighbours": "corners", "direct_weight": 1.0}, "set direct_weight to 0"),
    ],
)
def test_impossible_aggregations_are_refused(settings, message):
    with pytest.raises(DynaMaskError, match=message):
        AggregationConfig(**settings)


def test_the_two_stage_loss_has_the_weight_that_was_asked_for():
    assert small().loss_weights == {"loss_category": 1, "loss_dice": 3, "loss_direct": 0}
    assert small(AggregationConfig(direct_weight=0.5)).loss_weights["loss_direct"] == 1.5


def test_a_base_is_taken_without_its_aggregation(tmp_path):
    base, model = small(seed=1), small(AggregationConfig(layers=2), seed=2)
    save_model(base, tmp_path / "base.safetensors")
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    assert "which has random weights" in initialise(model, tmp_path / "base.safetensors")
    theirs, apart = base.state_dict(), set(model.state_dict()) - set(base.state_dict())
    assert apart and all(torch.equal(model.state_dict()[key], value) for key, value in theirs.items())
    assert all(torch.equal(model.state_dict()[key], fresh[key]) for key in apart)
    save_model(model, tmp_path / "sodar.safetensors")
    other = small(AggregationConfig(layers=1), seed=3)
    assert "which has random weights" in initialise(other, tmp_path / "sodar.safetensors")
    plain = small(seed=4)
    assert "which this model does not have" in initialise(plain, tmp_path / "sodar.safetensors")
    assert all(torch.equal(plain.state_dict()[key], value) for key, value in theirs.items())
    assert "backbone and FPN" in initialise(small(kind="solo"), tmp_path / "sodar.safetensors")
    with pytest.raises(DynaMaskError, match="do not fit"):
        initialise(small(kind="solo"), tmp_path / "sodar.safetensors", "all")


def test_cells_of_a_finer_grid_are_sampled_where_they_lie():
    model = small(AggregationConfig(interpolation="between"), mask_grids=(4, 3, 2, 2, 1))
    found = model.aggregation.positions(torch.tensor([0, 9, 63]), 8, 4)[:, 2]
    torch.testing.assert_close(found, torch.tensor([[0, 0], [3 / 7, 3 / 7], [3, 3]], dtype=torch.float64))
