"""Plotly violins: how a figure of every instance spreads at each mask size."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamask.structures import MASK_SIZES
from dynamask.viz.overlay import SIZE_COLOURS


def size_violins(panels: dict[str, np.ndarray], columns: int = 2) -> go.Figure:
    """One panel for each figure, one violin for each mask size.

    Args:
        panels: by title, values (N, 4) of N instances at the four sizes.
        columns: panels side by side.
    """
    rows = -(-len(panels) // columns)
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=list(panels), horizontal_spacing=0.09, vertical_spacing=0.14
    )
    for place, values in enumerate(panels.values()):
        for k, size in enumerate(MASK_SIZES):
            figure.add_violin(
                x=[f"{size}×{size}"] * len(values),
                y=np.round(values[:, k], 4).tolist(),
                name=f"{size}×{size}",
                box={"visible": True},
                points=False,
                meanline={"visible": True},
                spanmode="hard",
                line={"color": "#333333", "width": 1},
                fillcolor=SIZE_COLOURS[size],
                showlegend=False,
                row=place // columns + 1,
                col=place % columns + 1,
            )
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(
        template="plotly_white", font={"size": 13}, height=330 * rows, margin={"l": 8, "r": 8, "t": 40, "b": 8}
    )
    return figure
