"""Train: a switch learns live on scenes of shapes; the visitor starts, pauses and stops it and moves its targets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.errors import refuse
from app.lesson_scenes import LessonScenes
from app.live_training import BUDGET_RANGE, MAX_RUNS, WEIGHT_RANGE, LiveTraining
from app.templates import template
from app.train_view import frame, invitation
from dynamask.structures import DynaMaskError

if TYPE_CHECKING:
    from app.context import PageContext

PREFERRED = ("shapes", "objects", "people")
"""Weights whose frozen parts the lesson uses, the best suited first."""
REDRAW_SECONDS = 0.4
"""Least time between two frames."""
STEPS_PER_FRAME = 6
KEPT_SECONDS = 1800
"""A run that was left alone for so long is forgotten."""
LOOKING = "Computing the features of the scenes…"
PAUSED, DONE = "Paused. Start goes on.", "Done: the run has reached its end."
"""Said when a run rests."""


@dataclass
class Visit:
    """What a visitor has going; one object per session, changed in place, so that every click sees the same truth.

    Attributes:
        training: the run, None before the first and after Stop.
        turn: counts Start and Stop; a loop that sees another number than its own has been overtaken and leaves.
        drawn: what was last drawn of the run.
    """

    training: LiveTraining | None = None
    turn: int = 0
    drawn: dict[bytes, str] = field(default_factory=dict)

    def take_up(self, training: LiveTraining) -> None:
        """Begin with a new run."""
        self.training, self.drawn = training, {}

    def pause(self) -> None:
        """Let the run rest, if any."""
        if self.training is not None:
            self.training.active = False

    def leave(self) -> None:
        """End the run, if any; a closed tab and a forgotten session call it too."""
        self.turn += 1
        if self.training is not None:
            self.training.stop()
        self.training = None


def lesson_weights(names: list[str]) -> str:
    """The weights on the shelf that the lesson stands on."""
    return next((name for name in PREFERRED if name in names), names[0])


def frames(visit: Visit, pace: float = REDRAW_SECONDS) -> Iterator[str]:
    """Train and draw until the visitor pauses, stops or starts again, or the run is over.

    A closed tab closes this generator. What it says last is how things stand then: a frame that was on its way when the
    visitor pressed Stop is followed by the invitation.

    Raises:
        DynaMaskError: too many other runs, or a loss that is not finite.
    """
    visit.turn += 1
    training, turn = visit.training, visit.turn
    if training is None:  # Stop was pressed since
        yield invitation()
        return
    while visit.turn == turn and training.active and not training.finished:
        start = time.monotonic()
        training.work(STEPS_PER_FRAME)
        yield frame(training, "Training…" if training.scenes.ready else LOOKING, visit.drawn)
        time.sleep(max(0.0, pace - (time.monotonic() - start)))
    if visit.turn == turn:
        training.active = False
        yield frame(training, DONE if training.finished else PAUSED, visit.drawn)
    if visit.training is not training:
        training.stop()  # again: its last step may have counted it as alive
    if visit.training is None:
        yield invitation()


def buttons(visit: Visit) -> tuple[dict[str, Any], ...]:
    """Start, Pause and Stop, those alone enabled that do something now."""
    exists = visit.training is not None
    running = exists and visit.training.active
    return tuple(gr.update(interactive=enabled) for enabled in (not running, running, exists))


class Lesson:
    """What the controls of the tab do.

    Args:
        context: of the page; its weights' frozen parts are what the switch stands on.
    """

    def __init__(self, context: PageContext) -> None:
        self.context = context

    @cached_property
    def scenes(self) -> LessonScenes:
        """Made for the first visitor, kept for all."""
        predictor = self.context.predictor(lesson_weights(self.context.explorer.catalog.names))
        predictor.check_switch("the lesson")
        return LessonScenes(predictor)

    def begin(self, visit: Visit, target: float, weight: float) -> Iterator[tuple[Any, ...]]:
        """Start or go on; yields the visit, the frame and the buttons."""
        try:
            if visit.training is None or visit.training.finished:
                visit.take_up(LiveTraining(self.scenes, target, weight))
            training = visit.training
            training.set(target, weight)
            training.active = True
            yield visit, frame(training, LOOKING if training.step == 0 else "Training…", visit.drawn), *buttons(visit)
            for picture in frames(visit):
                yield visit, picture, *buttons(visit)
        except DynaMaskError as error:
            refuse(error)
            if visit.training is None or not visit.training.history:
                visit.leave()
                yield visit, invitation(), *buttons(visit)
            else:
                visit.training.active = False
                yield visit, frame(visit.training, PAUSED, visit.drawn), *buttons(visit)

    @staticmethod
    def adjust(visit: Visit, target: float, weight: float) -> None:
        """Move the targets of a run."""
        try:
            if visit.training is not None:
                visit.training.set(target, weight)
        except DynaMaskError as error:
            refuse(error)

    @staticmethod
    def stop(visit: Visit) -> tuple[Any, ...]:
        """End the run and forget it; returns the invitation and the buttons."""
        visit.leave()
        return invitation(), *buttons(visit)


def build(context: PageContext) -> None:
    """Put the controls and the run on the page."""
    lesson = Lesson(context)
    gr.HTML(template("train_head.html"), css_template=template("tabs.css"), apply_default_css=False)
    visit = gr.State(Visit(), time_to_live=KEPT_SECONDS, delete_callback=Visit.leave)
    with gr.Row():
        start = gr.Button("Start", variant="primary", elem_id="dynamask-train-start")
        pausing = gr.Button("Pause", interactive=False, elem_id="dynamask-train-pause")
        stopping = gr.Button("Stop and forget", interactive=False, elem_id="dynamask-train-stop")
    with gr.Row():
        target = gr.Slider(*BUDGET_RANGE, value=0.5, step=0.01, label="Budget target, share of the full branch's MACs",
                           elem_id="dynamask-train-target")  # fmt: skip
        weight = gr.Slider(*WEIGHT_RANGE, value=0.4, step=0.05, label="λ2, weight of the budget and entropy terms",
                           elem_id="dynamask-train-weight")  # fmt: skip
    picture = gr.HTML(
        value=invitation(), css_template=template("tabs.css") + template("train.css"), js_on_load=None,
        apply_default_css=False, elem_id="dynamask-train",
    )  # fmt: skip
    private = {"api_visibility": "private", "show_progress": "hidden"}
    controls = [start, pausing, stopping]
    start.click(
        lesson.begin, [visit, target, weight], [visit, picture, *controls], concurrency_id="training",
        concurrency_limit=MAX_RUNS + 1, trigger_mode="multiple", **private,
    )  # fmt: skip
    pausing.click(Visit.pause, visit, None, concurrency_limit=None, **private)
    # In the queue like the run itself: its answer arrives in the same stream, behind the frames sent before it.
    stopping.click(lesson.stop, visit, [picture, *controls], concurrency_limit=None, **private)
    for slider in (target, weight):
        slider.change(lesson.adjust, [visit, target, weight], None, trigger_mode="always_last", queue=False, **private)
