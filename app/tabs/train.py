"""Train: a switch learns live on scenes of shapes; the visitor starts, pauses and stops it and moves its targets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import gradio as gr

from app.lesson_scenes import LessonScenes
from app.live_training import BUDGET_RANGE, MAX_RUNS, WEIGHT_RANGE, LiveTraining
from app.tabs import page_text
from app.tabs.spoken import refuse
from app.train_view import frame, invitation
from dynamask.structures import DynaMaskError

if TYPE_CHECKING:
    from app.shared import Shared

PREFERRED = ("shapes", "objects", "people")
"""Weights whose frozen parts the lesson uses, the best suited first."""
REDRAW_SECONDS = 0.4
"""Least time between two frames."""
STEPS_PER_FRAME = 6
KEPT_SECONDS = 1800
"""A run that was left alone for so long is forgotten."""


@dataclass
class Visit:
    """A visitor's run and what was last drawn of it."""

    training: LiveTraining
    drawn: dict[bytes, str] = field(default_factory=dict)
    looping: bool = False


def leave(visit: Visit | None) -> None:
    """End a visitor's run; called when it is stopped and when its tab is gone."""
    if visit is not None:
        visit.training.stop()


def lesson_weights(names: list[str]) -> str:
    """The weights on the shelf that the lesson stands on."""
    return next((name for name in PREFERRED if name in names), names[0])


def frames(visit: Visit, pace: float = REDRAW_SECONDS) -> Iterator[str]:
    """Train and draw until the visitor pauses or the run is over; a closed tab closes this generator.

    Raises:
        DynaMaskError: too many other runs, or a loss that is not finite.
    """
    training = visit.training
    visit.looping = True
    try:
        while training.wanted and not training.finished:
            start = time.monotonic()
            training.work(STEPS_PER_FRAME)
            yield frame(training, "Training…", visit.drawn)
            time.sleep(max(0.0, pace - (time.monotonic() - start)))
        if training.finished:
            training.wanted = False
            yield frame(training, "Done: the run has reached its end.", visit.drawn)
        else:
            yield frame(training, "Paused. Start goes on.", visit.drawn)
    finally:
        visit.looping = False


def build(shared: Shared) -> None:
    """Put the controls and the run on the page."""
    name = lesson_weights(shared.explorer.shelf.names)
    scenes: list[LessonScenes] = []  # made for the first visitor, kept for all

    def begin(visit: Visit | None, target: float, weight: float) -> Iterator[tuple[Visit | None, str]]:
        try:
            if visit is None or visit.training.finished:
                if not scenes:
                    scenes.append(LessonScenes(shared.predictor(name)))
                visit = Visit(LiveTraining(scenes[0], target, weight))
            elif visit.looping:
                return
            visit.training.set(target, weight)
            visit.training.wanted = True
            yield visit, frame(visit.training, "Looking at the first scenes…", visit.drawn)
            for picture in frames(visit):
                yield visit, picture
        except DynaMaskError as error:
            refuse(error)

    def adjust(visit: Visit | None, target: float, weight: float) -> None:
        try:
            if visit is not None:
                visit.training.set(target, weight)
        except DynaMaskError as error:
            refuse(error)

    def pause(visit: Visit | None) -> None:
        if visit is not None:
            visit.training.wanted = False

    def stop(visit: Visit | None) -> tuple[None, str]:
        leave(visit)
        return None, invitation()

    gr.HTML(page_text("train_head.html"), css_template=page_text("tabs.css"), apply_default_css=False)
    visit = gr.State(None, time_to_live=KEPT_SECONDS, delete_callback=leave)
    with gr.Row():
        start = gr.Button("Start", variant="primary", elem_id="dynamask-train-start")
        pausing = gr.Button("Pause", elem_id="dynamask-train-pause")
        stopping = gr.Button("Stop and forget", elem_id="dynamask-train-stop")
    with gr.Row():
        target = gr.Slider(*BUDGET_RANGE, value=0.5, step=0.01, label="Budget target, share of the full branch's MACs",
                           elem_id="dynamask-train-target")  # fmt: skip
        weight = gr.Slider(*WEIGHT_RANGE, value=0.4, step=0.05, label="λ2, weight of the budget and entropy terms",
                           elem_id="dynamask-train-weight")  # fmt: skip
    picture = gr.HTML(
        value=invitation(), css_template=page_text("tabs.css") + page_text("train.css"), js_on_load=None,
        apply_default_css=False, elem_id="dynamask-train",
    )  # fmt: skip
    private = {"api_visibility": "private", "show_progress": "hidden"}
    running = start.click(
        begin, [visit, target, weight], [visit, picture], concurrency_id="training", concurrency_limit=MAX_RUNS + 1,
        trigger_mode="once", **private,
    )  # fmt: skip
    pausing.click(pause, visit, None, queue=False, **private)
    stopping.click(stop, visit, [visit, picture], cancels=[running], queue=False, **private)
    for slider in (target, weight):
        slider.change(adjust, [visit, target, weight], None, trigger_mode="always_last", queue=False, **private)
