"""Weights of NanoDet-Plus: names, folded and kept batch norms, sizes and classes, and files that are refused."""

import copy
from argparse import Namespace

import pytest
import torch
from helpers.nanodet_checkpoints import public_state, write_checkpoint
from helpers.small_models import picture, target, tiny_model, tiny_nanodet, tiny_solo
from safetensors.torch import save_file
from torch import nn

from dynamask.cli.training import _initialise
from dynamask.models.detectors.nanodet_weights import (
    COCO_NAMES,
    add_teacher,
    class_rows,
    is_nanodet_source,
    load_nanodet,
    read_nanodet_state,
)
from dynamask.models.detectors.torchvision_weights import load_torchvision_detector
from dynamask.models.weights import initialise, save_model
from dynamask.structures import DynaMaskError


@pytest.fixture(scope="module")
def public():
    """A state dict of size m with three classes."""
    return public_state("m", classes=3)


def predictions(model, images):
    """Raw predictions of the detector."""
    detector = model.eval().detector
    with torch.no_grad():
        return detector.cells(detector.backbone(images))


def network_input(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folded(public, tmp_path_factory):
    """A .safetensors file, in the naming of the folded files, of the network in folded.pth next to it."""
    path, model = tmp_path_factory.mktemp("folded") / "folded.safetensors", tiny_nanodet()
    load_nanodet(model, write_checkpoint(path.with_suffix(".pth"), public))
    tensors = {}
    for name, value in model.detector.state_dict().items():
        if not name.startswith("backbone.mask_pyramid."):
            name = name.replace("backbone.body.", "backbone.").replace("backbone.neck.", "neck.").replace(".conv.", ".")
            tensors[name] = value
    tensors["backbone.conv1.0.weight"] = tensors["backbone.conv1.0.weight"].flip(1).contiguous()
    save_file(tensors, path, metadata={"model": "NanoDet-Plus-m, batch norm folded"})
    return path


def test_kept_and_folded_norms_give_the_same_predictions_which_depend_on_the_file(tmp_path, public):
    path = write_checkpoint(tmp_path / "nanodet.pth", public)
    folded, kept = tiny_nanodet(), tiny_nanodet(detector_norm="batch")
    before = predictions(folded, network_input())
    for model in (folded, kept):
        message = load_nanodet(model, path)
        assert "NanoDet-Plus-m)" in message and "everything else has random weights" in message
    one, other = predictions(folded, network_input()), predictions(kept, network_input())
    assert one.class_logits.std() > 0.1
    assert not torch.allclose(one.class_logits, before.class_logits, atol=0.01)
    torch.testing.assert_close(one.class_logits, other.class_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(one.bin_logits, other.bin_logits, atol=1e-4, rtol=0)


def test_tensors_arrive_at_the_modules_of_the_same_role(tmp_path, public):
    model = tiny_nanodet(detector_norm="batch")
    load_nanodet(model, write_checkpoint(tmp_path / "nanodet.pth", public))
    body, neck, head = model.detector.backbone.body, model.detector.backbone.neck, model.detector.head
    for tensor, name in (
        (body.stage3[4].branch2[3].weight, "backbone.stage3.4.branch2.3.weight"),
        (body.stage2[0].branch1[3].running_var, "backbone.stage2.0.branch1.3.running_var"),
        (neck.reduce_layers[2].norm.bias, "fpn.reduce_layers.2.bn.bias"),
        (
            neck.top_down_blocks[1].ghost2.cheap_operation.conv.weight,
            "fpn.top_down_blocks.1.blocks.0.ghost2.cheap_operation.0.weight",
        ),
        (
            neck.bottom_up_blocks[0].shortcut.pointwise.norm.running_mean,
            "fpn.bottom_up_blocks.0.blocks.0.shortcut.3.running_mean",
        ),
        (neck.extra_lvl_out_conv[0].depthwise.norm.weight, "fpn.extra_lvl_out_conv.0.dwnorm.weight"),
        (head.cls_convs[3][1].pointwise.conv.weight, "head.cls_convs.3.1.pointwise.weight"),
        (head.gfl_cls[2].bias, "head.gfl_cls.2.bias"),
    ):
        assert torch.equal(tensor, public[name]), name
    assert torch.equal(body.conv1[0].weight, public["backbone.conv1.0.weight"][:, [2, 1, 0]])


def test_a_folded_file_gives_the_same_predictions_with_and_without_norms(folded):
    original, plain, kept = tiny_nanodet(), tiny_nanodet(seed=1), tiny_nanodet(seed=1, detector_norm="batch")
    load_nanodet(original, folded.with_suffix(".pth"))
    assert "identities" not in load_nanodet(plain, folded)
    assert "its batch norms are identities" in load_nanodet(kept, folded)
    expected = predictions(original, network_input())
    for model in (plain, kept):
        found = predictions(model, network_input())
        torch.testing.assert_close(found.class_logits, expected.class_logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.bin_logits, expected.bin_logits, atol=1e-4, rtol=0)


def test_half_precision_files_are_loaded_as_float32(tmp_path, public):
    half = {name: value.half() for name, value in public.items()}
    model = tiny_nanodet()
    load_nanodet(model, write_checkpoint(tmp_path / "half.pth", half))
    assert all(value.dtype == torch.float32 for value in model.parameters())


def test_the_moving_average_of_a_lightning_checkpoint_is_preferred(tmp_path, public):
    average = public_state("m", classes=3, seed=1)
    both = read_nanodet_state(write_checkpoint(tmp_path / "both.ckpt", public, average))
    only = read_nanodet_state(write_checkpoint(tmp_path / "only.ckpt", public))
    name = "head.gfl_cls.0.weight"
    assert torch.equal(both[name], average[name])
    assert torch.equal(only[name], public[name])
    assert both.keys() == only.keys()
    assert not any(key.startswith("aux") for key in both)


def test_the_larger_size_is_loaded_too_and_another_size_is_named(tmp_path, public):
    path = write_checkpoint(tmp_path / "large.pth", public_state("m-1.5x", classes=3))
    assert "NanoDet-Plus-m-1.5x)" in load_nanodet(tiny_nanodet(size="m_1.5x"), path)
    with pytest.raises(DynaMaskError, match="seem to be of NanoDet-Plus-m-1.5x, .* detector is NanoDet-Plus-m;"):
        load_nanodet(tiny_nanodet(), path)
    wide = {**public, "fpn.reduce_layers.0.conv.weight": torch.zeros(256, 116, 1, 1)}
    with pytest.raises(DynaMaskError, match="an unknown size with 116 channels at stride 8 and 256 in the neck"):
        load_nanodet(tiny_nanodet(), write_checkpoint(tmp_path / "wide.pth", wide))


def test_other_classes_are_refused_or_start_anew_while_the_boxes_are_kept(tmp_path, public):
    path, model = write_checkpoint(tmp_path / "three.pth", public), tiny_nanodet(num_classes=6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DynaMaskError, match="have 3 classes and the model has 5"):
        load_nanodet(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    message = load_nanodet(model, path, allow_other_classes=True)
    assert "the class scores of class_1, class_2, class_3, … are random, too" in message
    for level, predictor in enumerate(model.detector.head.gfl_cls):
        assert torch.equal(predictor.weight[5:], public[f"head.gfl_cls.{level}.weight"][3:])
        assert torch.equal(predictor.bias[5:], public[f"head.gfl_cls.{level}.bias"][3:])
        assert torch.equal(predictor.weight[:5], before[f"detector.head.gfl_cls.{level}.weight"][:5])
        assert torch.equal(predictor.bias[:5], before[f"detector.head.gfl_cls.{level}.bias"][:5])


def test_classes_of_coco_are_found_by_name(tmp_path):
    state = public_state("m", classes=80)
    path = write_checkpoint(tmp_path / "coco.pth", state)
    weight, dog, person = state["head.gfl_cls.1.weight"], COCO_NAMES.index("dog"), COCO_NAMES.index("person")
    model = tiny_nanodet(class_names=("__background__", "dog", "person"))
    assert "random, too" not in load_nanodet(model, path)
    assert torch.equal(model.detector.head.gfl_cls[1].weight, weight[[dog, person, *range(80, 112)]])
    model = tiny_nanodet(class_names=("__background__", "helmet", "person"))
    with pytest.raises(DynaMaskError, match="have 80 classes and the model has 2, of which helmet cannot be found"):
        load_nanodet(model, path)
    own = model.detector.head.gfl_cls[1].weight[0].clone()
    assert "the class scores of helmet are random, too" in load_nanodet(model, path, allow_other_classes=True)
    assert torch.equal(model.detector.head.gfl_cls[1].weight[0], own)
    assert torch.equal(model.detector.head.gfl_cls[1].weight[1:], weight[[person, *range(80, 112)]])


@pytest.mark.parametrize(
    ("names", "classes", "rows"),
    [
        (COCO_NAMES[::-1], 80, list(range(80))[::-1]),
        (("person", *(f"class_{i}" for i in range(79))), 80, list(range(80))),  # 80 classes of somebody's own
        (("person", "car"), 2, [0, 1]),
        (("person", "car"), 3, [None, None]),
        (("a", "b"), 80, [None, None]),
    ],
)
def test_which_output_of_a_file_is_which_class(names, classes, rows):
    assert class_rows(names, classes) == rows


def test_missing_additional_and_unfit_tensors_are_named_and_nothing_is_loaded(tmp_path, public):
    model = tiny_nanodet()
    before = copy.deepcopy(model.state_dict())
    lacking = {name: value for name, value in public.items() if not name.startswith("fpn.downsamples.1.dwnorm.")}
    partial = {name: value for name, value in public.items() if name != "fpn.downsamples.1.dwnorm.bias"}
    for state, match in (
        (lacking, r"1 missing: backbone\.neck\.downsamples\.1\.depthwise\.conv\.bias"),
        (partial, r"missing: backbone\.neck\.downsamples\.1\.depthwise\.conv\.bias\)"),
        ({**public, "fpn.top_down_blocks.0.blocks.1.ghost1.primary_conv.0.weight": torch.zeros(1)}, "1 too many"),
        ({**public, "head.gfl_cls.3.bias": torch.zeros(9)}, r"1 of another shape: head\.gfl_cls\.3\.bias"),
    ):
        with pytest.raises(DynaMaskError, match=match):
            load_nanodet(model, write_checkpoint(tmp_path / "bad.pth", state))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_files_that_cannot_be_read_are_refused_in_one_sentence(tmp_path, public):
    whole = write_checkpoint(tmp_path / "whole.pth", public).read_bytes()
    (tmp_path / "truncated.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "truncated.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "text.pth").write_text("no tensors")
    torch.save({"state_dict": public, "hyper_parameters": nn.Linear(1, 1)}, tmp_path / "pickled.ckpt")
    torch.save({"state_dict": {"layer.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, match in (
        ("none.pth", "do not exist; give"),
        ("truncated.ckpt", "cannot be read .*download it again"),
        ("truncated.safetensors", "cannot be read .*download it again"),
        ("text.pth", "cannot be read"),
        ("pickled.ckpt", "contain other Python objects"),
        ("other.pth", "are not those of NanoDet-Plus"),
        ("list.pth", "hold no state dict"),
    ):
        with pytest.raises(DynaMaskError, match=match) as refusal:
            load_nanodet(tiny_nanodet(), tmp_path / name)
        assert "\n" not in str(refusal.value)


def test_which_sources_mean_nanodet(tmp_path, folded):
    own, nanodet, other = tmp_path / "own.safetensors", tiny_nanodet(), tiny_model()
    save_model(nanodet, own)
    for source, for_nanodet, for_other in (
        (folded, True, True),
        (own, False, False),
        ("any.ckpt", True, True),
        ("any.pth", True, False),
        ("torchvision", False, False),
        ("things", False, False),
        (tmp_path / "none.safetensors", False, False),
    ):
        assert (is_nanodet_source(nanodet, source), is_nanodet_source(other, source)) == (for_nanodet, for_other)


def test_models_with_another_detector_or_normalisation_are_refused(tmp_path):
    for model in (tiny_model(), tiny_solo()):
        with pytest.raises(DynaMaskError, match="which this model does not have; choose a model"):
            load_nanodet(model, tmp_path / "any.ckpt")
    with pytest.raises(DynaMaskError, match="need the ImageNet mean"):
        load_nanodet(tiny_nanodet(image_mean=(0.5, 0.5, 0.5)), tmp_path / "any.ckpt")
    with pytest.raises(DynaMaskError, match="torchvision's detector is a Faster R-CNN"):
        load_torchvision_detector(tiny_nanodet(), "torchvision")


def test_the_command_says_what_was_loaded_and_refuses_other_classes_for_a_frozen_detector(tmp_path, public, capsys):
    path = str(write_checkpoint(tmp_path / "three.ckpt", public))
    _initialise(tiny_nanodet(), Namespace(init=path, init_part=None, freeze="detector"))
    said = capsys.readouterr().err
    assert said.startswith("dynamask: loaded the detector of ") and "everything else has random weights" in said
    _initialise(tiny_nanodet(num_classes=6), Namespace(init=path, init_part="detector", freeze=None))
    assert "class scores of class_1, class_2, class_3, … are random" in capsys.readouterr().err
    with pytest.raises(DynaMaskError, match="have 3 classes and the model has 5"):
        _initialise(tiny_nanodet(num_classes=6), Namespace(init=path, init_part=None, freeze="detector"))
    with pytest.raises(DynaMaskError, match="leave out --init-part"):
        _initialise(tiny_nanodet(), Namespace(init=path, init_part="backbone", freeze=None))


def test_our_weights_keep_the_scores_of_classes_that_both_models_know(tmp_path):
    theirs = tiny_nanodet(class_names=("__background__", "cat", "dog", "cow"), class_agnostic=True)
    save_model(theirs, tmp_path / "old.safetensors")
    own = tiny_nanodet(seed=1, class_names=("__background__", "gnu", "dog", "cat", "yak"), class_agnostic=True)
    before = own.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    message = initialise(own, tmp_path / "old.safetensors")
    assert message.startswith("loaded all weights") and message.endswith(
        "; the scores of new classes are random: gnu, yak"
    )
    for name, value in theirs.state_dict().items():
        now = own.state_dict()[name]
        if "gfl_cls" not in name:
            assert torch.equal(now, value), name
            continue
        assert torch.equal(now[1], value[1]) and torch.equal(now[2], value[0]) and torch.equal(now[4:], value[3:])
        assert torch.equal(now[0], before[name][0]) and torch.equal(now[3], before[name][3])


def test_new_classes_are_refused_for_a_frozen_detector_or_another_size(tmp_path):
    save_model(tiny_nanodet(class_names=("__background__", "cat"), class_agnostic=True), tmp_path / "old.safetensors")
    model = tiny_nanodet(class_names=("__background__", *"abcd", "cat"), class_agnostic=True)
    with pytest.raises(DynaMaskError, match="has no classes a, b, c, d; train the detector as well"):
        _initialise(model, Namespace(init=str(tmp_path / "old.safetensors"), init_part=None, freeze="detector"))
    other = tiny_nanodet(size="m_1.5x", class_names=("__background__", "cat"), class_agnostic=True)
    with pytest.raises(DynaMaskError, match="tensors differ"):
        initialise(other, tmp_path / "old.safetensors")


def test_a_teacher_comes_from_a_public_checkpoint_or_from_our_weights(tmp_path, public):
    path, own = write_checkpoint(tmp_path / "three.pth", public), tmp_path / "own.safetensors"
    student = tiny_nanodet()
    load_nanodet(student, path)
    save_model(student, own)
    for source in (path, own):
        add_teacher(student, source)
        losses = student.train()([picture()], [target()])
        assert float(losses["loss_teacher_scores"].detach()) == pytest.approx(0.0, abs=1e-6)
        assert float(losses["loss_teacher_boxes"].detach()) == pytest.approx(0.0, abs=1e-6)
    other = tiny_nanodet(seed=1)
    add_teacher(other, path)
    assert float(other.train()([picture()], [target()])["loss_teacher_scores"].detach()) > 1e-3


def test_teachers_that_do_not_fit_are_refused(tmp_path, public):
    rcnn, five = tmp_path / "rcnn.safetensors", tmp_path / "five.safetensors"
    save_model(tiny_model(), rcnn)
    save_model(tiny_nanodet(num_classes=6), five)
    path = write_checkpoint(tmp_path / "three.pth", public)
    for model, source, match in (
        (tiny_model(), path, "takes no teacher"),
        (tiny_nanodet(), rcnn, "has another detector"),
        (tiny_nanodet(), five, "has other classes"),
        (tiny_nanodet(num_classes=6), path, "have 3 classes and the model has 5"),
        (tiny_nanodet(), tmp_path / "none.safetensors", "do not exist"),
    ):
        with pytest.raises(DynaMaskError, match=match):
            add_teacher(model, source)
