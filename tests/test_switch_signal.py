"""The boundary error that can guide the switch: its values, and whom it trains."""

import numpy as np
import pytest
import torch

from dynamask.config import LossConfig
from dynamask.evaluation.mask_quality import boundary_iou, boundary_width
from dynamask.models.build import create_model
from dynamask.models.masks import losses
from dynamask.ops.masks import grid_boundary_iou
from dynamask.structures import MASK_SIZES

SIDE = 112


def blob(seed: int) -> torch.Tensor:
    """A wavy disc (112, 112) 0/1 that stays off the border."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    angle = np.arctan2(rows - 56, columns - 56)
    radius = 30 + rng.uniform(2, 8) * np.sin(angle * rng.integers(3, 9) + rng.uniform(0, 6))
    return torch.from_numpy((np.hypot(rows - 56, columns - 56) < radius).astype(np.float32))


def test_equals_the_boundary_iou_of_whole_pictures():
    truth = torch.stack([blob(0), blob(1), torch.zeros(SIDE, SIDE)])
    masks = torch.stack([torch.stack([blob(k + 5), blob(0)]) for k in range(3)])
    boxes = torch.tensor([[0.0, 0.0, SIDE, SIDE]]).repeat(3, 1)
    width = torch.full((3,), float(boundary_width((SIDE, SIDE))))
    found = grid_boundary_iou(masks, truth, boxes, width)
    for i in range(3):
        for k in range(2):
            expected = boundary_iou(masks[i, k].bool().numpy(), truth[i].bool().numpy())
            assert found[i, k].item() == pytest.approx(expected, abs=1e-6)
    assert found[0, 1] == 1 and found[2].max() == 0


def test_width_follows_the_box():
    truth, moved = blob(2)[None], torch.roll(blob(2), 6, 1)[None, None]
    wide = torch.tensor([[0.0, 0.0, 1000.0, 1000.0]])
    small = torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    width = torch.tensor([4.0])
    fine, coarse = (grid_boundary_iou(moved, truth, box, width).item() for box in (wide, small))
    assert fine < coarse  # the same shift counts more where the boundary is thin in cells


def test_selected_error_is_the_mean_of_what_was_drawn():
    error = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]])
    selection = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]], requires_grad=True)
    loss = losses.selected_loss(error, selection)
    assert loss.item() == pytest.approx((0.2 + 0.8) / 2)
    assert torch.equal(torch.autograd.grad(loss, selection)[0], error / 2)
    assert losses.selected_loss(error[:0], selection[:0]).item() == 0


@pytest.fixture(scope="module")
def branch():
    """The small mask branch under the boundary signal, on two regions of random features."""
    torch.manual_seed(0)
    model = create_model("dynamask_mobilenetv2_fpn_small", 2, loss_config=LossConfig(switch_signal="boundary"))
    features = {str(level): torch.randn(1, 64, 32 // 2**level, 32 // 2**level) for level in range(4)}
    rois = torch.tensor([[0.0, 4.0, 4.0, 60.0, 90.0], [0.0, 30.0, 10.0, 120.0, 110.0]])
    return model, lambda: model.mask_branch.begin(features, rois, torch.ones(2, dtype=torch.int64))


def test_the_signal_trains_the_switch_alone(branch):
    model, begin = branch
    targets = [
        torch.nn.functional.interpolate(blob(3)[None, None].repeat(2, 1, 1, 1), size=s)[:, 0] for s in MASK_SIZES
    ]
    model.zero_grad()
    found = model.mask_branch.losses(begin(), targets, boundary_width=torch.tensor([3.0, 3.0]))
    assert {"loss_boundary", "loss_edge", "loss_mask", "loss_budget", "loss_entropy"} == set(found)
    found["loss_boundary"].backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached and all(".switch." in name for name in reached)
    model.zero_grad()
    found = model.mask_branch.losses(begin(), targets, boundary_width=torch.tensor([3.0, 3.0]))
    found["loss_edge"].backward()
    assert not any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.mask_branch.switch.parameters())
