"""Notebook 05: figures of a training run, and a panel that redraws them while the run trains."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go

from dynamask.engine.optimizer import lr_factor
from dynamask.structures import MASK_SIZES
from dynamask.training_config import TrainConfig
from dynamask.viz import charts
from dynamask.viz.style import ACCENT, INK, POLICY_STYLES, SIZE_NAMES, LineStyle, series_style
from dynamask.viz.training_curves import smoothed
from dynamask.viz.widgets import PageSetup, live_figure

if TYPE_CHECKING:
    from dynamask.engine.frozen_switch import SwitchTraining
    from lessons.training_runs import BackgroundTraining, History

LOSSES: dict[str, tuple[str, LineStyle]] = {
    "loss": ("total, weighted", LineStyle(INK)),
    "loss_objectness": ("objectness", LineStyle("#0891B2", "dot")),
    "loss_rpn_box_reg": ("proposal boxes", LineStyle("#B45309", "dash")),
    "loss_classifier": ("classes", LineStyle("#16A34A")),
    "loss_box_reg": ("boxes", LineStyle("#8B5CF6", "dashdot")),
    "loss_quality": ("scores of the classes", LineStyle("#16A34A")),
    "loss_giou": ("boxes", LineStyle("#8B5CF6", "dashdot")),
    "loss_mask": ("mask (Eq. 3)", LineStyle(ACCENT)),
    "loss_edge": ("edge (Eq. 4)", LineStyle("#0D9488", "dash")),
    "loss_boundary": ("quality of the sizes", LineStyle("#A855F7")),
    "loss_budget": ("budget (Eq. 5)", LineStyle("#EA580C", "dash")),
    "loss_entropy": ("entropy (Eq. 6)", LineStyle("#DB2777", "dot")),
}
"""Title and line style of every loss; each colour has a contrast of at least 3 to white and to black pages."""
REDRAW_SECONDS = 0.5
"""Least time between two redraws of a live figure."""


def loss_series(history: History, names: Sequence[str], half_life: float) -> list[charts.Series]:
    """Return unweighted losses of a run against the step, smoothed with a half-life in steps (0: not smoothed)."""
    series = []
    for name in names:
        title, look = LOSSES[name]
        values = smoothed(history.values.get(name, []), half_life)
        series.append(charts.Series(title, list(history.steps), values, style=look, mode="lines"))
    return series


def training_figure(history: History, names: Sequence[str], measured: str, stacked: bool = False) -> go.Figure:
    """Draw losses and a quantity that was measured for every mask size, both against the step.

    Args:
        history: of a run.
        names: of the losses, drawn unweighted (the total is weighted) and smoothed over a few steps.
        measured: title of the panel by mask size.
        stacked: draw the measured quantities, which are shares, as stacked areas.
    """
    rows, at = np.array(history.measured).reshape(-1, len(MASK_SIZES)), list(history.measured_at)
    by_size = [
        charts.Series(name, at, rows[:, k].tolist(), style=POLICY_STYLES[f"fixed:{size}"])
        for k, (size, name) in enumerate(SIZE_NAMES.items())
    ]
    panels = {"losses, smoothed": loss_series(history, names, 3), measured: [] if stacked else by_size}
    figure = charts.curve_chart(panels, x_title="step", height=400)
    if stacked:
        charts.add_size_areas(figure, at, rows, row=1, col=2)
        figure.update_yaxes(range=[0, 1], tickformat=".0%", row=1, col=2)
    return figure


def losses_figure(history: History, names: Sequence[str], title: str, half_life: float = 0) -> go.Figure:
    """Draw unweighted losses of a run against the step, smoothed with a half-life in steps."""
    return charts.curve_chart({"": loss_series(history, names, half_life)}, title, "step", height=380)


def schedules_figure(schedules: dict[str, TrainConfig]) -> go.Figure:
    """Draw learning rates as shares of their largest value, against the share of the steps."""
    series = []
    for number, (name, config) in enumerate(schedules.items()):
        steps = np.unique(np.linspace(0, config.iterations - 1, 1500).astype(int))
        factors = [lr_factor(int(step), config) for step in steps]
        name, x = f"{name} (largest {config.lr:g})", (steps / config.iterations).tolist()
        series.append(charts.Series(name, x, factors, style=series_style(number), mode="lines"))
    axes = ("share of the steps", "share of the largest rate")
    return charts.curve_chart({"": series}, "Learning rate over a run", *axes, height=340)


class LivePanel:
    """Figure of a run that is redrawn while the run trains in its thread, with buttons to pause and resume it.

    Args:
        training: the run, not started yet.
        names, measured, stacked: as for :func:`training_figure`.
        switch: if given, a slider sets its budget target C_t during training.
    """

    def __init__(
        self,
        training: BackgroundTraining,
        names: Sequence[str],
        measured: str,
        stacked: bool = False,
        switch: SwitchTraining | None = None,
    ) -> None:
        self.training, self._options = training, {"names": names, "measured": measured, "stacked": stacked}
        self.widget = live_figure(self.figure())
        self.status = widgets.HTML()
        self.pause_button = widgets.Button(description="Pause", icon="pause", tooltip="after the current step")
        self.resume_button = widgets.Button(description="Resume", icon="play")
        self.pause_button.on_click(lambda _: training.stop())
        self.resume_button.on_click(lambda _: self.start())
        controls: list[widgets.Widget] = [self.pause_button, self.resume_button, self.status]
        if switch is not None:
            self.slider = _budget_slider(switch)
            controls.insert(2, self.slider)
        self.box = widgets.VBox([widgets.HBox(controls), self.widget, PageSetup()])
        self._redrawn = 0.0
        training.on_change = self._changed
        self._update_status()

    def start(self) -> widgets.VBox:
        """Start or resume the run; returns the widget to show."""
        self.training.start()
        self._update_status()
        return self.box

    def figure(self) -> go.Figure:
        """Return the current figure without a widget, which remains in the notebook without its kernel."""
        return training_figure(self.training.history, **self._options)

    def _changed(self) -> None:
        """Redraw, at most every ``REDRAW_SECONDS`` while the run goes on."""
        ended = self.training.finished or self.training.stopping
        if ended or time.monotonic() - self._redrawn >= REDRAW_SECONDS:
            self._redrawn = time.monotonic()
            with self.widget.batch_update():
                for old, new in zip(self.widget.data, self.figure().data, strict=True):
                    old.update(x=new.x, y=new.y, mode=new.mode)
            self._update_status()

    def _update_status(self) -> None:
        run, busy = self.training.run, self.training.running and not self.training.stopping
        state = "finished" if self.training.finished else "training" if busy else "paused"
        self.status.value = f"step {run.step} of {run.config.iterations}, {state}"


def _budget_slider(switch: SwitchTraining) -> widgets.FloatSlider:
    """Return a slider that sets the budget target of a switch from its next step on."""
    target = switch.loss_config.budget_target
    slider = widgets.FloatSlider(value=target, min=0.12, max=1.0, step=0.01, description="C_t", readout_format=".0%")

    def moved(change: dict[str, Any]) -> None:
        switch.loss_config = dataclasses.replace(switch.loss_config, budget_target=change["new"])

    slider.observe(moved, names="value")
    return slider
