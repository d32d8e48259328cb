"""One look for plotly figures that must read well on white and on dark pages, as notebooks have them.

Backgrounds are transparent; text and lines have the one grey that stands out from both pages alike. The four sizes
keep the colours and patterns of the app, each with a grey edge, so that the yellow is seen on white and the crimson on
black.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from dynamask.viz.charts import SIZE_PATTERNS
from dynamask.viz.needs import SIZE_SYMBOLS
from dynamask.viz.overlay import SIZE_COLOURS

LIGHT_PAGE, DARK_PAGE = "#FFFFFF", "#111111"
"""The pages that the theme is made for: JupyterLab's own in its light and dark themes."""
INK = "#7A7A7A"
"""Text and lines. No grey can have a contrast above 4.34 to both pages; this one has at least 4.2."""
FAINT = "rgba(122, 122, 122, 0.28)"
"""Grid lines."""
ACCENT = "#3B82F6"
"""A line that is no mask size, such as a budget: a blue with a contrast of at least 3.6 to both pages."""
SIZE_DASHES: dict[int, str] = {14: "dot", 28: "dash", 56: "solid", 112: "longdashdot"}
"""Plotly dash of a line that stands for a mask size."""

_AXIS = {
    "gridcolor": FAINT,
    "zerolinecolor": FAINT,
    "linecolor": INK,
    "tickcolor": INK,
    "tickfont": {"color": INK},
    "title": {"font": {"color": INK, "size": 13}},
    "automargin": True,
}

TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "font": {"color": INK, "size": 13},
        "title": {"font": {"color": INK, "size": 15}, "x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12}},
        "margin": {"l": 12, "r": 12, "t": 48, "b": 12},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"font": {"color": INK}, "bgcolor": "rgba(0, 0, 0, 0)"},
        "annotationdefaults": {"font": {"color": INK}, "arrowcolor": INK},
        "shapedefaults": {"line": {"color": INK}},
        "coloraxis": {"colorbar": {"outlinewidth": 0, "tickfont": {"color": INK}}},
        "hoverlabel": {"bgcolor": "#1F2937", "font": {"color": "#FFFFFF"}},
        "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": INK, "activecolor": ACCENT},
    },
    data={"heatmap": [{"colorbar": {"outlinewidth": 0, "tickfont": {"color": INK}}}]},
)
"""The template; `figure.update_layout(template=TEMPLATE)` gives a figure the look."""


def figure(title: str = "", height: int = 360, **layout: Any) -> go.Figure:
    """An empty figure of this look; `layout` goes to plotly as it is."""
    return go.Figure(layout={"template": TEMPLATE, "title": {"text": title}, "height": height, **layout})


def dress(drawn: go.Figure) -> go.Figure:
    """Give a figure that was made elsewhere this look, and return it: template, and lines and text in near-black."""
    drawn.update_layout(template=TEMPLATE)
    dark = {"#111111", "#111827", "#333333", "#374151", "#000000", "black"}
    for shape in drawn.layout.shapes:
        if shape.line.color in dark:
            shape.line.color = ACCENT if shape.line.dash else INK
    for note in drawn.layout.annotations:
        if note.font.color in dark:
            note.font.color = INK
    for trace in drawn.data:
        for line in (getattr(trace, "line", None), getattr(getattr(trace, "marker", None), "line", None)):
            if line is not None and line.color in dark:
                line.color = INK
        if "textfont" in trace and trace.textfont.color in dark:
            trace.textfont.color = INK
    return drawn


def size_bar(size: int) -> dict[str, Any]:
    """Marker of a bar that stands for a mask size: colour, pattern and a grey edge."""
    pattern = {"shape": SIZE_PATTERNS[size]}
    return {"color": SIZE_COLOURS[size], "line": {"color": INK, "width": 1}, "pattern": pattern}


def size_dot(size: int, width: float = 10) -> dict[str, Any]:
    """Marker of a point that stands for a mask size: colour, symbol and a grey edge; `width` in pixels."""
    edge = {"color": INK, "width": 1.2}
    return {"color": SIZE_COLOURS[size], "symbol": SIZE_SYMBOLS[size], "size": width, "line": edge}


def size_line(size: int, width: float = 2.5) -> dict[str, Any]:
    """Line that stands for a mask size: colour and dash. Draw its points with :func:`size_dot` (mode lines+markers)."""
    return {"color": SIZE_COLOURS[size], "dash": SIZE_DASHES[size], "width": width}
