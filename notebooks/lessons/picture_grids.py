"""Arrays as pictures in Plotly figures: grids of crops, masks and maps, and sliders that need no kernel."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from dynamask.viz import charts
from dynamask.viz.style import hex_to_rgb

KEPT, MISSED, ADDED = "#8A94A3", "#E4572E", "#2D9CDB"
"""Colours of a mask's pixels against the truth: in both, in the truth alone, in the mask alone."""
LEGEND = (
    f"<span style='color:{KEPT}'>■ kept</span>  <span style='color:{MISSED}'>■ missed</span>  "
    f"<span style='color:{ADDED}'>■ added</span>"
)
"""Key of the three colours as HTML text of a figure."""
_SHADES = ("#10204B", "#25508C", "#2F8F9D", "#8CCB7E", "#FDF6B0")


def data_uri(picture: np.ndarray, zoom: int = 1) -> str:
    """Encode an (H, W), (H, W, 3) or (H, W, 4) uint8 picture as a PNG data URI, with pixels repeated ``zoom`` times."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if zoom > 1:
        image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def image_trace(picture: np.ndarray, zoom: int = 1, side: float = 1.0, **trace: object) -> go.Image:
    """Return a picture as a trace whose corner is at (0, 0) and whose pixels have this side in axis units."""
    step = side / zoom
    place = {"x0": step / 2, "y0": step / 2, "dx": step, "dy": step}
    return go.Image(source=data_uri(picture, zoom), hoverinfo="skip", **place, **trace)


def fit_axes(drawn: go.Figure, size: tuple[float, float], row: int | None = None, column: int | None = None) -> None:
    """Hide the axes of a panel and fit them to a picture of (height, width), in its proportions."""
    panel = {} if row is None else {"row": row, "col": column}
    anchor = "x" if row is None else drawn.get_subplot(row, column).xaxis.plotly_name.replace("xaxis", "x")
    drawn.update_xaxes(visible=False, range=[0, size[1]], constrain="domain", **panel)
    drawn.update_yaxes(visible=False, range=[size[0], 0], scaleanchor=anchor, constrain="domain", **panel)


def error_picture(truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Colour the pixels of a mask (H, W) bool against the truth (H, W) bool.

    Returns:
        (H, W, 4) uint8: pixels in both masks grey, missed ones red, added ones blue, all others transparent.
    """
    picture = np.zeros((*truth.shape, 4), dtype=np.uint8)
    for colour, where in ((KEPT, truth & mask), (MISSED, truth & ~mask), (ADDED, mask & ~truth)):
        picture[where] = (*hex_to_rgb(colour), 255)
    return picture


def shade(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Map (H, W) float values to an (H, W, 3) uint8 picture, dark blue for ``low`` to pale yellow for ``high``.

    The limits default to the smallest and the largest value; a constant map is dark throughout.
    """
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    share = np.clip((np.asarray(values, dtype=np.float64) - low) / max(high - low, 1e-12), 0, 1)
    steps = np.array([hex_to_rgb(colour) for colour in _SHADES], dtype=float)
    places = np.linspace(0, 1, len(steps))
    return np.stack([np.interp(share, places, steps[:, c]) for c in range(3)], axis=-1).astype(np.uint8)


def box_window(
    box: Sequence[float], size: tuple[int, int], margin: float = 0.06, padding: float = 0
) -> tuple[slice, slice]:
    """Return the rows and columns of a picture around a box.

    Args:
        box: xyxy in pixels.
        size: (H, W) of the picture.
        margin: added on every side, as a share of the box's longer side.
        padding: likewise, in pixels.
    """
    x0, y0, x1, y1 = box
    edge = margin * max(x1 - x0, y1 - y0) + padding
    rows = slice(int(max(0, y0 - edge)), int(min(size[0], np.ceil(y1 + edge))))
    return rows, slice(int(max(0, x0 - edge)), int(min(size[1], np.ceil(x1 + edge))))


def mask_window(mask: np.ndarray, padding: int = 10) -> tuple[slice, slice]:
    """Return the rows and columns around a non-empty mask (H, W) bool, with some pixels of padding."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return box_window(box, mask.shape, margin=0.0, padding=padding)


def picture_grid(
    pictures: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[Sequence[str]],
    title: str = "",
    cell: int = 190,
) -> go.Figure:
    """Show pictures in rows and columns, each with a title and in its own proportions.

    Args:
        pictures: rows of (H, W), (H, W, 3) or (H, W, 4) uint8 arrays of any size; None leaves a gap.
        titles: one for each picture.
        title: of the figure.
        cell: height of a row on the page in pixels.

    Raises:
        ValueError: there is no picture, or the numbers of titles and pictures differ.
    """
    rows, columns = len(pictures), max((len(row) for row in pictures), default=0)
    if not columns or [len(row) for row in pictures] != [len(row) for row in titles]:
        raise ValueError("give at least one picture, and one title for each")
    flat = [text for row in titles for text in (*row, *[""] * (columns - len(row)))]
    gap, top = min(0.3 / rows, 34 / (cell * rows)), 76 if title else 36
    drawn = charts.panel_figure(flat, top + cell * rows + 12, columns, horizontal_spacing=0.02, vertical_spacing=gap)
    drawn.update_xaxes(visible=False)
    drawn.update_yaxes(visible=False)
    for i, row in enumerate(pictures, start=1):
        for j, picture in enumerate(row, start=1):
            if picture is not None:
                zoom = max(1, round(cell / max(picture.shape[:2])))
                drawn.add_trace(image_trace(picture, zoom), row=i, col=j)
                fit_axes(drawn, picture.shape[:2], i, j)
    return drawn.update_layout(title=title, showlegend=False, margin={"l": 8, "r": 8, "t": top, "b": 8})


def with_slider(steps: dict[str, go.Figure], prefix: str = "", active: int = 0, axis_title: bool = False) -> go.Figure:
    """Combine figures into one with a slider that shows one of them; it needs no kernel.

    Args:
        steps: by label of the slider, figures of one layout with equally many traces; they are modified.
        prefix: text before the label of the current step.
        active: index of the first step shown.
        axis_title: leave room above the slider for the titles of x axes.

    Raises:
        ValueError: there is no step, or the figures differ in their number of traces.
    """
    figures = list(steps.values())
    counts = {len(one.data) for one in figures}
    if len(counts) != 1:
        raise ValueError("give at least one step, and figures with equally many traces")
    count, drawn = counts.pop(), go.Figure(layout=figures[active].layout)
    entries = []
    for i, (label, one) in enumerate(steps.items()):
        drawn.add_traces([trace.update(visible=i == active) for trace in one.data])
        visible = [i == j // count for j in range(count * len(figures))]
        annotations = one.to_plotly_json()["layout"].get("annotations", [])
        arguments = [{"visible": visible}, {"annotations": annotations}]
        entries.append({"label": label, "method": "update", "args": arguments})
    room = 120 if axis_title else 84
    slider = {
        "active": active,
        "steps": entries,
        "currentvalue": {"prefix": prefix, "font": {"size": 14}},
        "bgcolor": "#3B82F6",
        "activebgcolor": "#1D4ED8",
        "pad": {"t": 62 if axis_title else 18, "b": 6},
    }
    height, bottom = (drawn.layout.height or 360) + room, (drawn.layout.margin.b or 12) + room
    return drawn.update_layout(height=height, margin={"l": 44, "r": 44, "b": bottom}, sliders=[slider])
