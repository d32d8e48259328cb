"""Duplicates by their masks: the function against pasted masks, its rules, the predictor, and the evaluation."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.small_models import tiny_model

from dynamask.config import ModelConfig
from dynamask.data.shapes import ShapesDataset
from dynamask.engine.evaluate import EvaluationOptions, run_evaluation
from dynamask.ops.mask_nms import CONTAINMENT, distinct_masks
from dynamask.ops.masks import crop_masks, paste_masks
from dynamask.predict import TwoStagePredictor
from dynamask.structures import DynaMaskError

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def ellipses(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks (count, 120, 160) of ellipses, in threes that resemble each other, and their boxes."""
    generator = np.random.default_rng(seed)
    centres = np.repeat(generator.uniform((30, 30), (130, 90), (count, 2)), 3, axis=0)[:count]
    radii = np.repeat(generator.uniform(8, 28, (count, 2)), 3, axis=0)[:count]
    centres, radii = (
        centres + generator.uniform(-2, 2, centres.shape),
        radii * generator.uniform(0.85, 1.1, radii.shape),
    )
    ys, xs = np.mgrid[:120, :160] + 0.5
    places = np.stack([xs, ys], axis=-1)
    masks = (((places - centres[:, None, None]) / radii[:, None, None]) ** 2).sum(-1) <= 1
    order = generator.permutation(count)
    boxes = np.concatenate([centres - radii, centres + radii], axis=1)
    return torch.from_numpy(masks[order]), torch.from_numpy(boxes[order]).float()


def remaining(masks: np.ndarray, labels: list[int], iou: float, slack: float) -> list[bool]:
    """The rule on pasted masks, with both thresholds moved by ``slack``."""
    kept: list[int] = []
    for j, mask in enumerate(masks):
        both = [(masks[i] & mask).sum() for i in kept if labels[i] == labels[j]]
        either = [(masks[i] | mask).sum() for i in kept if labels[i] == labels[j]]
        over = any(b >= (iou + slack) * e or b >= (CONTAINMENT + slack) * mask.sum() for b, e in zip(both, either))
        if not over:
            kept.append(j)
    return [j in kept for j in range(len(masks))]


@pytest.mark.parametrize("size", [14, 28, 56])
@pytest.mark.parametrize("iou", [0.5, 0.7])
def test_it_is_the_rule_on_pasted_masks(size, iou):
    decided = 0
    for seed in range(12):
        masks, boxes = ellipses(12, seed)
        labels = torch.arange(12) % 2 + 1
        probs = crop_masks(masks, boxes, size)
        pasted = paste_masks(probs, boxes, (120, 160)).numpy()
        sure = [remaining(pasted, labels.tolist(), iou, slack) for slack in (-0.015, 0.015)]
        if sure[0] != sure[1]:
            continue  # a pair is too close to a threshold
        decided += 12 - sum(sure[0])
        assert distinct_masks(probs, boxes, labels, iou).tolist() == sure[0]
    assert decided >= 10


def box(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y + side]


def test_containment_needs_the_worse_score_and_the_same_class():
    full = torch.ones(2, 14, 14)
    outer, inner = box(0, 0, 100), box(10, 10, 30)
    one = torch.tensor([1, 1])
    assert distinct_masks(full, torch.tensor([outer, inner]), one, 0.7).tolist() == [True, False]
    assert distinct_masks(full, torch.tensor([inner, outer]), one, 0.7).tolist() == [True, True]
    assert distinct_masks(full, torch.tensor([outer, inner]), torch.tensor([1, 2]), 0.7).tolist() == [True, True]
    hollow = full.clone()
    hollow[0, 1:7, 1:7] = 0.0  # the better one leaves the smaller one out
    assert distinct_masks(hollow, torch.tensor([outer, inner]), one, 0.7).tolist() == [True, True]


def test_only_remaining_instances_leave_others_out():
    boxes = torch.tensor([box(0, 0, 100), box(20, 0, 100), box(40, 0, 100)])  # neighbours have an IoU of 2/3
    assert distinct_masks(torch.ones(3, 14, 14), boxes, torch.ones(3), 0.6).tolist() == [True, False, True]
    assert distinct_masks(torch.ones(3, 14, 14), boxes, torch.ones(3), 0.7).tolist() == [True, True, True]


def test_empty_masks_and_no_masks():
    boxes = torch.tensor([box(0, 0, 10), box(0, 0, 10), box(0, 0, 10)])
    probs = torch.stack([torch.zeros(14, 14), torch.ones(14, 14), torch.zeros(14, 14)])
    assert distinct_masks(probs, boxes, torch.ones(3), 0.7).tolist() == [True, True, True]
    assert distinct_masks(torch.zeros(0, 14, 14), torch.zeros(0, 4), torch.zeros(0), 0.7).tolist() == []


@pytest.fixture
def predictor(monkeypatch) -> TwoStagePredictor:
    """A detector that finds one object three times, and another one."""
    model = tiny_model().eval()
    with torch.no_grad():
        for each in model.mask_branch.region_fpn.mask_predictors:
            each.bias.fill_(5.0)
        model.mask_branch.switch.fc[2].weight.normal_(std=0.5)
    boxes = 1.0 * torch.tensor([box(10, 10, 30), box(11, 10, 30), box(50, 20, 40), box(10, 11, 30)])
    found = {"boxes": boxes, "labels": torch.tensor([1, 1, 1, 2]), "scores": torch.tensor([0.9, 0.8, 0.7, 0.6])}
    monkeypatch.setattr(model.detector, "detect", lambda encoded: [dict(found) for _ in encoded.original_sizes])
    return TwoStagePredictor(model)


@pytest.mark.parametrize("policy", ["learned", "size", "fixed:14", "fixed:112"])
def test_a_predictor_leaves_duplicates_out_under_every_policy(predictor, policy):
    every = predictor(PIXELS, policy=policy)
    assert len(every) == 4 and "duplicates" not in every.image_macs
    p = predictor(PIXELS, policy=policy, mask_nms=0.7)
    assert p.scores.tolist() == pytest.approx([0.9, 0.7, 0.6]) and p.labels.tolist() == [1, 1, 2]
    rows = [0, 2, 3]
    assert torch.equal(p.boxes, every.boxes[rows]) and torch.equal(p.mask_size, every.mask_size[rows])
    assert torch.equal(p.switch_logits, every.switch_logits[rows]) and torch.equal(p.masks, every.masks[rows])
    assert p.image_macs == {**every.image_macs, "duplicates": predictor.costs.macs_per_instance[0]}


def test_the_weights_have_a_threshold_that_an_argument_replaces(predictor):
    model = predictor.model
    model.config = dataclasses.replace(model.config, mask_nms=0.7)
    assert len(predictor(PIXELS)) == 3 and len(predictor(PIXELS, mask_nms=0)) == 4
    given = predictor(PIXELS, boxes=[box(10, 10, 30)] * 3, labels=[1, 1, 1])
    assert len(given) == 3, "given boxes are never left out"
    same = [{"bbox": [10, 10, 30, 30], "score": 0.5, "category_id": 1}] * 2
    assert len(predictor(PIXELS, detections=same)) == 2
    assert len(predictor(PIXELS, score=1.0)) == 0


def test_thresholds_that_cannot_be_used_are_refused(predictor):
    with pytest.raises(DynaMaskError, match="mask_nms is 1.5; give a mask IoU from 0 to 1"):
        predictor(PIXELS, mask_nms=1.5)
    with pytest.raises(DynaMaskError, match="mask_nms leaves out no given boxes"):
        predictor(PIXELS, boxes=[box(10, 10, 30)], mask_nms=0.5)
    with pytest.raises(DynaMaskError, match="mask_nms is -1; give a number from 0 to 1"):
        ModelConfig(mask_nms=-1)


def test_evaluation_uses_the_threshold(predictor):
    names = ShapesDataset(1).class_names[:4]
    predictor.class_names = names
    data = ShapesDataset(2)
    options = [EvaluationOptions(mask_nms=value) for value in (None, 0.0, 0.7)]
    assert [run_evaluation(predictor, data, options=each)["detections"] for each in options] == [8, 8, 6]
