"""Plotly charts of mask sizes, costs and qualities, all in the style of :mod:`dynamask.viz.style`.

MACs are multiply–accumulates (1 MAC = 2 FLOPs), shown in GMACs. Intervals are 95 % confidence intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamask.structures import MASK_SIZES, Interval
from dynamask.viz.style import (
    ACCENT,
    EDGE,
    INK,
    PAGE_INK,
    SIZE_COLOURS,
    SIZE_NAMES,
    SIZE_PATTERNS,
    TEMPLATE,
    LineStyle,
    series_bar,
    series_style,
    size_bar,
    translucent,
)

LEGEND_ABOVE = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
LEGEND_BELOW = {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "traceorder": "normal"}
IOU_THRESHOLDS = tuple(round(0.5 + step / 20, 2) for step in range(10))
"""COCO's thresholds, 0.5 to 0.95."""


def figure(title: str = "", height: int = 360, **layout: Any) -> go.Figure:
    """Return an empty figure with the common template; `layout` is passed to Plotly."""
    return go.Figure(layout={"template": TEMPLATE, "title": {"text": title}, "height": height, **layout})


def panel_figure(titles: Sequence[str], height: int = 360, columns: int = 0, **subplots: Any) -> go.Figure:
    """Return an empty figure of panels with the common template, filled row by row.

    Args:
        titles: one per panel.
        height: in pixels.
        columns: panels in a row; 0 puts all of them in one row.
        subplots: passed to :func:`plotly.subplots.make_subplots`.
    """
    columns = columns or max(1, len(titles))
    rows = max(1, -(-len(titles) // columns))
    options = {"horizontal_spacing": 0.09, **subplots}
    drawn = make_subplots(rows=rows, cols=columns, subplot_titles=titles, **options)
    drawn.update_annotations(font={"size": 13})
    return drawn.update_layout(template=TEMPLATE, height=height)


def page_html(drawn: go.Figure, plotlyjs: bool, div_id: str | None = None, page_title: str | None = None) -> str:
    """Return a figure as HTML for a white page, with dark text.

    Args:
        drawn: left unchanged.
        plotlyjs: include plotly.js, so that the page works without a network; needed once per page.
        div_id: of the element that holds the figure.
        page_title: return a whole page with this title instead of one element.
    """
    dark = go.Figure(drawn).update_layout(font_color=PAGE_INK)
    config, whole = {"responsive": True, "displaylogo": False}, page_title is not None
    html = dark.to_html(config=config, include_plotlyjs=plotlyjs, div_id=div_id, full_html=whole)
    return html.replace("<head>", f"<head><title>{page_title}</title>", 1) if whole else html


def error_bars(intervals: Sequence[Interval], **style: Any) -> dict[str, Any]:
    """Return Plotly error bars of intervals; an undefined bound (None) gives a bar of length 0."""
    up = [0.0 if one.mean is None or one.high is None else one.high - one.mean for one in intervals]
    down = [0.0 if one.mean is None or one.low is None else one.mean - one.low for one in intervals]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.5, **style}


# --- bars -----------------------------------------------------------------------------------------------------------


def bar_chart(
    series: Mapping[str, Mapping[str, float]],
    title: str = "",
    axis: str = "",
    stacked: bool = False,
    horizontal: bool = False,
    number_format: str = "",
    markers: Mapping[str, dict[str, Any]] | None = None,
    height: int | None = None,
) -> go.Figure:
    """Draw bars of several series by category, side by side or stacked.

    Args:
        series: by name, its value by category.
        title: of the figure.
        axis: title of the value axis.
        stacked: stack the series of a category instead of placing them side by side.
        horizontal: draw horizontal bars, the first category on top.
        number_format: format specification of the values, such as ".3g" or ".0%": for hover texts, and printed at
            bars that are not stacked. Percentages also set the axis.
        markers: Plotly markers by name of the series. Series named after a mask size (``SIZE_NAMES``) have its style.
        height: in pixels; by default 400, or as horizontal bars need.
    """
    categories = list(dict.fromkeys(category for values in series.values() for category in values))
    styles = {SIZE_NAMES[size]: size_bar(size) for size in MASK_SIZES} | dict(markers or {})
    height = height or (160 + 40 * len(categories) if horizontal else 400)
    drawn = figure(title, height, barmode="stack" if stacked else "group", legend=LEGEND_ABOVE, margin={"t": 76})
    along, across = ("x", "y") if horizontal else ("y", "x")
    for number, (name, values) in enumerate(series.items()):
        heights = [float(value) for value in values.values()]
        printed = bool(number_format) and not stacked
        drawn.add_bar(
            **{along: heights, across: list(values)},
            orientation="h" if horizontal else "v",
            name=name,
            marker=styles.get(name) or series_bar(number),
            text=[f"{value:{number_format}}" for value in heights] if printed else None,
            textposition="outside" if printed else None,
            textangle=0,
            cliponaxis=False,
            hovertemplate=f"%{{{across}}}<br>%{{fullData.name}}: %{{{along}:{number_format or '.4g'}}}<extra></extra>",
        )
    value_axis, category_axis = (drawn.layout.xaxis, drawn.layout.yaxis)[:: 1 if horizontal else -1]
    value_axis.update(title=axis, rangemode="tozero", tickformat=".0%" if number_format.endswith("%") else None)
    category_axis.update(type="category", categoryorder="array", categoryarray=categories)
    category_axis.autorange = "reversed" if horizontal else None
    return drawn


def size_share_bars(
    shares: Mapping[str, npt.ArrayLike], title: str = "", axis: str = "share of the instances"
) -> go.Figure:
    """Draw the shares of the four mask sizes as one stacked bar per row, the first row on top.

    Args:
        shares: by name of the row, (4,) in 0–1.
        title: of the figure.
        axis: title of the axis of shares.
    """
    rows = {name: np.asarray(values, dtype=np.float64).tolist() for name, values in shares.items()}
    series = {SIZE_NAMES[size]: {name: row[k] for name, row in rows.items()} for k, size in enumerate(MASK_SIZES)}
    drawn = bar_chart(series, title, axis, stacked=True, horizontal=True, number_format=".0%")
    return drawn.update_layout(xaxis_range=[0, 1.002], height=140 + 30 * len(rows))


def stacked_shares(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw the shares of the mask sizes, one bar per row; rows hold ``row`` and ``share_S`` for every size S."""
    shares = {row["row"]: [row[f"share_{size}"] for size in MASK_SIZES] for row in rows}
    return size_share_bars(shares, axis="share of the detections")


def class_distribution(classes: Sequence[str], mask_size: npt.ArrayLike) -> go.Figure:
    """Draw the shares of the mask sizes for every class, the class with the finest masks on top.

    Args:
        classes: name of the class of each of R instances.
        mask_size: (R,) int, each one of 14, 28, 56, 112.

    Raises:
        ValueError: the lengths differ, or a size is none of the four.
    """
    counts: dict[str, list[int]] = {}
    for name, size in zip(classes, np.asarray(mask_size).tolist(), strict=True):
        counts.setdefault(name, [0] * len(MASK_SIZES))[MASK_SIZES.index(size)] += 1
    shares = {name: np.array(row) / sum(row) for name, row in counts.items()}
    finest_first = sorted(shares, key=lambda name: float(np.dot(shares[name], MASK_SIZES)), reverse=True)
    return size_share_bars({name: shares[name] for name in finest_first}, "Mask sizes by class")


def ablation_bars(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """Draw the mask AP of every row as bars with intervals, the first row on top, and the paper's AP beside them.

    Args:
        rows: with ``row``, ``segm_ap`` with its bounds and ``paper_AP``; ``segm_ap`` may be None.
    """
    drawn = panel_figure(
        ["this implementation", "paper, on COCO"],
        height=140 + 26 * len(rows),
        shared_yaxes=True,
        column_widths=[0.6, 0.4],
        horizontal_spacing=0.04,
    )
    names, means = [row["row"] for row in rows], [row["segm_ap"] for row in rows]
    intervals = [Interval(row["segm_ap"], row["segm_ap_low"], row["segm_ap_high"]) for row in rows]
    drawn.add_bar(
        x=means,
        y=names,
        orientation="h",
        marker={"color": translucent(ACCENT, 0.45), "line": EDGE},
        error_x=error_bars(intervals, color=INK),
        hovertemplate="%{y}: AP %{x:.4f}<extra></extra>",
        row=1,
        col=1,
    )
    drawn.add_scatter(
        x=[row["paper_AP"] for row in rows],
        y=names,
        mode="markers",
        marker={"symbol": "diamond", "size": 10, "color": "#EA580C"},
        hovertemplate="%{y}: the paper's AP %{x:.3f}<extra></extra>",
        row=1,
        col=2,
    )
    for name, mean in zip(names, means, strict=True):
        if mean is None:
            drawn.add_annotation(x=0, y=name, text="no weights given", showarrow=False, xanchor="left", xshift=6)
    drawn.update_layout(showlegend=False)
    drawn.update_yaxes(autorange="reversed")
    drawn.update_xaxes(title="mask AP", rangemode="tozero", row=1, col=1)
    return drawn.update_xaxes(title="mask AP", tickformat=".2f", dtick=0.01, row=1, col=2)


def size_violins(panels: Mapping[str, np.ndarray], columns: int = 2) -> go.Figure:
    """Draw the distribution of a quantity over instances at each mask size, one panel per quantity.

    Args:
        panels: by title, values (N, 4) of N instances at the four sizes.
        columns: panels in a row.
    """
    rows = -(-len(panels) // columns)
    drawn = panel_figure(list(panels), 330 * rows, columns, vertical_spacing=0.14)
    for place, values in enumerate(panels.values()):
        for k, size in enumerate(MASK_SIZES):
            drawn.add_violin(
                x=[SIZE_NAMES[size]] * len(values),
                y=np.round(values[:, k], 4).tolist(),
                name=SIZE_NAMES[size],
                box={"visible": True},
                points=False,
                meanline={"visible": True},
                spanmode="hard",
                line=EDGE,
                fillcolor=SIZE_COLOURS[size],
                showlegend=False,
                row=place // columns + 1,
                col=place % columns + 1,
            )
    return drawn.update_yaxes(rangemode="tozero")


def add_size_bars(
    drawn: go.Figure,
    values: Sequence[float],
    texts: Sequence[str] = ("",) * 4,
    row: int = 1,
    col: int = 1,
    **trace: Any,
) -> None:
    """Add one bar per mask size, in a single trace, to a panel of the first row; `trace` is passed to Plotly."""
    patterns = {"shape": list(SIZE_PATTERNS.values())}
    drawn.add_bar(
        x=[str(size) for size in MASK_SIZES],
        y=list(values),
        text=list(texts),
        textposition="outside",
        cliponaxis=False,
        hoverinfo="x+text",
        marker={"color": list(SIZE_COLOURS.values()), "pattern": patterns, "line": EDGE},
        row=1,
        col=col,
        **trace,
    )
    drawn.update_xaxes(type="category", autotypenumbers="strict", row=1, col=col)


# --- curves ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """One line of a chart; a series of one point is drawn as a marker.

    Attributes:
        name: in the legend.
        x, y: coordinates; None where y is undefined.
        low, high: bounds of the interval of each point, None where undefined; empty where there are no intervals.
        style: of line and markers.
        labels: names of the points for hover texts; empty for the name of the series.
        interval: how the interval of a line is drawn, "bars", "band" or "hover" (in hover texts only).
        mode: Plotly mode of a line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    style: LineStyle = field(default_factory=lambda: series_style(0))
    labels: Sequence[str] = ()
    interval: str = "bars"
    mode: str = "lines+markers"


def numbered_series(
    x: Sequence[float], values: Mapping[str, npt.ArrayLike], mode: str = "lines+markers"
) -> list[Series]:
    """Return one series per entry of `values` (by name, one y for each x), in the numbered styles."""
    return [
        Series(name, x, np.asarray(y, dtype=np.float64).tolist(), style=series_style(number), mode=mode)
        for number, (name, y) in enumerate(values.items())
    ]


def curve_chart(
    panels: Mapping[str, Sequence[Series]],
    title: str = "",
    x_title: str = "",
    y_title: str = "",
    height: int = 460,
    zero_line: bool = False,
) -> go.Figure:
    """Draw series as lines or points with intervals, one panel per measure, with one legend.

    Args:
        panels: series by title of the panel. Series of the same name in several panels share one legend entry.
        title: of the figure.
        x_title: of every x axis.
        y_title: of the first y axis.
        height: in pixels.
        zero_line: draw a line at 0, for differences.
    """
    drawn = panel_figure(list(panels), height)
    in_legend: set[str] = set()
    for column, lines in enumerate(panels.values(), start=1):
        for line in lines:
            for trace in _traces(line, x_title):
                legend = trace.showlegend is not False and line.name not in in_legend
                drawn.add_trace(trace.update(showlegend=legend, legendgroup=line.name), row=1, col=column)
            in_legend.add(line.name)
        if zero_line:
            drawn.add_hline(y=0, line=EDGE, row=1, col=column)
    drawn.update_xaxes(title=x_title)
    drawn.update_yaxes(title=y_title, row=1, col=1)
    top = 40 + 24 * bool(title) + 16 * any(panels)
    return drawn.update_layout(title=title, legend=LEGEND_BELOW, margin={"t": top, "b": 96}, showlegend=True)


def _traces(line: Series, x_title: str) -> list[go.Scatter]:
    """The line or marker of a series, after its band if it has one."""
    style = line.style
    low, high = line.low or [None] * len(line.y), line.high or [None] * len(line.y)
    known = [i for i, bounds in enumerate(zip(line.y, low, high, strict=True)) if None not in bounds]
    hover = [f"<b>{name}</b>" for name in line.labels or [line.name] * len(line.y)]
    for i in known:
        hover[i] += f"<br>95 % interval {low[i]:.4f} to {high[i]:.4f}"
    detailed, single = bool(known or line.labels), len(line.y) == 1
    main = go.Scatter(
        x=list(line.x),
        y=list(line.y),
        name=line.name,
        mode="markers" if single else line.mode,
        line={"color": style.colour, "dash": style.dash, "width": style.width},
        marker={"color": style.colour, "symbol": style.symbol, "size": 12 if single else 8, "line": EDGE},
        customdata=hover if detailed else None,
        hovertemplate=f"{'%{customdata}' if detailed else '<b>%{fullData.name}</b>'}<br>{x_title or 'x'} %{{x:.4g}}: "
        "%{y:.4f}<extra></extra>",
    )
    if known and (single or line.interval == "bars"):
        intervals = [Interval(*bounds) for bounds in zip(line.y, low, high, strict=True)]
        main.error_y = error_bars(intervals, color=translucent(style.colour, 0.6), width=3)
    if not known or single or line.interval != "band":
        return [main]
    band = go.Scatter(
        x=[line.x[i] for i in (*known, *known[::-1])],
        y=[*(high[i] for i in known), *(low[i] for i in known[::-1])],
        fill="toself",
        fillcolor=translucent(style.colour, 0.16),
        line={"width": 0},
        hoverinfo="skip",
        mode="lines",
        showlegend=False,
    )
    return [band, main]


def quality_against_cost(
    rows: Sequence[Mapping[str, Any]], measures: Mapping[str, str], cost: str, title: str = "", x_title: str = ""
) -> go.Figure:
    """Draw quality against cost, one point per row and one panel per measure; the rows of one group form a line.

    Args:
        rows: with ``row`` (its label), ``group``, the cost, and every measure with its bounds (``_low``, ``_high``).
            Rows without a cost are left out.
        measures: titles of the panels by key of the measure.
        cost: key of the cost in MACs.
        title: of the figure.
        x_title: of the cost axis, in GMACs.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row[cost] is not None:
            groups.setdefault(row["group"], []).append(row)
    panels: dict[str, list[Series]] = {panel: [] for panel in measures.values()}
    for measure, panel in measures.items():
        for number, (name, members) in enumerate(groups.items()):
            points = sorted((row for row in members if row[measure] is not None), key=lambda row: row[cost])
            if points:
                columns = ([row[key] for row in points] for key in (measure, f"{measure}_low", f"{measure}_high"))
                labels = [row["row"] for row in points]
                legend = name if len(members) > 1 else labels[0]
                gmacs = [row[cost] / 1e9 for row in points]
                panels[panel].append(Series(legend, gmacs, *columns, series_style(number), labels))
    return curve_chart(panels, title, x_title)


def cost_quality(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw mask and boundary AP against mean GMACs per instance.

    Args:
        rows: as of :func:`quality_against_cost`, with ``mean_macs`` and ``weights`` instead of a group. Rows whose
            labels agree up to the first comma form a group; rows without a comma are grouped by their weights.
    """
    grouped = []
    for row in rows:
        label, comma, _ = row["row"].partition(",")
        grouped.append({**row, "group": label if comma else row["weights"]})
    measures = {"segm_ap": "mask AP", "boundary_ap": "boundary AP"}
    return quality_against_cost(grouped, measures, "mean_macs", x_title="mean GMACs per instance")


def ap_against_macs(rows: Sequence[Mapping[str, Any]], title: str, x_title: str = "GMACs per picture") -> go.Figure:
    """Draw mask AP against the mean MACs of a picture; rows as of :func:`quality_against_cost`, with ``total_macs``."""
    return quality_against_cost(rows, {"segm_ap": "mask AP"}, "total_macs", title, x_title)


def gains_by_iou(
    gains: Sequence[Mapping[str, Any]], paper: Sequence[tuple[str, Sequence[float], Sequence[float]]] = ()
) -> go.Figure:
    """Draw the gain of one model over another at every IoU threshold, in points of AP, with intervals.

    Args:
        gains: with ``row`` (its label) and ``by_iou``, an interval (mean, low, high) in 0–1 per ``IOU_THRESHOLDS``.
        paper: the paper's own gains, dashed: (name, IoU thresholds, gains in 0–1).
    """
    series = []
    for number, gain in enumerate(gains):
        found = [
            [None if interval[key] is None else 100 * interval[key] for interval in gain["by_iou"]]
            for key in ("mean", "low", "high")
        ]
        series.append(Series(gain["row"], IOU_THRESHOLDS, *found, style=series_style(number)))
    for number, (name, ious, values) in enumerate(paper):
        style = LineStyle(INK, dash=("dash", "dot")[number % 2], symbol=("circle-open", "square-open")[number % 2])
        series.append(Series(name, ious, [100 * value for value in values], style=style))
    title, gain_axis = "Gain in mask AP by IoU threshold", "gain, points of AP"
    drawn = curve_chart({"": series}, title, "IoU threshold", gain_axis, zero_line=True)
    return drawn.update_xaxes(dtick=0.1, tickformat=".1f")


def add_size_areas(drawn: go.Figure, x: Sequence[float], shares: npt.ArrayLike, **panel: Any) -> None:
    """Add the shares (T, 4) of the mask sizes over x (T,) to a figure as stacked areas.

    Args:
        panel: passed to Plotly's ``add_scatter``, such as ``row``, ``col``, ``line`` and ``showlegend``.
    """
    columns = np.asarray(shares, dtype=np.float64)
    group = f"sizes {panel.get('row', 1)} {panel.get('col', 1)}"
    for k, size in enumerate(MASK_SIZES):
        bar = size_bar(size)
        pattern = {**bar["pattern"], "bgcolor": bar["color"], "fgcolor": "#FFFFFF", "size": 7, "solidity": 0.2}
        drawn.add_scatter(
            **{
                "x": list(x),
                "y": columns[:, k],
                "stackgroup": group,
                "name": SIZE_NAMES[size],
                "legendgroup": str(size),
                "mode": "lines",
                "line": EDGE,
                "fillcolor": bar["color"],
                "fillpattern": pattern,
                **panel,
            }
        )
