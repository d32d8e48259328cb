"""Helpers of notebook 05: runs in a thread, models to train, and the figures of a run."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from helpers.feature_caches import synthetic_cache
from helpers.runs import toy_run
from lessons import live
from lessons.table import MarkdownTable
from lessons.training_runs import (
    BackgroundTraining,
    History,
    chosen_sizes,
    fresh_mask_branch,
    iou_by_size,
    masks_by_size,
    size_shares,
    small_run,
    spent,
)

from dynamask.data.shapes import ShapesDataset
from dynamask.engine.checkpoint import checkpoints
from dynamask.engine.frozen_switch import SCHEDULE, SwitchTraining
from dynamask.engine.optimizer import lr_factor
from dynamask.engine.train import train
from dynamask.evaluation.mask_quality import mask_iou
from dynamask.models.weights import bundled_path, load_model
from dynamask.presets import default_training
from dynamask.structures import DynaMaskError
from dynamask.training_config import LossConfig
from dynamask.viz.training_curves import smoothed


def long_run(out, iterations=8):
    return toy_run(out, iterations=iterations, save_every=5000)


def test_a_run_in_a_thread_notes_what_a_run_notes(tmp_path):
    alone = History()
    train(long_run(tmp_path / "a"), on_step=alone, progress=False)
    training = BackgroundTraining(long_run(tmp_path / "b"), measure=lambda: np.arange(4), every=3)
    assert training.start().wait() and training.finished and not training.running
    assert training.history.steps == alone.steps == list(range(1, 9))
    assert training.history.values["loss"] == alone.values["loss"]
    assert training.history.measured_at == [0, 3, 6, 8]
    assert training.seconds > 0


def test_stop_saves_the_state_and_start_goes_on(tmp_path):
    run = long_run(tmp_path)
    training = BackgroundTraining(run)
    training.on_change = lambda: training.stop() if run.step == 3 else None
    assert training.start().wait() is False
    assert run.step == 3 and training.stopping
    assert [path.name for path in checkpoints(tmp_path)] == ["run-000003.pt"]
    assert training.start().wait() and run.step == 8
    straight = History()
    train(long_run(tmp_path / "straight"), on_step=straight, progress=False)
    assert training.history.values["loss"] == straight.values["loss"]


def test_it_trains_beside_whoever_started_it(tmp_path):
    gate, training = threading.Event(), None
    training = BackgroundTraining(long_run(tmp_path), on_change=lambda: gate.wait(20))
    training.start()
    assert training.wait(0.05) is False and training.running
    training.start()  # a second press changes nothing
    gate.set()
    assert training.wait(20)


def test_what_ends_a_run_is_told_to_whoever_waits(tmp_path):
    training = BackgroundTraining(long_run(tmp_path))
    training.on_change = lambda: setattr(training.run.model, "broken", "loss_mask" if training.run.step == 2 else None)
    with pytest.raises(DynaMaskError, match="loss_mask is not finite at step 2"):
        training.start().wait()
    assert not training.finished


def test_a_fresh_branch_keeps_the_detector_and_nothing_else():
    losses_of_recipe = default_training("dynamask_mobilenetv2_fpn_small")[1]
    state = torch.get_rng_state()
    model, again = (fresh_mask_branch("shapes", losses_of_recipe, seed=1, mask_rois=2) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.mask_branch.mask_rois == 2 and model.mask_branch.loss_config == losses_of_recipe
    stored, ours, theirs = load_model(bundled_path("shapes")).state_dict(), model.state_dict(), again.state_dict()
    differing = {key for key in stored if not torch.equal(stored[key], ours[key])}
    assert differing and all(key.startswith("mask_branch.") for key in differing)
    assert "mask_branch.switch.fc.2.weight" in differing
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_quality_in_true_boxes_is_that_of_the_masks():
    model, scenes = load_model(bundled_path("shapes")).train(), ShapesDataset(1, 77)
    count = len(scenes.target(0)["boxes"])
    assert count
    whole = [masks_by_size(model, scenes, 0, row) for row in range(count)]
    by_hand = np.mean([[mask_iou(mask, truth) for mask in masks] for _, truth, masks in whole], axis=0)
    assert iou_by_size(model, scenes, [0]) == pytest.approx(by_hand)
    assert model.training
    pixels, truth, _ = whole[0]
    assert pixels.shape == (*truth.shape, 3) and truth.sum() == scenes.target(0)["area"][0]


def test_a_small_run_is_the_same_each_time_and_resumes_with_its_settings_only(tmp_path):
    run, other = small_run(tmp_path / "a", 2), small_run(tmp_path / "b", 2)
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), other.model.parameters()))
    history = History()
    train(run, on_step=history, should_stop=lambda: len(history) == 1, progress=False)
    with pytest.raises(DynaMaskError, match=r"train\.lr 0\.0006, now 0\.01"):
        small_run(tmp_path / "a", 2, lr=0.01).resume()
    again = small_run(tmp_path / "a", 2)
    again.resume()
    assert again.step == 1


def test_choices_of_a_switch_and_what_they_cost():
    cache = synthetic_cache(12)
    switch = SwitchTraining(cache, LossConfig()).switch
    choice = chosen_sizes(switch, cache)
    assert np.array_equal(choice, switch(cache.feature.float()).argmax(1).numpy())
    assert size_shares(switch, cache).tolist() == [(choice == k).mean() for k in range(4)]
    assert spent(choice, cache.macs) == pytest.approx(float(cache.macs[choice].mean()) / 100)


def finished_history() -> History:
    history = History()
    history.steps, history.values = [1, 2], {"loss_mask": [3.0, 1.0], "loss": [5.0, 4.0]}
    history.note(0, np.array([0.1, 0.2, 0.3, 0.4]))
    history.note(2, np.array([0.4, 0.3, 0.2, 0.1]))
    return history


@pytest.mark.parametrize("stacked", [False, True])
def test_the_figure_shows_losses_and_what_was_measured(stacked):
    figure = live.training_figure(finished_history(), ("loss_mask", "loss_edge"), "measured", stacked)
    mask, edge, *sizes = figure.data
    assert list(mask.y) == smoothed([3.0, 1.0], 3) and len(edge.y) == 0
    assert [trace.name for trace in sizes] == ["14×14", "28×28", "56×56", "112×112"]
    assert [list(trace.y) for trace in sizes] == [[0.1, 0.4], [0.2, 0.3], [0.3, 0.2], [0.4, 0.1]]
    assert all((trace.stackgroup is not None) == stacked for trace in sizes)
    assert len(live.training_figure(History(), ("loss",), "measured", stacked).data) == 5, "a run without steps"
    drawn = live.losses_figure(finished_history(), ("loss", "loss_mask"), "title")
    assert [list(trace.y) for trace in drawn.data] == [[5.0, 4.0], [3.0, 1.0]]


def test_schedules_are_those_of_the_engine():
    paper, small = default_training("dynamask_resnet50_fpn")[0], default_training("dynamask_resnet18_fpn_small")[0]
    figure = live.schedules_figure({"paper": paper, "small": small})
    for trace, config in zip(figure.data, (paper, small)):
        assert list(trace.y)[-1] == pytest.approx(lr_factor(config.iterations - 1, config))
        assert max(trace.y) == pytest.approx(1, abs=0.01)


def test_the_panel_moves_with_the_run_and_its_controls_reach_it():
    cache = synthetic_cache(12)
    config = dataclasses.replace(SCHEDULE, batch_size=8, iterations=6, stop_at=3)
    run = SwitchTraining(cache, LossConfig(switch_signal="boundary", budget_target=0.5), config)
    training = BackgroundTraining(run, measure=lambda: size_shares(run.switch, cache), every=2)
    panel = live.LivePanel(training, ("loss_budget",), "shares", True, run)
    assert "step 0 of 6" in panel.status.value
    panel.start()
    assert training.wait() is False and run.step == 3
    panel.slider.value = 0.25
    assert run.loss_config.budget_target == 0.25
    run.config = dataclasses.replace(run.config, stop_at=0)
    panel.resume_button.click()
    assert training.wait()
    assert list(panel.widget.data[0].x) == [1, 2, 3, 4, 5, 6]
    assert [list(a.y) for a in panel.widget.data] == [list(b.y) for b in panel.figure().data]
    assert "step 6 of 6, finished" in panel.status.value


def test_the_pause_button_pauses(tmp_path):
    training = BackgroundTraining(long_run(tmp_path, 2000))
    panel = live.LivePanel(training, ("loss_mask",), "nothing")
    panel.start()
    panel.pause_button.click()
    assert training.wait() is False
    assert training.run.step < 2000 and "paused" in panel.status.value


def test_tables_are_markdown():
    table = MarkdownTable(["a|b", "c"], [["x", 0.12345], [None, 3]])
    assert repr(table) == table._repr_markdown_() == "| a\\|b | c |\n| --- | --: |\n| x | 0.123 |\n| – | 3 |"
