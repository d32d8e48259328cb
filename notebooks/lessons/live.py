"""Pictures of a run that trains: the same figure as a widget that moves, and standing still."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamask.config import TrainConfig
from dynamask.engine.optimizer import lr_factor
from dynamask.structures import MASK_SIZES
from dynamask.viz import charts, style

if TYPE_CHECKING:
    import ipywidgets

    from dynamask.engine.frozen_switch import SwitchTraining
    from lessons.training import BackgroundTraining, History

LOSS_LOOKS: dict[str, tuple[str, str, str]] = {
    "loss": ("total, weighted", style.INK, "solid"),
    "loss_objectness": ("objectness", "#0891B2", "dot"),
    "loss_rpn_box_reg": ("proposal boxes", "#B45309", "dash"),
    "loss_classifier": ("classes", "#16A34A", "solid"),
    "loss_box_reg": ("boxes", "#8B5CF6", "dashdot"),
    "loss_mask": ("mask (Eq. 3)", style.ACCENT, "solid"),
    "loss_edge": ("edge (Eq. 4)", "#0D9488", "dash"),
    "loss_boundary": ("error of the sizes", "#A855F7", "solid"),
    "loss_budget": ("budget (Eq. 5)", "#EA580C", "dash"),
    "loss_entropy": ("entropy (Eq. 6)", "#DB2777", "dot"),
}
"""Title, colour and dash of every loss; each colour has a contrast of 3 or more to white and to black pages."""
REDRAW_SECONDS = 0.5
"""Least time between two frames of a moving figure."""


def smoothed(values: Sequence[float], window: int = 8) -> np.ndarray:
    """Mean of each value and those before it, at most ``window`` in all."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    ends = np.arange(1, len(sums))
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / np.maximum(1, ends - starts)


def training_figure(history: History, names: Sequence[str], measured: str, stacked: bool = False) -> go.Figure:
    """Losses on the left, what was measured of every size on the right, both against the step.

    Args:
        history: of a run.
        names: of the losses to draw, unweighted (the total is weighted), smoothed over a few steps.
        measured: title of the right panel.
        stacked: the right panel's figures are shares, drawn on top of each other.
    """
    titles = ["losses, mean of the last steps", measured]
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.1)
    for name in names:
        title, colour, dash = LOSS_LOOKS[name]
        figure.add_scatter(
            x=list(history.steps), y=smoothed(history.values.get(name, [])), name=title, mode="lines",
            line={"color": colour, "dash": dash, "width": 2.5}, row=1, col=1,
        )  # fmt: skip
    rows = np.array(history.measured).reshape(-1, len(MASK_SIZES))
    for k, size in enumerate(MASK_SIZES):
        look = {"stackgroup": "sizes", "fillcolor": style.size_line(size)["color"]} if stacked else {}
        line = {"color": style.INK, "width": 1} if stacked else style.size_line(size)
        figure.add_scatter(
            x=list(history.measured_at), y=rows[:, k], name=f"{size}×{size}", line=line,
            mode="lines" if stacked else "lines+markers", marker=None if stacked else style.size_dot(size, 7),
            row=1, col=2, **look,
        )  # fmt: skip
    figure.update_layout(template=style.TEMPLATE, height=400, margin={"t": 40, "b": 110})
    figure.update_layout(legend={"orientation": "h", "y": -0.2, "yanchor": "top", "entrywidth": 130,
                                 "traceorder": "normal"})  # fmt: skip
    figure.update_xaxes(title="step")
    if stacked:
        figure.update_yaxes(range=[0, 1], tickformat=".0%", row=1, col=2)
    figure.update_annotations(font={"color": style.INK, "size": 13})
    return figure


def losses_figure(history: History, names: Sequence[str], title: str, window: int = 1) -> go.Figure:
    """Losses of a run against the step, unweighted, each the mean of the last ``window`` steps."""
    figure = charts.figure(title, height=380, margin={"b": 120, "t": 48})
    for name in names:
        text, colour, dash = LOSS_LOOKS[name]
        figure.add_scatter(x=list(history.steps), y=smoothed(history.values[name], window), name=text, mode="lines",
                           line={"color": colour, "dash": dash, "width": 2.5})  # fmt: skip
    figure.update_xaxes(title="step")
    figure.update_layout(legend={"orientation": "h", "y": -0.22, "yanchor": "top"})
    return figure


def schedules_figure(schedules: dict[str, TrainConfig]) -> go.Figure:
    """Learning rates of schedules, each as a share of its largest, against the share of its steps."""
    figure = charts.figure("Learning rate over a run", height=340, margin={"b": 90})
    looks = zip(schedules.items(), ((style.ACCENT, "solid"), ("#EA580C", "dash"), ("#0D9488", "dot")))
    for (name, config), (colour, dash) in looks:
        steps = np.unique(np.linspace(0, config.iterations - 1, 1500).astype(int))
        factors = [lr_factor(int(step), config) for step in steps]
        figure.add_scatter(x=steps / config.iterations, y=factors, name=f"{name} (largest {config.lr:g})", mode="lines",
                           line={"color": colour, "dash": dash, "width": 2.5})  # fmt: skip
    figure.update_xaxes(title="share of the steps", tickformat=".0%")
    figure.update_yaxes(title="share of the largest")
    figure.update_layout(legend={"orientation": "h", "y": -0.25, "yanchor": "top"})
    return figure


def shares_figure(by_target: dict[str, np.ndarray], title: str) -> go.Figure:
    """Stacked bars of the size shares (4,), one bar a name."""
    figure = charts.figure(title, height=340, barmode="stack")
    for k, size in enumerate(MASK_SIZES):
        figure.add_bar(x=list(by_target), y=[row[k] for row in by_target.values()], name=f"{size}×{size}",
                       marker=style.size_bar(size))  # fmt: skip
    figure.update_xaxes(type="category")
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    return figure


class LivePanel:
    """A run's figure, moving while the run trains in its thread, with buttons that stop it and let it go on.

    Args:
        training: to watch; not started yet.
        names, measured, stacked: as :func:`training_figure` takes them.
        switch: with one, a slider moves its budget target C_t while it learns.
    """

    def __init__(
        self,
        training: BackgroundTraining,
        names: Sequence[str],
        measured: str,
        stacked: bool = False,
        switch: SwitchTraining | None = None,
    ) -> None:
        import ipywidgets

        from dynamask.viz.widgets import PageSetup, live_figure

        self.training, self.look = training, {"names": names, "measured": measured, "stacked": stacked}
        self.widget = live_figure(self.figure())
        self.status = ipywidgets.HTML()
        self.stop_button = ipywidgets.Button(
            description="Stop", icon="stop", tooltip="after this step; saves the state"
        )
        self.go_on_button = ipywidgets.Button(description="Go on", icon="play")
        self.stop_button.on_click(lambda _: training.stop())
        self.go_on_button.on_click(lambda _: self.start())
        controls: list[ipywidgets.Widget] = [self.stop_button, self.go_on_button, self.status]
        if switch is not None:
            self.slider = _budget_slider(switch)
            controls.insert(2, self.slider)
        self.box = ipywidgets.VBox([ipywidgets.HBox(controls), self.widget, PageSetup()])
        self._drawn = 0.0
        training.on_change = self._changed
        self._say()

    def start(self) -> ipywidgets.VBox:
        """Start the run, or let it go on; returns what the cell shows."""
        self.training.start()
        self._say()
        return self.box

    def figure(self) -> go.Figure:
        """The figure as it stands, without a widget: it stays in the notebook when the kernel is gone."""
        return training_figure(self.training.history, **self.look)

    def _changed(self) -> None:
        """Draw anew, unless it was just done and the run goes on."""
        ended = self.training.finished or self.training.stopping
        if ended or time.monotonic() - self._drawn >= REDRAW_SECONDS:
            self._drawn = time.monotonic()
            fresh = self.figure()
            with self.widget.batch_update():
                for old, new in zip(self.widget.data, fresh.data, strict=True):
                    old.x, old.y = new.x, new.y
            self._say()

    def _say(self) -> None:
        run, busy = self.training.run, self.training.running and not self.training.stopping
        word = "done" if self.training.finished else "training…" if busy else "stopped"
        self.status.value = f"step {run.step} of {run.config.iterations}, {word}"


def _budget_slider(switch: SwitchTraining) -> ipywidgets.FloatSlider:
    """A slider that sets the budget target of a switch, from its next step on."""
    import dataclasses

    import ipywidgets

    slider = ipywidgets.FloatSlider(
        value=switch.loss_config.budget_target, min=0.12, max=1.0, step=0.01, description="C_t", readout_format=".0%"
    )

    def moved(change: dict) -> None:
        switch.loss_config = dataclasses.replace(switch.loss_config, budget_target=change["new"])

    slider.observe(moved, names="value")
    return slider
