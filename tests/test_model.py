"""The whole model: torchvision's contract, torchvision's boxes, and pictures with nothing in them."""

import copy
import json

import huggingface_hub
import pytest
import timm
import torch
from helpers.small_models import LOSS_NAMES, TINY, picture, target, tiny_model
from safetensors.torch import save_file
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList

from dynamask import MASK_SIZES, create_model, list_models
from dynamask.config import BaseModelConfig, ModelConfig
from dynamask.models.backbone import BackboneWithFPN
from dynamask.models.detectors.base import Detector, EncodedImages, PositiveRegions
from dynamask.models.dynamask import DynaMask
from dynamask.presets import PRESETS, model_config
from dynamask.structures import DynaMaskError
from dynamask.training_config import LossConfig

BODY = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def shared() -> DynaMask:
    return tiny_model(loss_config=LossConfig(budget_target=0.05))


@pytest.fixture
def model(shared) -> DynaMask:
    """The shared model in training mode, without gradients from other tests."""
    shared.zero_grad(set_to_none=True)
    return shared.train()


def batch(objects: tuple[int, ...] = (2, 1)) -> tuple[list, list]:
    sizes = [(64, 80), (72, 64), (64, 64)]
    pairs = list(zip(sizes, objects))
    images = [picture(*size, seed=i) for i, (size, _) in enumerate(pairs)]
    return images, [target(*size, objects=count, image_id=i) for i, (size, count) in enumerate(pairs)]


def snapshot(values: dict) -> dict:
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in values.items()}


# Training


def test_training_returns_named_losses_and_leaves_its_input_alone(model):
    images, targets = batch()
    before = [image.clone() for image in images], [snapshot(t) for t in targets]
    torch.manual_seed(0)
    losses = model(images, targets)
    assert set(losses) == LOSS_NAMES
    assert all(loss.shape == () and torch.isfinite(loss) and loss.requires_grad for loss in losses.values())
    assert all(torch.equal(a, b) for a, b in zip(images, before[0]))
    for now, then in zip(targets, before[1]):
        assert now.keys() == then.keys()
        assert all(torch.equal(now[k], then[k]) for k in ("boxes", "labels", "masks"))
    torch.manual_seed(0)
    again = model(images, targets)
    assert all(torch.equal(again[name].detach(), losses[name].detach()) for name in LOSS_NAMES), "pinned by the seed"


def test_every_loss_reaches_the_module_it_is_meant_to_train(model):
    torch.manual_seed(0)
    losses = model(*batch())
    heads, fpn = model.detector.roi_heads, model.mask_branch.region_fpn
    trained = {
        "loss_objectness": [model.detector.rpn.head.cls_logits],
        "loss_rpn_box_reg": [model.detector.rpn.head.bbox_pred],
        "loss_classifier": [heads.box_predictor.cls_score, heads.box_head],
        "loss_box_reg": [heads.box_predictor.bbox_pred, heads.box_head],
        "loss_mask": [*fpn.mask_predictors, *fpn.stages, *fpn.projections, fpn.base],
        "loss_edge": [*fpn.stages, model.mask_branch.switch],
        "loss_budget": [model.mask_branch.switch],
        "loss_entropy": [model.mask_branch.switch],
        "loss_mask_quality": [model.mask_branch.quality],
    }
    assert set(trained) == set(losses)
    for name, modules in trained.items():
        for module in modules:
            parameters = list(module.parameters())
            found = torch.autograd.grad(losses[name], parameters, retain_graph=True, allow_unused=True)
            assert any(g is not None and bool(g.abs().max() > 0) for g in found), (name, type(module).__name__)


@pytest.mark.parametrize("objects", [(0,), (0, 0), (2, 0)], ids=["one empty", "all empty", "one of two empty"])
@pytest.mark.parametrize("signal", ["edge", "boundary"])
def test_pictures_without_objects_train(model, objects, signal, monkeypatch):
    monkeypatch.setattr(model.mask_branch, "loss_config", LossConfig(budget_target=0.05, switch_signal=signal))
    torch.manual_seed(0)
    losses = model(*batch(objects))
    assert set(losses) == LOSS_NAMES | ({"loss_boundary"} if signal == "boundary" else set())
    assert all(torch.isfinite(loss) for loss in losses.values())
    if not any(objects):
        assert all(
            float(losses[name].detach()) == 0 for name in ("loss_mask", "loss_edge", "loss_budget", "loss_entropy")
        )
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
    assert model.detector.rpn.head.cls_logits.weight.grad.abs().max() > 0


@pytest.mark.parametrize("size", [(4, 900), (900, 4)])
def test_a_strip_of_less_than_a_pixel_at_the_network_input_trains(model, size):
    """A picture that would be resized to a height or width of zero pixels becomes one pixel high or wide."""
    height, width = size
    box = torch.tensor([[0.0, 0.0, width / 2, height / 2]])
    masks = torch.zeros(1, height, width, dtype=torch.uint8)
    masks[:, : height // 2, : width // 2] = 1
    strip = {"boxes": box, "labels": torch.ones(1, dtype=torch.int64), "masks": masks, "image_id": 1}
    batch, (resized,) = model.detector.transform([picture(height, width)], [{"boxes": box, "masks": masks}])
    assert batch.image_sizes == [tuple(128 if side == 900 else 1 for side in size)]
    assert torch.allclose(
        resized["boxes"], box * torch.tensor([128 / 900 if side == 900 else 1 / 4 for side in size[::-1]] * 2)
    )
    assert all(loss.isfinite() for loss in model([picture(height, width)], [strip]).values())


def test_mask_targets_are_cropped_from_the_picture_and_not_from_its_resized_copy(model, monkeypatch):
    images, targets = [picture(128, 128)], [target(128, 128, objects=1)]
    seen = {}

    def losses(state, masks, **more):
        seen.update(rois=state.rois, masks=masks, **more)
        return {}

    monkeypatch.setattr(model.mask_branch, "losses", losses)
    torch.manual_seed(0)
    model(images, targets)
    assert 1 <= len(seen["rois"]) <= TINY["mask_rois"]
    assert [tuple(m.shape[1:]) for m in seen["masks"]] == [(size, size) for size in MASK_SIZES]
    assert all(((m == 0) | (m == 1)).all() for m in seen["masks"])
    assert seen["boundary_width"].tolist() == pytest.approx([0.02 * 64 * 2**0.5] * len(seen["rois"]))
    box = targets[0]["boxes"][0]
    for roi, mask in zip(seen["rois"], seen["masks"][-1]):
        x0, y0, x1, y1 = (roi[1:] * 2).tolist()  # 128 px are shown to the network as 64
        inside = max(0, min(x1, box[2]) - max(x0, box[0])) * max(0, min(y1, box[3]) - max(y0, box[1]))
        assert float(mask.mean()) == pytest.approx(float(inside) / ((x1 - x0) * (y1 - y0)), abs=0.03)


class FixedDetector(Detector):
    """A detector without proposals: it finds the four quarters of every picture."""

    loss_weights = {"loss_map": 1.0}

    def detect(self, encoded):
        found = []
        for height, width in encoded.image_sizes:
            corners = torch.tensor([[0, 0, 1, 1], [1, 0, 2, 1], [0, 1, 1, 2], [1, 1, 2, 2]])
            boxes = corners * torch.tensor([width, height, width, height]) / 2
            found.append({"boxes": boxes, "labels": torch.tensor([1, 2, 3, 1]), "scores": torch.ones(4)})
        return found

    def classify(self, encoded, boxes):
        return torch.ones(sum(map(len, boxes)), dtype=torch.int64)

    def losses(self, encoded, targets):
        positives = [PositiveRegions(t["boxes"], t["labels"], torch.arange(len(t["boxes"]))) for t in targets]
        return {"loss_map": encoded.features["0"].square().mean()}, positives


def test_another_detector_works_with_the_same_mask_branch(model):
    other = DynaMask(FixedDetector(model.detector.transform, model.backbone), model.mask_branch, model.config)
    losses = other.train()(*batch((2, 0)))
    assert set(losses) == {"loss_map", "loss_mask", "loss_edge", "loss_budget", "loss_entropy", "loss_mask_quality"}
    losses["loss_mask"].backward()
    assert model.mask_branch.region_fpn.mask_predictors[3].weight.grad.abs().max() > 0
    (found,) = other.eval()([picture(64, 80)])
    assert found["boxes"][3].tolist() == [40, 32, 80, 64] and found["masks"].shape == (4, 1, 64, 80)
    assert not found["masks"][0, 0, 32:].any() and found["masks"][3, 0, 32:, 40:].any()


def test_training_without_targets_is_an_error(model):
    with pytest.raises(ValueError, match="targets"):
        model([picture()])


def test_frozen_parts_do_not_train():
    model = tiny_model().train()
    before = snapshot(model.state_dict())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "detector.backbone.body.conv_stem.weight" in frozen
    assert all(name.startswith("detector.backbone.body.") for name in frozen)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sum(model(*batch()).values()).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parameters = {name for name, p in model.named_parameters() if p.requires_grad}
    assert changed <= parameters and not changed & frozen
    for part in ("backbone.body.", "backbone.fpn.", "rpn.head.", "roi_heads.box_head."):
        assert any(name.startswith(f"detector.{part}") for name in changed), part
    assert any(name.startswith("mask_branch.") for name in changed)


# Evaluation


def test_evaluation_returns_torchvisions_keys_with_masks_in_the_picture(model):
    images, _ = batch()
    found = model.eval()(images)
    assert len(found) == 2
    for image, prediction in zip(images, found):
        height, width = image.shape[1:]
        count = len(prediction["boxes"])
        assert count == TINY["detections_per_img"]
        assert prediction["masks"].shape == (count, 1, height, width)
        assert float(prediction["masks"].min()) >= 0 and float(prediction["masks"].max()) <= 1
        assert prediction["labels"].dtype == torch.int64 and set(prediction["labels"].tolist()) <= {1, 2, 3}
        assert (prediction["scores"].diff() <= 0).all() and (prediction["scores"] > 0.05).all()
        assert set(prediction["mask_size"].tolist()) <= set(MASK_SIZES)
        expected = torch.tensor(MASK_SIZES)[prediction["switch_logits"].argmax(1)]
        assert torch.equal(prediction["mask_size"], expected)
        x0, y0, x1, y1 = prediction["boxes"].T
        assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= width).all() and (y1 <= height).all()
        for box, mask in zip(prediction["boxes"].round(), prediction["masks"][:, 0]):
            outside = mask.clone()
            outside[max(0, int(box[1]) - 1) : int(box[3]) + 1, max(0, int(box[0]) - 1) : int(box[2]) + 1] = 0
            assert outside.abs().max() == 0
        assert not prediction["boxes"].requires_grad and not prediction["masks"].requires_grad
    torch.rand(3)
    for a, b in zip(found, model(images)):
        assert all(torch.equal(a[key], b[key]) for key in a), "no random numbers are drawn"


def test_a_picture_in_which_nothing_is_found(model, monkeypatch):
    monkeypatch.setattr(model.eval().detector.roi_heads, "score_thresh", 1.1)
    found = model([picture(), picture(64, 80)])
    assert [tuple(p["masks"].shape) for p in found] == [(0, 1, 64, 64), (0, 1, 64, 80)]
    assert all(p["boxes"].shape == (0, 4) and len(p["mask_size"]) == len(p["scores"]) == 0 for p in found)
    assert all(p["switch_logits"].shape == (0, 4) for p in found)


def test_a_batch_equals_its_pictures_alone(model):
    # both are 64 x 96 for the network, so that padding does not tell them apart
    images = [picture(64, 96, seed=1), picture(128, 192, seed=2)]
    model.eval()
    together = model(images)
    for image, found in zip(images, together):
        (alone,) = model([image])
        assert found["masks"].shape[2:] == image.shape[1:]
        for key in ("boxes", "scores", "masks", "switch_logits"):
            torch.testing.assert_close(found[key], alone[key], atol=1e-3, rtol=1e-3)
        assert torch.equal(found["labels"], alone["labels"]) and torch.equal(found["mask_size"], alone["mask_size"])


@torch.no_grad()
def test_a_padded_batch_equals_its_padded_pictures_alone(model):
    images = [picture(64, 64, seed=1), picture(64, 120, seed=2)]
    model.eval()
    together = model(images)
    encoded, _ = model.detector.encode(images)
    assert encoded.images.image_sizes == [(64, 64), (64, 120)]
    for i, image in enumerate(images):
        one = EncodedImages(
            ImageList(encoded.images.tensors[i : i + 1], encoded.images.image_sizes[i : i + 1]),
            {level: maps[i : i + 1] for level, maps in encoded.features.items()},
            [tuple(image.shape[1:])],
        )
        found = model.detector.detect(one)[0]
        state = model.regions(one, [found["boxes"]], [found["labels"]])
        torch.testing.assert_close(together[i]["boxes"], found["boxes"], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(together[i]["switch_logits"], state.switch_logits, atol=1e-3, rtol=1e-3)
        assert together[i]["boxes"][:, 2].max() <= image.shape[2]


def torchvision_twin(model: DynaMask) -> FasterRCNN:
    """torchvision's own detector with the same settings and weights."""
    reference = FasterRCNN(
        copy.deepcopy(model.backbone),
        min_size=TINY["test_min_size"],
        max_size=TINY["max_size"],
        image_mean=list(model.config.image_mean),
        image_std=list(model.config.image_std),
        rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in TINY["anchor_sizes"]), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=TINY["rpn_pre_nms_train"],
        rpn_pre_nms_top_n_test=TINY["rpn_pre_nms_test"],
        rpn_post_nms_top_n_train=TINY["rpn_post_nms_train"],
        rpn_post_nms_top_n_test=TINY["rpn_post_nms_test"],
        box_head=TwoMLPHead(TINY["fpn_channels"] * 49, TINY["box_head_channels"]),
        box_predictor=FastRCNNPredictor(TINY["box_head_channels"], 4),
        box_detections_per_img=TINY["detections_per_img"],
        box_batch_size_per_image=TINY["box_samples"],
    )
    reference.load_state_dict(model.detector.state_dict())
    return reference


def test_boxes_and_their_losses_equal_torchvisions(model):
    reference = torchvision_twin(model)
    images = [picture(64, 80, seed=3), picture(96, 64, seed=4)]
    with torch.no_grad():
        expected, found = reference.eval()(images), model.eval()(images)
    for theirs, ours in zip(expected, found):
        assert len(theirs["boxes"]) > 0
        assert torch.equal(theirs["labels"], ours["labels"])
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(ours["scores"], theirs["scores"], atol=1e-6, rtol=1e-5)
    images, targets = batch()
    torch.manual_seed(5)
    theirs = reference.train()(images, [{k: t[k] for k in ("boxes", "labels")} for t in targets])
    torch.manual_seed(5)
    ours = model.train()(images, targets)
    assert len(theirs) == 4
    for name, value in theirs.items():
        assert float(ours[name].detach()) == pytest.approx(float(value.detach()), rel=1e-5), name


def test_training_draws_its_own_sizes_and_evaluation_has_one():
    config = {"min_sizes": (48, 64), "test_min_size": 96, "max_size": 200}
    model = tiny_model(**config)
    images = [torch.rand(3, 60, 60)]
    drawn = {tuple(model.train().detector.transform(images)[0].image_sizes[0]) for _ in range(30)}
    assert drawn == {(48, 48), (64, 64)}
    assert {tuple(model.eval().detector.transform(images)[0].image_sizes[0]) for _ in range(5)} == {(96, 96)}


# Building


def test_presets_are_those_of_the_paper_and_small_ones():
    assert list_models("two-stage") == [
        "dynamask_resnet50_fpn",
        "dynamask_resnet101_fpn",
        "dynamask_resnext101_fpn",
        "dynamask_mobilenetv2_fpn_small",
        "dynamask_resnet18_fpn_small",
        "dynamask_nanodet_plus_m",
        "dynamask_nanodet_plus_m_1.5x",
    ]
    for name in list_models("two-stage"):
        config = model_config(name)
        widths = (64, 64) if name.endswith("_small") else (64, 96) if "nanodet" in name else (256, 256)
        assert config.name == name and (config.fpn_channels, config.region_channels) == widths


@pytest.mark.parametrize("name", ["dynamask_mobilenetv2_fpn_small", "dynamask_resnet18_fpn_small"])
def test_small_presets_build_without_a_download(name, monkeypatch):
    asked = []
    build = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append(k.get("pretrained")) or build(*a, **k))
    model = create_model(name, num_classes=3)
    assert asked == [False]
    assert model.config.class_names == ("__background__", "class_1", "class_2")
    assert model.detector.roi_heads.box_predictor.cls_score.out_features == 3
    assert all(predictor.out_channels == 2 for predictor in model.mask_branch.region_fpn.mask_predictors)
    frozen = [n for n, p in model.backbone.body.named_parameters() if not p.requires_grad]
    trained = [n for n, p in model.backbone.body.named_parameters() if p.requires_grad]
    assert frozen and trained and len(frozen) < len(trained)


def test_configuration_survives_json():
    for config in (preset.config for preset in PRESETS.values()):
        assert BaseModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(DynaMaskError, match="unknown keys \\['surprise'\\]"):
        ModelConfig.from_dict({**model_config("dynamask_resnet50_fpn").to_dict(), "surprise": 1})
    with pytest.raises(DynaMaskError, match="of the family 'one-stage'"):
        ModelConfig.from_dict(model_config("solo_resnet50_fpn").to_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dynamask_resnet5"}, "'dynamask_resnet5' is unknown; choose one of dynamask_resnet50_fpn"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"region_channels": 20}, "region_channels=20 must be divisible by 8"),
        ({"fpn_channels": -1}, "fpn_channels is -1; give a number from 1 to 4,096"),
        ({"anchor_sizes": (-1, 8, 16, 32, 64)}, "anchor_sizes is -1; give a number from 1"),
        ({"anchor_sizes": (8, 16)}, "give five sides"),
        ({"image_std": (1.0, float("nan"), 1.0)}, "image_std is nan"),
        ({"min_sizes": ()}, "min_sizes is empty"),
        ({"offset_groups": (3, 2, 1)}, "give divisors of"),
        (
            {"name": "solov2_mobilenetv2_fpn_small", "kernel_channels": 7},
            "kernel_channels is 7; give a multiple of groups",
        ),
        ({"num_classes": 4, "category_ids": (1, 2)}, "category_ids and class_names disagree"),
        ({"backbone": "nonsense"}, "backbone nonsense is not a timm model"),
        ({"backbone": "vit_tiny_patch16_224"}, r"no feature map at stride \[4, 8, 32\]"),
    ],
)
def test_what_cannot_be_built_is_refused(settings, message):
    with pytest.raises(DynaMaskError, match=message):
        create_model(**{"name": "dynamask_mobilenetv2_fpn_small", **settings})


# Backbones


@pytest.fixture(scope="module")
def timm_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(11)
    return timm.create_model(BODY, pretrained=False).state_dict()


def test_backbone_reads_a_file_under_timms_names(tmp_path, timm_weights):
    save_file(timm_weights, tmp_path / "body.safetensors")
    torch.manual_seed(12)
    backbone = BackboneWithFPN(BODY, 16, tmp_path / "body.safetensors")
    own = backbone.body.state_dict()
    assert any(key.startswith("classifier") for key in timm_weights), "a classifier in the file is no matter"
    wanted = [key for key in own if not key.endswith("num_batches_tracked")]
    assert wanted and all(torch.equal(own[key], timm_weights[key]) for key in wanted)
    maps = backbone(torch.zeros(1, 3, 64, 96))
    sizes = {"0": (16, 24), "1": (8, 12), "2": (4, 6), "3": (2, 3), "pool": (1, 2)}
    assert {key: tuple(m.shape) for key, m in maps.items()} == {key: (1, 16, *size) for key, size in sizes.items()}


def test_timms_weights_without_a_network_are_one_sentence(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("Name or service\nnot known. And more")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(DynaMaskError, match=r"cannot be downloaded \(Name or service not known\); fetch .* its path"):
        create_model("dynamask_resnet18_fpn_small", backbone_weights="timm")


def test_backbone_weights_that_do_not_fit_are_refused(tmp_path, timm_weights):
    (tmp_path / "text.safetensors").write_bytes(b"not weights at all")
    lacking = {k: v for k, v in timm_weights.items() if k != "conv_stem.weight"}
    save_file(lacking, tmp_path / "lacking.safetensors")
    save_file({**timm_weights, "conv_stem.weight": torch.zeros(3, 3)}, tmp_path / "shape.safetensors")
    unfit = "1 tensors missing or of another shape, first conv_stem.weight"
    unreadable = "cannot be read as safetensors"
    for name, message in (("none", unreadable), ("text", unreadable), ("lacking", unfit), ("shape", unfit)):
        with pytest.raises(DynaMaskError, match=message):
            BackboneWithFPN(BODY, 16, tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("name", "stride", "frozen", "trained"),
    [
        ("resnet10t", 4, {"conv1", "layer1"}, {"layer2", "layer3", "layer4"}),
        ("resnet10t", 0, set(), {"conv1", "layer1", "layer2", "layer3", "layer4"}),
        ("convnext_atto", 4, {"stem_0", "stem_1", "stages_0"}, {"stages_1", "stages_2", "stages_3"}),
    ],
)
def test_stages_up_to_a_stride_are_frozen_in_any_timm_backbone(name, stride, frozen, trained):
    backbone = BackboneWithFPN(name, 8, frozen_stride=stride)
    parts = {True: set(), False: set()}
    for key, parameter in backbone.body.named_parameters():
        parts[parameter.requires_grad].add(key.split(".")[0])
    assert parts[False] == frozen and parts[True] == trained
    assert all(p.requires_grad for p in backbone.fpn.parameters())


def test_weights_under_timms_names_fit_a_flattened_backbone(tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model("convnext_atto", pretrained=False)
    save_file(whole.state_dict(), tmp_path / "atto.safetensors")
    backbone = BackboneWithFPN("convnext_atto", 8, tmp_path / "atto.safetensors")
    loaded = dict(backbone.body.named_parameters())
    assert torch.equal(loaded["stages_1.blocks.0.mlp.fc1.weight"], whole.stages[1].blocks[0].mlp.fc1.weight)
