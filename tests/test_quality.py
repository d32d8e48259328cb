"""The quality head: what it predicts, how it is trained, and the sizes chosen by it."""

import itertools
import json

import numpy as np
import pytest
import torch
from helpers.feature_caches import synthetic_cache
from helpers.small_models import picture, pyramid, some_rois, target, tiny_branch, tiny_model

import dynamask
from dynamask import MASK_SIZES, DynaMaskError
from dynamask.cli import main
from dynamask.data.shapes import CLASS_NAMES, ShapesDataset, make_scene
from dynamask.engine.evaluate import EvaluationOptions, run_evaluation
from dynamask.engine.frozen_switch import SCHEDULE, predict_quality, train_quality
from dynamask.evaluation.calibration import calibration_error, reliability
from dynamask.evaluation.choices import within_spearman
from dynamask.models.masks import losses, policies
from dynamask.models.masks.quality_head import QualityHead, box_geometry, quality_loss
from dynamask.models.weights import initialise, save_model
from dynamask.predict import TwoStagePredictor
from dynamask.training_config import TrainConfig
from tools import fit_quality


@pytest.fixture(scope="module")
def predictor():
    return TwoStagePredictor(tiny_model(class_names=CLASS_NAMES))


@pytest.fixture(scope="module")
def prediction(predictor):
    return predictor(make_scene(3, 1).image, score=0.0, all_sizes=True)


def some_quality(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 4, 2) rising with the size, in (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, 2, generator=generator).cumsum(1) / 4


def test_quality_never_falls_from_a_size_to_the_next():
    torch.manual_seed(0)
    head = QualityHead(16, 4, 32, classes=3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    logits = head(torch.randn(20, 16, 14, 14), some_rois(20, batch=1), torch.arange(20) % 3 + 1)
    assert logits.shape == (20, 4, 2) and bool((logits.diff(dim=1) > 0).all())


def test_an_untrained_head_starts_at_plausible_values():
    torch.manual_seed(0)
    quality = QualityHead(16, 4, 32)(torch.zeros(1, 16, 14, 14), some_rois(1, batch=1), torch.ones(1)).sigmoid()
    assert quality[0, 0].tolist() == pytest.approx([0.7, 0.5], abs=0.02) and float(quality.detach().max()) < 0.9


def test_the_head_sees_the_box_and_the_class():
    torch.manual_seed(0)
    head = QualityHead(16, 4, 32, classes=2)
    torch.nn.init.normal_(head.of_class.weight)
    region, rois = torch.zeros(3, 16, 14, 14), torch.tensor([[0.0, 0, 0, 20, 20], [0, 0, 0, 20, 20], [0, 0, 0, 90, 20]])
    same, other_class, other_box = head(region, rois, torch.tensor([1, 2, 1]))
    assert not torch.allclose(same, other_class) and not torch.allclose(same, other_box)
    geometry = box_geometry(torch.tensor([[10.0, 5.0, 74.0, 37.0]]))
    assert geometry.tolist() == [[0.0, -1.0, -0.5, 0.0625, 1.0]]


def test_the_loss_is_smallest_at_the_expectation():
    measured = torch.tensor([0.2, 0.6]).repeat(50)[:, None, None] + torch.tensor([0.0, 0.1, 0.2, 0.25])[None, :, None]
    measured = measured.expand(-1, -1, 2)
    mean = measured.mean(0, keepdim=True)

    def loss(quality: torch.Tensor) -> float:
        return float(quality_loss(torch.logit(quality).expand_as(measured), measured).mean())

    for shift in (-0.05, 0.05):
        assert loss(mean) < loss(mean + shift)
        assert loss(mean) < loss(mean + shift * torch.tensor([0.0, 0.0, 0.0, 1.0])[None, :, None])


def test_training_moves_nothing_but_the_head():
    model = tiny_model()
    named = model([picture()], [target()])
    named["loss_mask_quality"].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert moved and all(name.startswith("mask_branch.quality.") for name in moved)


def test_the_branch_is_trained_on_the_measured_quality_of_its_masks():
    branch = tiny_branch(quality=True)
    rois, truth = some_rois(3, batch=1), [(torch.rand(3, size, size) > 0.5).float() for size in MASK_SIZES]
    width = torch.full((3,), 2.0)
    state = branch.begin(pyramid(branch.region_fpn.base[0].in_channels, batch=1), rois, torch.tensor([1, 2, 1]))
    named = branch.losses(state, truth, boundary_width=width)
    every = torch.arange(3)
    logits = [branch.head.mask_logits(state, k, every) for k in range(4)]
    boundary, overlap = losses.size_errors(logits, truth[-1], state.rois[:, 1:], width)
    expected = quality_loss(state.quality_logits, 1 - torch.stack([overlap, boundary], dim=2)).mean()
    assert float(named["loss_mask_quality"]) == pytest.approx(float(expected), rel=1e-5)
    branch.switch_enabled = False
    assert float(branch.losses(state, truth, boundary_width=width)["loss_mask_quality"]) == 0.0


def test_budgets_maximise_the_predicted_quality_exactly():
    quality, macs = some_quality(5), (10, 30, 60, 100)
    values = policies.combined_quality(quality)
    for limit in (10, 24, 41.5, 60, 90, 100):
        chosen = policies.QUALITY.choose(torch.zeros(5, 4), (1, 1), None, macs, limit, quality)
        spent = [sum(macs[k] for k in choice) for choice in itertools.product(range(4), repeat=5)]
        totals = [sum(float(values[i, k]) for i, k in enumerate(c)) for c in itertools.product(range(4), repeat=5)]
        best = max(total for total, cost in zip(totals, spent) if cost <= 5 * limit + 1e-6)
        assert float(values[torch.arange(5), chosen].sum()) == pytest.approx(best)


def test_more_budget_never_lowers_the_predicted_quality_and_all_of_it_can_be_spent(predictor, prediction):
    macs = predictor.costs.macs_per_instance
    totals, costs = [], []
    for budget in np.linspace(macs[0], macs[-1], 12) / 1e9:
        chosen = predictor.select(prediction, budget=float(budget))
        totals.append(float(chosen.chosen_quality.double().mean()))
        costs.append(float(chosen.macs.double().mean()))
        assert costs[-1] <= budget * 1e9 + 1
    assert totals == sorted(totals) and costs[0] == macs[0] and costs[-1] == macs[-1]


def test_without_a_budget_the_policy_takes_the_coarsest_size_that_is_nearly_the_best():
    values = torch.tensor([[0.5, 0.7, 0.795, 0.8], [0.798, 0.799, 0.8, 0.8], [0.1, 0.2, 0.3, 0.4]])
    assert policies.nearly_best(values).tolist() == [2, 0, 3]


def test_a_budget_follows_the_head_by_default_and_the_switch_on_request(predictor, prediction):
    budget = sum(predictor.costs.macs_per_instance[:2]) / 2e9
    by_default, by_head, by_switch = (
        predictor.select(prediction, policy, budget).mask_size.tolist() for policy in (None, "quality", "learned")
    )
    logits = prediction.switch_logits
    limit = policies.budget_in_macs(budget, predictor.costs.macs_per_instance)
    learned = policies.LEARNED.choose(prediction.boxes, (1, 1), logits, predictor.costs.macs_per_instance, limit)
    assert by_default == by_head and by_switch == [MASK_SIZES[k] for k in learned]


def test_predictions_and_results_hold_the_quality(prediction):
    quality = prediction.quality
    assert quality.shape == (len(prediction), 4, 2) and quality.dtype == torch.float32 and len(prediction) > 0
    assert float(quality.min()) >= 0 and float(quality.max()) <= 1
    results = json.loads(json.dumps(prediction.to_coco(7)))
    for i, result in enumerate(results):
        expected = quality[i, MASK_SIZES.index(result["mask_size"])].tolist()
        assert result["quality"] == pytest.approx(expected, abs=1e-4)


def test_weights_without_a_head_predict_no_quality_and_follow_the_switch():
    predictor = TwoStagePredictor(tiny_model(quality_channels=0))
    prediction = predictor(make_scene(3, 1).image, score=0.0, budget=0.01)
    assert prediction.quality is None and "quality" not in prediction.to_coco(1)[0]
    with pytest.raises(DynaMaskError, match="the policy 'quality' needs a quality head, and these weights have none"):
        predictor.select(prediction, "quality")


def test_a_head_learns_from_a_cache():
    cache = synthetic_cache()
    schedule = TrainConfig(**{**vars(SCHEDULE), "iterations": 150, "batch_size": 32, "lr": 5e-3})
    head = train_quality(cache, schedule)
    predicted = predict_quality(head, cache)
    assert float((predicted - cache.quality).abs().mean()) < 0.04
    assert torch.equal(predicted, predict_quality(train_quality(cache, schedule), cache)), "pinned by the seed"


def test_fit_quality_adds_a_head_and_changes_nothing_else(tmp_path, capsys):
    from dynamask.engine.frozen_features import save_cache

    model = tiny_model(quality_channels=0)
    save_model(model, tmp_path / "w.safetensors")
    save_cache(synthetic_cache(), tmp_path / "c.safetensors")
    words = ["--weights", str(tmp_path / "w.safetensors"), "--caches", str(tmp_path / "c.safetensors"), "--steps", "3"]
    assert fit_quality.main([*words, "--out", str(tmp_path / "new.safetensors")]) == 0
    new = dynamask.load(tmp_path / "new.safetensors")
    assert new.has_quality and new.model.config.quality_channels == 8
    for name, value in model.state_dict().items():
        assert torch.equal(new.model.state_dict()[name], value), name
    assert fit_quality.main([*words, "--out", str(tmp_path / "none" / "new.safetensors")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_calibration_and_correlation():
    predicted = np.array([0.11, 0.19, 0.55, 0.95, 1.0])
    measured = np.array([0.2, 0.3, 0.55, 0.8, 0.7])
    rows = reliability(predicted, measured)
    assert [(row.count, round(row.predicted, 3), round(row.measured, 3)) for row in rows] == [
        (2, 0.15, 0.25),
        (1, 0.55, 0.55),
        (2, 0.975, 0.75),
    ]
    assert calibration_error(predicted, measured) == pytest.approx((2 * 0.1 + 0 + 2 * 0.225) / 5)
    assert calibration_error(predicted[:0], measured[:0]) is None
    a = np.arange(20.0)
    b = np.concatenate([np.arange(10.0), -np.arange(10.0)])
    labels = np.repeat([1, 2], 10)
    assert within_spearman(a, b, labels) == pytest.approx(0.0)
    assert within_spearman(a[:13], b[:13], labels[:13]) == pytest.approx(1.0), "three instances are too few"
    assert within_spearman(a[:4], b[:4], labels[:4]) is None


def test_evaluation_reports_the_agreement_and_takes_the_budget_over_the_data_set(predictor):
    scenes = ShapesDataset(2, seed=5, size=(96, 128), first=1)
    macs = predictor.costs.macs_per_instance
    budget = (macs[0] + macs[1]) / 2e9
    options = EvaluationOptions(budget=budget, budget_scope="dataset", boxes="gt")
    summary = run_evaluation(predictor, scenes, options=options)
    assert summary["mean_macs_per_instance"] <= budget * 1e9
    assert 0 <= summary["quality_calibration"] <= 1 and -1 <= summary["quality_spearman"] <= 1
    assert "quality_spearman_within" in summary


def test_rescored_scores_follow_the_chosen_size(predictor):
    scene = make_scene(3, 1).image
    given, rescored = (predictor(scene, score=0.0, rescore=rescore, policy="fixed:14") for rescore in (False, True))
    finest = predictor.select(rescored, "fixed:112")
    for found, k in ((rescored, 0), (finest, 3)):
        torch.testing.assert_close(found.scores, given.scores * given.quality[:, k, 0])
    assert rescored.labels.tolist() == given.labels.tolist(), "objects keep their order"
    with pytest.raises(DynaMaskError, match="rescoring needs a quality head"):
        TwoStagePredictor(tiny_model(quality_channels=0))(scene, rescore=True)


def test_the_report_writes_every_format(predictor, tmp_path):
    path = tmp_path / "w.safetensors"
    save_model(predictor.model, path)
    words = ["report", "quality", "--weights", str(path), "--data", "shapes:5:3", "--samples", "4", "--ap-samples", "3"]
    assert main([*words, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "q.json")]) == 0
    data = json.loads((tmp_path / "q.json").read_text())
    assert len(data["agreement"]) == 8 and {row["size"] for row in data["agreement"]} == set(MASK_SIZES)
    assert {"quality.md", "quality.csv", "quality.html", "quality.json"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    assert "Reliability" in (tmp_path / "out" / "quality.md").read_text()


@pytest.mark.parametrize(("ours", "theirs"), [(8, 0), (0, 8), (8, 8)])
def test_initialising_adds_or_leaves_out_the_head(tmp_path, ours, theirs):
    source = tiny_model(seed=1, quality_channels=theirs)
    save_model(source, tmp_path / "w.safetensors")
    model = tiny_model(seed=2, quality_channels=ours)
    text = initialise(model, tmp_path / "w.safetensors")
    assert ("the quality head is new" in text) == (ours > theirs)
    known = source.state_dict()
    for name, value in model.state_dict().items():
        assert name not in known or torch.equal(value, known[name]), name
