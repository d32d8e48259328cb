"""torchvision's detector in our model: the same boxes and scores, and what does not fit is said."""

import copy
import hashlib
import re
from urllib.error import URLError

import pytest
import torch
from helpers.small_models import picture, tiny_model
from safetensors.torch import save_file
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.ops import FrozenBatchNorm2d

from dynamask.config import ModelConfig
from dynamask.models.build import create_model
from dynamask.models.detectors import torchvision_weights
from dynamask.models.detectors.torchvision_weights import (
    COCO_V1,
    coco_rows,
    is_torchvision_source,
    load_torchvision_detector,
)
from dynamask.models.weights import save_model
from dynamask.structures import DynaMaskError

COCO = COCO_V1.meta["categories"]
CLASSES = {row: name for row, name in enumerate(COCO) if name not in ("__background__", "N/A")}
SMALL = {
    "test_min_size": 128,
    "max_size": 200,
    "rpn_pre_nms_test": 100,
    "rpn_post_nms_test": 50,
    "detections_per_img": 8,
}


def frozen(module: nn.Module, eps: float) -> None:
    """Replace BatchNorm by torchvision's frozen one with statistics far from 0 and 1."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = FrozenBatchNorm2d(child.num_features, eps)
            norm.weight.uniform_(0.3, 0.7)
            norm.bias.normal_(std=0.1)
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.running_var[::7] = 3e-5 * norm.weight[::7]  # where eps matters
            norm.weight[::7] *= 5e-3
            setattr(module, name, norm)
        else:
            frozen(child, eps)


def reference(eps: float, gaps: float = 0.0) -> nn.Module:
    """torchvision's Mask R-CNN with random weights that finds things; `gaps` is added to the logits of unused ids."""
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        min_size=128,
        max_size=200,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=50,
        box_detections_per_img=8,
    )
    with torch.no_grad():
        frozen(model.backbone.body, eps)
        predictor = model.roi_heads.box_predictor
        model.rpn.head.cls_logits.weight.mul_(10)
        predictor.bbox_pred.weight.mul_(10)
        heard = []
        handle = predictor.cls_score.register_forward_hook(lambda module, inputs, logits: heard.append(logits))
        model.eval()([picture(96, 128)])
        handle.remove()
        predictor.cls_score.weight.mul_(3 / heard[0].std())
        predictor.cls_score.bias[[row for row in range(1, 91) if row not in CLASSES]] += gaps
    return model.eval()


def coco_model(**overrides) -> nn.Module:
    """The preset of the paper with COCO's 80 classes, on small pictures."""
    torch.manual_seed(1)
    names = {"class_names": ("__background__", *CLASSES.values()), "category_ids": tuple(CLASSES)}
    return create_model("dynamask_resnet50_fpn", **{**SMALL, **names, **overrides}).eval()


def saved(tmp_path, state: dict, name: str = "detector.pth"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def same_detections(ours: dict, theirs: dict, label_of) -> None:
    assert len(theirs["boxes"]) > 3 and len(set(theirs["labels"].tolist())) > 1
    assert [label_of(label) for label in ours["labels"].tolist()] == theirs["labels"].tolist()
    torch.testing.assert_close(ours["boxes"], theirs["boxes"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(ours["scores"], theirs["scores"], atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def theirs():
    """With eps 0 and no weight on the unused ids, as in torchvision's published model."""
    return reference(eps=0.0, gaps=-50.0)


def test_boxes_and_scores_equal_torchvisions(theirs, tmp_path):
    model = coco_model()
    before = {key: value.clone() for key, value in model.mask_branch.state_dict().items()}
    path = saved(tmp_path, theirs.state_dict(), "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth")
    assert load_torchvision_detector(model, path) == []
    image = picture(96, 128, seed=5)
    with torch.no_grad():
        ours, expected = model([image])[0], theirs([image])[0]
        ids = model.config.category_ids
        same_detections(ours, expected, lambda label: ids[label - 1])
    assert before and all(torch.equal(value, model.mask_branch.state_dict()[key]) for key, value in before.items())


def test_all_91_outputs_equal_without_any_help_from_the_unused_ones(tmp_path):
    detector, model = reference(eps=1e-5), coco_model(class_names=tuple(COCO), category_ids=())
    load_torchvision_detector(model, saved(tmp_path, {"model": detector.state_dict()}))
    image = picture(120, 100, seed=6)
    with torch.no_grad():
        same_detections(model([image])[0], detector([image])[0], lambda label: label)


def test_eps_is_told_by_the_file_and_folded_into_the_weight(theirs, tmp_path):
    state, name = theirs.state_dict(), "backbone.body.layer2.0.bn1"
    files = [saved(tmp_path, state, f"{stem}.pth") for stem in ("own", "x-bf2d0c1e")]
    weights = []
    for path in files:
        model = coco_model()
        load_torchvision_detector(model, path)
        weights.append(model.detector.state_dict()[f"{name}.weight"])
    assert torch.equal(weights[0], state[f"{name}.weight"])
    variance = state[f"{name}.running_var"]
    torch.testing.assert_close(weights[1], state[f"{name}.weight"] * torch.sqrt(1 + 1e-5 / variance))
    assert not torch.allclose(weights[0], weights[1])
    assert hashlib.sha256(files[0].read_bytes()).hexdigest()[:8] != "bf2d0c1e"


def test_the_presets_settings_are_torchvisions():
    ours = create_model("dynamask_resnet50_fpn").detector
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    assert ours.transform.min_size[-1:] == theirs.transform.min_size[-1:]
    for name in ("max_size", "image_mean", "image_std", "size_divisible"):
        assert list_or_number(getattr(ours.transform, name)) == list_or_number(getattr(theirs.transform, name)), name
    assert ours.rpn.anchor_generator.sizes == theirs.rpn.anchor_generator.sizes
    assert ours.rpn.anchor_generator.aspect_ratios == theirs.rpn.anchor_generator.aspect_ratios
    for name in ("_pre_nms_top_n", "_post_nms_top_n", "nms_thresh", "score_thresh", "min_size"):
        assert getattr(ours.rpn, name) == getattr(theirs.rpn, name), name
    for name in ("score_thresh", "nms_thresh", "detections_per_img"):
        assert getattr(ours.roi_heads, name) == getattr(theirs.roi_heads, name), name
    assert ours.roi_heads.box_coder.weights == theirs.roi_heads.box_coder.weights
    pools = [model.roi_heads.box_roi_pool for model in (ours, theirs)]
    assert pools[0].output_size == pools[1].output_size and pools[0].sampling_ratio == pools[1].sampling_ratio


def list_or_number(value):
    return list(value) if isinstance(value, tuple | list) else value


def test_names_before_version_013_are_understood(theirs, tmp_path):
    new = theirs.state_dict()
    old = {
        re.sub(r"((?:inner|layer)_blocks\.\d)\.0\.|(rpn\.head\.conv)\.0\.0\.", r"\1\2.", key): new[key] for key in new
    }
    assert set(old) != set(theirs.state_dict())
    new_model, old_model = coco_model(), coco_model()
    load_torchvision_detector(new_model, saved(tmp_path, theirs.state_dict()))
    save_file(old, tmp_path / "old.safetensors")
    load_torchvision_detector(old_model, tmp_path / "old.safetensors")
    assert all(torch.equal(value, old_model.state_dict()[key]) for key, value in new_model.state_dict().items())


def test_classes_are_found_by_name_and_the_others_stay(theirs, tmp_path):
    names = ("__background__", "giraffe", "unicorn", "person")
    model = coco_model(class_names=names, category_ids=(7, 8, 9))
    predictor = model.detector.roi_heads.box_predictor
    start = predictor.cls_score.weight[2].clone(), predictor.bbox_pred.weight[8:12].clone()
    assert load_torchvision_detector(model, saved(tmp_path, theirs.state_dict())) == ["unicorn"]
    giraffe, state = COCO.index("giraffe"), theirs.state_dict()
    source = state["roi_heads.box_predictor.cls_score.weight"]
    assert giraffe == 25
    assert torch.equal(predictor.cls_score.weight[[0, 1, 3]], source[[0, giraffe, 1]])
    assert torch.equal(predictor.cls_score.weight[2], start[0])
    assert torch.equal(predictor.bbox_pred.weight[8:12], start[1])
    boxes = state["roi_heads.box_predictor.bbox_pred.weight"]
    assert torch.equal(predictor.bbox_pred.weight[4:8], boxes[4 * giraffe : 4 * giraffe + 4])


def test_rows_follow_the_category_ids():
    named = ModelConfig(class_names=("__background__", *CLASSES.values()), category_ids=tuple(CLASSES))
    assert coco_rows(named) == [0, *CLASSES]
    unnamed = ModelConfig(class_names=("__background__", "class_1", "class_2"), category_ids=(44, 91))
    assert coco_rows(unnamed) == [0, 44, None]


def test_a_faster_rcnn_of_other_classes_fits_too(tmp_path):
    torch.manual_seed(2)
    detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    model = coco_model(class_names=("__background__", "bolt", "nut"), category_ids=())
    path = saved(tmp_path, detector.state_dict())
    assert load_torchvision_detector(model, path) == []
    assert torch.equal(
        model.detector.roi_heads.box_predictor.cls_score.weight, detector.roi_heads.box_predictor.cls_score.weight
    )
    with pytest.raises(DynaMaskError, match="have 3 outputs and the model has 81"):
        load_torchvision_detector(coco_model(), path)


def test_what_does_not_fit_names_the_keys_and_changes_nothing(theirs, tmp_path):
    model = coco_model()
    before = copy.deepcopy(model.state_dict())
    state = theirs.state_dict()
    lacking = {key: value for key, value in state.items() if key != "backbone.body.layer3.2.conv1.weight"}
    with pytest.raises(DynaMaskError, match=r"1 missing: backbone\.body\.layer3\.2\.conv1\.weight"):
        load_torchvision_detector(model, saved(tmp_path, lacking))
    with pytest.raises(DynaMaskError, match=r"1 too many: keypoints\.weight"):
        load_torchvision_detector(model, saved(tmp_path, {**state, "keypoints.weight": torch.zeros(1)}))
    with pytest.raises(DynaMaskError, match="of another shape: .*box_head"):
        load_torchvision_detector(coco_model(box_head_channels=64), saved(tmp_path, state))
    flat = {**state, "backbone.body.bn1.running_var": torch.zeros(64)}
    with pytest.raises(DynaMaskError, match="variance of zero in backbone.body.bn1"):
        load_torchvision_detector(model, saved(tmp_path, flat, "bf2d0c1e.pth"))
    second = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    with pytest.raises(DynaMaskError, match="maskrcnn_resnet50_fpn_v2.*give weights of maskrcnn_resnet50_fpn"):
        load_torchvision_detector(model, saved(tmp_path, second))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "match"),
    [({"image_mean": (0.5, 0.5, 0.5)}, "ImageNet mean"), ({"anchor_sizes": (16, 32, 64, 128, 256)}, "anchors of")],
)
def test_other_input_or_anchors_are_refused(overrides, match, tmp_path):
    with pytest.raises(DynaMaskError, match=match):
        load_torchvision_detector(coco_model(**overrides), tmp_path / "any.pth")


def test_files_that_are_none_are_refused(tmp_path):
    model = coco_model()
    (tmp_path / "text.pth").write_text("no tensors")
    torch.save({"a": 1}, tmp_path / "number.pth")
    torch.save(tiny_model(), tmp_path / "module.pth")
    for name, match in (
        ("none.pth", "do not exist"),
        ("text.pth", "cannot be read"),
        ("number.pth", "no state dict"),
        ("module.pth", "cannot be read as a file of tensors alone"),
    ):
        with pytest.raises(DynaMaskError, match=match) as refusal:
            load_torchvision_detector(model, tmp_path / name)
        assert "\n" not in str(refusal.value)


def test_without_internet_one_sentence_says_what_to_do(monkeypatch):
    asked = []

    def offline(url, **options):
        asked.append((url, options))
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision_weights.torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(DynaMaskError, match="cannot be downloaded.*no route to host.*give its path"):
        load_torchvision_detector(coco_model(), "torchvision")
    assert asked[0][0] == COCO_V1.url and asked[0][1]["weights_only"] and asked[0][1]["check_hash"]


def test_which_sources_mean_torchvision(tmp_path):
    model = tiny_model()
    save_model(model, tmp_path / "ours.safetensors")
    save_file(model.detector.state_dict(), tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    for source in ("torchvision", "a/b.pth", "b.pt", tmp_path / "theirs.safetensors"):
        assert is_torchvision_source(source)
    for source in ("shapes", "a/last.safetensors", *(tmp_path / f"{x}.safetensors" for x in ("ours", "other", "torn"))):
        assert not is_torchvision_source(source)
