"""Plotly figures about chosen mask sizes and their cost.

Only bars, lines and annotations, which every plotly.js of the last years draws. MACs are multiply-accumulates (1 MAC =
2 FLOPs), shown as GMACs per instance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from dynamask.structures import MASK_SIZES
from dynamask.viz.overlay import SIZE_COLOURS

SIZE_PATTERNS: dict[int, str] = {14: ".", 28: "/", 56: "", 112: "x"}
"""Fill pattern of each mask size in plotly's notation, so that bars differ without colour."""

_LAYOUT = {
    "template": "plotly_white",
    "margin": {"l": 8, "r": 8, "t": 40, "b": 8},
    "font": {"size": 13},
    "uniformtext": {"minsize": 10, "mode": "hide"},
}


def _counts(mask_size: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Instances by mask size, (4,) int64; ValueError for a size that is none of the four."""
    sizes = np.asarray(mask_size, dtype=np.int64).reshape(-1)
    counts = (sizes[:, None] == np.array(MASK_SIZES)).sum(axis=0)  # (R, 4) -> (4,)
    if counts.sum() != len(sizes):
        raise ValueError(f"mask sizes {sorted(set(sizes.tolist()) - set(MASK_SIZES))} are none of {MASK_SIZES}")
    return counts


def _marker(size: int) -> dict[str, object]:
    """Colour, pattern and border of a mask size's bar."""
    line = {"color": "#333333", "width": 1}
    return {"color": SIZE_COLOURS[size], "line": line, "pattern": {"shape": SIZE_PATTERNS[size]}}


def size_shares(mask_size: npt.ArrayLike) -> go.Figure:
    """Bars of how many instances got each mask size.

    Args:
        mask_size: (R,) int, each one of 14, 28, 56, 112; R may be 0.

    Raises:
        ValueError: a size is none of the four.
    """
    counts = _counts(mask_size)
    total = int(counts.sum())
    figure = go.Figure()
    for size, count in zip(MASK_SIZES, counts.tolist()):
        share = f"{count} ({count / total:.0%})" if total else "0"
        figure.add_bar(
            x=[f"{size}×{size}"],
            y=[count],
            text=[share],
            textposition="outside",
            name=str(size),
            marker=_marker(size),
            hovertemplate="%{x}: %{text}<extra></extra>",
        )
    figure.update_layout(title=f"Chosen mask sizes of {total} instance{'' if total == 1 else 's'}", **_LAYOUT)
    figure.update_layout(showlegend=False, height=320)
    figure.update_xaxes(title="mask size, pixels")
    figure.update_yaxes(title="instances", rangemode="tozero", range=[0, max(1, int(counts.max(initial=0))) * 1.15])
    return figure


def macs_against_budget(
    macs: npt.ArrayLike, macs_per_instance: Sequence[int], budget: float | None = None
) -> go.Figure:
    """The mean cost of the instances as a bar, the budget as a line, each fixed size as a tick for comparison.

    Args:
        macs: (R,) MACs of each instance; R may be 0 (then the bar is empty).
        macs_per_instance: 4 MACs, an instance's cost at each mask size.
        budget: mean GMACs per instance that may be spent, or None where there is no budget.

    Raises:
        ValueError: macs_per_instance does not hold one figure per mask size.
    """
    if len(macs_per_instance) != len(MASK_SIZES):
        raise ValueError(f"macs_per_instance must hold {len(MASK_SIZES)} figures, not {len(macs_per_instance)}")
    spent = np.asarray(macs, dtype=np.float64).reshape(-1) / 1e9
    mean = float(spent.mean()) if len(spent) else 0.0
    ticks = [value / 1e9 for value in macs_per_instance]
    figure = go.Figure()
    figure.add_bar(
        x=[mean],
        y=[""],
        orientation="h",
        width=[0.5],
        name="mean",
        marker={"color": "#6B7280", "line": {"color": "#333333", "width": 1}},
        hovertemplate="mean %{x:.4g} GMACs per instance<extra></extra>",
    )
    for size, tick in zip(MASK_SIZES, ticks):
        figure.add_vline(x=tick, line={"color": SIZE_COLOURS[size], "width": 3})
    if budget is not None:
        figure.add_vline(x=budget, line={"color": "#111111", "width": 2, "dash": "dash"})
        label = f"budget {budget:.3g}"
        figure.add_annotation(x=budget, y=1, yref="paper", yanchor="bottom", text=label, showarrow=False)
    title = f"Mean {mean:.3g} GMACs per instance" if len(spent) else "No instance"
    figure.update_layout(title=title, showlegend=False, height=220, **_LAYOUT)
    upper = max([*ticks, mean, budget or 0.0]) * 1.08
    names = [f"all {size}<br>{tick:.3g}" for size, tick in zip(MASK_SIZES, ticks)]
    figure.update_xaxes(range=[0, upper], tickvals=ticks, ticktext=names)
    return figure


def class_distribution(
    labels: npt.ArrayLike, mask_size: npt.ArrayLike, class_names: Sequence[str], most: int = 80
) -> go.Figure:
    """Shares of the mask sizes for every class, as stacked bars, the class with the finest masks on top.

    Args:
        labels: (R,) int, contiguous, 0 is the background.
        mask_size: (R,) int, each one of 14, 28, 56, 112.
        class_names: names by label, index 0 being the background.
        most: at most this many classes, those with the most instances.

    Raises:
        ValueError: the two arrays differ in length, a label has no name, or a size is none of the four.
    """
    label_array = np.asarray(labels, dtype=np.int64).reshape(-1)
    sizes = np.asarray(mask_size, dtype=np.int64).reshape(-1)
    if len(label_array) != len(sizes):
        raise ValueError(f"{len(label_array)} labels do not fit {len(sizes)} mask sizes")
    if len(label_array) and not 0 <= label_array.min() <= label_array.max() < len(class_names):
        raise ValueError(f"labels must lie in 0-{len(class_names) - 1}")
    present, totals = np.unique(label_array, return_counts=True)
    present = present[np.argsort(-totals, kind="stable")][:most]
    rows = [(class_names[label], _counts(sizes[label_array == label])) for label in present.tolist()]
    rows.sort(key=lambda row: float(np.dot(row[1], MASK_SIZES) / row[1].sum()))
    figure = go.Figure()
    for k, size in enumerate(MASK_SIZES):
        figure.add_bar(
            x=[float(counts[k] / counts.sum()) for _, counts in rows],
            y=[name for name, _ in rows],
            customdata=[int(counts[k]) for _, counts in rows],
            orientation="h",
            name=f"{size}×{size}",
            marker=_marker(size),
            hovertemplate=f"%{{y}}: %{{x:.0%}} at {size} (%{{customdata}})<extra></extra>",
        )
    figure.update_layout(title="Mask sizes by class", barmode="stack", height=max(240, 90 + 22 * len(rows)), **_LAYOUT)
    figure.update_xaxes(title="share of the instances", tickformat=".0%", range=[0, 1])
    return figure
