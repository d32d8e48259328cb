"""Charts of the mask size that each class requires, from the ideal masks of its annotations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from dynamask.evaluation.ideal_masks import by_loss
from dynamask.structures import MASK_SIZES
from dynamask.viz.charts import panel_figure
from dynamask.viz.style import FAINT, INK, SIZE_NAMES, size_dot

_METRICS = {
    "boundary_iou": ("boundary IoU", "needed_size_boundary"),
    "mask_iou": ("mask IoU", "needed_size_mask"),
}
_GROUPS = ("all", "small", "medium", "large")


def required_size_by_class(summary: dict[str, Any]) -> go.Figure:
    """Draw the mean quality of ideal masks, one line per class and one dot per mask size, the worst class on top.

    Two panels show boundary IoU and mask IoU; buttons select all, small, medium or large objects.

    Args:
        summary: ``kept``, ``all`` and ``classes``, each entry with ``instances``, ``boundary_iou`` and ``mask_iou`` by
            mask size, the two needed sizes and ``by_area``: :func:`dynamask.evaluation.ideal_masks.summarise`.
    """
    entries = {
        f"{escape(name)} ({summary['classes'][name]['instances']:,})": summary["classes"][name]
        for name in by_loss(summary)
    }
    title = f"Classes by the boundary IoU of a 14×14 mask ({len(entries)})"
    drawn = _panels(summary["kept"], title, max(300, 200 + 21 * len(entries)))
    start = _axis_start([part for entry in entries.values() for part in (entry, *entry["by_area"].values())])
    traces: list[str] = []  # the group of every trace
    for group in _GROUPS:
        rows = {label: entry if group == "all" else entry["by_area"][group] for label, entry in entries.items()}
        _add_rows(drawn, rows, start, visible=group == "all")
        traces += [group] * (len(drawn.data) - len(traces))
    buttons = [
        {
            "label": f"{group} ({entry['instances']:,})",
            "method": "restyle",
            "args": ["visible", [trace == group for trace in traces]],
        }
        for group, entry in _by_area(summary).items()
    ]
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "showactive": True, "x": 1, "y": 1}
    drawn.update_layout(updatemenus=[{**menu, "xanchor": "right", "yanchor": "bottom", "pad": {"b": 46}}])
    return _finish(drawn, list(entries), start)


def required_size_by_area(summary: dict[str, Any]) -> go.Figure:
    """Draw the same dots for all instances and for COCO's small, medium and large ones."""
    rows = {f"{name} ({entry['instances']:,})": entry for name, entry in _by_area(summary).items()}
    drawn = _panels(summary["kept"], "By object size", 300)
    start = _axis_start(list(rows.values()))
    _add_rows(drawn, rows, start, visible=True)
    return _finish(drawn, list(rows), start)


def _by_area(summary: dict[str, Any]) -> dict[str, Any]:
    """Entries of all instances and of the small, medium and large ones, by the name of the group."""
    return {"all": summary["all"], **summary["all"]["by_area"]}


def _panels(kept: float, title: str, height: int) -> go.Figure:
    """Two panels with shared rows and a dashed line at the quality that counts as kept."""
    titles = [f"mean {text}" for text, _ in _METRICS.values()]
    drawn = panel_figure(titles, height, shared_yaxes=True, column_widths=[0.6, 0.4], horizontal_spacing=0.06)
    line = {"color": INK, "width": 1.5, "dash": "dash"}
    drawn.add_vline(x=kept, line=line, layer="below", row=1, col="all", exclude_empty_subplots=False)
    drawn.update_annotations(yshift=20)
    drawn.update_layout(
        title={"text": title, "y": 1, "yanchor": "top", "yref": "container", "pad": {"t": 8, "l": 12}},
        margin={"l": 8, "r": 12, "t": 118, "b": 8},
        legend={
            "orientation": "h",
            "title": {"text": "mask size "},
            "x": 0,
            "y": 1 + 44 / (height - 126),
            "yanchor": "bottom",
            "traceorder": "normal",
        },
    )
    drawn.update_yaxes(type="category")
    return drawn.update_xaxes(tickformat=".0%", side="top")


def _finish(drawn: go.Figure, labels: list[str], start: float) -> go.Figure:
    """Set the ranges of both axes, the first label on top."""
    drawn.update_xaxes(range=[start, 1.0 + 0.1 * (1.0 - start)])
    rows = [-0.7, max(len(labels), 1) - 0.3]
    return drawn.update_yaxes(categoryorder="array", categoryarray=labels[::-1], range=rows)


def _add_rows(drawn: go.Figure, rows: dict[str, dict[str, Any]], start: float, visible: bool) -> None:
    """Add a bar from the coarsest to the finest mask, the dots, and the needed size as text, in both panels."""
    rows = {label: entry for label, entry in rows.items() if entry["instances"]}
    labels, entries = list(rows), list(rows.values())
    for column, (metric, (title, need)) in enumerate(_METRICS.items(), start=1):
        panel = {"visible": visible, "row": 1, "col": column}
        means = {size: [entry[metric][str(size)] for entry in entries] for size in MASK_SIZES}
        needed = [f"> {MASK_SIZES[-1]}" if entry[need] is None else str(entry[need]) for entry in entries]
        ends = zip(means[MASK_SIZES[0]], means[MASK_SIZES[-1]], strict=True)
        drawn.add_scatter(
            x=[value for first, last in ends for value in (first, last, None)],
            y=[value for label in labels for value in (label, label, None)],
            mode="lines",
            line={"color": FAINT, "width": 5},
            hoverinfo="skip",
            showlegend=False,
            **panel,
        )
        for size in reversed(MASK_SIZES):  # the coarsest is drawn last, on top
            large = [entry[need] == size for entry in entries]
            edge = {"color": INK, "width": [2.5 if ring else 0.8 for ring in large]}
            drawn.add_scatter(
                x=means[size],
                y=labels,
                customdata=[[entry["instances"], text] for entry, text in zip(entries, needed, strict=True)],
                mode="markers",
                name=SIZE_NAMES[size],
                legendgroup=str(size),
                legendrank=size,
                showlegend=column == 1,
                marker={**size_dot(size), "opacity": 1.0, "size": [14 if ring else 9 for ring in large], "line": edge},
                hovertemplate=f"%{{y}}<br>{SIZE_NAMES[size]}: {title} %{{x:.3f}}<br>%{{customdata[0]}} instances, "
                "needed size %{customdata[1]}<extra></extra>",
                **panel,
            )
        drawn.add_scatter(
            x=[1.0 + 0.03 * (1.0 - start)] * len(rows),
            y=labels,
            text=needed,
            mode="text",
            textposition="middle right",
            textfont={"size": 11},
            cliponaxis=False,
            hoverinfo="skip",
            showlegend=False,
            **panel,
        )


def _axis_start(entries: Sequence[dict[str, Any]]) -> float:
    """Start of the axis, such that every dot of both panels fits: a multiple of 0.1 from 0 to 0.8."""
    values = [
        value for entry in entries for metric in _METRICS for value in entry[metric].values() if value is not None
    ]
    return min(0.8, max(0.0, math.floor((min(values, default=1.0) - 0.02) * 10) / 10))
