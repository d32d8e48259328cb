"""NanoDet-Plus: its size, decoding, regions for the mask branch, and a training step."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dynamask.config import ModelConfig
from dynamask.engine.optimizer import WeightAverage, pretrained_modules
from dynamask.engine.train import freeze
from dynamask.models.build import build_model
from dynamask.models.detectors.gfl_head import CellPredictions, GFLHead
from dynamask.models.detectors.mask_pyramid import MaskPyramid
from dynamask.models.detectors.nanodet import NanoDetBackbone, NanoDetDetector, StretchTransform, positive_regions
from dynamask.predict import predictor_of
from dynamask.presets import model_config
from dynamask.structures import DynaMaskError

SIDE = 64


@pytest.fixture(scope="module")
def model():
    """NanoDet-Plus-m with random weights on small inputs."""
    torch.manual_seed(0)
    return build_model(_config()).eval()


def _config(**fields) -> ModelConfig:
    small = {
        "min_sizes": (SIDE,),
        "test_min_size": SIDE,
        "fpn_channels": 16,
        "region_channels": 16,
        "class_names": ("__background__", "cat", "dog"),
        "detections_per_img": 6,
        "score_threshold": 0.0,
    }
    return model_config("dynamask_nanodet_plus_m", **{**small, **fields})


def _cells(boxes, logits, stride=8.0) -> CellPredictions:
    """Predictions of cells at the origin whose bins are sharp at the given whole numbers of strides."""
    distances = torch.tensor(boxes, dtype=torch.float32)[None]
    bins = -1000.0 * (torch.arange(8.0) - distances[..., None]).abs()
    count = len(boxes)
    return CellPredictions(
        torch.tensor(logits, dtype=torch.float32)[None],
        bins,
        torch.full((count, 2), 80.0),
        torch.full((count,), stride),
    )


def _target(boxes, side=SIDE):
    masks = torch.zeros(len(boxes), side, side, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "masks": masks,
    }


def test_parameters_and_macs_are_the_published_ones():
    with torch.device("meta"):
        backbone = NanoDetBackbone("shufflenet_v2_x1_5", 16)
        head = GFLHead(backbone.neck_channels, 80)
        image = torch.empty(1, 3, 416, 416)

    def counted(module: nn.Module, *inputs):
        with FlopCounterMode(display=False) as counter:
            out = module(*inputs)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        return out, parameters, round(counter.get_total_flops() / 2e9, 3)

    maps, *body = counted(backbone.body, image)
    assert body == [1_744_984, 0.895]
    neck, *cost = counted(backbone.neck, maps[2:])
    assert cost == [499_584, 0.399]
    cells, *cost = counted(head, neck)
    assert cost == [216_512, 0.193]
    assert cells.class_logits.shape == (1, 3598, 80) and cells.bin_logits.shape == (1, 3598, 4, 8)


def test_a_box_is_the_mean_distance_from_the_top_left_corner_of_its_cell():
    cells = _cells([[1, 2, 3, 4], [7, 7, 7, 7]], [[0.0], [0.0]])
    assert torch.allclose(cells.boxes[0], torch.tensor([[72.0, 64, 104, 112], [24, 24, 136, 136]]), atol=1e-4)


def test_a_cell_can_give_several_classes_and_nms_is_class_wise(model):
    detector = model.detector
    cells = _cells([[2, 2, 2, 2], [2, 2, 2, 2]], [[3.0, 2.0], [1.0, -1.0]])
    (found,) = detector.select(cells, [(100, 90)])
    assert found["labels"].tolist() == [1, 2]  # the second cell is suppressed in both classes
    assert torch.allclose(found["scores"], torch.tensor([3.0, 2.0]).sigmoid())
    assert torch.allclose(found["boxes"], torch.tensor([[64.0, 64, 90, 96]] * 2), atol=1e-3)  # clipped to the picture


def test_pictures_of_any_shape_are_stretched_to_a_square(model):
    transform = StretchTransform((32, SIDE), [0.0] * 3, [1.0] * 3).eval()
    target = {"boxes": torch.tensor([[10.0, 20, 30, 40]]), "labels": torch.ones(1, dtype=torch.int64)}
    batch, (placed,) = transform([torch.zeros(3, 40, 320)], [target])
    assert batch.image_sizes == [(SIDE, SIDE)]
    assert torch.allclose(placed["boxes"], torch.tensor([[2.0, 32, 6, 64]]))
    predictor = predictor_of(model)
    for shape in ((1, 1), (300, 20000), (416, 416)):
        prediction = predictor(torch.zeros(3, *shape, dtype=torch.uint8), score=0.0, policy="fixed:14")
        assert torch.isfinite(prediction.boxes).all() and prediction.masks.shape[1:] == shape


def test_given_boxes_get_the_class_of_the_overlapping_cells(model):
    with torch.inference_mode():
        encoded, _ = model.detector.encode([torch.rand(3, SIDE, SIDE)])
        (found,) = model.detector.detect(encoded)
        labels = model.detector.classify(encoded, [found["boxes"][:1]])
    assert labels.tolist() == found["labels"][:1].tolist()


def test_all_parts_get_gradients_and_the_pyramid_is_trained_with_a_frozen_detector(model):
    trained = build_model(_config()).train()
    losses = trained([torch.rand(3, SIDE, SIDE)] * 2, [_target([(8, 8, 40, 48)]), _target([])])
    weights = trained.loss_weights
    sum(loss * weights[name] for name, loss in losses.items()).backward()
    without = [name for name, p in trained.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []
    freeze(trained, "detector")
    left = {
        name.split(".")[0 if name.startswith("mask") else 2]
        for name, p in trained.named_parameters()
        if p.requires_grad
    }
    assert left == {"mask_branch", "mask_pyramid"}
    losses = trained([torch.rand(3, SIDE, SIDE)], [_target([(8, 8, 40, 48)])])
    assert "loss_mask" in losses and not {"loss_quality", "loss_distribution", "loss_giou"} & losses.keys()
    assert pretrained_modules(trained) == ("detector.backbone.body.", "detector.backbone.neck.", "detector.head.")


def test_a_teacher_keeps_boxes_and_is_not_saved():
    trained = build_model(_config()).train()
    names = list(trained.state_dict())
    trained.detector.learn_from(build_model(_config()).detector)
    assert list(trained.state_dict()) == names
    losses = trained([torch.rand(3, SIDE, SIDE)], [_target([(8, 8, 40, 48)])])
    assert {name for name in losses if "teacher" in name} == {"loss_teacher_scores", "loss_teacher_boxes"}
    assert "loss_quality" not in losses and losses["loss_teacher_boxes"] >= 0


def test_regions_are_jittered_true_boxes_and_matching_detections():
    target = _target([(8, 8, 40, 48), (50, 50, 60, 60)])
    found = torch.tensor([[0.0, 0, 5, 5], [10, 8, 40, 48]])
    regions = positive_regions(target, found, (SIDE, SIDE))
    assert regions.matched.tolist() == [0, 1, 0]
    assert torch.equal(regions.boxes[2], found[1])
    assert not torch.equal(regions.boxes[:2], target["boxes"])
    assert (regions.boxes[:2] - target["boxes"]).abs().max() <= 0.15 * 40 + 1e-4


@pytest.mark.parametrize("side", [64, 96, 416])
def test_the_pyramid_has_strides_4_to_32(side):
    body = [torch.rand(1, 24, side // 2, side // 2), torch.rand(1, 24, side // 4, side // 4)]
    body += [torch.rand(1, 8, side // s, side // s) for s in (8, 16, 32)]
    neck = [torch.rand(1, 4, side // s, side // s) for s in (8, 16, 32)]
    maps = MaskPyramid([24, 24, 8, 8, 8], 4, 16)(body, neck)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, side // s, side // s) for s in (4, 8, 16, 32)]


def test_the_finest_level_reads_coarser_ones_only_top_down():
    body = [torch.rand(1, 24, 32, 32), torch.rand(1, 24, 16, 16), *(torch.rand(1, 8, s, s) for s in (8, 4, 2))]
    neck = [torch.rand(1, 4, s, s, requires_grad=True) for s in (8, 4, 2)]
    for top_down in (True, False):
        finest = MaskPyramid([24, 24, 8, 8, 8], 4, 16, top_down)(body, neck)[0]
        (gradient,) = torch.autograd.grad(finest.sum(), neck[2], allow_unused=True)
        assert (gradient is not None) == top_down


def test_unsuitable_settings_are_refused():
    with pytest.raises(DynaMaskError, match="no backbone 'resnet18'; choose one of"):
        build_model(dataclasses.replace(_config(), backbone="resnet18"))
    with pytest.raises(DynaMaskError, match="--init"):
        build_model(_config(), backbone_weights="timm")
    with pytest.raises(DynaMaskError, match="detector is 'yolo'"):
        _config(detector="yolo")


def test_batch_norms_can_be_kept():
    kept = build_model(_config(detector_norm="batch")).detector
    folded = build_model(_config()).detector
    assert any(isinstance(module, nn.BatchNorm2d) for module in kept.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert isinstance(kept, NanoDetDetector)


def test_the_moving_average_includes_the_statistics_of_batch_norms():
    trained = build_model(_config(detector_norm="batch")).train()
    average = WeightAverage(trained, decay=0.5)
    name = "detector.backbone.body.conv1.1.running_mean"
    before = average.state[name].clone()
    with torch.no_grad():
        trained.detector.backbone.body(torch.rand(2, 3, SIDE, SIDE))
    now = trained.state_dict()[name]
    assert not torch.equal(before, now)
    average.update(trained)
    weight = 1.0 - 2 / 11  # of the new values in the first update
    assert torch.allclose(average.state[name], torch.lerp(before, now, weight))
