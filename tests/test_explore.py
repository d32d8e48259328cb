"""The notebook's widget, driven through its traits as a page would: no browser."""

import dataclasses
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from helpers.small_models import tiny_model

from dynamask.models.masks import policies
from dynamask.predict import Predictor, TwoStagePredictor
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz import explore
from dynamask.viz.explorer import SHOWN_SIDES, Explorer
from dynamask.viz.overlay import CachedOverlay, draw_overlay, encode_jpeg


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """Random weights whose switch prefers different sizes for different instances."""
    model = tiny_model(num_classes=4)
    with torch.no_grad():
        model.mask_branch.switch.fc[2].weight.normal_(std=6.0, generator=torch.Generator().manual_seed(3))
        for part in model.mask_branch.region_fpn.mask_predictors:
            part.weight.normal_(generator=torch.Generator().manual_seed(4))
    return TwoStagePredictor(model)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)


@pytest.fixture
def prediction(predictor, pixels):
    boxes = [[2, 2, 40, 50], [30, 10, 78, 58], [5, 5, 20, 20]]
    return predictor(pixels, boxes=boxes, labels=[1, 2, 3])


def picture_of(explorer: Explorer) -> np.ndarray:
    """The picture that the page shows, (H, W, 3) uint8 BGR."""
    return cv2.imdecode(np.frombuffer(explorer.picture.jpeg, np.uint8), cv2.IMREAD_COLOR)


def test_one_argument_is_enough_and_begins_with_the_switchs_choice(prediction, pixels):
    explorer = explore(prediction)
    assert np.array_equal(prediction.picture, pixels)
    assert explorer.policy.value == "learned" and explorer.selected == 0
    assert explorer.mask_size == prediction.mask_size.tolist()
    assert [line.split(" ")[0] for line, _ in explorer.instances.options] == ["#1", "#2", "#3"]
    assert "3 instances" in explorer.summary.value and "3 instances" in explorer.picture.alt


def test_slider_is_the_exact_budget(prediction, predictor):
    explorer, macs = explore(prediction), predictor.costs.macs_per_instance
    for share in (0.0, 0.3, 0.6, 1.0):
        explorer.slider.value = macs[0] / 1e9 + share * (macs[-1] - macs[0]) / 1e9
        expected = policies.exact_budget(prediction.switch_logits, macs, max(explorer.slider.value * 1e9, macs[0]))
        assert explorer.policy.value == "budget"
        assert explorer.mask_size == [MASK_SIZES[k] for k in expected.tolist()]
        mean = float(explorer.prediction.macs.double().mean()) / 1e9
        assert mean <= explorer.slider.value + 1e-9 or share == 0.0
        assert explorer.totals_chart.data[1].y[0] == pytest.approx(mean)
        assert explorer.totals_chart.layout.shapes[0].visible and explorer.totals_chart.layout.shapes[
            0
        ].y0 == pytest.approx(max(explorer.slider.value, macs[0] / 1e9))
    explorer.slider.value = explorer.slider.min
    assert set(explorer.mask_size) == {14}


def test_a_page_that_rounds_the_slider_moves_nothing(prediction):
    explorer = explore(prediction)
    middle = (explorer.slider.min + explorer.slider.max) / 2
    step = explorer.slider.step if explorer.slider.value < middle else -explorer.slider.step
    explorer.slider.value += 0.4 * step
    assert explorer.policy.value == "learned"
    explorer.slider.value += step
    assert explorer.policy.value == "budget"
    for value in (explorer.slider.min, explorer.slider.max):
        steps = value / explorer.slider.step
        assert steps == pytest.approx(round(steps)), "the page counts steps from the smallest value"


def test_policies_change_sizes_figures_and_picture(prediction):
    explorer = explore(prediction)
    pictures = []
    for size in MASK_SIZES:
        explorer.policy.value = f"fixed:{size}"
        assert explorer.mask_size == [size] * 3
        assert list(explorer.totals_chart.data[0].y) == [3 * (size == each) for each in MASK_SIZES]
        assert all(f"· {size}" in line for line, _ in explorer.instances.options)
        assert not explorer.totals_chart.layout.shapes[0].visible
        pictures.append(explorer.picture.jpeg)
    assert len(set(pictures)) == 4
    explorer.policy.value = "size"
    expected = policies.size_based(prediction.boxes, prediction.image_size)
    assert explorer.mask_size == [MASK_SIZES[k] for k in expected.tolist()]


def test_reasons_are_those_of_the_picked_instance(prediction):
    explorer = explore(prediction)
    explorer.instances.value = 2
    assert explorer.selected == 2 and "#3 class" in explorer.explanation.value.replace(
        prediction.class_names[3], "class"
    )
    assert list(explorer.selection_chart.data[0].y) == pytest.approx(prediction.switch_probs[2].tolist())
    explorer.policy.value = "fixed:14"
    assert list(explorer.selection_chart.data[0].y) == pytest.approx(prediction.switch_probs[2].tolist())
    assert explorer.crops.value.count("<img") == 4 and "mask at 14×14, chosen" in explorer.crops.value
    learned = int(prediction.switch_logits[2].argmax())
    assert f"the switch prefers {MASK_SIZES[learned]}×{MASK_SIZES[learned]}" in explorer.explanation.value
    assert explorer.selected == 2, "a change of the policy keeps the picked instance"


def test_what_the_budget_changed_is_said(prediction):
    explorer = explore(prediction)
    assert "has the size that the switch chose" in explorer.summary.value
    explorer.policy.value = "fixed:14"
    learned = prediction.switch_logits.argmax(1)
    assert f"{int((learned > 0).sum())} coarser and 0 finer" in explorer.summary.value
    row = int(learned.argmax())
    explorer.selected = row
    masks = [prediction.mask_at(row, size) for size in (14, MASK_SIZES[int(learned[row])])]
    kept = float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
    assert f"IoU of {kept:.2f}" in explorer.explanation.value


def test_clicks_and_keys_pick_instances(prediction):
    explorer = explore(prediction)
    explorer.policy.value = "fixed:112"
    masks = [prediction.mask_at(i, 112).numpy() for i in range(3)]
    row, column = np.argwhere(masks[1] & ~masks[0])[0]
    explorer.picture._handle_custom_msg({"x": (column + 0.5) / 80, "y": (row + 0.5) / 60}, [])
    assert explorer.selected == 1 and explorer.instances.value == 1
    explorer.picture._handle_custom_msg({"step": 1}, [])
    assert explorer.selected == 2
    explorer.picture._handle_custom_msg({"step": 1}, [])
    assert explorer.selected == 0
    explorer.picture._handle_custom_msg({"step": -1}, [])
    assert explorer.selected == 2
    explorer.picture._handle_custom_msg({"x": 0.999, "y": 0.001}, [])  # nothing is there
    assert explorer.selected == 2


def test_selected_can_be_set_and_observed_and_is_checked(prediction):
    explorer, seen = explore(prediction), []
    explorer.observe(lambda change: seen.append(change["new"]), "selected")
    explorer.selected = 1
    assert seen == [1] and explorer.instances.value == 1
    with pytest.raises(DynaMaskError, match="no instance 7"):
        explorer.selected = 7
    assert explorer.selected == 1


def test_prediction_of_the_widget_is_whole(prediction):
    explorer = explore(prediction)
    explorer.policy.value = "fixed:28"
    shown = explorer.prediction
    assert shown.mask_size.tolist() == [28] * 3 and shown.masks.shape == (3, 60, 80)
    assert len(shown.to_coco(1)) == 3
    assert prediction.mask_size.tolist() != [28] * 3, "what was given is not changed"


def test_no_instance(predictor, pixels):
    explorer = explore(predictor(pixels, boxes=[]))
    assert explorer.selected is None and explorer.slider.disabled and explorer.instances.options == ()
    assert "lower score threshold" in explorer.summary.value and explorer.crops.value == ""
    explorer.slider.value = explorer.slider.min
    explorer.picture._handle_custom_msg({"step": 1}, [])
    explorer.picture._handle_custom_msg({"x": 0.5, "y": 0.5}, [])
    assert explorer.selected is None and len(explorer.prediction) == 0
    shown = cv2.resize(pixels, (160, 120), interpolation=cv2.INTER_CUBIC)
    assert explorer.picture.jpeg == encode_jpeg(shown)


def test_one_instance_and_class_agnostic_weights(pixels):
    agnostic = TwoStagePredictor(tiny_model(num_classes=2, class_agnostic=True))
    explorer = explore(agnostic(pixels, boxes=[[0, 0, 80, 60]]))
    assert explorer.selected == 0 and "1 instance," in explorer.summary.value
    explorer.policy.value = "budget"
    explorer.slider.value = explorer.slider.max
    assert len(explorer.mask_size) == 1


def test_starting_policy_or_budget(prediction, predictor):
    assert explore(prediction, policy="fixed:56").mask_size == [56] * 3
    budget = sum(predictor.costs.macs_per_instance[:2]) / 2e9
    explorer = explore(prediction, budget=budget)
    assert explorer.policy.value == "budget" and explorer.slider.value == pytest.approx(budget)
    expected = policies.exact_budget(prediction.switch_logits, predictor.costs.macs_per_instance, budget * 1e9)
    assert explorer.mask_size == [MASK_SIZES[k] for k in expected.tolist()]


def test_large_pictures_are_shown_smaller_and_small_ones_larger(predictor, prediction):
    assert picture_of(explore(prediction)).shape == (120, 160, 3), "at most twice as large"
    longest = SHOWN_SIDES[1]
    large = np.zeros((300, 2 * longest, 3), dtype=np.uint8)
    explorer = explore(predictor(large, boxes=[[0, 0, 2 * longest, 300]]))
    assert picture_of(explorer).shape == (150, longest, 3)
    assert explorer.prediction.masks.shape == (1, 300, 2 * longest)


def test_bad_input_is_one_sentence(prediction, pixels):
    bare = dataclasses.replace(prediction, picture=None)
    with pytest.raises(DynaMaskError, match="holds no picture"):
        explore(bare)
    assert explore(bare, pixels).mask_size == prediction.mask_size.tolist()
    with pytest.raises(DynaMaskError, match="40 x 30 pixels"):
        explore(prediction, pixels[:30, :40])
    with pytest.raises(DynaMaskError, match="policy 'best'"):
        explore(prediction, policy="best")
    with pytest.raises(DynaMaskError, match="below the cheapest"):
        explore(prediction, budget=1e-9)


def test_repeated_overlay_draws_what_the_overlay_draws(prediction, pixels):
    repeated = CachedOverlay(pixels, lambda i, size: prediction.mask_at(i, size).numpy())
    before = pixels.copy()
    for sizes in ([14, 28, 112], [56, 56, 14], [14, 28, 112]):
        masks = np.stack([prediction.mask_at(i, size).numpy() for i, size in enumerate(sizes)])
        labels = ["a", "b", "c"]
        assert np.array_equal(repeated.draw(sizes, labels), draw_overlay(pixels, masks, sizes, labels=labels))
    assert np.array_equal(pixels, before)
    framed = repeated.draw([14, 28, 112], frame=[10, 10, 50, 50])
    assert (framed != repeated.draw([14, 28, 112])).any()


def test_charts_do_without_widgets():
    code = "import sys, dynamask.viz.charts, dynamask.viz.overlay, dynamask.viz; assert 'ipywidgets' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(ImportError):
        from dynamask.viz import nothing  # noqa: F401


def test_a_reloaded_page_gets_the_figures_as_they_stand(prediction):
    explorer = explore(prediction, policy="fixed:56")
    state = explorer.totals_chart.get_state()
    assert list(state["_widget_data"][0]["y"]) == [0, 0, 3, 0]
    explorer.policy.value = "fixed:14"
    assert list(explorer.totals_chart.get_state()["_widget_data"][0]["y"]) == [3, 0, 0, 0]
