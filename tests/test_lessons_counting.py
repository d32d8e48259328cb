"""Lesson 03: rows, answers, counters and shares."""

import numpy as np
import pytest
import torch
from helpers.app_fakes import FakePredictor
from helpers.small_models import tiny_branch
from lessons import counting

from dynamask.structures import MASK_SIZES, DynaMaskError


@pytest.fixture(scope="module")
def branch():
    return counting.branch_of_preset("dynamask_mobilenetv2_fpn_small")


def test_rows_add_up_to_the_product_and_to_the_layers(branch):
    for k, size in enumerate(MASK_SIZES[1:], start=1):
        rows = counting.stage_costs(branch, k)
        assert sum(row.macs for row in rows) == branch.region_fpn.stages[k - 1].macs(size)
        for row in rows:
            side, kernel, inputs, outputs = row.formula.replace("²", "").split(" · ")
            assert row.macs == int(side) ** 2 * int(kernel) ** 2 * int(inputs) * int(outputs)
    assert f"**{sum(row.macs for row in rows) / 1e6:.2f}**" in repr(counting.cost_table(rows))


def test_answers_get_hints_and_never_the_right_value(branch):
    rows = counting.stage_costs(branch, 1)
    true = {row.layer: row.macs / 1e6 for row in rows}
    answers = {"reduce": true["reduce"], "offsets 1": true["offsets 1"] * 2, "deform 1": true["deform 1"] / 9}
    lines = repr(counting.check_answers({**answers, "deform 2": 12345.0}, rows)).splitlines()
    assert "✓ correct" in lines[2] and "FLOPs" in lines[3] and "nine taps" in lines[4]
    assert "to do" in lines[5] and "not yet" in lines[6]
    assert f"{true['deform 2']:g}" not in lines[6]
    with pytest.raises(DynaMaskError, match="no layer 'base'"):
        counting.check_answers({"base": 1.0}, rows)


def test_counter_is_blind_to_the_foreign_operator_until_it_knows_the_formula(branch):
    row = next(row for row in counting.stage_costs(branch, 1) if row.layer == "deform 1")
    ways = counting.three_ways(counting.deformable_case(branch, 1, count=2))
    blind = {name: counting.flops(run, with_formula=False) for name, run in ways.items()}
    assert blind["torchvision's operator"] == 0
    assert {counting.flops(run) for run in ways.values()} == {2 * 2 * row.macs}
    assert torch.allclose(ways["torchvision's operator"](), ways["this library"](), atol=1e-4)


@pytest.mark.parametrize("choice", [[0], [3], [2, 0, 1]])
def test_claims_equal_counts(branch, choice):
    features, sizes = counting.random_features(branch, 64, 96), torch.tensor(choice)
    rois = counting.random_rois(len(choice), 300, 300)
    counted = counting.flops(lambda: counting.run_branch(branch, features, rois, sizes))
    assert counted == 2 * sum(counting.claimed_macs(branch, features, sizes).values())


def test_a_refined_branch_lists_the_least_certain_cells_and_costs_what_it_claims():
    refine = (1.0, 0.4, 0.2)
    refined = counting.branch_of_preset("dynamask_mobilenetv2_fpn_small", refine)
    features, sizes = counting.random_features(refined, 64, 96), torch.tensor([3])
    counted = counting.flops(lambda: counting.run_branch(refined, features, counting.random_rois(1), sizes))
    assert counted == 2 * sum(counting.claimed_macs(refined, features, sizes).values())
    predictor = FakePredictor(count=1)
    prediction = predictor(np.zeros((120, 200, 3), np.uint8), all_sizes=True)
    listed = counting.listed_cells(prediction, 0, 2, 1254)
    certain = (prediction.mask_probs_at(0, 56) - 0.5).abs().numpy()
    assert listed.shape == (56, 56) and listed.sum() == 1254 and certain[listed].mean() < certain[~listed].mean()
    drawn = counting.listed_pictures(prediction, 0, refined.costs.cells)
    titles = [note.text for note in drawn.layout.annotations]
    assert len(drawn.data) == 4 and titles[1:] == [
        "28×28: 784 of 784 cells",
        "56×56: 1254 of 3136 cells",
        "112×112: 2509 of 12544 cells",
    ]


def test_rows_that_run_are_those_that_are_needed():
    small = tiny_branch()
    features, sizes = counting.random_features(small, 128, 128), torch.tensor([0, 3, 1, 1])
    with counting.counted_rows(small) as seen:
        counting.run_branch(small, features, counting.random_rois(4, 256, 256), sizes)
    assert list(seen.values()) == [4, 3, 1, 1]
    counting.run_branch(small, features, counting.random_rois(4, 256, 256), sizes)
    assert list(seen.values()) == [4, 3, 1, 1], "outside nothing is counted"


@pytest.mark.parametrize(("count", "expected"), [(100, [35, 34, 21, 10]), (10, [4, 3, 2, 1]), (1, [1, 0, 0, 0])])
def test_mixed_choice_has_the_shares(count, expected):
    assert torch.bincount(counting.mixed_choice(count), minlength=4).tolist() == expected


def test_steps_are_equal_where_channels_and_groups_halve():
    halve = counting.steps_of((128, 64, 32))
    assert len(set(halve)) == 1
    stay = counting.steps_of((128, 128, 128), (4, 4, 4))
    assert [after / before for before, after in zip(stay, stay[1:])] == [4, 4]


def test_memory_doubles_from_stage_to_stage():
    rows = counting.memory_rows(counting.branch_of_preset())
    for name in ("crop", "offsets", "columns"):
        assert [after[name] / before[name] for before, after in zip(rows, rows[1:])] == [2, 2]
    assert rows[0]["crop"] == pytest.approx(28 * 28 * 128 * 4 / 1e6)


def test_stage_times_cover_all_parts(branch):
    timed = counting.stage_times(branch, count=1, repeats=1)
    assert [(one.size, one.part) for one in timed] == [
        (size, part) for size in MASK_SIZES[1:] for part in counting.PARTS
    ]
    for k, size in enumerate(MASK_SIZES[1:], start=1):
        macs = sum(one.macs for one in timed if one.size == size)
        assert macs == sum(row.macs for row in counting.stage_costs(branch, k))
    assert all(one.milliseconds > 0 for one in timed)
    assert len(counting.time_bars(timed).data) == 2 * len(counting.PARTS)


def test_price_and_picture_parts_add_up(branch):
    costs = branch.costs
    prices = counting.price_parts(branch)
    for (name, parts), macs, predictor, size in zip(
        prices.items(), costs.macs_per_instance, branch.region_fpn.mask_predictors, MASK_SIZES
    ):
        assert name == f"{size}×{size}"
        assert sum(parts.values()) * 1e9 + predictor.in_channels * size * size == pytest.approx(macs)
    maps = [(5, 6), (10, 12), (20, 24)]
    parts = counting.picture_parts(costs, maps, counts=(2,))
    rows = costs.image_macs(maps, 2)
    every = parts["2 instances, all at 112"]
    assert every["masks"] * 1e9 == pytest.approx(costs.macs_per_instance[3])
    assert (every["switch"] + every["projections"]) * 2e9 == pytest.approx(sum(rows.values()))
    assert parts["2 instances, mixed"]["masks"] < every["masks"]
    drawn = counting.cost_bars("title", prices)
    assert [trace.name for trace in drawn.data] == ["base", "stage to 28", "stage to 56", "stage to 112"]
    assert len(counting.step_bars({"a": (1, 2, 3), "b": (4, 5, 6)}).data) == 3
