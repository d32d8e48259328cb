"""Notebook 02: traces, sampling positions, and ablated parts."""

import numpy as np
import pytest
import torch
from helpers.small_models import tiny_model
from lessons import pyramid

from dynamask.data.shapes import CLASS_NAMES, ShapesDataset, make_scene
from dynamask.predict import TwoStagePredictor
from dynamask.structures import MASK_SIZES


@pytest.fixture(scope="module")
def predictor():
    model = tiny_model(class_names=CLASS_NAMES).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for stage in model.mask_branch.region_fpn.stages:
            for conv in (stage.aggregate.align_offsets, stage.aggregate.attend_offsets):
                conv.weight.normal_(std=0.3, generator=generator)
        for conv in model.mask_branch.region_fpn.mask_predictors:
            conv.weight.normal_(generator=generator)
    return TwoStagePredictor(model)


@pytest.fixture(scope="module")
def scene():
    return make_scene(1001, 1)


@pytest.fixture(scope="module")
def traced(predictor, scene):
    return pyramid.trace(predictor, scene.image, scene.boxes[0].tolist(), int(scene.labels[0]))


def test_trace_equals_the_predictor_and_leaves_no_hook(predictor, scene, traced):
    modules = predictor.model.mask_branch.region_fpn.modules()
    assert not [m for m in modules if m._forward_hooks or m._forward_pre_hooks]
    prediction = predictor(scene.image, boxes=scene.boxes[:1], labels=scene.labels[:1].tolist(), all_sizes=True)
    for k, size in enumerate(MASK_SIZES):
        assert torch.allclose(traced.mask_probs[k], prediction.mask_probs_at(0, size), atol=1e-5)
        assert traced.edge_probs[k].shape == (size, size)


def test_trace_keeps_what_each_stage_was_given(traced):
    for stage, size, feature in zip(traced.stages, MASK_SIZES[1:], traced.features[1:]):
        assert stage.size == size
        assert stage.region.shape == stage.image.shape == stage.aligned.shape == stage.fused.shape == feature.shape
        assert torch.equal(stage.fused, feature)
        assert stage.align_offsets.shape == stage.attend_offsets.shape == (18, size, size)
    x0, y0, x1, y1 = (round(v) for v in traced.box)
    assert traced.crop().shape == (y1 - y0, x1 - x0, 3)


def test_offsets_move_samples_in_their_direction():
    plain = pyramid.sampling_places(torch.zeros(18, 5, 5))
    assert plain.shape == (9, 2, 5, 5)
    assert plain[:, :, 2, 3].tolist() == [[2 + dy, 3 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert pyramid.attention_map(torch.zeros(36, 6, 6)) == pytest.approx(np.ones((6, 6)))
    offsets = torch.zeros(18, 5, 5)
    offsets[1::2] = 2.0  # (Δy, Δx) pairs
    moved = pyramid.sampling_places(offsets) - plain
    assert (moved[:, 0] == 0).all() and (moved[:, 1] == 2).all()
    assert pyramid.mean_offset(offsets).tolist() == [torch.zeros(5, 5).tolist(), torch.full((5, 5), 2.0).tolist()]
    assert pyramid.neighbour_agreement(offsets) == pytest.approx(1)
    attention = pyramid.attention_map(offsets)
    assert (attention[:, 0] == 0).all() and attention[2, 2] > 0, "the first column is not sampled"
    noise = torch.randn(18, 40, 40, generator=torch.Generator().manual_seed(0))
    assert abs(pyramid.neighbour_agreement(noise)) < 0.1


@torch.no_grad()
def logits(predictor, scene, k):
    state = pyramid.region_state(predictor, scene.image, torch.from_numpy(scene.boxes), torch.from_numpy(scene.labels))
    return predictor.model.mask_branch.region_fpn.mask_logits(state, k, torch.arange(len(scene)))


@pytest.mark.parametrize(
    "without",
    [
        pyramid.zero_offsets,
        lambda fpn: pyramid.zero_offsets(fpn, align=False),
        lambda fpn: pyramid.zero_offsets(fpn, attend=False),
        pyramid.crops_with_stride,
        pyramid.crops_not_aligned,
        pyramid.without_image,
    ],
)
def test_a_part_taken_away_changes_finer_masks_and_comes_back(predictor, scene, without):
    before = [logits(predictor, scene, k) for k in (0, 1)]
    with without(predictor.model.mask_branch.region_fpn):
        during = [logits(predictor, scene, k) for k in (0, 1)]
    after = [logits(predictor, scene, k) for k in (0, 1)]
    assert torch.equal(before[0], during[0]), "the 14×14 mask has no stage"
    assert not torch.allclose(before[1], during[1])
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_own_stride_changes_nothing_at_the_last_stage(predictor):
    fpn = predictor.model.mask_branch.region_fpn
    generator = torch.Generator().manual_seed(0)
    coarse, map_ = torch.randn(1, 4, 56, 56, generator=generator), torch.randn(1, 2, 20, 20, generator=generator)
    rois = torch.tensor([[0.0, 8.0, 10.0, 60.0, 50.0]])
    with torch.no_grad():
        usual = fpn.stage(3, coarse, map_, rois)
        with pyramid.crops_with_stride(fpn, 4):
            assert torch.equal(fpn.stage(3, coarse, map_, rois), usual)


def test_scores_have_a_row_for_every_object(predictor):
    dataset = ShapesDataset(2, 1001)
    scores = pyramid.boundary_scores(predictor, dataset)
    assert scores.shape == (sum(len(dataset.scene(i)) for i in range(2)), len(MASK_SIZES))
    assert ((scores >= 0) & (scores <= 1)).all()


def test_components_of_a_constant_feature_are_grey():
    assert (pyramid.components(torch.ones(4, 6, 6)) == 128).all()
    varied = pyramid.components(torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert varied.shape == (6, 6, 3) and varied.dtype == np.uint8 and len(np.unique(varied)) > 10
