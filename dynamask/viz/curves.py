"""Plotly curves with interval bands: some quality against what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamask.structures import MASK_SIZES
from dynamask.viz.overlay import SIZE_COLOURS, hex_to_rgb


@dataclass(frozen=True)
class Look:
    """How a policy is drawn.

    Attributes:
        colour: sRGB hex.
        dash: of its line, in plotly's words.
        symbol: of its markers.
        width: of its line, in pixels.
    """

    colour: str
    dash: str = "solid"
    symbol: str = "circle"
    width: float = 2


LOOKS: dict[str, Look] = {
    "learned": Look("#111827", symbol="star"),
    "budget": Look("#111827", width=3),
    "size": Look("#0E7490", symbol="diamond"),
    "random": Look("#9CA3AF", dash="dot", symbol="x"),
    "mix": Look("#92400E", dash="dash", symbol="square"),
    "oracle": Look("#7C3AED", dash="dashdot", symbol="triangle-up"),
    "noise-aware oracle": Look("#EA580C", symbol="triangle-down"),
    **{f"fixed:{size}": Look(SIZE_COLOURS[size], symbol="circle") for size in MASK_SIZES},
}
"""Every policy's look; the fixed sizes have their sizes' colours."""


@dataclass(frozen=True)
class Series:
    """One policy in one panel.

    Attributes:
        policy: a key of ``LOOKS``.
        name: in the legend.
        gmacs: mean GMACs per instance.
        mean, low, high: the figure with its interval; None where undefined.
    """

    policy: str
    name: str
    gmacs: Sequence[float]
    mean: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]


def quality_curves(
    panels: dict[str, Sequence[Series]], title: str, bands: Sequence[str] = (), zero: bool = False
) -> go.Figure:
    """One panel for every measure, side by side, policies as lines or as single points.

    Args:
        panels: by the name of the measure, its series; one of a single value is drawn as a marker with an error bar.
        title: of the figure.
        bands: policies whose interval is shaded, clicking a legend entry hides line and band alike.
        zero: draw a line at zero, for differences.
    """
    figure = make_subplots(rows=1, cols=max(1, len(panels)), subplot_titles=list(panels), horizontal_spacing=0.09)
    named: set[str] = set()
    for column, series in enumerate(panels.values(), start=1):
        for one in series:
            traces = _point(one) if len(one.mean) == 1 else _line(one, one.policy in bands)
            for trace in traces:
                show = trace.showlegend is not False and one.name not in named
                trace.update(showlegend=show, legendgroup=one.name)
                figure.add_trace(trace, row=1, col=column)
            named.add(one.name)
        if zero:
            figure.add_hline(y=0, line={"color": "#6B7280", "width": 1}, row=1, col=column)
    figure.update_xaxes(title="mean GMACs per instance", rangemode="tozero")
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "y": 0.98, "yanchor": "top"},
        font={"size": 13},
        height=500,
        margin={"l": 8, "r": 8, "t": 80, "b": 8},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
        hoverlabel={"namelength": -1},
    )
    return figure


def _hover(one: Series) -> tuple[list[str], str]:
    """Interval texts and the template that shows them."""
    texts = [
        "" if low is None or high is None else f"<br>95 %: {low:.4f} to {high:.4f}"
        for low, high in zip(one.low, one.high)
    ]
    return texts, f"<b>{one.name}</b><br>%{{x:.4f}} GMACs: %{{y:.4f}}%{{customdata}}<extra></extra>"


def _line(one: Series, band: bool) -> list[go.Scatter]:
    """A line, over its band if it gets one."""
    look = LOOKS[one.policy]
    texts, hover = _hover(one)
    traces = []
    known = [i for i, (low, high) in enumerate(zip(one.low, one.high)) if low is not None and high is not None]
    if band and known:
        red, green, blue = hex_to_rgb(look.colour)
        there, back = known, known[::-1]
        traces.append(
            go.Scatter(
                x=[one.gmacs[i] for i in (*there, *back)],
                y=[*(one.high[i] for i in there), *(one.low[i] for i in back)],
                fill="toself",
                fillcolor=f"rgba({red}, {green}, {blue}, 0.14)",
                line={"width": 0},
                hoverinfo="skip",
                mode="lines",
                showlegend=False,
            )
        )
    traces.append(
        go.Scatter(
            x=list(one.gmacs),
            y=list(one.mean),
            customdata=texts,
            hovertemplate=hover,
            name=one.name,
            mode="lines+markers",
            line={"color": look.colour, "dash": look.dash, "width": look.width},
            marker={"symbol": look.symbol, "size": 6},
        )
    )
    return traces


def _point(one: Series) -> list[go.Scatter]:
    """A marker with its error bar."""
    look = LOOKS[one.policy]
    texts, hover = _hover(one)
    red, green, blue = hex_to_rgb(look.colour)
    mean, low, high = one.mean[0], one.low[0], one.high[0]
    error = None
    if mean is not None and low is not None and high is not None:
        error = {"type": "data", "symmetric": False, "array": [high - mean], "arrayminus": [mean - low], "thickness": 1}
    return [
        go.Scatter(
            x=list(one.gmacs),
            y=list(one.mean),
            error_y={**error, "color": f"rgba({red}, {green}, {blue}, 0.5)", "width": 3} if error else None,
            customdata=texts,
            hovertemplate=hover,
            name=one.name,
            mode="markers",
            marker={
                "symbol": look.symbol,
                "size": 15 if look.symbol == "star" else 12,
                "color": look.colour,
                "line": {"color": "#333333", "width": 1},
            },
        )
    ]
