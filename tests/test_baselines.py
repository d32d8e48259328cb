"""Mask heads: all kinds on mixed and empty batches, gradients and costs; the baselines against short references."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import branch_of, pyramid, ramp, some_rois
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from dynamask.config import MASK_BRANCHES, ModelConfig
from dynamask.models.build import build_mask_branch
from dynamask.models.masks.branch import MaskBranch
from dynamask.models.masks.heads import pointrend
from dynamask.models.masks.heads.pyramids import (
    NASFPN_SIDES,
    BiFPNLayer,
    NASFPNStack,
    PANetStack,
    WeightedFusion,
)
from dynamask.models.masks.region_fpn import crop_assigned_level
from dynamask.presets import model_config
from dynamask.structures import MASK_SIZES, DynaMaskError

BASELINES = [name for name in MASK_BRANCHES if name != "region_fpn"]
PYRAMIDS = ["panet", "bifpn", "nasfpn"]
LABELS = torch.tensor([1, 2, 3, 1, 2])


def small_branch(name: str, seed: int = 0, agnostic: bool = False) -> MaskBranch:
    """A narrow branch whose predictors are far from their starting values."""
    names = ("__background__", "a", "b", "c")
    widths = {"fpn_channels": 8, "region_channels": 16, "offset_groups": (2, 2, 1)}
    torch.manual_seed(seed)
    branch = build_mask_branch(
        ModelConfig(mask_branch=name, class_names=names, class_agnostic=agnostic, **widths)
    ).eval()
    with torch.no_grad():
        for key, parameter in branch.named_parameters():
            if "predictor" in key or "fcn_logits" in key or "coarse.4" in key:
                parameter.normal_(std=0.3)
    return branch


def targets_of(count: int, seed: int = 5) -> list[torch.Tensor]:
    """Random blobs (N, S, S) in {0, 1}, the same at every size."""
    noise = torch.randn(count, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    sizes = [(size, size) for size in MASK_SIZES]
    return [(F.interpolate(noise, size, mode="bilinear")[:, 0] > 0).float() for size in sizes]


def finest(branch: MaskBranch) -> int:
    return MASK_SIZES.index(branch.mask_sizes[-1])


def test_every_name_is_built_and_another_is_refused():
    for name in MASK_BRANCHES:
        branch = small_branch(name)
        assert (branch.switch is not None) == (name == "region_fpn")
        assert all(key.startswith((f"{branch.head.NAME}.", "switch.")) for key in branch.state_dict())
    for wrong in ("fcn:20", "fcn", "unet", ""):
        with pytest.raises(DynaMaskError, match="mask branch .* is unknown; choose one of region_fpn, fcn:14"):
            ModelConfig(mask_branch=wrong)


@pytest.mark.parametrize("name", BASELINES)
@torch.no_grad()
def test_masks_have_the_sides_of_the_branch(name):
    branch = small_branch(name)
    expected = MASK_SIZES if name in PYRAMIDS else (int(name.split(":")[1]) if ":" in name else 112,)
    assert branch.mask_sizes == expected
    state = branch.begin(pyramid(), some_rois(), LABELS)
    for size in expected:
        k = MASK_SIZES.index(size)
        masks = branch.masks(state, torch.full((5,), k))
        assert [tuple(mask.shape) for mask in masks] == [(size, size)] * 5
        assert all(0 <= float(mask.min()) < float(mask.max()) <= 1 for mask in masks)
    assert torch.equal(state.switch_logits.argmax(1), torch.full((5,), finest(branch)))
    torch.testing.assert_close(state.switch_logits.softmax(1)[:, finest(branch)], torch.ones(5))


@pytest.mark.parametrize("name", ["fcn:28", "pointrend"])
def test_a_size_that_the_head_lacks_is_an_error(name):
    branch = small_branch(name)
    state = branch.begin(pyramid(), some_rois(), LABELS)
    with pytest.raises(ValueError, match="only, not 14"):
        branch.head.mask_logits(state, 0, torch.arange(5))


@pytest.mark.parametrize("name", MASK_BRANCHES)
@torch.no_grad()
def test_a_mixed_batch_equals_each_region_alone(name):
    branch, features, rois = small_branch(name), pyramid(), some_rois()
    sizes = [MASK_SIZES.index(size) for size in branch.mask_sizes]
    choice = torch.tensor([sizes[i % len(sizes)] for i in range(5)])
    mixed = branch.masks(branch.begin(features, rois, LABELS), choice)
    for i in range(5):
        state = branch.begin(features, rois[i : i + 1], LABELS[i : i + 1])
        torch.testing.assert_close(mixed[i], branch.masks(state, choice[i : i + 1])[0], atol=1e-4, rtol=1e-3)
    others = branch.masks(branch.begin(features, rois, LABELS.roll(1)), choice)
    assert not any(torch.allclose(a, b) for a, b in zip(mixed, others)), "labels choose the mask of their class"


@pytest.mark.parametrize("name", MASK_BRANCHES)
@torch.no_grad()
def test_a_class_agnostic_branch_has_one_mask_for_all_labels(name):
    branch, features, rois = small_branch(name, agnostic=True), pyramid(), some_rois()
    choice = torch.full((5,), finest(branch))
    first = branch.masks(branch.begin(features, rois, LABELS), choice)
    other = branch.masks(branch.begin(features, rois, LABELS.flip(0)), choice)
    assert all(torch.equal(a, b) for a, b in zip(first, other))


@pytest.mark.parametrize("name", BASELINES)
def test_the_losses_reach_every_parameter(name):
    branch = small_branch(name).train()
    found = branch.losses(branch.begin(pyramid(), some_rois(), LABELS), targets_of(5))
    assert list(found) == ["loss_mask", "loss_edge"] if name in PYRAMIDS else ["loss_mask"]
    assert all(loss.ndim == 0 and torch.isfinite(loss) and loss > 0 for loss in found.values())
    sum(found.values()).backward()
    silent = [key for key, p in branch.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("name", MASK_BRANCHES)
def test_no_object_gives_zero_losses_and_zero_gradients(name):
    branch = small_branch(name).train()
    state = branch.begin(pyramid(), torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert len(state) == 0 and state.switch_logits.shape == (0, 4)
    found = branch.losses(state, [torch.zeros(0, size, size) for size in MASK_SIZES])
    assert all(float(loss.detach()) == 0 for loss in found.values())
    sum(found.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in branch.parameters())
    with torch.no_grad():
        empty = branch.begin(pyramid(), torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
        assert branch.masks(empty, torch.zeros(0, dtype=torch.int64)) == []
        side = branch.mask_sizes[-1]
        rows = torch.zeros(0, dtype=torch.int64)
        assert branch.head.mask_logits(empty, finest(branch), rows).shape == (0, side, side)


# -- costs -----------------------------------------------------------------------------------------------------------


def test_wide_fcn_heads_cost_what_the_paper_prints():
    macs = {
        size: branch_of(model_config("dynamask_resnet50_fpn", mask_branch=f"fcn:{size}")).costs.macs_per_instance
        for size in MASK_SIZES
    }
    assert all(len(set(each)) == 1 for each in macs.values()), "a head that cannot stop early costs all of itself"
    for size, paper in ((28, 0.5e9), (56, 2.0e9), (112, 8.0e9)):
        assert macs[size][0] == pytest.approx(paper, rel=0.04)
    assert macs[14][0] == pytest.approx(0.13e9, rel=0.02), "a quarter of the 28's; Tab. 1 prints 0.2 G"


@pytest.mark.parametrize("model", ["dynamask_mobilenetv2_fpn_small", "dynamask_resnet50_fpn"])
@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramids_cost_what_the_r_fpn_costs(model, name):
    ours = build_mask_branch(model_config(model)).costs.macs_per_instance[-1]
    costs = build_mask_branch(model_config(model, mask_branch=name)).costs.macs_per_instance
    assert costs[-1] == pytest.approx(ours, rel=0.06)
    assert costs[0] > 0.99 * costs[-1], "no size is cheaper by more than its predictor"


# -- FCN -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_fcn_head_equals_torchvisions_on_the_same_crops():
    branch, features, rois = small_branch("fcn:28"), pyramid(), some_rois()
    heads, predictor = MaskRCNNHeads(8, (16,) * 4, 1), MaskRCNNPredictor(16, 16, 3)
    heads.load_state_dict(branch.head.convs.state_dict())
    predictor.load_state_dict(branch.head.predictor.state_dict())
    expected = predictor(heads(crop_assigned_level(features, rois, 14)))[torch.arange(5), LABELS - 1]
    found = branch.head.mask_logits(branch.begin(features, rois, LABELS), 1, torch.arange(5))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


# -- PointRend -------------------------------------------------------------------------------------------------------


def bilinear(grid: np.ndarray, x: float, y: float) -> np.ndarray:
    """Value of (C, H, W) at continuous cell coordinates, cells centred at + 0.5; the border is repeated."""
    height, width = grid.shape[1:]
    column, row = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
    left, top = int(column), int(row)
    right, bottom, u, v = min(left + 1, width - 1), min(top + 1, height - 1), column - left, row - top
    upper = grid[:, top, left] * (1 - u) + grid[:, top, right] * u
    return upper * (1 - v) + (grid[:, bottom, left] * (1 - u) + grid[:, bottom, right] * u) * v


def naive_points(head, feature_map, roi, coarse, label, points) -> np.ndarray:
    """The point head, point by point, in NumPy."""

    def of(tensor):
        return tensor.detach().double().numpy()

    out = []
    for x, y in points:
        rough = bilinear(coarse, x * 7, y * 7)
        pixel_x, pixel_y = roi[0] + x * (roi[2] - roi[0]), roi[1] + y * (roi[3] - roi[1])
        hidden = bilinear(feature_map, pixel_x / 4, pixel_y / 4)
        for layer in head.layers:
            inputs = np.concatenate([hidden, rough])
            hidden = np.maximum(of(layer.weight)[:, :, 0] @ inputs + of(layer.bias), 0)
        last = of(head.predictor.weight)[label - 1, :, 0] @ np.concatenate([hidden, rough])
        out.append(last + of(head.predictor.bias)[label - 1])
    return np.array(out)


@torch.no_grad()
def test_subdivision_equals_a_naive_loop(monkeypatch):
    monkeypatch.setattr(pointrend, "TEST_POINTS", 40)
    branch, features, rois = small_branch("pointrend").double(), pyramid(), some_rois().double()
    features = {key: value.double() for key, value in features.items()}
    head, state = branch.head, branch.begin(features, rois, LABELS)
    found = head.mask_logits(state, 3, torch.tensor([4, 1])).numpy()
    for position, row in enumerate((4, 1)):
        coarse = head.coarse_logits(state.features[0][row : row + 1])[0].numpy()
        label, image = int(LABELS[row]), int(rois[row, 0])
        logits = coarse[label - 1]
        for side in MASK_SIZES:
            ratio = len(logits) / side
            cells = [((j + 0.5) * ratio, (i + 0.5) * ratio) for i in range(side) for j in range(side)]
            logits = np.array([bilinear(logits[None], x, y)[0] for x, y in cells])
            chosen = np.argsort(np.abs(logits), kind="stable")[: min(40, side * side)]
            points = [((cell % side + 0.5) / side, (cell // side + 0.5) / side) for cell in chosen]
            box = rois[row, 1:].tolist()
            logits[chosen] = naive_points(head, features["0"][image].numpy(), box, coarse, label, points)
            logits = logits.reshape(side, side)
        np.testing.assert_allclose(found[position], logits, atol=1e-9)


@torch.no_grad()
def test_training_points_are_the_uncertain_ones_and_leave_the_generator_alone():
    own = torch.full((2, 7, 7), 6.0)
    own[:, :, :3], own[:, :, 3] = -6.0, 0.0  # the boundary runs through the middle column
    torch.manual_seed(3)
    before = torch.get_rng_state()
    points = pointrend.training_points(own)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(points, pointrend.training_points(own)), "a resumed run draws the same points"
    assert points.shape == (2, 196, 2) and float(points.min()) >= 0 and float(points.max()) <= 1
    distance = (points[:, :, 0] - 0.5).abs()
    assert distance[:, :147].max() < distance[:, 147:].max()
    assert distance[:, :147].mean() < 0.7 * distance[:, 147:].mean()
    torch.rand(1)
    assert not torch.equal(points, pointrend.training_points(own))


@torch.no_grad()
def test_point_rends_loss_is_that_of_the_coarse_mask_plus_that_of_the_points(monkeypatch):
    branch, targets = small_branch("pointrend"), targets_of(5)
    head, state = branch.head, branch.begin(pyramid(), some_rois(), LABELS)
    cells = (torch.stack(torch.meshgrid(torch.arange(112), torch.arange(112), indexing="xy"), dim=2) + 0.5) / 112
    points = cells.reshape(1, -1, 2).expand(5, -1, 2)[:, ::64]
    monkeypatch.setattr(pointrend, "training_points", lambda own: points)
    coarse = head.coarse_logits(state.features[0])
    own = coarse[torch.arange(5), LABELS - 1]
    rough_truth = (targets[3].reshape(5, 7, 16, 7, 16).mean((2, 4)) >= 0.5).float()
    found = head.point_logits(state, torch.arange(5), coarse, points)
    expected = F.binary_cross_entropy_with_logits(own, rough_truth)
    expected = expected + F.binary_cross_entropy_with_logits(found, targets[3].flatten(1)[:, ::64])
    torch.testing.assert_close(branch.losses(state, targets)["loss_mask"], expected)


# -- other pyramids --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_fast_normalised_fusion():
    node = WeightedFusion(2, 3)
    torch.testing.assert_close(node.shares(), torch.full((3,), 1 / 3), atol=1e-4, rtol=0)
    node.weights.copy_(torch.tensor([2.0, -5.0, 6.0]))
    torch.testing.assert_close(node.shares(), torch.tensor([0.25, 0.0, 0.75]), atol=1e-4, rtol=0)
    assert (node.shares() >= 0).all() and node.shares().sum() < 1
    a, b, c = torch.randn(3, 1, 2, 5, 5)
    expected = node.pointwise(node.depthwise(F.silu((2 * a + 6 * c) / (8 + 1e-4))))
    torch.testing.assert_close(node(a, b, c), expected)
    node.weights.fill_(-1.0)
    assert torch.isfinite(node(a, b, c)).all(), "no input left divides by ε, not by zero"


class Traced(torch.nn.Module):
    """Stands for a node or a convolution: remembers its inputs, which are numbers of one cell, and adds one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, *inputs):
        self.seen.append([(float(x.flatten()[0]), x.shape[-1]) for x in inputs])
        return sum(inputs) + 1.0


def constant_levels(sides, values) -> list[torch.Tensor]:
    return [torch.full((1, 1, side, side), float(value)) for side, value in zip(sides, values)]


@torch.no_grad()
def test_wiring_of_a_bifpn_layer():
    layer = BiFPNLayer(1)
    layer.down = torch.nn.ModuleList(Traced() for _ in range(3))
    layer.up = torch.nn.ModuleList(Traced() for _ in range(3))
    out = layer(constant_levels(MASK_SIZES, (1, 10, 100, 1000)))
    down = [node.seen[0] for node in layer.down]
    assert down == [[(10, 28), (1, 28)], [(100, 56), (12, 56)], [(1000, 112), (113, 112)]]
    up = [node.seen[0] for node in layer.up]
    finest = 1000 + 113 + 1
    at_56 = 100 + 113 + finest + 1
    at_28 = 10 + 12 + at_56 + 1
    assert up == [[(1, 14), (at_28, 14)], [(10, 28), (12, 28), (at_56, 28)], [(100, 56), (113, 56), (finest, 56)]]
    assert [float(level.flatten()[0]) for level in out] == [1 + at_28 + 1, at_28, at_56, finest]


@torch.no_grad()
def test_wiring_of_the_published_nasfpn_cell():
    """The seven cells, written out once more with the levels' names (P3 is the finest)."""
    stack = NASFPNStack(1)
    stack.convs = torch.nn.ModuleList(Traced() for _ in range(7))
    p3, p4, p5, p6, p7 = 1.0, 2.0, 4.0, 8.0, 16.0
    out = stack(constant_levels(NASFPN_SIDES, (p3, p4, p5, p6, p7)))

    def gate(coarse, fine):
        return coarse + fine / (1 + np.exp(-coarse))

    first = gate(p6, p4) + 1
    second = p4 + first + 1
    out3 = p3 + second + 1
    out4 = second + out3 + 1
    out5 = gate(out4, out3) + p5 + 1
    out7 = gate(out5, second) + p7 + 1
    out6 = gate(out7, out5) + 1
    expected = [out3, out4, out5, out6, out7]
    assert [float(level.flatten()[0]) for level in out] == pytest.approx(expected, rel=1e-5)
    assert [level.shape[-1] for level in out] == list(NASFPN_SIDES)
    assert [conv.seen[0][0][1] for conv in stack.convs] == [56, 56, 112, 56, 28, 7, 14]


@torch.no_grad()
def test_panet_equals_its_two_paths_written_out():
    stack = PANetStack(3)
    levels = [torch.randn(2, 3, size, size) for size in MASK_SIZES]
    p14 = levels[0]
    p28 = levels[1] + p14.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p56 = levels[2] + p28.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p112 = levels[3] + p56.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p14, p28, p56, p112 = (conv(p).relu() for conv, p in zip(stack.smooth, (p14, p28, p56, p112)))
    n56 = stack.merge[2](p56 + stack.down[2](p112).relu()).relu()
    n28 = stack.merge[1](p28 + stack.down[1](n56).relu()).relu()
    n14 = stack.merge[0](p14 + stack.down[0](n28).relu()).relu()
    for found, expected in zip(stack(levels), (n14, n28, n56, p112)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["region_fpn", *PYRAMIDS])
@torch.no_grad()
def test_crops_have_the_stride_of_their_level(name):
    """Maps of x coordinates give crops of the x coordinates of their cells."""
    head, captured = small_branch(name).head, []
    for conv in head.projections:
        conv.weight.zero_()[:, 0] = 1.0
        conv.bias.zero_()
    if name == "region_fpn":
        for stage in head.stages:
            stage.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[1]))
    else:
        head.fuse = lambda levels: captured.extend(levels[1:]) or levels
    state = head.begin(ramp(128, 8), torch.tensor([[0.0, 24.0, 30.0, 88.0, 104.0]]), torch.tensor([1]))
    head.mask_logits(state, 3, torch.tensor([0]))
    for crop, size in zip(captured, MASK_SIZES[1:], strict=True):
        expected = 24 + (torch.arange(size) + 0.5) / size * 64
        torch.testing.assert_close(crop[0, 0, size // 2], expected, atol=1e-3, rtol=0)
