"""Plotly figures of the one-stage tables: gains by IoU threshold, AP against MACs, bars of ablations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

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
    figure.update_xaxes(title=axis, rangemode="tozero")
    figure.update_yaxes(title="mask AP")
    figure.update_layout(legend=_LEGEND, showlegend=True)
    return figure


def ablation_bars(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """Mask AP of every row as bars, the first row on top, the paper's AP as open marks on an axis of its own.

    Args:
        rows: with ``row``, ``segm_ap`` with its bounds and ``paper_AP``; a row without figures has the mark alone.
    """
    shown = list(reversed(rows))
    figure = theme.figure("Ablations: mask AP", 150 + 26 * len(rows))
    names = [row["row"] for row in shown]
    up = [0 if row["segm_ap_high"] is None else row["segm_ap_high"] - row["segm_ap"] for row in shown]
    down = [0 if row["segm_ap_low"] is None else row["segm_ap"] - row["segm_ap_low"] for row in shown]
    figure.add_bar(
        x=[row["segm_ap"] for row in shown],
        y=names,
        orientation="h",
        name="here",
        marker={"color": theme.ACCENT, "line": {"color": theme.INK, "width": 1}},
        error_x={"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.2},
        hovertemplate="%{y}: AP %{x:.4f}<extra></extra>",
    )
    figure.add_scatter(
        x=[row["paper_AP"] for row in shown],
        y=names,
        xaxis="x2",
        mode="markers",
        name="the paper's, on COCO (upper axis)",
        marker={"symbol": "diamond-open", "size": 9, "color": "#EA580C", "line": {"width": 1.5}},
        hovertemplate="%{y}: the paper's AP %{x:.3f}<extra></extra>",
    )
    values = [row["paper_AP"] for row in rows if row["paper_AP"] is not None] or [0.3, 0.4]
    figure.update_layout(
        legend={**_LEGEND, "y": -0.1},
        margin={"t": 90},
        xaxis={"title": "mask AP here", "rangemode": "tozero"},
        xaxis2={
            "title": "the paper's AP",
            "overlaying": "x",
            "side": "top",
            "range": [min(values) - 0.005, max(values) + 0.005],
            "showgrid": False,
        },
        yaxis={"automargin": True},
    )
    return figure
