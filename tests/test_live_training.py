"""The Train tab's run without Gradio: a switch on frozen features, bounded, seeded and its visitor's own."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
from helpers.small_models import tiny_model

from app import live_training
from app.lesson_scenes import STUDY_SCENE, LessonScenes
from app.live_training import BOUNDARY_WEIGHT, LiveTraining, Registry, SwitchLesson
from app.train_view import frame, losses_chart, shares_chart
from dynamask.data.shapes.scene import make_scene
from dynamask.models.masks import losses
from dynamask.models.masks.switch import sample_gumbel, straight_through_gumbel
from dynamask.predict import Predictor
from dynamask.structures import MASK_SIZES, DynaMaskError


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_model(num_classes=2))


@pytest.fixture(scope="module")
def scenes(predictor: Predictor) -> LessonScenes:
    return LessonScenes(predictor, count=12)


def run(scenes: LessonScenes, **options) -> LiveTraining:
    return LiveTraining(scenes, registry=Registry(), **options)


def test_targets_are_those_of_the_mask_branch(scenes: LessonScenes, predictor: Predictor):
    """Error and edge losses of a scene's true boxes, computed again step by step."""
    index = 0
    scene, target = make_scene(scenes.seed, STUDY_SCENE + 1 + index), scenes[index][1]
    count = len(scene)
    assert target["features"].shape[0] == target["edge"].shape[0] == target["error"].shape[0] == 2 * count > 0
    assert target["error"].min() >= 0 and target["error"].max() <= 1 and not target["features"].requires_grad
    prediction = predictor(scene.image, boxes=scene.boxes, labels=[1] * count)
    logits = predictor.model.mask_branch.switch(target["features"][:count])
    assert torch.allclose(logits, prediction.switch_logits, atol=1e-4)


def test_a_scene_without_objects_teaches_nothing_and_breaks_nothing(scenes: LessonScenes):
    empty = next(i for i in range(len(scenes)) if len(make_scene(scenes.seed, STUDY_SCENE + 1 + i)) == 0)
    image, target = scenes[empty]
    assert len(target["features"]) == len(target["error"]) == 0
    training = run(scenes)
    named = training.lesson([image], [target])
    assert all(float(value.detach()) == 0 for value in named.values())
    sum(named.values()).backward()


def test_losses_are_the_papers(scenes: LessonScenes):
    training = run(scenes, budget_target=0.2, seed=5)
    lesson: SwitchLesson = training.lesson
    target = scenes[1][1]
    state = lesson.generator.get_state()
    named = lesson([torch.zeros(3, 1, 1)], [target])
    lesson.generator.set_state(state)
    logits = lesson.switch(target["features"])
    drawn = straight_through_gumbel(logits, lesson.temperature, sample_gumbel(logits, lesson.generator))
    fractions = torch.tensor(scenes.macs.fractions)
    assert float(named["loss_budget"].detach()) == pytest.approx(
        max(float((drawn * fractions).sum(1).mean().detach()) / 0.2 - 1, 0), abs=1e-6
    )
    assert torch.equal(named["loss_entropy"], losses.entropy_loss(logits.softmax(1)))
    assert torch.allclose(named["loss_boundary"], (target["error"] * drawn).sum(1).mean())
    assert training.run.weights["loss_boundary"] == BOUNDARY_WEIGHT


def test_a_switch_that_is_sure_beyond_doubt_has_finite_gradients(scenes: LessonScenes):
    training = run(scenes, budget_target=0.2)
    with torch.no_grad():
        training.lesson.switch.fc[2].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 500.0]))
    point = training.work(2, math.inf)
    assert all(math.isfinite(value) for value in point.losses.values()) and point.shares[3] == 1


def test_same_seed_same_run_whatever_others_draw(scenes: LessonScenes, predictor: Predictor):
    before = copy.deepcopy(predictor.model.state_dict())
    first, second, third = run(scenes, seed=1), run(scenes, seed=1), run(scenes, seed=2)
    points = []
    for training in (first, second, third):
        torch.rand(7)  # another visitor's draws
        points.append([training.work(2, math.inf), training.work(3, math.inf)])
    assert points[0] == points[1] != points[2]
    assert [point.step for point in first.history] == [0, 2, 5]
    assert all(torch.equal(value, before[key]) for key, value in predictor.model.state_dict().items())


def test_the_budget_is_heard(scenes: LessonScenes):
    """Only the budget pulls: a low target ends far cheaper than the full one, also when it is moved in mid-run."""
    cheap, free = run(scenes, budget_target=0.12, switch_weight=2.0), run(scenes, budget_target=1.0, switch_weight=0.0)
    spent = {}
    for name, training in (("cheap", cheap), ("free", free)):
        training.run.weights = {**training.run.weights, "loss_boundary": 0.0, "loss_entropy": 0.0}
        spent[name] = training.work(60, seconds=math.inf).macs
    assert spent["cheap"] < 0.35 * scenes.macs.macs_per_instance[-1]
    assert spent["cheap"] < spent["free"]
    free.set(0.12, 2.0)
    free.run.weights = {**free.run.weights, "loss_boundary": 0.0, "loss_entropy": 0.0}
    assert free.work(60, seconds=math.inf).macs < spent["free"]


def test_figures_come_from_scenes_that_teach_nothing(scenes: LessonScenes):
    training = run(scenes)
    assert not set(training.run.loader.indices) & set(training._kept_back)
    assert sorted([*training.run.loader.indices, *training._kept_back]) == list(range(len(scenes)))
    point = training.work(1)
    assert sum(point.shares) == pytest.approx(1) and 0 <= point.permuted <= 1 and 0 <= point.quality <= 1
    costs = np.array(scenes.macs.macs_per_instance)
    assert costs[0] <= point.macs <= costs[-1] and point.macs == pytest.approx(float(np.dot(point.shares, costs)))


def test_a_run_ends_by_itself(scenes: LessonScenes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live_training, "MAX_STEPS", 3)
    training = run(scenes)
    training.work(10, math.inf)
    assert training.step == 3 and training.finished
    assert training.work(10).step == 3
    monkeypatch.setattr(live_training, "MAX_SECONDS", 0.0)
    assert run(scenes).finished


def test_the_history_stays_short(scenes: LessonScenes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live_training, "MOST_POINTS", 6)
    training = run(scenes)
    for _ in range(15):
        training.work(1)
    steps = [point.step for point in training.history]
    assert len(steps) <= 6 and steps == sorted(set(steps)) and steps[-1] == 15 and steps[0] == 0


def test_nothing_is_written(scenes: LessonScenes, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live_training.tempfile, "gettempdir", lambda: str(tmp_path))
    run(scenes).work(2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [(math.nan, 0.4), (0.05, 0.4), (0.5, -1), (0.5, math.inf), ("0.5", 0.4), (None, 0)])
def test_settings_out_of_range_are_one_sentence(scenes: LessonScenes, values):
    training = run(scenes)
    with pytest.raises(DynaMaskError, match="is out of range; give a number from"):
        training.set(*values)
    assert training.budget_target == 0.5 and training.switch_weight == 0.4


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


def test_a_frame_shows_the_chosen_sizes_and_draws_a_scene_once(scenes: LessonScenes):
    training, kept = run(scenes), {}
    first = frame(training, "Looking…", kept)
    assert "data:image/jpeg" in first and len(kept) == 1
    assert "nan" not in re.sub(r"base64,[^\"]*", "", first)
    training.work(2, math.inf)
    url = next(iter(kept.values()))
    text = frame(training, "Training…", kept)
    chosen = [MASK_SIZES[k] for k in training.choose(scenes.study.features)]
    assert f"chosen mask sizes: {', '.join(map(str, chosen))}" in text and "2 of 3000" in text
    if training.choose(scenes.study.features).tobytes() == next(iter(kept)):
        assert next(iter(kept.values())) in text
    assert frame(training, "Training…", kept).count(url) <= 1
    for chart in (losses_chart(training.history), shares_chart(training.history)):
        numbers = re.findall(r"-?\d+\.?\d*", " ".join(re.findall(r'points="([^"]*)"', chart)))
        assert numbers and all(math.isfinite(float(value)) for value in numbers)


def test_the_loop_pauses_goes_on_and_closes(scenes: LessonScenes):
    pytest.importorskip("gradio")
    from app.tabs.train import Visit, frames

    visit = Visit(run(scenes))
    training = visit.training
    loop = frames(visit, pace=0.0)
    assert "Training" in next(loop)
    training.wanted = False
    assert "Paused" in next(loop)
    assert next(loop, None) is None
    step, training.wanted = training.step, True
    loop = frames(visit, pace=0.0)
    next(loop)
    loop.close()  # what a closed tab does
    assert training.step > step
    visit.leave()
    visit.leave()
    assert not training.wanted and training.registry.beats == {}


def test_stop_has_the_last_word(scenes: LessonScenes):
    """Before the first step, between two frames or after a pause: the invitation comes last, nothing trains."""
    pytest.importorskip("gradio")
    from app.tabs.train import Visit, frames

    for pause, before in ((False, 0), (False, 1), (True, 2)):
        visit = Visit(run(scenes))
        training, loop = visit.training, frames(visit, pace=0.0)
        for number in range(before):
            training.wanted = not (pause and number)
            next(loop)
        visit.leave()
        step = training.step
        assert ["dt-invite" in text for text in loop] == [True]
        assert training.step == step and training.registry.beats == {} and visit.training is None


def test_a_second_start_takes_the_run_over(scenes: LessonScenes):
    """Pause and Start at once: the first loop leaves without a word, the second goes on with the same run."""
    pytest.importorskip("gradio")
    from app.tabs.train import Visit, frames

    visit = Visit(run(scenes))
    first, second = frames(visit, pace=0.0), frames(visit, pace=0.0)
    next(first)
    visit.training.wanted = False
    visit.training.wanted = True
    assert "Training" in next(second)
    step = visit.training.step
    assert list(first) == [] and visit.training.step == step
    assert "Training" in next(second) and visit.training.step > step
    second.close()


def test_only_buttons_that_do_something_are_enabled(scenes: LessonScenes):
    pytest.importorskip("gradio")
    from app.tabs.train import Visit, buttons

    visit = Visit()
    assert [button["interactive"] for button in buttons(visit)] == [True, False, False]
    visit.take_up(run(scenes))
    assert [button["interactive"] for button in buttons(visit)] == [False, True, True]
    visit.training.wanted = False
    assert [button["interactive"] for button in buttons(visit)] == [True, False, True]
