"""The region pyramid runs a stage only for the regions that need it, on crops with the level's own stride."""

import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import count_rows, pyramid, ramp, some_rois, tiny_branch

from dynamask.models.masks import region_fpn
from dynamask.models.masks.region_fpn import FeatureAggregationModule, crop_assigned_level
from dynamask.structures import MASK_SIZES

LABELS = torch.tensor([1, 2, 3, 1, 2])


@pytest.fixture(scope="module")
def branch():
    return tiny_branch().eval()


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def counted():
    """Function that hooks modules and returns a growing list of (position, rows) of their calls."""
    handles = []

    def hook(modules) -> list:
        calls = []
        handles.extend(count_rows(modules, calls))
        return calls

    yield hook
    for handle in handles:
        handle.remove()


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
def test_stages_run_for_the_regions_that_need_them(branch, counted, choice, rows):
    calls, base = counted(branch.region_fpn.stages), counted([branch.region_fpn.base])
    state = branch.begin(pyramid(), some_rois(), LABELS)
    assert calls == [] and base == [(0, 5)]
    masks = branch.masks(state, torch.tensor(choice))
    assert rows_per_stage(calls) == rows
    assert all(count > 0 for _, count in calls), "no stage runs on nothing"
    again = branch.masks(state, torch.tensor(choice))
    assert rows_per_stage(calls) == rows and base == [(0, 5)], "what is known is not computed again"
    assert [tuple(mask.shape) for mask in masks] == [(MASK_SIZES[k],) * 2 for k in choice]
    assert all(torch.equal(a, b) for a, b in zip(masks, again))


def test_a_later_size_runs_only_the_missing_stages(branch, counted):
    state = branch.begin(pyramid(), some_rois(), LABELS)
    branch.masks(state, torch.tensor([1, 0, 2, 0, 1]))
    calls = counted(branch.region_fpn.stages)
    branch.masks(state, torch.tensor([2, 0, 3, 1, 0]))
    assert rows_per_stage(calls) == [1, 1, 1]
    assert [len(rows) for rows in state.rows] == [5, 4, 2, 1]
    assert [tuple(f.shape[1:]) for f in state.features] == [(16, 14, 14), (8, 28, 28), (4, 56, 56), (2, 112, 112)]


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


def test_the_first_feature_comes_from_the_level_of_the_box():
    side = 1024
    features = {key: map_ + 10_000 * int(key) for key, map_ in ramp(side, 1).items()}
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


def test_aggregation_starts_as_plain_convolutions():
    module = FeatureAggregationModule(4, 2)
    region, image = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    aligned = F.relu(F.conv2d(region, module.align.weight, module.align.bias, padding=1))
    expected = F.relu(F.conv2d(aligned + image, module.attend.weight, module.attend.bias, padding=1))
    torch.testing.assert_close(module(region, image), expected, atol=1e-5, rtol=1e-4)
    assert module.align_offsets.out_channels == module.attend_offsets.out_channels == 2 * 2 * 9


@pytest.mark.parametrize("per_crop", [0, 10**9])
def test_crops_on_rows_are_those_of_roi_align(monkeypatch, per_crop):
    monkeypatch.setattr(region_fpn, "CELLS_PER_CROP", per_crop)
    features, rois = pyramid(side=512), some_rois(6, side=512)
    rois[0, 1:] = torch.tensor([-40.0, 300.0, 200.0, 700.0])  # beyond the picture on two sides
    rois[1, 1:] = torch.tensor([0.0, 0.0, 500.0, 500.0])
    found = crop_assigned_level(features, rois, 14)
    with torch.enable_grad():
        expected = crop_assigned_level(features, rois, 14)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
