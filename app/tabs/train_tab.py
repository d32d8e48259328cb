"""Train tab: a new switch is trained live on generated scenes; sliders set its budget target and λ2."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.errors import refusal_of, refuse
from app.lesson_scenes import LessonScenes
from app.live_training import BUDGET_RANGE, MAX_RUNS, WEIGHT_RANGE, LiveTraining
from app.templates import template
from app.train_view import introduction, run_view

if TYPE_CHECKING:
    from app.context import PageContext

PREFERRED = ("shapes", "things")
"""Weights whose frozen detector and mask branch are used, if the page offers them, in order of preference."""
REDRAW_SECONDS = 0.4
"""Least time between two updates of the page."""
STEPS_PER_UPDATE = 6
KEPT_SECONDS = 1800
"""Time after which an abandoned run is deleted."""
PREPARING, TRAINING = "Computing the features of the scenes…", "Training…"
PAUSED, DONE = "Paused", "Finished"


@dataclass
class VisitorRun:
    """The run of one visitor; there is one object per browser session, which is changed in place.

    Attributes:
        training: None before the first start and after a stop.
        turn: number of starts and stops; a loop that was begun in an earlier turn ends.
        drawn: the last drawn scene, see :func:`app.train_view.run_view`.
    """

    training: LiveTraining | None = None
    turn: int = 0
    drawn: dict[bytes, str] = field(default_factory=dict)

    def set_training(self, training: LiveTraining) -> None:
        """Begin a new run."""
        self.training, self.drawn = training, {}

    def pause(self) -> None:
        """Pause the run, if there is one."""
        if self.training is not None:
            self.training.active = False

    def leave(self) -> None:
        """End the run, if there is one; also called for closed tabs and abandoned sessions."""
        self.turn += 1
        if self.training is not None:
            self.training.stop()
        self.training = None

    def status(self) -> str:
        """State of the run in a word."""
        if self.training.finished:
            return DONE
        if not self.training.active:
            return PAUSED
        return TRAINING if self.training.scenes.ready else PREPARING

    def view(self) -> str:
        """The run as HTML."""
        return introduction() if self.training is None else run_view(self.training, self.status(), self.drawn)


def weights_to_train_on(names: list[str]) -> str:
    """The preferred ones of some weights."""
    return next((name for name in PREFERRED if name in names), names[0])


def train_loop(visit: VisitorRun, pace: float = REDRAW_SECONDS) -> Iterator[str]:
    """Train, and yield the run as HTML, until it is paused, stopped, restarted or finished.

    A closed tab closes this generator. After a stop the introduction is yielded last, even if an update of the run was
    on its way.

    Raises:
        DynaMaskError: too many other runs.
    """
    visit.turn += 1
    training, turn = visit.training, visit.turn
    if training is None:  # stopped in the meantime
        yield introduction()
        return
    while visit.turn == turn and training.active and not training.finished:
        start = time.monotonic()
        training.work(STEPS_PER_UPDATE)
        yield run_view(training, TRAINING if training.scenes.ready else PREPARING, visit.drawn)
        time.sleep(max(0.0, pace - (time.monotonic() - start)))
    if visit.turn == turn:
        training.active = False
        yield visit.view()
    if visit.training is not training:
        training.stop()  # again, because its last work may have registered it once more
    if visit.training is None:
        yield introduction()


def buttons(visit: VisitorRun) -> tuple[dict[str, Any], ...]:
    """Updates of the buttons Start (or Resume), Pause and Stop; buttons without an effect are disabled."""
    exists = visit.training is not None
    running = exists and visit.training.active
    resumable = exists and not visit.training.finished
    return (
        gr.update(interactive=not running, value="Resume" if resumable else "Start"),
        gr.update(interactive=running),
        gr.update(interactive=exists),
    )


class TrainHandlers:
    """Handlers of the tab's controls.

    Args:
        context: of the page, which gives the frozen weights.
    """

    def __init__(self, context: PageContext) -> None:
        self.context = context

    @cached_property
    def scenes(self) -> LessonScenes:
        """The scenes, shared by all visitors."""
        predictor = self.context.predictor(weights_to_train_on(self.context.explorer.catalog.names))
        predictor.check_switch("training a switch")
        return LessonScenes(predictor)

    def start(self, visit: VisitorRun, target: float, weight: float) -> Iterator[tuple[Any, ...]]:
        """Start or resume; yields the visitor's run, its HTML and the updates of the buttons."""
        try:
            if visit.training is None or visit.training.finished:
                visit.set_training(LiveTraining(self.scenes, target, weight))
            visit.training.set(target, weight)
            visit.training.active = True
            yield visit, visit.view(), *buttons(visit)
            for html in train_loop(visit):
                yield visit, html, *buttons(visit)
        except Exception as error:
            if visit.training is None or not visit.training.history:
                visit.leave()
            visit.pause()
            yield visit, visit.view(), *buttons(visit)
            refuse(refusal_of(error))

    @staticmethod
    def adjust(visit: VisitorRun, target: float, weight: float) -> None:
        """Set the budget target and λ2 of a run."""
        try:
            if visit.training is not None:
                visit.training.set(target, weight)
        except Exception as error:
            refuse(refusal_of(error))

    @staticmethod
    def stop(visit: VisitorRun) -> tuple[Any, ...]:
        """End and delete the run; returns the introduction and the updates of the buttons."""
        visit.leave()
        return visit.view(), *buttons(visit)


def build(context: PageContext) -> None:
    """Build the tab."""
    handlers = TrainHandlers(context)
    gr.HTML(template("train_head.html"), css_template=template("tabs.css"), apply_default_css=False)
    visit = gr.State(VisitorRun(), time_to_live=KEPT_SECONDS, delete_callback=VisitorRun.leave)
    with gr.Row():
        start = gr.Button("Start", variant="primary", elem_id="dynamask-train-start")
        pause = gr.Button("Pause", interactive=False, elem_id="dynamask-train-pause")
        stop = gr.Button("Stop and delete", interactive=False, elem_id="dynamask-train-stop")
    with gr.Row():
        target = gr.Slider(
            *BUDGET_RANGE,
            value=0.5,
            step=0.01,
            label="Budget target, share of the full branch's MACs",
            elem_id="dynamask-train-target",
        )
        weight = gr.Slider(
            *WEIGHT_RANGE,
            value=0.4,
            step=0.05,
            label="λ2, weight of the budget and entropy terms",
            elem_id="dynamask-train-weight",
        )
    view = gr.HTML(
        value=introduction(),
        css_template=template("tabs.css") + template("train.css"),
        js_on_load=None,
        apply_default_css=False,
        elem_id="dynamask-train",
    )
    private = {"api_visibility": "private", "show_progress": "hidden"}
    controls = [start, pause, stop]
    start.click(
        handlers.start,
        [visit, target, weight],
        [visit, view, *controls],
        concurrency_id="training",
        concurrency_limit=MAX_RUNS + 1,
        trigger_mode="multiple",
        **private,
    )
    pause.click(VisitorRun.pause, visit, None, concurrency_limit=None, **private)
    # Queued like the run itself, so that its answer arrives after the updates that were sent before it.
    stop.click(handlers.stop, visit, [view, *controls], concurrency_limit=None, **private)
    for slider in (target, weight):
        slider.change(
            handlers.adjust, [visit, target, weight], None, trigger_mode="always_last", queue=False, **private
        )
