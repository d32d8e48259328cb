"""The cost table is derived from the layers, and a counter that watches the real branch run agrees exactly."""

import pytest
import torch
from helpers.small_models import branch_of, pyramid, some_rois
from torch.utils.flop_counter import FlopCounterMode

from dynamask.config import MASK_BRANCHES
from dynamask.models.masks.branch import MaskBranch
from dynamask.presets import model_config
from dynamask.structures import MASK_SIZES

PAPER = (0.23e9, 0.62e9, 1.01e9, 1.40e9)


NAMES = ("__background__", *(f"class_{i}" for i in range(80)))


@pytest.fixture(scope="module", params=["dynamask_mobilenetv2_fpn_small", "dynamask_resnet50_fpn"])
def model_name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def branch(model_name) -> MaskBranch:
    return branch_of(model_config(model_name, class_names=NAMES)).eval()


@torch.no_grad()
def counted_macs(branch: MaskBranch, choice: list[int], features: dict[str, torch.Tensor]) -> int:
    """MACs of a run of the branch on regions with these size indices."""
    rois = some_rois(len(choice), batch=len(features["0"]))
    with FlopCounterMode(display=False) as counter:
        state = branch.begin(features, rois, torch.arange(len(choice)) % 80 + 1)
        masks = branch.masks(state, torch.tensor(choice, dtype=torch.int64))
    assert [len(mask) for mask in masks] == [MASK_SIZES[k] for k in choice]
    total = counter.get_total_flops()
    assert total % 2 == 0
    return total // 2


@pytest.mark.parametrize(
    ("name", "choice"),
    [("region_fpn", choice) for choice in ([0], [1], [2], [3], [2, 0, 3, 1], [])]
    + [(name, None) for name in MASK_BRANCHES[1:]],
    ids=str,
)
def test_counter_finds_exactly_the_claimed_macs(model_name, name, choice):
    config = model_config(model_name, class_names=NAMES, mask_branch=name)
    branch = branch_of(config).eval()
    if choice is None:  # the finest and the coarsest size of a baseline
        choice = [MASK_SIZES.index(branch.mask_sizes[-1]), MASK_SIZES.index(branch.mask_sizes[0])]
    costs, count = branch.costs, len(choice)
    rows = costs.image_macs([(128 // stride,) * 2 for stride in costs.projection_strides], count)
    assert rows["switch"] == costs.switch_macs * count and (costs.switch_macs > 0) == (name == "region_fpn")
    projections = sum(macs for row, macs in rows.items() if row.startswith("projection"))
    chosen, judged = sum(costs.macs_per_instance[k] for k in choice), rows.get("quality_head", 0)
    assert judged == costs.quality_macs * count and (costs.quality_macs > 0) == (name == "region_fpn")
    expected = chosen + rows["switch"] + judged + 2 * projections
    assert counted_macs(branch, choice, pyramid(config.fpn_channels, batch=2, side=128)) == expected


@torch.no_grad()
def test_a_finer_mask_later_pays_the_missing_stages_alone(branch):
    features = pyramid(branch.region_fpn.base[0].in_channels, batch=1)
    state = branch.begin(features, some_rois(2, batch=1), torch.tensor([1, 2]))
    branch.masks(state, torch.tensor([1, 1]))
    with FlopCounterMode(display=False) as counter:
        branch.masks(state, torch.tensor([2, 1]))
    predictor = [branch.region_fpn.mask_predictors[k].in_channels * MASK_SIZES[k] ** 2 for k in range(4)]
    small, medium = branch.costs.macs_per_instance[1:3]
    # region 0: the stage to 56 and its predictor; region 1: its predictor once more
    assert counter.get_total_flops() // 2 == (medium - small + predictor[1]) + predictor[1]


def test_paper_preset_lands_on_the_figures_of_table_7():
    costs = branch_of(model_config("dynamask_resnet50_fpn")).costs
    for claimed, paper in zip(costs.macs_per_instance, PAPER, strict=True):
        assert claimed == pytest.approx(paper, rel=0.03)
    fractions = costs.fractions
    assert fractions[-1] == 1 and list(fractions) == sorted(fractions) and fractions[0] > 0
    assert costs.switch_macs > 0 and costs.quality_macs > 0
    assert costs.switch_macs + costs.quality_macs < 0.01 * costs.macs_per_instance[-1]
    steps = [after - before for before, after in zip(costs.macs_per_instance, costs.macs_per_instance[1:])]
    assert max(steps) < 1.01 * min(steps), "each step costs the same: the side doubles and the channels halve"


def test_costs_do_not_depend_on_the_number_of_classes():
    many = branch_of(model_config("dynamask_mobilenetv2_fpn_small", class_names=tuple(map(str, range(81))))).costs
    two = branch_of(model_config("dynamask_mobilenetv2_fpn_small")).costs
    agnostic = branch_of(model_config("dynamask_mobilenetv2_fpn_small", class_agnostic=True)).costs
    assert many == two == agnostic


def test_rows_of_the_picture_name_their_stride():
    costs = branch_of(model_config("dynamask_mobilenetv2_fpn_small")).costs
    rows = costs.image_macs([(2, 3), (4, 6), (8, 12)], instances=5)
    assert rows == {
        "projection_stride16": 64 * 32 * 6,
        "projection_stride8": 64 * 16 * 24,
        "projection_stride4": 64 * 8 * 96,
        "switch": 5 * costs.switch_macs,
        "quality_head": 5 * costs.quality_macs,
    }
    with pytest.raises(ValueError):
        costs.image_macs([(2, 3)], instances=1)
