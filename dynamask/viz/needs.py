"""What each class needs, drawn: one line a class, one dot a mask size, on a page of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamask.structures import MASK_SIZES
from dynamask.viz.overlay import SIZE_COLOURS

SIZE_SYMBOLS: dict[int, str] = {14: "circle", 28: "square", 56: "diamond", 112: "star"}
"""Plotly symbol of each mask size, so that dots differ without colour."""

_METRICS = {
    "boundary_iou": ("boundary IoU", "needed_size_boundary"),
    "mask_iou": ("mask IoU", "needed_size_mask"),
}
_GROUPS = ("all", "small", "medium", "large")
_ENOUGH = 10
"""Instances that a class must have before the headline names it."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What each class needs</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff; max-width: 1180px;
       margin: 0 auto; padding: 1.2rem; }}
h1 {{ font-size: 1.5rem; margin: 0 0 .3rem; }}
p {{ margin: .3rem 0; max-width: 60rem; }}
.lead {{ font-size: 1.15rem; }}
.note {{ color: #4b5563; font-size: .9rem; }}
</style>
</head>
<body>
<h1>What each class needs</h1>
<p class="lead">{headline}</p>
<p class="note">{note}</p>
{areas}
{classes}
</body>
</html>
"""

_NOTE = (
    "No model takes part: the true mask of each instance is squeezed into 14×14, 28×28, 56×56 and 112×112 cells of its "
    "box and pasted back, so a dot shows the best that a mask of this size can be, as the mean over the instances. The "
    "dashed line is {kept:.0%}; the large dot is the smallest size that reaches it, its number stands at the right. A "
    "long grey bar is a class whose outline a coarse mask cannot hold. Small objects have less than 32² pixels, large "
    "ones 96² or more; the buttons choose among them."
)


def headline(summary: dict[str, Any]) -> str:
    """One sentence on the two ends of a summary of ideal masks: which class a 14×14 mask costs most and least.

    Classes of less than ten instances are passed over where two others are left.
    """
    classes: dict[str, Any] = summary["classes"]
    if not classes:
        return "There is no instance to judge."
    named = {name: entry for name, entry in classes.items() if entry["instances"] >= _ENOUGH}
    order = _sorted_names(named if len(named) > 1 else classes)
    worst, best = (f"{name} ({classes[name]['boundary_iou']['14']:.0%})" for name in (order[0], order[-1]))
    count = f"{summary['all']['instances']:,} instances of {len(classes)} class{'es' if len(classes) > 1 else ''}"
    if len(order) == 1:
        return f"{count}: a 14×14 mask keeps this much of the boundary: {worst}."
    return f"{count}: a 14×14 mask keeps least of the boundary of {worst} and most of {best}."


def class_needs(summary: dict[str, Any]) -> go.Figure:
    """Dots of the mean quality of ideal masks: a line a class, the one that 14×14 costs most on top, a dot a mask size.

    Two panels, boundary IoU and mask IoU; buttons choose all, small, medium or large objects. Hover tells the count.

    Args:
        summary: ``kept``, ``all`` and ``classes``, each entry with ``instances``, ``boundary_iou`` and ``mask_iou`` by
            mask size, the two needed sizes and ``by_area``: :func:`dynamask.evaluation.ideal_masks.summarise`.
    """
    order = _sorted_names(summary["classes"])
    entries = [(f"{escape(name)} ({summary['classes'][name]['instances']:,})", summary["classes"][name])
               for name in order]  # fmt: skip
    figure = _panels(summary["kept"], f"Classes, the neediest on top ({len(order)})", max(300, 200 + 21 * len(entries)))
    start = _lower_end([part for _, entry in entries for part in (entry, *entry["by_area"].values())])
    figure.update_xaxes(range=[start, 1.0 + 0.1 * (1.0 - start)])
    owners = []
    for group in _GROUPS:
        rows = [(label, entry if group == "all" else entry["by_area"][group]) for label, entry in entries]
        before = len(figure.data)
        _draw(figure, rows, start, visible=group == "all")
        owners += [group] * (len(figure.data) - before)
    counts = {key: entry["instances"] for key, entry in _groups(summary).items()}
    buttons = [
        {
            "label": f"{group} ({counts[group]:,})",
            "method": "restyle",
            "args": ["visible", [owner == group for owner in owners]],
        }
        for group in _GROUPS
    ]
    figure.update_layout(
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "buttons": buttons,
                "x": 1,
                "xanchor": "right",
                "y": 1,
                "yanchor": "bottom",
                "pad": {"b": 46},
                "showactive": True,
            }
        ]
    )
    labels = [label for label, _ in entries]
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], range=[-0.7, max(len(labels), 1) - 0.3])
    return figure


def area_needs(summary: dict[str, Any]) -> go.Figure:
    """The same dots for all instances and for COCO's small, medium and large ones; `summary` as for `class_needs`."""
    rows = [(f"{name} ({entry['instances']:,})", entry) for name, entry in _groups(summary).items()]
    figure = _panels(summary["kept"], "By object size", 300)
    start = _lower_end([entry for _, entry in rows])
    _draw(figure, rows, start, visible=True)
    figure.update_xaxes(range=[start, 1.0 + 0.1 * (1.0 - start)])
    labels = [label for label, _ in rows]
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], range=[-0.7, len(labels) - 0.3])
    return figure


def needs_page(summary: dict[str, Any]) -> str:
    """A self-contained HTML page with both figures: plotly.js is inside, so that it opens without a network."""
    areas = area_needs(summary).to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False})
    classes = class_needs(summary).to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return _PAGE.format(
        headline=escape(headline(summary)), note=_NOTE.format(kept=summary["kept"]), areas=areas, classes=classes
    )


def _groups(summary: dict[str, Any]) -> dict[str, Any]:
    """The entries of all instances and of the small, medium and large ones."""
    return {"all": summary["all"], **summary["all"]["by_area"]}


def _sorted_names(classes: dict[str, Any]) -> list[str]:
    """Class names, the one whose 14×14 mask loses most of the boundary first; equal ones by name."""
    return sorted(classes, key=lambda name: (classes[name]["boundary_iou"]["14"], name))


def _panels(kept: float, title: str, height: int) -> go.Figure:
    """Two empty panels side by side with a shared list of rows, the line of what counts as kept in both."""
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        column_widths=[0.6, 0.4],
        horizontal_spacing=0.06,
        subplot_titles=[f"mean {text}" for text, _ in _METRICS.values()],
    )
    line = {"color": "#6B7280", "width": 1.5, "dash": "dash"}
    figure.add_vline(x=kept, line=line, layer="below", row=1, col="all", exclude_empty_subplots=False)
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0, "y": 1, "yanchor": "top", "yref": "container", "pad": {"t": 8}},
        height=height,
        margin={"l": 8, "r": 12, "t": 118, "b": 8},
        font={"size": 13},
        legend={
            "orientation": "h",
            "title": {"text": "mask size "},
            "x": 0,
            "y": 1 + 44 / (height - 126),
            "yanchor": "bottom",
            "traceorder": "normal",
        },
    )
    for annotation in figure.layout.annotations:
        annotation.update(yshift=20, font={"size": 13})
    figure.update_yaxes(automargin=True, type="category")
    figure.update_xaxes(tickformat=".0%", side="top")
    return figure


def _draw(figure: go.Figure, rows: Sequence[tuple[str, dict[str, Any]]], start: float, visible: bool) -> None:
    """Bars from the coarsest to the finest mask, the dots, and the mark of the needed size, in both panels."""
    rows = [(label, entry) for label, entry in rows if entry["instances"]]
    first, last = str(MASK_SIZES[0]), str(MASK_SIZES[-1])
    for column, (metric, (title, need)) in enumerate(_METRICS.items(), start=1):
        span_x: list[float | None] = []
        span_y: list[str | None] = []
        for label, entry in rows:
            span_x += [entry[metric][first], entry[metric][last], None]
            span_y += [label, label, None]
        figure.add_scatter(
            x=span_x, y=span_y, mode="lines", line={"color": "#D1D5DB", "width": 5}, hoverinfo="skip",
            showlegend=False, visible=visible, row=1, col=column,
        )  # fmt: skip
        for size in reversed(MASK_SIZES):  # the coarsest on top, where dots meet
            ringed = [entry[need] == size for _, entry in rows]
            figure.add_scatter(
                x=[entry[metric][str(size)] for _, entry in rows],
                y=[label for label, _ in rows],
                customdata=[[entry["instances"], _need_text(entry[need])] for _, entry in rows],
                mode="markers",
                name=f"{size}×{size}",
                legendgroup=str(size),
                legendrank=size,
                showlegend=column == 1,
                visible=visible,
                marker={
                    "color": SIZE_COLOURS[size],
                    "symbol": SIZE_SYMBOLS[size],
                    "opacity": 1.0,
                    "size": [14 if ring else 9 for ring in ringed],
                    "line": {"color": "#111111", "width": [2.5 if ring else 0.8 for ring in ringed]},
                },
                hovertemplate=f"%{{y}}<br>{size}×{size}: {title} %{{x:.3f}}<br>%{{customdata[0]}} instances, "
                "needs %{customdata[1]}<extra></extra>",
                row=1,
                col=column,
            )
        figure.add_scatter(
            x=[1.0 + 0.03 * (1.0 - start)] * len(rows),
            y=[label for label, _ in rows],
            text=[_need_text(entry[need]) for _, entry in rows],
            mode="text",
            textposition="middle right",
            textfont={"size": 11, "color": "#374151"},
            cliponaxis=False,
            hoverinfo="skip",
            showlegend=False,
            visible=visible,
            row=1,
            col=column,
        )


def _lower_end(entries: Sequence[dict[str, Any]]) -> float:
    """Where the axis begins, so that every dot of both panels fits: a multiple of 0.1 from 0 to 0.8."""
    values = [
        value for entry in entries for metric in _METRICS for value in entry[metric].values() if value is not None
    ]
    return min(0.8, max(0.0, math.floor((min(values, default=1.0) - 0.02) * 10) / 10))


def _need_text(size: int | None) -> str:
    """A needed size for people."""
    return f"> {MASK_SIZES[-1]}" if size is None else str(size)
