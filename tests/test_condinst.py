"""CondInst with and without SODAR's aggregation."""

import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import picture, target

from dynamask.config import AggregationConfig
from dynamask.models.backbone import BackboneWithFPN
from dynamask.models.solo.condinst import CondInst, anchors_of, conditional_masks, match_locations
from dynamask.models.transform import TwoSizeTransform

torch.set_num_threads(1)


def small(aggregation=None, seed=0):
    torch.manual_seed(seed)
    transform = TwoSizeTransform((64, 64), 128, [0.5] * 3, [0.5] * 3)
    backbone = BackboneWithFPN("mobilenetv2_100", 32)
    return CondInst(transform, backbone, 3, aggregation, channels=16, depth=1, groups=8, mask_cells=20)


@pytest.mark.parametrize(
    "aggregation", [None, AggregationConfig(), AggregationConfig(context="without", weights="static", neighbours="8")]
)
def test_losses_reach_every_parameter_and_detections_have_masks(aggregation):
    model = small(aggregation)
    image = picture(64, 80)
    losses = model([image], [target(64, 80)])
    assert set(losses) == {"loss_category", "loss_box_reg", "loss_centerness", "loss_dice"}
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    torch.nn.init.constant_(model.head.classification_head.cls_logits.bias, 0.0)
    found = model([image])[0]
    assert 0 < len(found["scores"]) <= 100 and found["masks"].shape == (len(found["scores"]), 64, 80)


def test_a_picture_without_an_object_trains():
    model = small(AggregationConfig())
    losses = model([picture(64, 80)], [target(64, 80, objects=0)])
    assert losses["loss_dice"].item() == 0
    sum(losses.values()).backward()


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


def test_locations_learn_the_smallest_box_of_their_range():
    maps = [torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 8, 8)]
    anchors = torch.cat([anchors_of(level, stride) for level, stride in zip(maps, (8, 16))])
    boxes = torch.tensor([[20.0, 20.0, 60.0, 60.0], [30.0, 30.0, 50.0, 50.0], [0.0, 0.0, 124.0, 124.0]])
    matched = match_locations(anchors, boxes)
    assert matched[4 * 16 + 4].item() == 1  # (36, 36): in all three; the smallest
    assert matched[256 + 3 * 8 + 3].item() == 2  # (56, 56) of stride 16: the large one alone reaches 64 px
    assert matched[0].item() == -1 and match_locations(anchors, boxes[:0]).max() == -1
