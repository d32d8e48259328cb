"""Steps that train the two coarsest mask sizes only, and the strides of the maps that stages read."""

from __future__ import annotations

import pytest
import torch
from helpers.small_models import tiny_model

from dynamask.config import ModelConfig
from dynamask.models.masks.region_fpn import RegionFPN
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.training_config import TrainConfig


def losses_of(trained_sizes: int | None) -> tuple[dict[str, torch.Tensor], torch.nn.Module]:
    torch.manual_seed(0)
    branch = tiny_model().mask_branch.train()
    branch.switch_enabled, branch.head.trained_sizes = False, trained_sizes
    channels = branch.region_fpn.base[0].in_channels
    features = {str(k): torch.randn(1, channels, 64 // 2**k, 64 // 2**k) for k in range(4)}
    state = branch.begin(features, torch.tensor([[0, 8.0, 8.0, 90.0, 120.0]]), torch.tensor([1]))
    return branch.losses(state, [torch.ones(1, size, size) for size in MASK_SIZES]), branch


def test_a_coarse_start_trains_14_and_28_only():
    losses, branch = losses_of(2)
    sum(losses.values()).backward()
    assert branch.region_fpn.stages[0].reduce.weight.grad.abs().sum() > 0
    assert branch.region_fpn.stages[1].reduce.weight.grad.abs().sum() == 0  # a gradient for every process, of zeros
    everything, branch = losses_of(None)
    sum(everything.values()).backward()
    assert branch.region_fpn.stages[2].reduce.weight.grad.abs().sum() > 0
    assert everything["loss_mask"] != losses["loss_mask"]


def test_the_switch_waits_for_all_sizes():
    with pytest.raises(DynaMaskError, match="at most warm_start"):
        TrainConfig(coarse_start=0.5, warm_start=0.25)


def test_stages_read_the_maps_of_their_strides():
    head = RegionFPN(8, 16, 1, (1, 1, 1), map_strides=(8, 4, 4))
    features = {str(k): torch.randn(1, 8, 32 // 2**k, 32 // 2**k) for k in range(4)}
    assert [map_.shape[-1] for map_ in head.project(features)] == [16, 32, 32]


def test_other_strides_are_refused():
    with pytest.raises(DynaMaskError, match="three of 4, 8, 16 and 32"):
        ModelConfig(stage_strides=(16, 8, 2))
