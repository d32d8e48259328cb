"""Plotly curves of training runs: losses, learning rate, size shares, costs and average precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from dynamask.structures import MASK_SIZES
from dynamask.viz.charts import panel_figure
from dynamask.viz.style import EDGE, SERIES_COLOURS, SERIES_DASHES, series_colour

HALF_LIVES = (0, 5, 20, 80)
"""Choices of the smoothing, in rows of the log."""
_AP = {"bbox_AP": "box AP", "segm_AP": "mask AP", "boundary_AP": "boundary AP"}


@dataclass(frozen=True)
class RunCurves:
    """The logged values of a run.

    Attributes:
        name: of the run.
        log: columns of its ``log.csv`` by name, including "step".
        validation: columns of its ``validation.csv``; empty without one.
        final: average precisions at the end ("bbox_AP", …); empty without an evaluation.
    """

    name: str
    log: dict[str, list[float]]
    validation: dict[str, list[float]]
    final: dict[str, float]


def smoothed(values: Sequence[float], half_life: float) -> list[float]:
    """Exponential moving average, normalised so that its weights add up to one from the first value on.

    Args:
        values: NaN values stay NaN and do not enter the average.
        half_life: number of values after which a weight is halved; 0 does not smooth.
    """
    if half_life <= 0:
        return list(values)
    keep, total, weight, out = 0.5 ** (1.0 / half_life), 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, weight = total * keep + value, weight * keep + 1.0
        out.append(total / weight if math.isfinite(value) else math.nan)
    return out


def panels_of(runs: Sequence[RunCurves]) -> list[tuple[str, list[str]]]:
    """(title, columns) of every panel for which some run has values."""
    known = {column for run in runs for column in run.log}
    losses = [c for run in runs for c in run.log if c == "loss" or c.startswith("loss_")]
    titles: list[tuple[str, list[str]]] = [
        *((name, [name]) for name in dict.fromkeys(losses)),
        ("learning rate", ["lr"]),
        ("gradient norm", ["gradient_norm"]),
        *((f"share of regions at {size}", [f"share_{size}"]) for size in MASK_SIZES),
        ("mean MACs per region (target dotted)", ["mean_macs", "target_macs"]),
        ("expected MACs per region (target dotted)", ["expected_macs", "target_macs"]),
    ]
    panels = [(title, columns) for title, columns in titles if columns[0] in known]
    judged = {column for run in runs for column in (*run.validation, *run.final)}
    return panels + [(f"{name} on validation pictures", [column]) for column, name in _AP.items() if column in judged]


def training_curves(runs: Sequence[RunCurves], half_life: float = 5) -> go.Figure:
    """Draw a panel for every quantity, three in a row; a run has the same colour in all panels.

    A menu sets the smoothing, and a click on a run in the legend hides it in all panels. Average precision and targets
    are not smoothed.

    Args:
        runs: at least one.
        half_life: initial smoothing, in rows of the log.
    """
    panels = panels_of(runs)
    across = 3
    rows = math.ceil(len(panels) / across)
    space = {"horizontal_spacing": 0.06, "vertical_spacing": min(0.4 / rows, 0.12)}
    figure = panel_figure([title for title, _ in panels], 110 + 300 * rows, across, **space)
    raw: list[tuple[list[float], bool]] = []
    for number, run in enumerate(runs):
        named = False
        for at, (_, columns) in enumerate(panels):
            for column in columns:
                for trace, smooth in _traces(run, number, column):
                    raw.append((list(trace.y), smooth))
                    trace.update(legendgroup=str(number), showlegend=not named, name=run.name)
                    trace.update(y=smoothed(trace.y, half_life) if smooth else trace.y)
                    figure.add_trace(trace, row=at // across + 1, col=at % across + 1)
                    named = True
    half_lives = sorted({*HALF_LIVES, half_life})
    buttons = [
        {
            "label": f"half-life {value:g} rows" if value else "not smoothed",
            "method": "restyle",
            "args": [{"y": [smoothed(values, value) if smooth else values for values, smooth in raw]}],
        }
        for value in half_lives
    ]
    menu = {"buttons": buttons, "active": half_lives.index(half_life), "x": 1, "xanchor": "right", "y": 1 + 0.3 / rows}
    figure.update_xaxes(title="step")
    return figure.update_layout(
        title=f"{len(runs)} training run{'' if len(runs) == 1 else 's'}",
        margin={"t": 110},
        updatemenus=[{**menu, "yanchor": "bottom"}],
        legend={"orientation": "h", "y": 1 + 0.3 / rows, "yanchor": "bottom"},
    )


def _traces(run: RunCurves, number: int, column: str) -> list[tuple[go.Scatter, bool]]:
    """The traces of a column of a run, each with whether it may be smoothed."""
    colour, dash = series_colour(number), SERIES_DASHES[number // len(SERIES_COLOURS) % len(SERIES_DASHES)]
    if column not in _AP:
        if column not in run.log:
            return []
        target = column == "target_macs"
        line = {"color": colour, "width": 1 if target else 1.5, "dash": "dot" if target else dash}
        return [(_scatter(run.log["step"], run.log[column], "lines", line), not target)]
    line, found = {"color": colour, "width": 1.5, "dash": dash}, []
    if column in run.validation:
        found.append((_scatter(run.validation["step"], run.validation[column], "lines+markers", line), False))
    if column in run.final:
        last = run.log["step"][-1:] or [0.0]
        marker = {"symbol": "star", "size": 13, "color": colour, "line": EDGE}
        found.append((_scatter(last, [run.final[column]], "markers", line).update(marker=marker), False))
    return found


def _scatter(x: Sequence[float], y: Sequence[float], mode: str, line: dict[str, object]) -> go.Scatter:
    return go.Scatter(x=list(x), y=list(y), mode=mode, line=line, hovertemplate="%{fullData.name}: %{y:.5g} at %{x}")
