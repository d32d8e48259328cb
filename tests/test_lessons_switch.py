"""The helpers of notebooks 00 and 04: what they show is what was computed."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.small_models import tiny_model
from lessons import gumbel, tour

from dynamask.data.shapes import CLASS_NAMES
from dynamask.models.masks.switch import straight_through_gumbel
from dynamask.predict import Predictor, TwoStagePredictor
from dynamask.structures import MASK_SIZES

FOUR = torch.tensor([0.0, 1.0, 1.6, 0.4])
ERRORS = torch.tensor([0.30, 0.20, 0.15, 0.12])


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return TwoStagePredictor(tiny_model(class_names=CLASS_NAMES))


@pytest.fixture(scope="module")
def cache(predictor):
    return gumbel.regions(predictor, scenes=4, seed=3)


@pytest.fixture(scope="module")
def prediction(predictor):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    return predictor(pixels, boxes=[[2, 2, 40, 50], [30, 10, 78, 58]], labels=[1, 2], all_sizes=True)


def test_gradient_quality_agrees_with_autograd():
    noise = gumbel.gumbel_noise(500, 5)
    logits = FOUR.expand(500, 4).clone().requires_grad_()
    (straight_through_gumbel(logits, 0.5, noise) * ERRORS).sum().backward()
    expected = FOUR.clone().requires_grad_()
    (torch.softmax(expected, 0) * ERRORS).sum().backward()
    truth = gumbel.true_gradient(FOUR, ERRORS)
    torch.testing.assert_close(truth, expected.grad)
    mean = logits.grad.mean(0)
    found = gumbel.gradient_quality(FOUR, ERRORS, [0.5], 500, seed=5)
    assert found.bias[0] == pytest.approx(float((mean - truth).norm() / truth.norm()), rel=1e-3)
    spread = (logits.grad - mean).pow(2).sum(1).mean().sqrt() / truth.norm()
    assert found.noise[0] == pytest.approx(float(spread), rel=1e-3)


def test_hot_gradients_are_biased_and_cold_ones_noisy():
    found = gumbel.gradient_quality(FOUR, ERRORS, [0.1, 5.0], 4000)
    assert found.bias[1] > 3 * found.bias[0] and found.noise[0] > 10 * found.noise[1]
    drawn = gumbel.gradient_figure(found)
    assert list(drawn.data[0].y) == found.bias.tolist()


def test_noise_number_zero_is_none_and_numbers_repeat():
    assert not gumbel.gumbel_noise(2, 0).any()
    assert torch.equal(gumbel.gumbel_noise(2, 4), gumbel.gumbel_noise(2, 4))
    assert not torch.equal(gumbel.gumbel_noise(2, 4), gumbel.gumbel_noise(2, 5))


def test_temperature_panel_computes_eq_2():
    panel = gumbel.TemperaturePanel(FOUR.tolist(), temperature=0.5, draw=3)
    probs, soft, hard = panel.values()
    torch.testing.assert_close(probs, torch.softmax(FOUR, 0))
    torch.testing.assert_close(
        soft, torch.softmax((torch.log_softmax(FOUR, 0) + gumbel.gumbel_noise(1, 3)[0]) / 0.5, 0)
    )
    assert list(panel.figure.data[1].y) == pytest.approx(soft.tolist()) and sorted(hard.tolist()) == [0, 0, 0, 1]
    panel.temperature.value = 10.0
    assert torch.equal(panel.values()[2], hard), "the temperature changes no draw"
    assert float(panel.values()[1].max()) < float(soft.max())
    panel.draw.value = 0
    panel.logits[3].value = 4.0
    assert "112×112" in panel.message.value and list(panel.figure.data[2].y) == [0, 0, 0, 1]


def test_run_tells_what_the_switch_chooses(cache):
    run = gumbel.run_switch(cache, "quality alone", steps=12)
    assert run.steps[0] == 1 and run.steps[-1] == 12 and run.shares.sum(1) == pytest.approx(1.0)
    fractions = cache.macs / cache.macs[-1]
    assert run.cost == pytest.approx(run.shares @ fractions)
    again = gumbel.run_switch(cache, "quality alone", steps=12)
    assert np.array_equal(run.mean_probs, again.mean_probs)
    other = gumbel.run_switch(cache, "quality + budget", steps=12)
    assert not np.array_equal(run.mean_probs, other.mean_probs)
    player = gumbel.StepPlayer([run, other])
    player.slider.value = int(run.steps[0])
    assert list(player.figure.data[0].y) == run.shares[0].tolist()
    assert f"{other.cost[0]:.0%}" in player.figure.layout.annotations[1].text
    assert len(gumbel.runs_figure([run, other], target=0.35).data) == 2 * (4 + 4)


def test_left_out_losses_are_left_out(cache):
    config = dataclasses.replace(gumbel.LOSS_CONFIG, switch_weight=0.0)
    none = gumbel.run_switch(cache, "none", config, steps=3, without=())
    left = gumbel.run_switch(cache, "quality alone", steps=3)
    assert np.allclose(none.mean_probs, left.mean_probs)


def test_tables_and_figures_of_the_losses(cache):
    table = gumbel.rank_table(cache, samples=20)
    assert len(table.rows) == 4 and all("[" in cell for row in table.rows for cell in row[1:])
    baseline = gumbel.baseline_table(cache, scenes=3, seed=3)
    ones = [float(cell.rstrip("%")) / 100 for cell in baseline.rows[3][1:]]
    assert ones == sorted(ones, reverse=True), "edges are rarer the finer the grid"
    blind = -ones[0] * np.log(ones[0]) - (1 - ones[0]) * np.log(1 - ones[0])
    assert float(baseline.rows[4][1]) == pytest.approx(blind, abs=0.01)
    drawn = gumbel.losses_figure(cache)
    assert list(drawn.data[0].y) == pytest.approx(cache.mask_loss.double().mean(0).tolist())


def test_probabilities_and_frequencies_figures():
    probs = torch.softmax(torch.stack([FOUR, -FOUR]), 1)
    drawn = gumbel.probabilities_figure(probs, ["a", "b"])
    assert list(drawn.data[0].y) == ["a → 56", "b → 14"]
    assert [bar.x[1] for bar in drawn.data] == pytest.approx(probs[1].tolist())
    bars = gumbel.frequencies_figure(probs[0], {"τ = 1": probs[1]})
    assert list(bars.data[2].y) == pytest.approx([float(probs[0][2]), float(probs[1][2])])


def test_tour_tables_and_sweeps(predictor, prediction):
    table = tour.instances(prediction)
    assert len(table.rows) == 2 and table.rows[0][3] == f"{int(prediction.mask_size[0])}×{int(prediction.mask_size[0])}"
    gmacs = tour.budgets(predictor, 9)
    sizes = tour.sweep(predictor, prediction, gmacs)
    assert sizes.shape == (9, 2) and (sizes[0] == 14).all() and (sizes[-1] == 112).all()
    assert (tour.sweep(predictor, prediction, gmacs, "learned")[-1] == prediction.mask_size.numpy()).all()
    drawn = tour.sweep_figure(gmacs, sizes)
    assert np.sum([trace.y for trace in drawn.data], axis=0) == pytest.approx(np.ones(9))
    assert [bar.y[0] * 1e9 for bar in tour.costs(predictor).data[:4]] == pytest.approx(
        list(predictor.costs.macs_per_instance)
    )


def test_tour_overlaps_are_ious(prediction):
    found = tour.overlaps(prediction)
    masks = [prediction.mask_at(1, size) for size in (28, 112)]
    either = int((masks[0] | masks[1]).sum())
    expected = int((masks[0] & masks[1]).sum()) / either if either else 1.0
    assert found[1, 1] == pytest.approx(expected) and (found[:, 3] == 1).all()
    drawn = tour.overlap_figure(prediction)
    rings = [sum(size == 16 for size in trace.marker.size) for trace in drawn.data[1:]]
    assert rings == [int((prediction.mask_size == size).sum()) for size in MASK_SIZES]
    assert len(tour.grids(prediction, 0).data) == 8
