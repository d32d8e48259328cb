"""Train tab: the run of a visitor, its view and its handlers, without a browser."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from helpers.small_models import tiny_model

from app import live_training
from app.lesson_scenes import STUDY_SCENE, LessonScenes
from app.live_training import LiveTraining, Registry
from app.train_view import losses_chart, run_view, shares_chart
from dynamask.data.shapes.scene import make_scene
from dynamask.predict import Predictor, TwoStagePredictor
from dynamask.structures import MASK_SIZES, DynaMaskError


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return TwoStagePredictor(tiny_model(num_classes=2))


@pytest.fixture(scope="module")
def scenes(predictor: Predictor) -> LessonScenes:
    """Features of all scenes; the last but one has no object."""
    scenes = LessonScenes(predictor, count=12, held_out=4)
    while not scenes.ready:
        scenes.add_next()
    return scenes


def run(scenes: LessonScenes, **options) -> LiveTraining:
    return LiveTraining(scenes, registry=Registry(), **options)


def test_features_are_computed_scene_by_scene_before_the_first_step(predictor: Predictor):
    scenes = LessonScenes(predictor, count=3, held_out=1)
    training, known = run(scenes), []
    while not scenes.ready:
        training.work(seconds=0.0)
        known.append(scenes.known)
    assert known == [1, 2, 3] and training.step == 0 and training.history == []
    scenes.add_next()
    assert scenes.known == 3
    count = [len(make_scene(scenes.seed, STUDY_SCENE + 1 + index)) for index in range(3)]
    assert len(scenes.learned) == 2 * sum(count[:2]) and len(scenes.evaluated) == count[2]
    training.work(1)
    assert training.step == 1 and [point.step for point in training.history] == [0, 1]


def test_the_study_has_the_masks_of_the_predictor(scenes: LessonScenes, predictor: Predictor):
    study, scene = scenes.study, make_scene(scenes.seed, STUDY_SCENE, count=7)
    prediction = predictor(scene.image, boxes=scene.boxes, policy="fixed:56")
    assert np.array_equal(study.masks[:, 2], prediction.masks.numpy()) and len(study.features) == len(scene)


def test_a_switch_that_is_sure_beyond_doubt_has_finite_gradients(scenes: LessonScenes):
    training = run(scenes, budget_target=0.2)
    with torch.no_grad():
        training.training.switch.fc[2].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 500.0]))
    training.work(2, math.inf)
    point = training.history[-1]
    assert all(math.isfinite(value) for value in point.losses.values()) and point.shares[3] == 1


def test_a_run_depends_on_its_seed_and_not_on_other_visitors(scenes: LessonScenes):
    first, second, third = run(scenes, seed=1), run(scenes, seed=1), run(scenes, seed=2)
    for training in (first, second, third):
        torch.rand(7)  # random numbers drawn for another visitor
        training.work(2, math.inf)
        training.work(3, math.inf)
    assert first.history == second.history != third.history
    assert [point.step for point in first.history] == [0, 2, 5]


def test_a_lower_budget_target_makes_the_choices_cheaper(scenes: LessonScenes):
    """The budget is the only loss; it can be lowered while the switch learns."""
    free = run(scenes, budget_target=1.0, switch_weight=0.0)
    free.training.without = ("loss_boundary", "loss_edge", "loss_entropy")
    free.work(30, seconds=math.inf)
    before = free.history[-1].macs
    free.set(0.12, 2.0)
    free.work(60, seconds=math.inf)
    assert free.history[-1].macs < min(before, 0.35 * scenes.macs.macs_per_instance[-1])


def test_figures_come_from_scenes_that_are_not_learned_from(scenes: LessonScenes):
    assert not set(scenes.learned.image_id.tolist()) & set(scenes.evaluated.image_id.tolist())
    training = run(scenes)
    training.work(1)
    point, costs = training.history[-1], np.array(scenes.macs.macs_per_instance)
    choice = training.choose(scenes.evaluated)
    assert sum(point.shares) == pytest.approx(1) and point.macs == pytest.approx(float(np.dot(point.shares, costs)))
    assert point.quality == pytest.approx(scenes.evaluated.boundary_iou[range(len(choice)), choice].mean().item())
    assert 0 <= point.permuted <= 1


def test_a_run_ends_by_itself(scenes: LessonScenes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live_training, "MAX_STEPS", 3)
    training = run(scenes)
    training.work(10, math.inf)
    assert training.step == 3 and training.finished
    training.work(10)
    assert training.step == 3
    monkeypatch.setattr(live_training, "MAX_SECONDS", 0.0)
    assert run(scenes).finished


def test_the_history_stays_short(scenes: LessonScenes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live_training, "MOST_POINTS", 6)
    training = run(scenes)
    for _ in range(15):
        training.work(1)
    steps = [point.step for point in training.history]
    assert len(steps) <= 6 and steps == sorted(set(steps)) and steps[-1] == 15 and steps[0] == 0


@pytest.mark.parametrize("values", [(math.nan, 0.4), (0.05, 0.4), (0.5, -1), (0.5, math.inf), ("0.5", 0.4), (None, 0)])
def test_settings_out_of_range_are_one_sentence(scenes: LessonScenes, values):
    training = run(scenes)
    with pytest.raises(DynaMaskError, match="is out of range; give a number from"):
        training.set(*values)
    assert training.budget_target == 0.5 and training.training.loss_config.switch_weight == 0.4


def test_only_so_many_train_at_a_time(scenes: LessonScenes, monkeypatch: pytest.MonkeyPatch):
    registry, now = Registry(), [100.0]
    monkeypatch.setattr(live_training.time, "monotonic", lambda: now[0])
    for key in (1, 2, 3, 1):
        registry.enter(key, limit=3)
    with pytest.raises(DynaMaskError, match="other visitors train"):
        registry.enter(4, limit=3)
    registry.leave(2)
    registry.enter(4, limit=3)
    now[0] += live_training.STALE_SECONDS + 1  # the tabs were closed without a word
    registry.enter(5, limit=1)


def test_the_view_shows_the_chosen_sizes_and_draws_a_scene_once(scenes: LessonScenes):
    training, drawn = run(scenes), {}
    first = run_view(training, "Training…", drawn)
    assert "data:image/jpeg" in first and "<dd>" not in first and "nan" not in re.sub(r"base64,[^\"]*", "", first)
    training.work(2, math.inf)
    text = run_view(training, "Training…", drawn)
    choice = training.choose(scenes.study.features)
    assert f"chosen mask sizes: {', '.join(str(MASK_SIZES[k]) for k in choice)}" in text and "2 of 3000" in text
    assert list(drawn) == [choice.tobytes()] and drawn[choice.tobytes()] in text
    drawn[choice.tobytes()] = "data:kept"
    assert "data:kept" in run_view(training, "Training…", drawn)
    for chart in (losses_chart(training.history), shares_chart(training.history)):
        numbers = re.findall(r"-?\d+\.?\d*", " ".join(re.findall(r'points="([^"]*)"', chart)))
        assert numbers and all(math.isfinite(float(value)) for value in numbers)
    assert losses_chart([]) and shares_chart([])


@pytest.fixture
def tab():
    """The module of the tab."""
    pytest.importorskip("gradio")
    from app.tabs import train_tab

    return train_tab


def test_the_loop_pauses_goes_on_and_closes(scenes: LessonScenes, tab):
    visit = tab.VisitorRun(run(scenes))
    training = visit.training
    loop = tab.train_loop(visit, pace=0.0)
    assert "Training" in next(loop)
    training.active = False
    assert "Paused" in next(loop)
    assert next(loop, None) is None
    step, training.active = training.step, True
    loop = tab.train_loop(visit, pace=0.0)
    next(loop)
    loop.close()  # as for a closed browser tab
    assert training.step > step
    visit.leave()
    visit.leave()
    assert not training.active and training.registry.beats == {}


@pytest.mark.parametrize(("pause", "before"), [(False, 0), (False, 1), (True, 2)])
def test_after_a_stop_the_introduction_comes_last(scenes: LessonScenes, tab, pause, before):
    """Stopped in front of the first step, between two updates or after a pause."""
    visit = tab.VisitorRun(run(scenes))
    training, loop = visit.training, tab.train_loop(visit, pace=0.0)
    for number in range(before):
        training.active = not (pause and number)
        next(loop)
    visit.leave()
    step = training.step
    assert ["dt-invite" in text for text in loop] == [True]
    assert training.step == step and training.registry.beats == {} and visit.training is None


def test_a_second_start_takes_the_run_over(scenes: LessonScenes, tab):
    """Pause and Start in quick succession: the first loop ends, the second continues the same run."""
    visit = tab.VisitorRun(run(scenes))
    first, second = tab.train_loop(visit, pace=0.0), tab.train_loop(visit, pace=0.0)
    next(first)
    visit.pause()
    visit.training.active = True
    assert "Training" in next(second)
    step = visit.training.step
    assert list(first) == [] and visit.training.step == step
    assert "Training" in next(second) and visit.training.step > step
    second.close()


def test_only_buttons_with_an_effect_are_enabled(scenes: LessonScenes, tab):
    def states(visit) -> list[object]:
        start, pause, stop = tab.buttons(visit)
        return [start["value"], start["interactive"], pause["interactive"], stop["interactive"]]

    visit = tab.VisitorRun()
    assert states(visit) == ["Start", True, False, False]
    visit.set_training(run(scenes))
    assert states(visit)[1:] == [False, True, True]
    visit.pause()
    assert states(visit) == ["Resume", True, False, True]


def test_starting_shows_the_preparation_first_and_refuses_a_wrong_target(predictor, tab, monkeypatch):
    monkeypatch.setattr(tab, "REDRAW_SECONDS", 0.0)
    handlers = tab.TrainHandlers(None)
    handlers.scenes = LessonScenes(predictor, count=3, held_out=1)
    refused = []
    monkeypatch.setattr(tab, "refuse", refused.append)
    visit = tab.VisitorRun()
    updates = handlers.start(visit, 0.5, 0.4)
    shown = next(updates)
    assert shown[0] is visit and tab.PREPARING in shown[1]
    visit.leave()
    assert "dt-invite" in list(updates)[-1][1]
    (
        _,
        html,
        *_,
    ) = list(handlers.start(visit, 5.0, 0.4))[-1]
    assert "dt-invite" in html and "budget target 5.0 is out of range" in str(refused[0])
    handlers.adjust(visit, 5.0, 0.4)
    assert len(refused) == 1, "there is no run to adjust"
