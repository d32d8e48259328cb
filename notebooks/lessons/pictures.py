"""Arrays as pictures in plotly figures: grids of crops, masks and maps that read on white and on dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from dynamask.viz.style import INK, TEMPLATE, hex_to_rgb

KEPT, MISSED, ADDED = "#8A94A3", "#E4572E", "#2D9CDB"
"""Colours of a mask's pixels against the truth: in both, in the truth alone, in the mask alone."""
LEGEND = (
    f"<span style='color:{KEPT}'>■ kept</span>  <span style='color:{MISSED}'>■ missed</span>  "
    f"<span style='color:{ADDED}'>■ added</span>"
)
"""What the three colours mean, as text of a figure."""


def data_uri(picture: np.ndarray, zoom: int = 1) -> str:
    """A PNG data URI of an (H, W), (H, W, 3) or (H, W, 4) uint8 picture, its pixels repeated ``zoom`` times."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if zoom > 1:
        image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def error_picture(truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8: pixels in both masks grey, missed ones red, added ones blue, all others clear.

    Args:
        truth: (H, W) bool.
        mask: (H, W) bool.
    """
    picture = np.zeros((*truth.shape, 4), dtype=np.uint8)
    for colour, where in ((KEPT, truth & mask), (MISSED, truth & ~mask), (ADDED, mask & ~truth)):
        picture[where] = (*hex_to_rgb(colour), 255)
    return picture


def shade(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """(H, W) float as an (H, W, 3) uint8 picture, dark blue for ``low`` to pale yellow for ``high``.

    Without limits, the smallest and the largest value are used; a map of one value is dark throughout.
    """
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    share = np.clip((np.asarray(values, dtype=np.float64) - low) / max(high - low, 1e-12), 0, 1)
    steps = np.array([hex_to_rgb(c) for c in ("#10204B", "#25508C", "#2F8F9D", "#8CCB7E", "#FDF6B0")], dtype=float)
    place = np.linspace(0, 1, len(steps))
    return np.stack([np.interp(share, place, steps[:, c]) for c in range(3)], axis=-1).astype(np.uint8)


def picture_grid(
    pictures: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[Sequence[str]],
    title: str = "",
    cell: int = 190,
) -> go.Figure:
    """Pictures in rows and columns, each under its own title and in its own proportions.

    Args:
        pictures: rows of (H, W), (H, W, 3) or (H, W, 4) uint8 arrays of any size; None leaves a gap.
        titles: one text for each picture.
        title: of the figure.
        cell: height of a row in pixels of the screen.

    Raises:
        ValueError: there is no picture, or titles and pictures are not equally many.
    """
    rows, columns = len(pictures), max((len(row) for row in pictures), default=0)
    if not columns or [len(row) for row in pictures] != [len(row) for row in titles]:
        raise ValueError("give at least one picture, and one title for each")
    flat = [text for row in titles for text in (*row, *[""] * (columns - len(row)))]
    gap = min(0.3 / rows, 34 / (cell * rows))
    drawn = make_subplots(rows, columns, subplot_titles=flat, horizontal_spacing=0.02, vertical_spacing=gap)
    for i, row in enumerate(pictures, start=1):
        for j, picture in enumerate(row, start=1):
            drawn.update_xaxes(visible=False, constrain="domain", row=i, col=j)
            if picture is None:
                drawn.update_yaxes(visible=False, row=i, col=j)
                continue
            height, width = picture.shape[:2]
            zoom = max(1, round(cell / max(height, width)))
            drawn.add_trace(
                go.Image(source=data_uri(picture, zoom), dx=1 / zoom, dy=1 / zoom, x0=0, y0=0, hoverinfo="skip"),
                row=i, col=j,
            )  # fmt: skip
            axis = drawn.get_subplot(i, j).xaxis.plotly_name.replace("xaxis", "x")
            drawn.update_yaxes(visible=False, range=[height, 0], scaleanchor=axis, constrain="domain", row=i, col=j)
            drawn.update_xaxes(range=[0, width], row=i, col=j)
    drawn.update_annotations(font={"size": 12, "color": INK})
    top = 76 if title else 36
    drawn.update_layout(template=TEMPLATE, title=title, height=top + cell * rows + 12, showlegend=False)
    drawn.update_layout(margin={"l": 8, "r": 8, "t": top, "b": 8})
    return drawn


def with_slider(steps: dict[str, go.Figure], prefix: str = "", active: int = 0) -> go.Figure:
    """One figure with a slider that shows one of several; it needs no kernel.

    Args:
        steps: by the slider's label, figures of one layout and equally many traces (as :func:`picture_grid` makes
            them); they are used up.
        prefix: before the label of the step that is shown.
        active: index of the step to begin with.

    Raises:
        ValueError: there is no step, or the figures differ in their number of traces.
    """
    figures = list(steps.values())
    counts = {len(one.data) for one in figures}
    if len(counts) != 1:
        raise ValueError("give at least one step, and figures with equally many traces")
    count, drawn = counts.pop(), go.Figure(layout=figures[active].layout)
    for i, one in enumerate(figures):
        for trace in one.data:
            trace.visible = i == active
            drawn.add_trace(trace)
    entries = [
        {
            "label": label,
            "method": "update",
            "args": [
                {"visible": [i == j // count for j in range(count * len(figures))]},
                {"annotations": one.to_plotly_json()["layout"].get("annotations", [])},
            ],
        }
        for i, (label, one) in enumerate(steps.items())
    ]
    height, bottom = drawn.layout.height or 360, drawn.layout.margin.b or 12
    drawn.update_layout(
        height=height + 84,
        margin={"b": bottom + 84},
        sliders=[
            {
                "active": active,
                "steps": entries,
                "currentvalue": {"prefix": prefix, "font": {"color": INK, "size": 14}},
                "font": {"color": INK},
                "bgcolor": "#3B82F6",
                "activebgcolor": "#1D4ED8",
                "bordercolor": INK,
                "tickcolor": INK,
                "pad": {"t": 18, "b": 6},
            }
        ],
    )
    return drawn
