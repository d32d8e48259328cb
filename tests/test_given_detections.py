"""Detections of another model: forms, order, classes, refusals, many boxes, and the example of the documents."""

import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.command_line import ROOT
from helpers.small_models import finding_solo, tiny_model
from PIL import Image

import dynamask
from dynamask.models.masks.heads import base
from dynamask.predict import OneStagePredictor, TwoStagePredictor, prediction
from dynamask.structures import MASK_SIZES, DynaMaskError

BOXES = np.array([[10.0, 8.0, 60.0, 50.0], [30.5, 20.25, 90.0, 64.0], [-5.0, -5.0, 200.0, 200.0]])
SCORES, IDS, NAMES = np.array([0.2, 0.9, 0.5]), np.array([17, 0, 17]), np.array(["cat", "person", "cat"])
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def found(xyxy=BOXES, confidence=SCORES, class_id=IDS, **data) -> SimpleNamespace:
    """Detections with the attributes of the package supervision."""
    return SimpleNamespace(xyxy=xyxy, confidence=confidence, class_id=class_id, data=data)


def results(**more) -> list[dict]:
    """The same as COCO results."""
    return [
        {"bbox": [x0, y0, x1 - x0, y1 - y0], "score": score, "category_id": category, "image_id": 5, **more}
        for (x0, y0, x1, y1), score, category in zip(BOXES.tolist(), SCORES.tolist(), IDS.tolist())
    ]


@pytest.fixture(scope="module")
def agnostic() -> TwoStagePredictor:
    model = tiny_model(class_agnostic=True)
    with torch.no_grad():
        model.mask_branch.switch.fc[2].weight.normal_(std=0.5)
        for predictor in model.mask_branch.region_fpn.mask_predictors:
            predictor.weight.normal_(std=3.0)
    return TwoStagePredictor(model)


@pytest.fixture(scope="module")
def by_class() -> TwoStagePredictor:
    names = ("__background__", "person", "dog", "cat")
    return TwoStagePredictor(tiny_model(class_names=names, category_ids=(0, 16, 17)))


def test_scores_and_classes_are_the_given_ones_best_score_first(agnostic):
    p = agnostic(PIXELS, detections=found(class_name=NAMES))
    assert p.boxes.tolist() == [[30.5, 20.25, 90.0, 64.0], [0.0, 0.0, 96.0, 64.0], [10.0, 8.0, 60.0, 50.0]]
    assert p.scores.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert [p.class_names[label] for label in p.labels.tolist()] == ["person", "cat", "cat"]
    assert [result["category_id"] for result in p.to_coco(1)] == [0, 17, 17]
    assert [result["score"] for result in p.to_coco(1)] == pytest.approx([0.9, 0.5, 0.2])


def test_masks_equal_those_of_given_boxes_at_every_choice(agnostic):
    order = [1, 2, 0]
    cheap = agnostic.costs.macs_per_instance[1] / 1e9
    for choice in ({}, {"policy": "size"}, {"policy": "fixed:28"}, {"budget": cheap}):
        p = agnostic(PIXELS, detections=found(class_name=NAMES), **choice)
        q = agnostic(PIXELS, boxes=BOXES[order], labels=[1, 1, 1], **choice)
        assert torch.equal(p.mask_size, q.mask_size) and torch.equal(p.masks, q.masks)
        assert torch.equal(agnostic.select(p, "fixed:14").masks, agnostic.select(q, "fixed:14").masks)


def test_coco_results_and_missing_parts(agnostic):
    named = agnostic(PIXELS, detections=results(class_name="thing", score=0.5))
    assert named.class_names == ("__background__", "thing", "thing") and named.scores.tolist() == [0.5] * 3
    assert torch.equal(named.boxes[0], torch.tensor([10.0, 8.0, 60.0, 50.0])), "equal scores keep their order"
    plain = agnostic(PIXELS, detections=results())
    assert plain.class_names == ("__background__", "class 0", "class 17") and plain.category_ids == (0, 17)
    bare = agnostic(PIXELS, detections=[{"bbox": [1, 2, 30, 40]}])
    assert bare.class_names == ("__background__", "object") and bare.scores.tolist() == [1.0]
    by_name = agnostic(PIXELS, detections=found(confidence=None, class_id=None, class_name=NAMES))
    assert by_name.class_names == ("__background__", "cat", "person") and by_name.labels.tolist() == [1, 2, 1]
    numbers = [{**one, "score": np.float32(one["score"]), "category_id": np.int64(3)} for one in results()]
    assert agnostic(PIXELS, detections=numbers).category_ids == (3,)


def test_only_a_given_score_leaves_detections_out(agnostic):
    assert agnostic(PIXELS, detections=found(), score=0.5).scores.tolist() == pytest.approx([0.9, 0.5])


@pytest.mark.parametrize("none", [[], found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))], ids=["list", "object"])
def test_no_detection_gives_an_empty_prediction(agnostic, none):
    p = agnostic(PIXELS, detections=none, all_sizes=True)
    assert len(p) == 0 and p.masks.shape == (0, 64, 96) and p.to_coco(1) == []
    assert len(agnostic.select(p, "fixed:28")) == 0


def test_weights_with_a_mask_for_each_class_use_its_own(by_class):
    p = by_class(PIXELS, detections=found(class_name=NAMES), policy="fixed:14")
    q = by_class(PIXELS, boxes=BOXES[[1, 2, 0]], labels=[1, 3, 3], policy="fixed:14")
    assert torch.equal(p.regions.state.labels, torch.tensor([1, 3, 3])) and torch.equal(p.masks, q.masks)
    assert by_class(PIXELS, detections=results()).regions.state.labels.tolist() == [1, 3, 3], "by category id"
    assert by_class(PIXELS, detections=found(class_id=None, class_name=NAMES)).regions.state.labels.tolist() == [
        1,
        3,
        3,
    ]


def test_more_boxes_than_are_kept_get_the_same_masks(agnostic, monkeypatch):
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 40, (9, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 24, (9, 2))], axis=1)
    many = found(boxes, np.linspace(0.9, 0.1, 9), np.arange(9))
    kept = agnostic(PIXELS, detections=many)
    monkeypatch.setattr(prediction, "KEPT_REGIONS", 8)
    monkeypatch.setattr(prediction, "REGIONS_AT_ONCE", 4)
    p = agnostic(PIXELS, detections=many)
    assert torch.equal(p.mask_size, kept.mask_size) and (p.masks != kept.masks).float().mean() < 1e-3
    assert [len(feature) for feature in p.regions.state.features] == [9, 0, 0, 0]
    for size in MASK_SIZES:
        q = agnostic.select(p, f"fixed:{size}")
        expected = agnostic.select(kept, f"fixed:{size}")
        assert (q.masks != expected.masks).float().mean() < 1e-3 and expected.masks.any()


def test_a_part_of_a_state_has_the_features_that_all_its_regions_have(agnostic):
    state = agnostic(PIXELS, boxes=BOXES, labels=[1, 2, 3], policy="fixed:14").regions.state
    agnostic.model.mask_branch.head.mask_logits(state, 1, torch.tensor([0, 2]))
    both, other = state.take(torch.tensor([2, 0])), state.take(torch.tensor([1, 2]))
    assert isinstance(both, base.RegionState) and both.labels.tolist() == [3, 1]
    assert torch.equal(both.features[1], state.gather(1, torch.tensor([2, 0]))) and both.rows[1].tolist() == [0, 1]
    assert len(other.features[1]) == 0 and torch.equal(other.features[0], state.features[0][[1, 2]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (found(np.array([[10, 10, 10, 30]]), None, None), "box [10.0, 10.0, 10.0, 30.0] has no area inside"),
        (found(np.array([[1, 1, 9, 9], [np.nan, 10, 20, 30]]), None, None), "box [nan, 10.0, 20.0, 30.0] has no area"),
        (found(np.ones((4, 3)), None, None), "give four numbers for each"),
        (results(bbox=[100, 10, 5, 5]), "box [100.0, 10.0, 105.0, 15.0] has no area"),
        ([{"bbox": [1, 2, 3, 4]}, {"bbox": [1, 2, 3]}], "detection 2 has no bbox of four numbers"),
        ([{"score": 0.5}], "detection 1 has no bbox of four numbers"),
        (found(confidence=np.array([0.5, 1.5, 2.0])), "detection 2 has the score 1.5; give a number from 0 to 1"),
        (results(score=None), "detection 1 has the score None"),
        (found(confidence=np.ones(2)), "3 boxes and 2 scores"),
        (found(class_name=np.array(["a"])), "3 boxes and 1 class names"),
        (found(class_id=np.array([1, -1, 2])), "detection 2 has the class id -1"),
        (results(category_id="cat"), "detection 1 has the class id 'cat'"),
        (found(class_name=np.array(["a", "b", "c"])), "class 17 is called 'a' and 'c'"),
        ([{**one, "image_id": i} for i, one in enumerate(results())], "of 3 pictures (image_id)"),
        ("boxes.json", "neither a supervision.Detections nor a list of COCO results"),
        (BOXES, "neither a supervision.Detections nor a list of COCO results"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_in_one_sentence(agnostic, given, message):
    with pytest.raises(DynaMaskError) as caught:
        agnostic(PIXELS, detections=given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_other_refusals(agnostic, by_class):
    with pytest.raises(DynaMaskError, match="boxes and detections were both given"):
        agnostic(PIXELS, boxes=BOXES, detections=found())
    with pytest.raises(DynaMaskError, match="no class 'zebra'; leave such detections out or use class-agnostic"):
        by_class(PIXELS, detections=found(class_id=None, class_name=np.array(["cat", "zebra", "cat"])))
    with pytest.raises(DynaMaskError, match="no class 5"):
        by_class(PIXELS, detections=results(category_id=5))
    with pytest.raises(DynaMaskError, match="a one-stage model takes no detections; omit them"):
        OneStagePredictor(finding_solo())(PIXELS, detections=found())


def test_the_package_supervision_there_and_back(agnostic):
    supervision = pytest.importorskip("supervision")
    given = supervision.Detections(
        xyxy=BOXES.astype(np.float32), confidence=SCORES, class_id=IDS, data={"class_name": NAMES}
    )
    back = agnostic(PIXELS, detections=given).to_supervision()
    assert back.class_id.tolist() == [0, 17, 17] and back.data["class_name"].tolist() == ["person", "cat", "cat"]
    assert back.confidence.tolist() == pytest.approx([0.9, 0.5, 0.2]) and back.mask.shape == (3, 64, 96)
    assert len(agnostic(PIXELS, detections=supervision.Detections.empty())) == 0


def test_class_ids_come_back(agnostic, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    back = agnostic(PIXELS, detections=found(class_name=NAMES)).to_supervision()
    assert back.class_id.tolist() == [0, 17, 17] and back.data["class_name"].tolist() == ["person", "cat", "cat"]
    own = agnostic(PIXELS, boxes=BOXES, labels=[1, 3, 2]).to_supervision()
    assert own.class_id.tolist() == [1, 3, 2]


def test_the_example_of_the_documents_runs(agnostic, monkeypatch, tmp_path):
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"^```py\n(.*?)^```", text, re.M | re.S) if "rfdetr" in block]
    model = SimpleNamespace(predict=lambda image: found())
    classes = ModuleType("coco_classes")
    classes.COCO_CLASSES = {0: "person", 17: "cat"}
    monkeypatch.setitem(sys.modules, "rfdetr", SimpleNamespace(RFDETRBase=lambda: model))
    monkeypatch.setitem(sys.modules, "rfdetr.assets", ModuleType("assets"))
    monkeypatch.setitem(sys.modules, "rfdetr.assets.coco_classes", classes)
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    monkeypatch.setattr(dynamask, "load", lambda name: agnostic)
    Image.fromarray(PIXELS).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example, names)
    assert names["prediction"].class_names == ("__background__", "person", "cat")
    assert names["masked"].mask.shape == (3, 64, 96)
