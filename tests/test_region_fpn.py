"""The region pyramid runs a stage only for the regions that need it, on crops with the level's own stride."""

import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import count_rows, pyramid, some_rois, tiny_branch

from dynamask.models.masks.region_fpn import STAGE_STRIDES, FeatureAggregationModule, crop_assigned_level
from dynamask.structures import MASK_SIZES

LABELS = torch.tensor([1, 2, 3, 1, 2])


@pytest.fixture(scope="module")
def branch():
    return tiny_branch().eval()


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def rows_per_stage(calls: list) -> list[int]:
    return [sum(rows for stage, rows in calls if stage == k) for k in range(3)]


@pytest.mark.parametrize(
    ("choice", "rows"),
    [
        ([0, 3, 1, 2, 1], [4, 2, 1]),
        ([0, 0, 0, 0, 0], [0, 0, 0]),
        ([1, 1, 1, 1, 1], [5, 0, 0]),
        ([3, 3, 3, 3, 3], [5, 5, 5]),
        ([0, 0, 3, 0, 0], [1, 1, 1]),
    ],
)
def test_stages_run_for_the_regions_that_need_them(branch, choice, rows):
    calls, base = [], []
    handles = count_rows(branch.region_fpn.stages, calls) + count_rows([branch.region_fpn.base], base)
    try:
        state = branch.begin(pyramid(), some_rois(), LABELS)
        assert calls == [] and base == [(0, 5)]
        masks = branch.masks(state, torch.tensor(choice))
        assert rows_per_stage(calls) == rows
        assert all(count > 0 for _, count in calls), "no stage runs on nothing"
        again = branch.masks(state, torch.tensor(choice))
        assert rows_per_stage(calls) == rows and base == [(0, 5)], "what is known is not computed again"
    finally:
        for handle in handles:
            handle.remove()
    assert [tuple(mask.shape) for mask in masks] == [(MASK_SIZES[k],) * 2 for k in choice]
    assert all(torch.equal(a, b) for a, b in zip(masks, again))


def test_a_later_size_runs_the_missing_stages_alone(branch):
    state = branch.begin(pyramid(), some_rois(), LABELS)
    branch.masks(state, torch.tensor([1, 0, 2, 0, 1]))
    calls = []
    handles = count_rows(branch.region_fpn.stages, calls)
    try:
        branch.masks(state, torch.tensor([2, 0, 3, 1, 0]))
    finally:
        for handle in handles:
            handle.remove()
    assert rows_per_stage(calls) == [1, 1, 1]
    assert [len(rows) for rows in state.rows] == [5, 4, 2, 1]


def test_mixed_sizes_equal_each_region_alone(branch):
    features, rois = pyramid(), some_rois()
    choice = torch.tensor([2, 3, 0, 1, 3])
    mixed = branch.masks(branch.begin(features, rois, LABELS), choice)
    for i in range(5):
        alone = branch.begin(features, rois[i : i + 1], LABELS[i : i + 1])
        torch.testing.assert_close(mixed[i], branch.masks(alone, choice[i : i + 1])[0], atol=1e-5, rtol=1e-4)
        assert 0 <= float(mixed[i].min()) < float(mixed[i].max()) <= 1
    assert not torch.allclose(mixed[1], mixed[4])


def test_the_order_of_requests_does_not_matter(branch):
    features, rois = pyramid(), some_rois()
    steps = branch.begin(features, rois, LABELS)
    for choice in ([0, 0, 1, 0, 3], [1, 2, 0, 0, 0], [0, 1, 3, 2, 1], [3, 3, 3, 3, 3]):
        masks = branch.masks(steps, torch.tensor(choice))
    whole = branch.masks(branch.begin(features, rois, LABELS), torch.tensor([3] * 5))
    for a, b in zip(masks, whole):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_gathered_class_weights_equal_the_full_convolution(branch):
    state = branch.begin(pyramid(), some_rois(), LABELS)
    rows = torch.tensor([3, 0, 4])
    for k, predictor in enumerate(branch.region_fpn.mask_predictors):
        found = branch.region_fpn.mask_logits(state, k, rows)
        every_class = predictor(state.gather(k, rows))  # (3, classes, S, S)
        assert every_class.shape[1] == 3
        expected = every_class[torch.arange(3), LABELS[rows] - 1]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_class_agnostic_branch_has_one_logit_for_all_labels():
    branch = tiny_branch(classes=3, agnostic=True).eval()
    assert all(predictor.out_channels == 1 for predictor in branch.region_fpn.mask_predictors)
    features, rois = pyramid(), some_rois()
    first = branch.masks(branch.begin(features, rois, LABELS), torch.tensor([0, 1, 2, 3, 1]))
    other = branch.masks(branch.begin(features, rois, LABELS.flip(0)), torch.tensor([0, 1, 2, 3, 1]))
    assert all(torch.equal(a, b) for a, b in zip(first, other))


def test_labels_choose_the_mask_of_their_class(branch):
    features, rois = pyramid(), some_rois()
    ones = branch.masks(branch.begin(features, rois, torch.ones_like(LABELS)), torch.tensor([1] * 5))
    threes = branch.masks(branch.begin(features, rois, torch.full_like(LABELS, 3)), torch.tensor([1] * 5))
    assert not any(torch.allclose(a, b) for a, b in zip(ones, threes))


def test_sides_double_while_channels_halve(branch):
    state = branch.begin(pyramid(), some_rois(), LABELS)
    branch.masks(state, torch.tensor([3] * 5))
    assert [tuple(feature.shape) for feature in state.features] == [
        (5, 16, 14, 14),
        (5, 8, 28, 28),
        (5, 4, 56, 56),
        (5, 2, 112, 112),
    ]
    assert branch.region_fpn.edge_logits(state, 2, torch.tensor([1, 4])).shape == (2, 56, 56)


def ramp(stride: int, side: int, channels: int) -> torch.Tensor:
    """A map whose value is the x coordinate, in picture pixels, of the centre of each of its cells."""
    return ((torch.arange(side // stride) + 0.5) * stride).expand(1, channels, side // stride, -1).clone()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_image_features_are_cropped_with_the_stride_of_their_level(branch, k):
    fpn = branch.region_fpn
    captured = []
    handle = fpn.stages[k - 1].register_forward_pre_hook(lambda module, inputs: captured.append(inputs[1]))
    side, channels, stride = MASK_SIZES[k], 16 // 2**k, STAGE_STRIDES[k - 1]
    try:
        coarse = torch.zeros(1, 2 * channels, side // 2, side // 2)
        fpn.stage(k, coarse, ramp(stride, 128, channels), torch.tensor([[0.0, 24.0, 30.0, 88.0, 104.0]]))
    finally:
        handle.remove()
    expected = 24 + (torch.arange(side) + 0.5) / side * 64
    torch.testing.assert_close(captured[0][0, 0, side // 2], expected, atol=1e-3, rtol=0)


def test_the_first_feature_comes_from_the_level_of_the_box():
    side = 1024
    features = {str(i): ramp(stride, side, 1) + 10_000 * i for i, stride in enumerate((4, 8, 16, 32))}
    rois = torch.tensor([[0.0, 100, 100, 100 + s, 100 + s] for s in (60.0, 112.0, 224.0, 448.0)])
    crops = crop_assigned_level(features, rois, 14)
    for level in range(4):
        width = float(rois[level, 3] - rois[level, 1])
        expected = 10_000 * level + 100 + (torch.arange(14) + 0.5) / 14 * width
        torch.testing.assert_close(crops[level, 0, 7], expected, atol=0.02, rtol=0)
    assert crop_assigned_level(features, torch.zeros(0, 5), 14).shape == (0, 1, 14, 14)


def test_regions_read_the_picture_of_their_batch_index(branch):
    features, rois = pyramid(batch=2), some_rois(2, batch=1)
    rois[:, 0] = 1
    second = {key: value[1:] for key, value in features.items()}
    alone = rois.clone()
    alone[:, 0] = 0
    choice = torch.tensor([1, 2])
    both = branch.masks(branch.begin(features, rois, LABELS[:2]), choice)
    one = branch.masks(branch.begin(second, alone, LABELS[:2]), choice)
    for a, b in zip(both, one):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_no_region(branch):
    state = branch.begin(pyramid(), torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert len(state) == 0 and state.switch_logits.shape == (0, 4)
    assert branch.masks(state, torch.zeros(0, dtype=torch.int64)) == []
    assert branch.region_fpn.mask_logits(state, 3, torch.zeros(0, dtype=torch.int64)).shape == (0, 112, 112)


def test_aggregation_starts_as_plain_convolutions():
    module = FeatureAggregationModule(4, 2)
    region, image = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    aligned = F.relu(F.conv2d(region, module.align.weight, module.align.bias, padding=1))
    expected = F.relu(F.conv2d(aligned + image, module.attend.weight, module.attend.bias, padding=1))
    torch.testing.assert_close(module(region, image), expected, atol=1e-5, rtol=1e-4)
    assert module.align_offsets.out_channels == module.attend_offsets.out_channels == 2 * 2 * 9
