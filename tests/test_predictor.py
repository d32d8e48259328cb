"""The two-stage predictor: what it computes, selection without a pass of the backbone, and refusals."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from helpers.small_models import TINY, count_rows, tiny_model

import dynamask
from dynamask import MASK_SIZES, DynaMaskError, Prediction, Predictor
from dynamask.models.weights import save_model
from dynamask.ops.masks import paste_mask
from dynamask.predict import TwoStagePredictor

NAMES = ("__background__", "cat", "dog", "emu")
FOUND = TINY["detections_per_img"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = tiny_model(class_names=NAMES, category_ids=(3, 7, 20))
    with torch.no_grad():  # a switch with opinions, so that budgets have something to decide
        model.mask_branch.switch.fc[2].weight.normal_(std=0.5)
        for predictor in model.mask_branch.region_fpn.mask_predictors:
            predictor.weight.normal_(std=0.3)
    save_model(model, path)
    return path


@pytest.fixture(scope="module")
def predictor(weights) -> Predictor:
    return dynamask.load(str(weights))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def explored(predictor, image) -> Prediction:
    return predictor(image, score=0.0, all_sizes=True)


class Watched:
    """Counts what runs inside the block: backbone, proposals, and rows through the region stages."""

    def __init__(self, predictor: Predictor) -> None:
        self.model = predictor.model
        self.calls: list = []
        self.stages: list = []

    def __enter__(self) -> "Watched":
        modules = [self.model.backbone.body, self.model.detector.rpn.head]
        self.handles = [m.register_forward_hook(lambda module, *_: self.calls.append(module)) for m in modules]
        self.handles += count_rows(self.model.mask_branch.region_fpn.stages, self.stages)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def test_sizes_and_costs_of_a_prediction(predictor, image):
    p, costs = predictor(image, score=0.0), predictor.costs
    assert len(p) == FOUND and p.class_names == NAMES
    assert p.switch_probs.shape == (FOUND, 4)
    torch.testing.assert_close(p.switch_probs.sum(1), torch.ones(FOUND))
    assert set(p.timings) == {"detect", "regions", "masks"}
    assert p.macs.tolist() == [costs.macs_per_instance[MASK_SIZES.index(s)] for s in p.mask_size.tolist()]
    assert p.image_macs == costs.image_macs([(4, 6), (8, 12), (16, 24)], FOUND)
    assert p.image_macs["switch"] == FOUND * costs.switch_macs


def test_it_is_the_model_in_evaluation(predictor, image):
    p = predictor(image, score=0.0)
    (expected,) = predictor.model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
    for key in ("boxes", "scores", "switch_logits"):
        torch.testing.assert_close(getattr(p, key), expected[key], atol=1e-4, rtol=1e-4)
    assert torch.equal(p.labels, expected["labels"]) and torch.equal(p.mask_size, expected["mask_size"])
    assert (p.masks != (expected["masks"][:, 0] >= 0.5)).float().mean() < 1e-3


def test_masks_one_by_one_and_at_every_size(explored):
    assert explored.masks.any()
    for i in range(len(explored)):
        assert torch.equal(explored.mask(i), explored.masks[i])
        for size in MASK_SIZES:
            probs = explored.mask_probs_at(i, size)
            assert probs.shape == (size, size) and 0 <= float(probs.min()) <= float(probs.max()) <= 1
            assert torch.equal(explored.mask_at(i, size), paste_mask(probs, explored.boxes[i], (64, 96)))
    with pytest.raises(DynaMaskError, match="no masks of 20; choose one of 14, 28, 56, 112"):
        explored.mask_at(0, 20)


POLICIES = ["learned", "size", *(f"fixed:{size}" for size in MASK_SIZES)]


@pytest.mark.parametrize("policy", POLICIES)
def test_select_equals_a_direct_call_and_runs_no_backbone(predictor, image, policy):
    direct = predictor(image, policy=policy, score=0.0)
    with Watched(predictor) as watched:
        first = predictor(image, policy="fixed:14", score=0.0)
        assert len(watched.calls) > 0 and watched.stages == []
        watched.calls.clear()
        selected = predictor.select(first, policy=policy)
        assert watched.calls == []
        computed = sum(rows for _, rows in watched.stages)
    assert computed == sum(MASK_SIZES.index(size) for size in direct.mask_size.tolist())
    assert torch.equal(direct.mask_size, selected.mask_size) and torch.equal(direct.macs, selected.macs)
    assert torch.equal(direct.boxes, selected.boxes)
    assert (direct.masks != selected.masks).float().mean() < 1e-3
    assert first.mask_size.tolist() == [14] * FOUND, "the first choice stays what it was"
    if policy.startswith("fixed:"):
        assert set(selected.mask_size.tolist()) == {int(policy[6:])}


def test_an_explored_picture_selects_without_any_stage(predictor, explored):
    with Watched(predictor) as watched:
        for policy in POLICIES:
            assert predictor.select(explored, policy).masks.shape == (FOUND, 64, 96)
        predictor.select(explored, budget=predictor.costs.macs_per_instance[1] / 1e9)
        explored.mask_at(2, 112)
    assert watched.calls == [] and watched.stages == []


def test_a_size_that_was_not_computed_is_computed_when_it_is_asked_for(predictor, image, explored):
    p = predictor(image, policy="fixed:14", score=0.0)
    with Watched(predictor) as watched:
        probs = p.mask_probs_at(3, 56)
        assert watched.stages == [(0, 1), (1, 1)] and watched.calls == []
    torch.testing.assert_close(probs, explored.mask_probs_at(3, 56), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.15, 0.4, 0.75, 1.0])
def test_a_budget_is_met_by_the_best_choice(predictor, explored, share):
    macs = predictor.costs.macs_per_instance
    budget = (macs[0] + share * (macs[3] - macs[0])) / 1e9
    q = predictor.select(explored, "learned", budget)
    assert float(q.macs.double().mean()) <= budget * 1e9 + 1e-3
    log_probs = explored.switch_logits.double().log_softmax(1).tolist()
    best = max(
        sum(row[k] for row, k in zip(log_probs, choice))
        for choice in itertools.product(range(4), repeat=FOUND)
        if sum(macs[k] for k in choice) <= FOUND * budget * 1e9 + 1e-3
    )
    chosen = sum(row[MASK_SIZES.index(size)] for row, size in zip(log_probs, q.mask_size.tolist()))
    assert chosen == pytest.approx(best, abs=1e-9)


def test_a_budget_in_the_call_equals_a_budget_in_select(predictor, image, explored):
    budget = predictor.costs.macs_per_instance[1] / 1e9
    direct = predictor(image, budget=budget, score=0.0)
    assert torch.equal(direct.mask_size, predictor.select(explored, budget=budget).mask_size)


def test_score_threshold_leaves_out(predictor, image, explored):
    middle = float(explored.scores[1])
    p = predictor(image, score=middle)
    assert len(p) == int((explored.scores >= middle).sum()) < FOUND
    assert (p.scores >= middle).all()


def test_given_boxes_need_no_detection(predictor, image):
    boxes = [[10.0, 8.0, 60.0, 50.0], [30.5, 20.25, 90.0, 64.0], [-5.0, -5.0, 200.0, 200.0]]
    with Watched(predictor) as watched:
        p = predictor(image, boxes=boxes, labels=[1, 3, 2], policy="fixed:28")
    assert [type(m).__name__ for m in watched.calls].count("RPNHead") == 0
    expected = torch.tensor([*boxes[:2], [0.0, 0.0, 96.0, 64.0]])
    torch.testing.assert_close(p.boxes, expected)
    assert p.labels.tolist() == [1, 3, 2] and p.scores.tolist() == [1, 1, 1]
    assert p.masks.shape == (3, 64, 96)
    for source in (np.array(boxes), torch.tensor(boxes)):
        assert torch.equal(predictor(image, boxes=source, labels=(1, 3, 2), policy="fixed:28").masks, p.masks)
    unnamed = predictor(image, boxes=boxes)
    assert unnamed.labels.shape == (3,) and set(unnamed.labels.tolist()) <= {1, 2, 3}


def test_given_boxes_equal_the_same_boxes_detected(predictor, image):
    found = predictor(image, policy="fixed:56", score=0.0)
    given = predictor(image, policy="fixed:56", boxes=found.boxes, labels=found.labels.tolist())
    torch.testing.assert_close(given.switch_logits, found.switch_logits, atol=1e-3, rtol=1e-3)
    assert (given.masks != found.masks).float().mean() < 1e-3


@pytest.mark.parametrize("ask", [{"score": 1.0}, {"boxes": []}, {"boxes": np.zeros((0, 4))}], ids=str)
def test_a_picture_with_nothing_in_it(predictor, image, ask):
    with Watched(predictor) as watched:
        p = predictor(image, all_sizes=True, **ask)
    assert watched.stages == []
    assert len(p) == 0 and p.boxes.shape == (0, 4) and p.masks.shape == (0, 64, 96)
    assert p.switch_probs.shape == (0, 4) and p.to_coco(1) == [] and p.image_macs["switch"] == 0
    for choice in [{"policy": policy} for policy in POLICIES] + [{"budget": 1.0}]:
        assert len(predictor.select(p, **choice).masks) == 0


def test_one_pixel_picture(predictor):
    p = predictor(np.zeros((1, 1, 3), dtype=np.uint8), score=0.0)
    assert p.image_size == (1, 1) and p.masks.shape == (len(p), 1, 1)


def test_coco_results(predictor, explored):
    results = json.loads(json.dumps(explored.to_coco(42)))
    assert len(results) == FOUND
    for i, result in enumerate(results):
        assert set(result) == {
            "image_id",
            "category_id",
            "score",
            "bbox",
            "segmentation",
            "mask_size",
            "quality",
            "macs",
        }
        x0, y0, x1, y1 = explored.boxes[i].tolist()
        assert result["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])
        assert result["image_id"] == 42 and result["category_id"] == (3, 7, 20)[int(explored.labels[i]) - 1]
        assert result["score"] == pytest.approx(float(explored.scores[i]))
        assert result["mask_size"] == int(explored.mask_size[i]) and result["macs"] == int(explored.macs[i])
        assert result["segmentation"]["size"] == [64, 96]
        decoded = coco_mask.decode({"size": [64, 96], "counts": result["segmentation"]["counts"].encode()})
        assert np.array_equal(decoded.astype(bool), explored.mask(i).numpy())


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"policy": "best"}, "policy 'best' is unknown; choose one of learned, quality, size, fixed:14"),
        ({"policy": "fixed:20"}, "policy 'fixed:20' is unknown"),
        ({"policy": "fixed:"}, "is unknown"),
        ({"budget": math.nan}, "not a finite number"),
        ({"budget": math.inf}, "not a finite number"),
        ({"budget": 0.0}, "below the cheapest size"),
        ({"budget": 1.0, "policy": "size"}, "cannot be combined"),
        ({"score": 1.5}, "score threshold 1.5 is out of range"),
        ({"score": math.nan}, "score threshold nan is out of range"),
        ({"boxes": [[10, 10, 10, 30]]}, "has no area inside the picture of 96 x 64 pixels"),
        ({"boxes": [[30, 10, 20, 30]]}, "has no area"),
        ({"boxes": [[100, 10, 120, 30]]}, "has no area"),
        ({"boxes": [[0, 0, math.nan, 30]]}, "has no area"),
        ({"boxes": [[0, 0, math.inf, 30]]}, "has no area"),
        ({"boxes": [[1, 2, 3]]}, "give four numbers for each"),
        ({"boxes": np.ones((4, 3))}, "give four numbers for each"),
        ({"boxes": [1, 2, 30, 40]}, "give four numbers for each"),
        ({"boxes": [[1, 2, 30, 40], [1]]}, "give four numbers for each"),
        ({"boxes": "nonsense"}, "give four numbers for each"),
        ({"boxes": [[1, 2, 30, 40]], "labels": [4]}, "one label from 1 to 3"),
        ({"boxes": [[1, 2, 30, 40]], "labels": [0]}, "one label from 1 to 3"),
        ({"boxes": [[1, 2, 30, 40]], "labels": [1, 2]}, "one label from 1 to 3"),
        ({"labels": [1]}, "labels were given without boxes"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(predictor, image, ask, message):
    with pytest.raises(DynaMaskError) as caught:
        predictor(image, **ask)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("ask", [{"policy": "best"}, {"budget": 0.0}, {"budget": 1.0, "policy": "fixed:14"}], ids=str)
def test_what_cannot_be_selected_is_refused(predictor, explored, ask):
    with pytest.raises(DynaMaskError):
        predictor.select(explored, **ask)


def test_pictures_weights_and_devices_that_do_not_exist_are_refused(predictor, weights, tmp_path):
    with pytest.raises(DynaMaskError):
        predictor(tmp_path / "none.png")
    with pytest.raises(DynaMaskError, match="no bundled weights are called 'nobody'"):
        dynamask.load("nobody")
    with pytest.raises(DynaMaskError, match="do not exist"):
        dynamask.load(tmp_path / "none.safetensors")
    with pytest.raises(DynaMaskError, match="device 'toaster' is not available here; use auto, which is "):
        dynamask.load(weights, device="toaster")


def test_one_class_needs_no_box_head_to_be_named(image):
    predictor = TwoStagePredictor(tiny_model(num_classes=2))
    p = predictor(image, boxes=[[5, 5, 50, 50]])
    assert p.labels.tolist() == [1] and predictor.category_ids == (1,)
    assert not predictor.model.training


@pytest.mark.parametrize("labels", [["a"], [1.5], [True], [None]])
def test_labels_that_are_no_whole_numbers_are_refused(predictor, labels):
    with pytest.raises(DynaMaskError, match="whole numbers"):
        predictor(np.zeros((64, 64, 3), np.uint8), boxes=[[4, 4, 40, 40]], labels=labels)
