"""The contract of all bundled weights: one interface of predictors and predictions, whatever the model family."""

import dataclasses
import importlib.util
import inspect
import io
import json
import sys
import types
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

import dynamask
from dynamask import MASK_SIZES, DynaMaskError, Prediction, Predictor
from dynamask.data.coco_format import read_coco, read_results
from dynamask.data.shapes import make_scene
from dynamask.models.dynamask import DynaMask
from dynamask.models.solo.model import SoloNet
from dynamask.models.weights import list_baselines, list_bundled
from dynamask.predict import OneStagePredictor, TwoStagePredictor

QUICK = {"shapes", "shapes-solov2", "shapes-sodar", "shapes-fcn-28", "shapes-pointrend"}
"""One of each kind; the others take the same paths and are marked slow."""
SCORE = 0.1
FEATURES = {
    "budget": {"budget": 0.05},
    "size": {"policy": "size"},
    "boxes": {"boxes": [[4.0, 4.0, 60.0, 50.0]]},
    "labels": {"boxes": [[4.0, 4.0, 60.0, 50.0]], "labels": [1]},
    "detections": {"detections": [{"bbox": [4.0, 4.0, 56.0, 46.0], "score": 0.7, "category_id": 1}]},
    "mask_nms": {"mask_nms": 0.7},
    "all_sizes": {"all_sizes": True},
    **{f"fixed:{size}": {"policy": f"fixed:{size}"} for size in MASK_SIZES},
}
"""Arguments beside their defaults, which a family may refuse."""
DEFAULTS = {"policy": "learned", "all_sizes": False} | dict.fromkeys(
    ("budget", "boxes", "labels", "detections", "mask_nms")
)


@cache
def loaded(name: str) -> Predictor:
    return dynamask.load(name)


@cache
def scene() -> np.ndarray:
    return make_scene(555, 0, size=(72, 96)).image


@cache
def predicted(name: str) -> Prediction:
    return loaded(name)(scene(), score=SCORE)


def supported(predictor: Predictor) -> set[str]:
    """The keys of FEATURES that the predictor's capabilities promise."""
    features = {f"fixed:{size}" for size in predictor.mask_sizes}
    features |= {"boxes", "labels", "detections", "mask_nms"} if predictor.takes_boxes else set()
    features |= {"all_sizes"} if predictor.mask_sizes else set()
    return features | ({"budget", "size"} if predictor.has_switch else set())


def assert_equal(ours: Prediction, theirs: Prediction) -> None:
    assert ours.image_macs == theirs.image_macs and ours.image_size == theirs.image_size
    for name in ("boxes", "labels", "scores", "macs", "masks", "mask_size", "switch_logits"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None and b is None) or torch.equal(a, b), name


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        names = [*list_bundled(), *list_baselines()]
        metafunc.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names])


def test_every_predictor_has_the_same_arguments():
    for name in ("__call__", "select", "check_choice", "check_objects", "check_switch"):
        signatures = {
            str(inspect.signature(getattr(kind, name))) for kind in (Predictor, TwoStagePredictor, OneStagePredictor)
        }
        assert len(signatures) == 1, name


def test_a_prediction_has_the_common_fields(name):
    predictor, p = loaded(name), predicted(name)
    count = len(p)
    assert isinstance(p, Prediction) and p.boxes.shape == (count, 4) and p.boxes.dtype == torch.float32
    assert p.scores.shape == p.labels.shape == p.macs.shape == (count,)
    assert p.labels.dtype == p.macs.dtype == torch.int64
    assert (p.scores >= SCORE).all() and (p.scores.diff() <= 0).all() and (p.macs > 0).all()
    assert p.image_size == (72, 96) and np.array_equal(p.picture, scene())
    assert p.masks.shape == (count, 72, 96) and p.masks.dtype == torch.bool
    assert all(torch.equal(p.mask(i), p.masks[i]) for i in range(count))
    assert p.class_names == predictor.class_names and p.category_ids == predictor.category_ids
    assert all(isinstance(macs, int) for macs in p.image_macs.values()) and all(ms >= 0 for ms in p.timings.values())
    assert p.mask_sizes == predictor.mask_sizes and (p.mask_size is None) == (predictor.mask_sizes == ())
    assert (p.switch_logits is None) == (p.switch_probs is None) == (not predictor.has_switch)
    assert (p.regions is None) == (predictor.costs is None) == (p.cells is not None)
    assert (predictor.family == "one-stage") == (p.cells is not None)


@pytest.mark.parametrize("size", [(6, 4000), (4000, 1)])
def test_strips_are_predicted(name, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    p = loaded(name)(pixels, score=0.0)
    assert p.image_size == size and p.masks.shape == (len(p), *size)
    assert p.boxes.isfinite().all() and (p.boxes[:, 2:] <= p.boxes.new_tensor(size[::-1]) + 1e-3).all()


def test_only_weights_with_a_switch_can_be_explored(name):
    if not predicted(name).mask_sizes or predicted(name).switch_logits is None:
        with pytest.raises(DynaMaskError, match="explore shows the sizes that a switch chooses"):
            dynamask.viz.explore(predicted(name))


def test_without_a_score_the_weights_choose_it(name):
    predictor = loaded(name)
    assert predictor.default_score == predictor.model.config.display_score
    assert_equal(predictor(scene()), predictor(scene(), score=predictor.default_score))


def test_arrays_tensors_pictures_files_and_paths_are_the_same(name, tmp_path):
    predictor, p, picture = loaded(name), predicted(name), Image.fromarray(scene())
    picture.save(tmp_path / "scene.png")
    sources = {
        "tensor": torch.from_numpy(scene().transpose(2, 0, 1).copy()),
        "picture": picture,
        "path": tmp_path / "scene.png",
    }
    for source in sources.values():
        assert_equal(predictor(source, score=SCORE), p)
    if name == "shapes":
        assert_equal(predictor(str(tmp_path / "scene.png"), score=SCORE), p)
        assert_equal(predictor(io.BytesIO((tmp_path / "scene.png").read_bytes()), score=SCORE), p)


def test_defaults_are_accepted_and_unknown_arguments_raise(name):
    predictor, p = loaded(name), predicted(name)
    assert_equal(predictor(scene(), score=SCORE, **DEFAULTS), p)
    for call in (predictor, predictor.select, predictor.check_choice):
        with pytest.raises(TypeError, match="typo"):
            call(p if call == predictor.select else scene(), typo=None)


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_works_or_is_refused_in_one_sentence(name, feature):
    predictor, arguments = loaded(name), FEATURES[feature]
    if feature in supported(predictor):
        p = predictor(scene(), score=SCORE, **arguments)
        if "policy" in arguments and feature != "size":
            assert p.mask_size.tolist() == [int(feature.partition(":")[2])] * len(p)
        if "detections" in arguments:
            assert p.boxes.tolist() == [[4.0, 4.0, 60.0, 50.0]] and p.scores.tolist() == pytest.approx([0.7])
            assert p.to_coco(1)[0]["category_id"] == 1
        if "boxes" in arguments:
            assert torch.equal(p.boxes, torch.tensor(arguments["boxes"])) and p.scores.tolist() == [1.0]
        return
    with pytest.raises(DynaMaskError) as caught:
        predictor(scene(), score=SCORE, **arguments)
    message = str(caught.value)
    named = "policy" if feature.startswith("fixed:") else feature
    assert named in message and "\n" not in message


def test_select_follows_what_a_call_follows(name):
    predictor, p = loaded(name), predicted(name)
    assert_equal(predictor.select(p), p)
    for choice in ({"policy": "size"}, {"budget": 0.05}, *({"policy": f"fixed:{size}"} for size in MASK_SIZES)):
        feature = "budget" if "budget" in choice else choice["policy"]
        if feature in supported(predictor):
            selected = predictor.select(p, **choice)
            assert torch.equal(selected.boxes, p.boxes) and selected.masks.shape == p.masks.shape
        else:
            with pytest.raises(DynaMaskError):
                predictor.select(p, **choice)


def test_coco_results_are_read_back(name, tmp_path):
    p = predicted(name)
    results = p.to_coco(7)
    keys = {"image_id", "category_id", "score", "bbox", "segmentation", "macs"}
    keys |= {"mask_size"} if p.mask_size is not None else set()
    keys |= {"quality"} if p.quality is not None else set()
    assert all(set(result) == keys for result in results)
    (tmp_path / "results.json").write_text(json.dumps(results))
    categories = [{"id": i, "name": n} for i, n in zip(p.category_ids, p.class_names[1:])]
    image = {"id": 7, "file_name": "scene.png", "height": 72, "width": 96}
    annotations = {"images": [image], "annotations": [], "categories": categories}
    assert len(read_results(tmp_path / "results.json", read_coco(annotations).listing)) == len(p)


@pytest.fixture
def supervision(monkeypatch) -> None:
    """The package supervision, or where it is not installed a stand-in that keeps the arguments of Detections."""
    if importlib.util.find_spec("supervision") is None:
        fields = ("xyxy", "mask", "confidence", "class_id", "data")
        stand_in = dataclasses.make_dataclass("Detections", fields, namespace={"__len__": lambda self: len(self.xyxy)})
        monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=stand_in))


@pytest.mark.usefixtures("supervision")
def test_detections_for_supervision(name):
    p = predicted(name)
    detections = p.to_supervision()
    assert len(detections) == len(p)
    assert np.array_equal(detections.xyxy, p.boxes.numpy()) and np.array_equal(detections.mask, p.masks.numpy())
    assert np.array_equal(detections.confidence, p.scores.numpy())
    assert [p.class_names[label] for label in detections.class_id] == detections.data["class_name"].tolist()
    assert np.array_equal(detections.data["macs"], p.macs.numpy())
    assert ("mask_size" in detections.data) == (p.mask_size is not None)


def test_a_class_loads_its_own_weights_and_refuses_others(name):
    own, other = (DynaMask, SoloNet) if loaded(name).family == "two-stage" else (SoloNet, DynaMask)
    assert type(loaded(name).model) is own and type(own.from_pretrained(name)) is own
    with pytest.raises(DynaMaskError, match=f"not a {other.__name__}"):
        other.from_pretrained(name)


def test_supervision_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(DynaMaskError, match="pip install supervision"):
        predicted("shapes").to_supervision()
