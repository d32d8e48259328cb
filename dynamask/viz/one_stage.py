"""Plotly figures of the one-stage tables: gains by IoU threshold, AP against MACs, bars of ablations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamask.viz import theme
from dynamask.viz.tables import GROUP_COLOURS, GROUP_SYMBOLS

IOUS = tuple(round(0.5 + step / 20, 2) for step in range(10))
_LEGEND = {"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0}
_BRIGHT = tuple("#64748B" if colour == "#111827" else colour for colour in GROUP_COLOURS)
"""The groups' colours, the near-black one replaced so that it shows on dark pages."""


def gains_by_iou(
    gains: Sequence[dict[str, Any]], paper: Sequence[tuple[str, Sequence[float], Sequence[float]]] = ()
) -> go.Figure:
    """What one model gains over another at every IoU threshold, in points of AP, with intervals.

    Args:
        gains: with ``row`` and ``by_iou``, ten intervals in 0–1.
        paper: (name, IoU thresholds, gains in 0–1) of the paper's own, dashed.
    """
    figure = theme.figure("Gain in mask AP by IoU threshold", 460)
    for number, gain in enumerate(gains):
        kept = [(iou, v) for iou, v in zip(IOUS, gain["by_iou"]) if v["mean"] is not None]
        means = [100 * v["mean"] for _, v in kept]
        up = [0.0 if v["high"] is None else 100 * (v["high"] - v["mean"]) for _, v in kept]
        down = [0.0 if v["low"] is None else 100 * (v["mean"] - v["low"]) for _, v in kept]
        figure.add_scatter(
            x=[iou for iou, _ in kept],
            y=means,
            error_y={"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1},
            name=gain["row"],
            mode="lines+markers",
            line={"color": _BRIGHT[number % len(_BRIGHT)], "width": 2.5},
            marker={"symbol": GROUP_SYMBOLS[number % len(GROUP_SYMBOLS)], "size": 9},
            hovertemplate="IoU %{x:.2f}: %{y:+.2f} points<extra>%{fullData.name}</extra>",
        )
    for number, (name, ious, values) in enumerate(paper):
        figure.add_scatter(
            x=list(ious),
            y=[100 * v for v in values],
            name=name,
            mode="lines+markers",
            line={"color": theme.INK, "width": 1.5, "dash": ("dash", "dot")[number % 2]},
            marker={"symbol": ("circle-open", "square-open")[number % 2], "size": 7, "color": theme.INK},
            hovertemplate="IoU %{x:.2f}: %{y:+.2f} points<extra>%{fullData.name}</extra>",
        )
    figure.add_hline(y=0, line={"color": theme.INK, "width": 1})
    figure.update_xaxes(title="IoU from which a mask counts as found", dtick=0.1, tickformat=".1f")
    figure.update_yaxes(title="gain, points of AP")
    figure.update_layout(legend=_LEGEND)
    return figure


def ap_against_macs(rows: Sequence[dict[str, Any]], title: str, axis: str = "GMACs of a picture") -> go.Figure:
    """Mask AP against the mean MACs of a picture, with intervals; rows of one ``group`` are joined by a line.

    Args:
        rows: with ``row``, ``group``, ``total_macs`` and ``segm_ap`` with its bounds; those without figures are left
            out.
    """
    figure, groups = theme.figure(title, 460), {}
    for row in rows:
        if row["segm_ap"] is not None and row["total_macs"] is not None:
            groups.setdefault(row["group"], []).append(row)
    for number, (name, own) in enumerate(groups.items()):
        own = sorted(own, key=lambda row: row["total_macs"])
        values = [row["segm_ap"] for row in own]
        up = [(row["segm_ap_high"] or v) - v for row, v in zip(own, values)]
        down = [v - (row["segm_ap_low"] if row["segm_ap_low"] is not None else v) for row, v in zip(own, values)]
        figure.add_scatter(
            x=[row["total_macs"] / 1e9 for row in own],
            y=values,
            error_y={"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1},
            name=name,
            mode="lines+markers" if len(own) > 1 else "markers",
            line={"color": _BRIGHT[number % len(_BRIGHT)], "width": 2},
            marker={"symbol": GROUP_SYMBOLS[number % len(GROUP_SYMBOLS)], "size": 10},
            customdata=[row["row"] for row in own],
            hovertemplate="<b>%{customdata}</b><br>%{x:.3f} GMACs: AP %{y:.4f}<extra></extra>",
        )
    figure.update_xaxes(title=axis)
    figure.update_yaxes(title="mask AP")
    figure.update_layout(legend=_LEGEND, showlegend=True)
    return figure


def ablation_bars(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """Mask AP of every row as bars, the first row on top, and beside them the paper's AP as points.

    Args:
        rows: with ``row``, ``segm_ap`` with its bounds and ``paper_AP``; a row without figures says so.
    """
    shown = list(reversed(rows))
    names = [row["row"] for row in shown]
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, column_widths=[0.6, 0.4], horizontal_spacing=0.04,
        subplot_titles=["here", "the paper, on COCO"],
    )  # fmt: skip
    up = [0 if row["segm_ap_high"] is None else row["segm_ap_high"] - row["segm_ap"] for row in shown]
    down = [0 if row["segm_ap_low"] is None else row["segm_ap"] - row["segm_ap_low"] for row in shown]
    figure.add_bar(
        x=[row["segm_ap"] for row in shown],
        y=names,
        orientation="h",
        marker={"color": "rgba(59, 130, 246, 0.45)", "line": {"color": theme.INK, "width": 1}},
        error_x={"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.5,
                 "color": theme.INK},
        hovertemplate="%{y}: AP %{x:.4f}<extra></extra>",
        row=1,
        col=1,
    )  # fmt: skip
    figure.add_scatter(
        x=[row["paper_AP"] for row in shown],
        y=names,
        mode="markers",
        marker={"symbol": "diamond", "size": 10, "color": "#EA580C"},
        hovertemplate="%{y}: the paper's AP %{x:.3f}<extra></extra>",
        row=1,
        col=2,
    )
    for row in shown:
        if row["segm_ap"] is None:
            figure.add_annotation(x=0, y=row["row"], text="no weights given", showarrow=False, xanchor="left", xshift=6)
    figure.update_layout(template=theme.TEMPLATE, height=140 + 26 * len(rows), showlegend=False)
    figure.update_xaxes(title="mask AP", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title="mask AP", tickformat=".2f", dtick=0.01, row=1, col=2)
    return theme.dress(figure)
