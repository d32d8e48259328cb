"""Regions larger than their boxes: features, targets, pasted masks, the app and exports all use the same region."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.small_models import picture, pyramid, some_rois, target, tiny_branch, tiny_model
from torchvision.models.detection.transform import resize_boxes

from app.messages import view_message
from app.session import Session, SessionInstances
from app.source_pictures import SourcePicture
from dynamask.config import ModelConfig
from dynamask.data.shapes import ShapesDataset
from dynamask.engine.evaluate import Collector, EvaluationOptions
from dynamask.engine.frozen_features import image_cache, logits_of_sizes
from dynamask.evaluation.mask_quality import border_share, mask_iou
from dynamask.models.detectors.base import PositiveRegions
from dynamask.models.masks import losses
from dynamask.models.masks.export import FixedSizeMasks
from dynamask.ops.masks import BOUNDARY_WIDTH_RATIO, crop_masks, enlarge_boxes, paste_mask
from dynamask.predict import TwoStagePredictor
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.explorer import crop_jpegs, explore

MARGIN = 0.1
BOXES = torch.tensor([[10.0, 12.0, 50.0, 44.0], [40.0, 2.0, 90.0, 60.0]])


PIXELS = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    """A model whose masks cover about half of their regions, at every size."""
    model = tiny_model(region_margin=MARGIN, class_agnostic=True).eval()
    predictors = model.mask_branch.region_fpn.mask_predictors
    with torch.no_grad():
        for k, (predictor, size) in enumerate(zip(predictors, MASK_SIZES)):
            predictor.weight.normal_(std=3.0)
            found = TwoStagePredictor(model)(PIXELS, boxes=BOXES, policy=f"fixed:{size}")
            logits = torch.stack([found.mask_probs_at(i, size) for i in range(2)]).logit()
            predictors[k].bias -= logits.median()
    return model


@pytest.fixture(scope="module")
def prediction(model):
    return TwoStagePredictor(model)(PIXELS, boxes=BOXES, all_sizes=True)


def test_boxes_grow_on_every_side():
    grown = enlarge_boxes(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), 0.25)
    assert grown.tolist() == [[5.0, 10.0, 35.0, 70.0]]
    rois = some_rois()
    assert torch.equal(enlarge_boxes(rois, 0.2)[:, 0], rois[:, 0])
    assert torch.equal(enlarge_boxes(rois, 0.2)[:, 1:], enlarge_boxes(rois[:, 1:], 0.2))
    assert enlarge_boxes(rois, 0.0) is rois
    assert enlarge_boxes(torch.zeros(0, 4), 0.1).shape == (0, 4)


@pytest.mark.parametrize("margin", [-0.1, 0.6, math.nan])
def test_a_margin_out_of_range_is_refused(margin):
    with pytest.raises(DynaMaskError, match="region_margin is .*; give a share of the box from 0 to 0.5"):
        ModelConfig(region_margin=margin)


def test_the_branch_reads_enlarged_regions():
    plain, wide = tiny_branch().eval(), tiny_branch().eval()
    wide.region_margin = MARGIN
    rois, labels, every = some_rois(), torch.tensor([1, 2, 3, 1, 2]), torch.tensor([3, 2, 1, 0, 3])
    states = [wide.begin(pyramid(), rois, labels), plain.begin(pyramid(), enlarge_boxes(rois, MARGIN), labels)]
    assert torch.equal(states[0].rois, enlarge_boxes(rois, MARGIN))
    for one, other in zip(wide.masks(states[0], every), plain.masks(states[1], every), strict=True):
        assert torch.equal(one, other)


def test_targets_are_cropped_in_the_enlarged_regions():
    plain, wide = tiny_branch(), tiny_branch()
    wide.region_margin = MARGIN
    truth = {**target(128, 128), "mask_scale": torch.ones(4)}
    labels, matched = torch.tensor([1, 2]), torch.tensor([0, 1])
    found = []
    for branch, boxes in ((wide, truth["boxes"]), (plain, enlarge_boxes(truth["boxes"], MARGIN))):
        torch.manual_seed(3)
        regions = [PositiveRegions(boxes, labels, matched)]
        found.append(branch.training_losses(pyramid(batch=1), regions, [truth], [(128, 128)]))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])


def test_an_object_that_its_box_cuts_off_is_whole(prediction):
    truth = np.zeros((64, 96), dtype=bool)
    truth[10:50, 20:70] = True
    cut = torch.tensor([[24.0, 13.2, 66.0, 46.8]])  # 8 % less on every side
    region = enlarge_boxes(cut, MARGIN)
    probs = crop_masks(torch.from_numpy(truth)[None], region, 112)[0]
    assert mask_iou(paste_mask(probs, region[0], truth.shape).numpy(), truth) > 0.95
    inside = paste_mask(crop_masks(torch.from_numpy(truth)[None], cut, 112)[0], cut[0], truth.shape).numpy()
    assert mask_iou(inside, truth) < 0.75
    for i, box in enumerate(BOXES.tolist()):
        mask = prediction.mask_at(i, 112)
        x0, y0, x1, y1 = map(round, box)
        assert mask.sum() > mask[y0:y1, x0:x1].sum() > 0


def test_every_size_is_pasted_into_the_region(model, prediction):
    assert torch.equal(prediction.mask_boxes, enlarge_boxes(BOXES, MARGIN)) and torch.equal(prediction.boxes, BOXES)
    for i in range(2):
        for size in MASK_SIZES:
            expected = paste_mask(prediction.mask_probs_at(i, size), enlarge_boxes(BOXES, MARGIN)[i], (64, 96))
            assert torch.equal(prediction.mask_at(i, size), expected)
        assert torch.equal(prediction.masks[i], prediction.mask(i))
    found = TwoStagePredictor(model)(prediction.picture, score=0.0)
    (direct,) = model([torch.from_numpy(prediction.picture).permute(2, 0, 1).float() / 255])
    assert (found.masks != (direct["masks"][:, 0] >= 0.5)).float().mean() < 1e-3
    assert found.masks.any()


def test_without_a_margin_regions_are_boxes(prediction):
    plain = TwoStagePredictor(tiny_model())(prediction.picture, boxes=BOXES)
    assert plain.mask_boxes is plain.boxes
    assert torch.equal(plain.regions.state.rois[:, 1:], resize_boxes(BOXES, (64, 96), (64, 96)))


def test_the_page_gets_the_region(model, prediction):
    instances = SessionInstances.of(prediction)
    for i in range(2):
        for k, size in enumerate(MASK_SIZES):
            assert (instances.pasted(i, k, (64, 96)) != prediction.mask_at(i, size).numpy()).mean() < 5e-3
    source = SourcePicture("upload", "", "a", "", b"", None)
    session = Session.of("1", "tiny", source, TwoStagePredictor(model), prediction)
    sent = json.loads(view_message(session, prediction.picture))["instances"]
    assert [one["box"] for one in sent] == BOXES.double().tolist()
    assert [one["mask_box"] for one in sent] == enlarge_boxes(BOXES, MARGIN).double().tolist()


def test_the_explorer_draws_the_region(prediction):
    shown = explore(prediction)
    factor = shown._overlay.image.shape[1] / 96
    expected = paste_mask(
        prediction.mask_probs_at(1, 56), prediction.mask_boxes[1] * factor, shown._overlay.image.shape[:2]
    )
    assert np.array_equal(shown._mask(1, 56), expected.numpy())
    assert len(crop_jpegs(prediction.picture, [-8.0, -4.0, 100.0, 70.0], [np.ones((14, 14))])) == 1


def test_exported_masks_cover_the_region():
    branch, model = tiny_branch().eval(), tiny_model().eval()
    branch.region_margin = MARGIN
    model.mask_branch = branch
    rois, labels = some_rois(), torch.tensor([1, 2, 3, 1, 2])
    with torch.no_grad():
        masks = FixedSizeMasks(branch, 56)(*pyramid().values(), rois, labels)
        expected = branch.masks(branch.begin(pyramid(), rois, labels), torch.full((5,), 2))
    torch.testing.assert_close(masks, torch.stack(expected), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cached_errors_compare_masks_in_the_region(model):
    predictor, image, truth = TwoStagePredictor(model), (picture(64, 96) * 255).byte(), target(64, 96)
    cache = image_cache(predictor, image, truth["boxes"], truth["masks"], truth["labels"].tolist(), 0, 0)
    prediction = predictor(image, boxes=truth["boxes"], labels=truth["labels"].tolist(), all_sizes=True)
    state = prediction.regions.state
    logits = logits_of_sizes(model.mask_branch, state, truth["masks"], truth["boxes"])
    for size, crop in zip(MASK_SIZES, logits.targets):
        assert torch.equal(crop, (crop_masks(truth["masks"], prediction.mask_boxes, size) >= 0.5).float())
    (network,) = predictor.model.detector.encode([image / 255.0])[0].image_sizes
    width = torch.full((len(state),), BOUNDARY_WIDTH_RATIO * math.hypot(*network))
    boundary, overlap = losses.size_errors(logits.masks, logits.targets[-1], state.rois[:, 1:], width)
    torch.testing.assert_close(cache.boundary_error, boundary)
    torch.testing.assert_close(cache.overlap_error, overlap)
    ious = [mask_iou(prediction.mask_at(0, size).numpy(), truth["masks"][0].numpy()) for size in MASK_SIZES]
    torch.testing.assert_close(cache.mask_iou[0], torch.tensor(ious).float())


def test_the_border_of_the_region_counts_in_an_evaluation(model):
    predictor, dataset = TwoStagePredictor(model), ShapesDataset(1)
    predictor.class_names = dataset.class_names
    collector = Collector(predictor, dataset, EvaluationOptions(boxes="gt", policy="fixed:112"))
    image, truth = dataset[0]
    found = collector.add(image, {**truth, "labels": torch.ones_like(truth["labels"])})
    shares = [border_share(mask.numpy(), box) for mask, box in zip(found.masks, found.mask_boxes.tolist())]
    assert [one[3] for one in collector.instances.border_share] == pytest.approx(shares, nan_ok=True)
    inside = [border_share(mask.numpy(), box) for mask, box in zip(found.masks, found.boxes.tolist())]
    assert shares != inside and max(shares) > 0
