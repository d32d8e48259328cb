"""Plotly figures of table rows: quality against cost with intervals, and shares of the mask sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamask.structures import MASK_SIZES
from dynamask.viz.charts import SIZE_PATTERNS
from dynamask.viz.overlay import SIZE_COLOURS

GROUP_COLOURS = ("#2563EB", "#EA580C", "#0E7490", "#7C3AED", "#92400E", "#111827", "#BE185D", "#65A30D")
GROUP_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "hexagon")
_PANELS = {"segm_ap": "mask AP", "boundary_ap": "boundary AP"}


def cost_quality(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """Mask and boundary AP against mean GMACs, one point a row, rows of one group joined by a line.

    Args:
        rows: with ``row``, ``weights``, ``mean_macs`` and both measures with ``_low`` and ``_high``. Rows whose label
            begins alike up to its comma are a group; labels without one are grouped by their weights.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        label, comma, _ = row["row"].partition(",")
        groups.setdefault(label if comma else row["weights"], []).append(row)
    figure = make_subplots(rows=1, cols=len(_PANELS), subplot_titles=list(_PANELS.values()), horizontal_spacing=0.1)
    for column, measure in enumerate(_PANELS, start=1):
        for number, (name, own) in enumerate(groups.items()):
            own = sorted(own, key=lambda row: row["mean_macs"])
            values = [row[measure] for row in own]
            bounds = [(row[f"{measure}_low"], row[f"{measure}_high"]) for row in own]
            up = [0 if v is None or b[1] is None else b[1] - v for v, b in zip(values, bounds)]
            down = [0 if v is None or b[0] is None else v - b[0] for v, b in zip(values, bounds)]
            figure.add_scatter(
                x=[row["mean_macs"] / 1e9 for row in own],
                y=values,
                error_y={"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1},
                name=own[0]["row"] if len(own) == 1 else name,
                legendgroup=name,
                showlegend=column == 1,
                mode="lines+markers",
                marker={"symbol": GROUP_SYMBOLS[number % len(GROUP_SYMBOLS)], "size": 9},
                line={"color": GROUP_COLOURS[number % len(GROUP_COLOURS)]},
                customdata=[row["row"] for row in own],
                hovertemplate="<b>%{customdata}</b><br>%{x:.4f} GMACs: %{y:.4f}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(title="mean GMACs per instance", rangemode="tozero")
    figure.update_layout(
        template="plotly_white",
        font={"size": 13},
        height=460,
        margin={"l": 8, "r": 8, "t": 40, "b": 8},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
    )
    return figure


def stacked_shares(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """Shares of the four mask sizes, one bar a row, the first row on top.

    Args:
        rows: with ``row`` and ``share_S`` for every size S, in 0–1.
    """
    figure = go.Figure()
    shown = list(reversed(rows))
    for size in MASK_SIZES:
        figure.add_bar(
            x=[row[f"share_{size}"] for row in shown],
            y=[row["row"] for row in shown],
            orientation="h",
            name=f"{size}×{size}",
            marker={
                "color": SIZE_COLOURS[size],
                "line": {"color": "#333333", "width": 1},
                "pattern": {"shape": SIZE_PATTERNS[size]},
            },
            hovertemplate=f"%{{y}}: %{{x:.0%}} at {size}<extra></extra>",
        )
    figure.update_layout(
        template="plotly_white",
        font={"size": 13},
        barmode="stack",
        height=130 + 44 * len(rows),
        margin={"l": 8, "r": 30, "t": 16, "b": 8},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "traceorder": "normal"},
    )
    figure.update_xaxes(title="share of the detections", tickformat=".0%", range=[0, 1.002])
    figure.update_yaxes(automargin=True)
    return figure
