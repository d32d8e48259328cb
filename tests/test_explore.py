"""The notebook widget, driven through its traits without a browser."""

import dataclasses
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from helpers.small_models import tiny_model

from dynamask.models.masks import policies
from dynamask.predict import TwoStagePredictor
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz import explore
from dynamask.viz.explorer import SHOWN_SIDES, Explorer
from dynamask.viz.overlay import CachedOverlay, draw_overlay, encode_jpeg


@pytest.fixture(scope="module")
def predictor() -> TwoStagePredictor:
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
    """The picture on the page, (H, W, 3) uint8 BGR."""
    return cv2.imdecode(np.frombuffer(explorer.picture.jpeg, np.uint8), cv2.IMREAD_COLOR)


def sizes_of(choice: torch.Tensor) -> list[int]:
    return [MASK_SIZES[k] for k in choice.tolist()]


def test_it_starts_with_the_choice_of_the_switch_or_with_a_policy_or_budget(prediction, predictor, pixels):
    explorer, macs = explore(prediction), predictor.costs.macs_per_instance
    assert np.array_equal(prediction.picture, pixels)
    assert explorer.policy.value == "learned" and explorer.selected == 0
    assert explorer.mask_size == prediction.mask_size.tolist()
    assert [line.split(" ")[0] for line, _ in explorer.instances.options] == ["#1", "#2", "#3"]
    assert "3 instances" in explorer.summary.value and "3 instances" in explorer.picture.alt
    assert explore(prediction, policy="fixed:56").mask_size == [56] * 3
    budget = sum(macs[:2]) / 2e9
    explorer = explore(prediction, budget=budget)
    assert explorer.policy.value == "budget" and explorer.slider.value == pytest.approx(budget)
    assert explorer.mask_size == sizes_of(
        policies.exact_budget(policies.combined_quality(prediction.quality), macs, budget * 1e9)
    )


def test_a_budget_follows_the_predicted_quality_unless_the_switch_is_named(prediction, predictor):
    macs, budget = predictor.costs.macs_per_instance, sum(predictor.costs.macs_per_instance[1:3]) / 2e9
    given = dataclasses.replace(prediction, quality=torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(2)))
    for policy in (None, "quality", "learned"):
        explorer, chosen = explore(given, policy=policy, budget=budget), policies.Policy.parse(policy or "quality")
        expected = chosen.choose(given.boxes, given.image_size, given.switch_logits, macs, budget * 1e9, given.quality)
        assert explorer.policy.value == "budget" and explorer.mask_size == sizes_of(expected)
        named = {"learned": "switch"}.get(policy, "predicted quality")
        assert f"policy: {named}, within the budget of" in explorer.explanation.value
    explorer.policy.value = "quality"
    assert explorer.mask_size == sizes_of(policies.nearly_best(policies.combined_quality(given.quality)))
    low, high = (f"{given.quality[0, k, 1]:.0%}" for k in (0, 3))
    assert f"At 14 this keeps an estimated {low} of its outline, at 112 {high}" in explorer.explanation.value


def test_without_a_quality_head_nothing_is_estimated(prediction):
    given = dataclasses.replace(prediction, quality=None)
    explorer = explore(given)
    assert "estimated" not in explorer.explanation.value
    assert "quality" not in dict(explorer.policy.options).values()
    with pytest.raises(DynaMaskError, match="needs a quality head"):
        explore(given, policy="quality")


def test_slider_is_the_exact_budget(prediction, predictor):
    explorer, macs = explore(prediction), predictor.costs.macs_per_instance
    for share in (0.0, 0.3, 0.6, 1.0):
        explorer.slider.value = macs[0] / 1e9 + share * (macs[-1] - macs[0]) / 1e9
        budget = max(explorer.slider.value * 1e9, macs[0])
        assert explorer.policy.value == "budget"
        assert explorer.mask_size == sizes_of(
            policies.exact_budget(policies.combined_quality(prediction.quality), macs, budget)
        )
        mean = float(explorer.prediction.macs.double().mean()) / 1e9
        assert mean <= explorer.slider.value + 1e-9 or share == 0.0
        assert explorer.totals_chart.data[1].y[0] == pytest.approx(mean)
        line = explorer.totals_chart.layout.shapes[0]
        assert line.visible and line.y0 == pytest.approx(budget / 1e9)
    explorer.slider.value = explorer.slider.min
    assert set(explorer.mask_size) == {14}


def test_rounding_by_the_page_does_not_select_the_budget(prediction):
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


def test_policies_change_sizes_charts_and_picture(prediction):
    explorer, pictures = explore(prediction), []
    learned = prediction.switch_logits.argmax(1)
    assert "has the size that the switch chose" in explorer.summary.value
    for size in MASK_SIZES:
        explorer.policy.value = f"fixed:{size}"
        assert explorer.mask_size == [size] * 3
        assert list(explorer.totals_chart.data[0].y) == [3 * (size == each) for each in MASK_SIZES]
        state = explorer.totals_chart.get_state()  # what a reloaded page gets
        assert list(state["_widget_data"][0]["y"]) == [3 * (size == each) for each in MASK_SIZES]
        assert all(f"· {size}" in line for line, _ in explorer.instances.options)
        assert not explorer.totals_chart.layout.shapes[0].visible
        pictures.append(explorer.picture.jpeg)
    assert len(set(pictures)) == 4
    explorer.policy.value = "fixed:14"
    assert f"{int((learned > 0).sum())} coarser and 0 finer" in explorer.summary.value
    explorer.policy.value = "size"
    assert explorer.mask_size == sizes_of(policies.size_based(prediction.boxes, prediction.image_size))


def test_the_selected_instance_is_explained(prediction):
    explorer = explore(prediction)
    learned = prediction.switch_logits.argmax(1).tolist()
    explorer.instances.value = 2
    assert explorer.selected == 2 and f"#3 {prediction.class_names[3]}" in explorer.explanation.value
    for policy in ("learned", "fixed:14"):
        explorer.policy.value = policy
        assert explorer.selected == 2, "a change of the policy keeps the selection"
        assert list(explorer.selection_chart.data[0].y) == pytest.approx(prediction.switch_probs[2].tolist())
    assert explorer.crops.value.count("<img") == 4 and "mask at 14×14, chosen" in explorer.crops.value
    size = MASK_SIZES[learned[2]]
    assert f"the switch prefers {size}×{size}" in explorer.explanation.value
    explorer.selected = row = int(np.argmax(learned))
    masks = [prediction.mask_at(row, size) for size in (14, MASK_SIZES[learned[row]])]
    iou = float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
    assert f"IoU of {iou:.2f}" in explorer.explanation.value


def test_clicks_and_keys_select_instances(prediction):
    explorer = explore(prediction, policy="fixed:112")
    masks = [prediction.mask_at(i, 112).numpy() for i in range(3)]
    row, column = np.argwhere(masks[1] & ~masks[0])[0]
    events = [({"x": (column + 0.5) / 80, "y": (row + 0.5) / 60}, 1), ({"step": 1}, 2), ({"step": 1}, 0)]
    events += [({"step": -1}, 2), ({"x": 0.999, "y": 0.001}, 2)]  # there is nothing in the corner
    for event, selected in events:
        explorer.picture._handle_custom_msg(event, [])
        assert explorer.selected == explorer.instances.value == selected


def test_selected_can_be_set_and_observed_and_is_checked(prediction):
    explorer, seen = explore(prediction), []
    explorer.observe(lambda change: seen.append(change["new"]), "selected")
    explorer.selected = 1
    assert seen == [1] and explorer.instances.value == 1
    with pytest.raises(DynaMaskError, match="no instance 7"):
        explorer.selected = 7
    assert explorer.selected == 1


def test_the_prediction_of_the_widget_is_complete(prediction):
    shown = explore(prediction, policy="fixed:28").prediction
    assert shown.mask_size.tolist() == [28] * 3 and shown.masks.shape == (3, 60, 80)
    assert len(shown.to_coco(1)) == 3
    assert prediction.mask_size.tolist() != [28] * 3, "the given prediction is not changed"


def test_no_instance(predictor, pixels):
    explorer = explore(predictor(pixels, boxes=[]))
    assert explorer.selected is None and explorer.slider.disabled and explorer.instances.options == ()
    assert "lower score threshold" in explorer.summary.value and explorer.crops.value == ""
    explorer.slider.value = explorer.slider.min
    for event in ({"step": 1}, {"x": 0.5, "y": 0.5}):
        explorer.picture._handle_custom_msg(event, [])
    assert explorer.selected is None and len(explorer.prediction) == 0
    assert explorer.picture.jpeg == encode_jpeg(cv2.resize(pixels, (160, 120), interpolation=cv2.INTER_CUBIC))


def test_one_instance_and_class_agnostic_weights(pixels):
    agnostic = TwoStagePredictor(tiny_model(num_classes=2, class_agnostic=True))
    explorer = explore(agnostic(pixels, boxes=[[0, 0, 80, 60]]))
    assert explorer.selected == 0 and "1 instance," in explorer.summary.value
    explorer.policy.value = "budget"
    explorer.slider.value = explorer.slider.max
    assert len(explorer.mask_size) == 1


def test_large_pictures_are_shown_smaller_and_small_ones_larger(predictor, prediction):
    assert picture_of(explore(prediction)).shape == (120, 160, 3), "at most twice as large"
    longest = SHOWN_SIDES[1]
    explorer = explore(predictor(np.zeros((300, 2 * longest, 3), np.uint8), boxes=[[0, 0, 2 * longest, 300]]))
    assert picture_of(explorer).shape == (150, longest, 3)
    assert explorer.prediction.masks.shape == (1, 300, 2 * longest)


def test_bad_input_is_one_sentence(prediction, pixels):
    bare = dataclasses.replace(prediction, picture=None)
    assert explore(bare, pixels).mask_size == prediction.mask_size.tolist()
    for arguments, options, message in [
        ((bare,), {}, "holds no picture"),
        ((prediction, pixels[:30, :40]), {}, "40 x 30 pixels"),
        ((prediction,), {"policy": "best"}, "policy 'best'"),
        ((prediction,), {"budget": 1e-9}, "below the cheapest"),
    ]:
        with pytest.raises(DynaMaskError, match=message):
            explore(*arguments, **options)


def test_the_cached_overlay_draws_the_overlay(prediction, pixels):
    cached = CachedOverlay(pixels, lambda i, size: prediction.mask_at(i, size).numpy())
    before, labels = pixels.copy(), ["a", "b", "c"]
    for sizes in ([14, 28, 112], [56, 56, 14], [14, 28, 112]):
        masks = np.stack([prediction.mask_at(i, size).numpy() for i, size in enumerate(sizes)])
        assert np.array_equal(cached.draw(sizes, labels), draw_overlay(pixels, masks, sizes, labels=labels))
    assert np.array_equal(pixels, before)
    assert (cached.draw([14, 28, 112], frame=[10, 10, 50, 50]) != cached.draw([14, 28, 112])).any()


def test_charts_do_not_need_widgets():
    code = "import sys, dynamask.viz.charts, dynamask.viz.overlay, dynamask.viz; assert 'ipywidgets' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(ImportError):
        from dynamask.viz import nothing  # noqa: F401
