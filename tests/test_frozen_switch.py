"""Cached features equal what the model computes, and a switch trained on them has the losses of the branch."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.feature_caches import synthetic_cache
from helpers.small_models import tiny_model

from dynamask.data.shapes import CLASS_NAMES, ShapesDataset
from dynamask.engine.frozen_features import build_cache, image_cache, jitter_boxes, load_cache, save_cache, views_of
from dynamask.engine.frozen_switch import SCHEDULE, SwitchTraining, predict_logits, train_switch
from dynamask.evaluation.mask_quality import quality_by_size
from dynamask.models.detectors.base import PositiveRegions
from dynamask.models.masks import losses
from dynamask.models.masks.switch import sample_gumbel
from dynamask.predict import TwoStagePredictor
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.training_config import LossConfig

SHORT = dataclasses.replace(SCHEDULE, iterations=40, batch_size=32, lr=5e-3, warmup=0)


@pytest.fixture(scope="module")
def world():
    """A model with random weights, three small scenes, and their cache with three other views."""
    predictor = TwoStagePredictor(tiny_model(class_names=CLASS_NAMES))
    scenes = ShapesDataset(3, seed=5, size=(96, 128), first=1)
    return predictor, scenes, build_cache(predictor, scenes, range(3), 3, 0, {"weights": "w"})


def test_true_boxes_are_what_the_predictor_sees(world):
    predictor, scenes, cache = world
    own = cache.true_boxes()
    for index in range(3):
        scene, rows = scenes.scene(index), own.image_id == scenes.image_ids[index]
        boxes = torch.from_numpy(scene.boxes)
        prediction = predictor(scene.image, boxes=boxes, labels=scene.labels.tolist(), all_sizes=True)
        masks = [np.stack([prediction.mask_at(i, s).numpy() for i in range(len(scene))]) for s in MASK_SIZES]
        mask_iou, boundary_iou = quality_by_size(scene.masks, masks)
        np.testing.assert_allclose(own.mask_iou[rows], mask_iou, atol=0.02)
        np.testing.assert_allclose(own.boundary_iou[rows], boundary_iou, atol=0.02)
        torch.testing.assert_close(own.switch_logits[rows], prediction.switch_logits, atol=1e-4, rtol=1e-3)
        assert own.complexity[rows].tolist() == pytest.approx(scene.complexity.tolist())
        assert own.box[rows].tolist() == boxes.tolist() and own.label[rows].tolist() == scene.labels.tolist()
    switch = predictor.model.mask_branch.switch
    torch.testing.assert_close(predict_logits(switch, own), own.switch_logits, atol=1e-2, rtol=1e-2)


def test_errors_are_those_that_training_computes(world):
    """Losses of the branch in the true boxes of one scene, phase one, against the means of the cache's columns."""
    predictor, scenes, cache = world
    image, target = scenes[0]
    model = predictor.model
    encoded, _ = model.detector.encode([image.float() / 255])
    scale = encoded.images.image_sizes[0][0] / image.shape[1]
    box_scale = torch.full((4,), 1 / scale)
    everything = {**target, "mask_scale": box_scale}
    matched, labels = torch.arange(len(target["boxes"])), target["labels"]
    regions = PositiveRegions(target["boxes"] * scale, labels, matched)
    model.mask_branch.mask_rois, before = len(labels), model.mask_branch.mask_rois
    model.mask_branch.switch_enabled = False
    try:
        named = model.mask_branch.training_losses(encoded.features, [regions], [everything], encoded.image_sizes)
    finally:
        model.mask_branch.mask_rois, model.mask_branch.switch_enabled = before, True
    rows = (cache.view == 0) & (cache.image_id == scenes.image_ids[0])
    for name in ("mask_loss", "edge_loss"):
        expected = named[f"loss_{name.split('_')[0]}"].item()
        assert getattr(cache, name)[rows].mean().item() == pytest.approx(expected, rel=1e-4)


def test_views_of_an_instance_share_its_number_and_its_complexity(world):
    _, scenes, cache = world
    count = sum(len(scenes.scene(i)) for i in range(3))
    assert len(cache) == 4 * count and sorted(cache.instance[cache.view == 2].tolist()) == list(range(count))
    for number in range(count):
        rows = cache.instance == number
        assert sorted(cache.view[rows].tolist()) == [0, 1, 2, 3] and len(set(cache.complexity[rows].tolist())) == 1


def test_a_cache_is_reproducible_and_survives_the_disk(world, tmp_path):
    predictor, scenes, cache = world
    again = build_cache(predictor, scenes, range(3), 3, 0, {"weights": "w"})
    save_cache(cache, tmp_path / "c.safetensors")
    stored = load_cache(tmp_path / "c.safetensors")
    for name, values in cache.tensors().items():
        assert torch.equal(values, again.tensors()[name]) and torch.equal(values, stored.tensors()[name]), name
    assert stored.about == cache.about and list(tmp_path.iterdir()) == [tmp_path / "c.safetensors"]
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    with pytest.raises(DynaMaskError, match="cannot be read"):
        load_cache(tmp_path / "c.safetensors")


def test_without_labels_the_box_head_classifies(world):
    predictor, scenes, _ = world
    image, target = scenes[0]
    cache = image_cache(predictor, image, target["boxes"], target["masks"], None, views=0, seed=0)
    assert torch.equal(cache.label, predictor(image, boxes=target["boxes"]).labels) and cache.complexity.isnan().all()


def test_jittered_boxes_stay_in_the_image():
    boxes = torch.tensor([[0.0, 0.0, 60.0, 90.0], [30.0, 20.0, 127.5, 96.0], [5.0, 5.0, 5.9, 6.0]])
    moved = jitter_boxes(boxes, (96, 128), torch.Generator().manual_seed(0))
    assert (moved[:, :2] >= 0).all() and (moved[:, 2] <= 128).all() and (moved[:, 3] <= 96).all()
    assert not torch.equal(moved[:2], boxes[:2]) and torch.equal(moved[2], boxes[2])
    assert (moved - boxes).abs().max() <= 0.1 * 98


def test_odd_views_are_flipped_with_their_boxes_and_masks():
    image, boxes = torch.arange(3 * 8 * 10).reshape(3, 8, 10), torch.tensor([[1.0, 2.0, 4.0, 6.0]])
    masks = torch.zeros(1, 8, 10, dtype=torch.uint8)
    masks[:, 2:6, 1:4] = 1
    straight, flipped = views_of(image, boxes, masks, range(3), torch.Generator().manual_seed(0))
    assert straight.numbers == [0, 2] and flipped.numbers == [1] and torch.equal(straight.boxes[:1], boxes)
    assert torch.equal(flipped.image, image.flip(2)) and torch.equal(flipped.masks, masks.flip(2))
    again = jitter_boxes(boxes, (8, 10), torch.Generator().manual_seed(0))[0].tolist()
    assert flipped.boxes[0].tolist() == pytest.approx([10 - again[2], again[1], 10 - again[0], again[3]])


# Training


@pytest.mark.parametrize(("signal", "selection"), [("boundary", "expected"), ("edge", "expected"), ("edge", "drawn")])
def test_the_losses_are_those_of_the_branch(signal, selection):
    cache, rows = synthetic_cache(12), torch.arange(24)
    config = LossConfig(switch_signal=signal, switch_selection=selection, overlap_share=0.25, budget_target=0.4)
    training = SwitchTraining(cache, config, seed=3)
    logits = training.switch(cache.feature.float())
    noise = sample_gumbel(logits, torch.Generator().manual_seed(3))
    error = 0.75 * cache.boundary_error + 0.25 * cache.overlap_error
    tables = (cache.mask_loss, cache.edge_loss, error)
    expected = losses.switch_losses(logits, torch.tensor([0.1, 0.3, 0.6, 1.0]), *tables, config, noise)
    named = training.losses(rows)
    assert named.keys() == expected.keys()
    assert all(torch.allclose(named[name], expected[name]) for name in named)


def test_a_training_depends_on_its_seed_alone_and_continues_where_it_stopped():
    cache, config = synthetic_cache(), LossConfig(switch_signal="boundary")
    whole = train_switch(cache, config, SHORT, seed=1).state_dict()
    training = SwitchTraining(cache, config, dataclasses.replace(SHORT, stop_at=10), seed=1)
    steps = []
    assert training.train(lambda run, values: steps.append(run.step), should_stop=lambda: len(steps) == 5) is False
    torch.rand(7)  # draws of others
    assert training.train() and training.step == 10
    training.config = SHORT
    assert training.train() and steps == [1, 2, 3, 4, 5]
    assert all(torch.equal(value, whole[name]) for name, value in training.switch.state_dict().items())
    other = train_switch(cache, config, SHORT, seed=2).state_dict()
    assert not torch.equal(other["fc.2.weight"], whole["fc.2.weight"])


def test_a_switch_learns_to_keep_its_budget():
    cache, values = synthetic_cache(), []
    config = LossConfig(switch_selection="expected", edge_weight=0.1, switch_weight=4.0, budget_target=0.15)
    training = SwitchTraining(
        cache, config, dataclasses.replace(SHORT, iterations=80, lr=2e-2), without=("loss_entropy",)
    )
    training.train(lambda _, step: values.append(step))
    assert values[-1]["loss_budget"] < 0.5 * values[0]["loss_budget"]
    step = values[0]
    total = step["loss_mask"] + 0.1 * step["loss_edge"] + 4 * step["loss_budget"]
    assert step["loss"] == pytest.approx(total, rel=1e-5)
    assert (predict_logits(training.switch, cache).argmax(1) == 0).float().mean() > 0.5


def test_cached_features_take_no_gradients():
    with pytest.raises(DynaMaskError, match="no gradients"):
        SwitchTraining(synthetic_cache(3), LossConfig(detach_switch=False))
