"""Figures and pictures of one instance of a one-stage model: its cell, neighbours, their representations and the mask.

Coordinates are pixels of the input picture. A grid of G × G cells covers the padded frame, so that cell (i, j) is
centred on ((i + ½) · H / G, (j + ½) · W / G) with (H, W) of the frame.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from dynamask.config import NEIGHBOURS
from dynamask.models.solo.explain import CellView
from dynamask.viz.charts import figure
from dynamask.viz.overlay import UInt8Array, encode_jpeg
from dynamask.viz.style import hex_to_rgb, translucent

CELL_COLOUR, NEIGHBOUR_COLOUR, MOVED_COLOUR = "#FFB000", "#7FE7FF", "#FF5FA2"
"""Colours of the cell, of its neighbours, and of the positions at which representations are sampled."""
LOGIT_SCALE, PROBABILITY_SCALE = "RdBu_r", "Cividis"
"""Plotly colour scales of representations (red inside, white undecided, blue outside) and of the mask."""
MAX_LOGIT = 10.0
"""Upper end of the logit scale: a probability within 0.00005 of 0 or 1."""
TILE_SIDE = 240
"""Least longer side of a panel of :func:`tile_pictures` in pixels."""
_MAX_SIDE = 1600
"""Largest side of the picture inside a figure in pixels."""
_MIN_SHIFT = 0.05
"""Displacement in cells from which a neighbour counts as moved."""
_CORNERS = ("top right", "bottom right", "bottom left", "top left")
_SIDES = {-1: ("top", "left"), 0: ("", ""), 1: ("bottom", "right")}

Crop = tuple[int, int, int, int]  # rows and columns of a map: top, bottom, left, right; ends exclusive
Polyline = dict[str, list[float | None]]  # x and y of a Plotly trace


def place_names(view: CellView) -> list[str]:
    """Return names of the positions of the S representations: "top", "centre", …; "cell" if there is only one."""
    if view.neighbours == "corners":
        return list(_CORNERS)[: len(view.base)]
    if len(view.base) <= 1:
        return ["cell"] * len(view.base)
    steps = NEIGHBOURS[str(view.neighbours)]
    return [" ".join(filter(None, (_SIDES[y][0], _SIDES[x][1]))) or "centre" for y, x in steps]


def moved(view: CellView) -> list[bool]:
    """Return which of the S neighbours the model moved, by at least a twentieth of a cell."""
    return ((view.positions - view.base).abs().amax(1) >= _MIN_SHIFT).tolist() if len(view.base) else []


def position_text(position: Sequence[float]) -> str:
    """Format a position as (row, column), whole numbers without decimals."""
    return "({}, {})".format(*(f"{value:.1f}".removesuffix(".0") for value in position))


def centres(view: CellView, positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Convert positions (S, 2) (row, column) on the grid of representations to (S, 2) (x, y) in pixels."""
    spots = (np.asarray(positions, dtype=np.float64).reshape(-1, 2) + 0.5) * (np.array(view.frame) / view.mask_grid)
    return spots[:, ::-1]


def cell_box(view: CellView) -> tuple[float, float, float, float]:
    """Return the classification cell, xyxy in pixels of the picture."""
    height, width = (side / view.grid for side in view.frame)
    return view.column * width, view.row * height, (view.column + 1) * width, (view.row + 1) * height


def grid_lines(size: tuple[float, float], frame: tuple[float, float], grid: int) -> Polyline:
    """Return the inner lines of a grid over a padded frame, as far as they lie in the picture.

    Args:
        size: (H, W) of the picture in pixels.
        frame: (H, W) of the padded picture in the same pixels.
        grid: cells along each side.
    """
    (height, width), steps = size, range(1, grid)
    upright = [(x, 0.0, x, height) for x in (frame[1] * i / grid for i in steps) if x < width]
    level = [(0.0, y, width, y) for y in (frame[0] * i / grid for i in steps) if y < height]
    return _polyline([*upright, *level])


def object_crop(view: CellView, margin: float = 0.35, size: tuple[int, int] | None = None) -> Crop:
    """Return the part of the maps (h, w) around the largest component of the mask, or the cell if the mask is empty.

    Args:
        view: of one instance.
        margin: on every side, as a share of the object's longer side.
        size: (H, W) of the picture in pixels, to exclude the padding.
    """
    height, width = view.mask.shape
    _, pieces, facts, _ = cv2.connectedComponentsWithStats((view.mask.numpy() >= 0.5).astype(np.uint8))
    rows, columns = np.nonzero(pieces == 1 + int(facts[1:, cv2.CC_STAT_AREA].argmax())) if len(facts) > 1 else ([], [])
    if len(rows) == 0:
        x0, y0, x1, y1 = cell_box(view)
        scale = height / view.frame[0], width / view.frame[1]
        rows, columns = np.array([y0, y1 - 1e-6]) * scale[0], np.array([x0, x1 - 1e-6]) * scale[1]
    low, high = (np.floor([f(rows), f(columns)]).astype(int) for f in (np.min, np.max))
    more = max(2, round(margin * float((high - low).max() + 1)))
    used = view.frame if size is None else size
    limit = np.ceil(np.array(used) / view.frame * view.mask.shape - 1e-6).astype(int)
    high = np.minimum(high + 1 + more, limit)
    low = np.clip(low - more, 0, high - 1)
    return int(low[0]), int(high[0]), int(low[1]), int(high[1])


def crop_box(view: CellView, crop: Crop) -> tuple[float, float, float, float]:
    """Return the box of a crop of the maps, xyxy in pixels of the picture."""
    height, width = view.frame[0] / view.mask.shape[0], view.frame[1] / view.mask.shape[1]
    return crop[2] * width, crop[0] * height, crop[3] * width, crop[1] * height


def logit_limit(view: CellView, crop: Crop) -> float:
    """Return the end of the colour scale of all representations of a view, as a logit from 1 to ``MAX_LOGIT``."""
    part = view.representations[:, crop[0] : crop[1], crop[2] : crop[3]].abs().flatten()
    return float(np.clip(np.quantile(part.numpy(), 0.98), 1.0, MAX_LOGIT)) if len(part) else 1.0


def sampled_colours(scale: str, count: int) -> list[str]:
    """Return `count` colours (sRGB hex) from one end of a Plotly colour scale to the other."""
    shades = sample_colorscale(scale, [i / (count - 1) for i in range(count)], colortype="tuple")
    return ["#" + "".join(f"{round(255 * part):02x}" for part in shade) for shade in shades]


def tile_pictures(view: CellView, crop: Crop, side: int = TILE_SIDE) -> list[UInt8Array]:
    """Return pictures (h, w, 3) uint8 RGB of the S representations as logits and of the mask as probabilities.

    All have the same crop; all representations have the same colours, up to :func:`logit_limit`. A line marks logit 0
    and probability 0.5.

    Args:
        view: of one instance.
        crop: of the maps, see :func:`object_crop`.
        side: least longer side in pixels; every value of a map is a square of whole pixels.
    """
    part = (slice(crop[0], crop[1]), slice(crop[2], crop[3]))
    limit = logit_limit(view, crop)
    values = [(maps[part].numpy() / limit + 1) / 2 for maps in view.representations] + [view.mask[part].numpy()]
    factor = max(1, -(-side // max(values[0].shape)))
    size = values[0].shape[1] * factor, values[0].shape[0] * factor
    found = []
    for i, value in enumerate(values):
        last = i == len(values) - 1
        shades = [hex_to_rgb(colour) for colour in sampled_colours(PROBABILITY_SCALE if last else LOGIT_SCALE, 256)]
        codes = (value.clip(0, 1) * 255).round().astype(np.uint8)
        picture = np.array(shades, dtype=np.uint8)[cv2.resize(codes, size, interpolation=cv2.INTER_NEAREST)]
        inside = (cv2.resize(value, size, interpolation=cv2.INTER_LINEAR) >= 0.5).astype(np.uint8)
        line = inside - cv2.erode(inside, np.ones((3, 3), np.uint8), borderValue=1)
        picture[line > 0] = 255 if last else 17
        found.append(picture)
    return found


def cell_sentence(view: CellView) -> str:
    """Describe level, cell and neighbours of an instance."""
    text = (
        f"Level {view.level + 1} of 5 (stride {view.stride}, a grid of {view.grid} × {view.grid} cells) by the "
        f"object's size; cell (row {view.row}, column {view.column}) by its predicted centre of mass. "
    )
    count, places = len(view.positions), ", ".join(position_text(p) for p in view.positions.tolist())
    if view.neighbours is None:
        return text + "The mask is the representation of this cell; nothing is aggregated."
    if count == 0:
        return text + "The mask is predicted from the context feature alone."
    if count == 1:
        return text + f"The mask is aggregated from one representation at {places}."
    where = f" of the coarser grid of {view.mask_grid} × {view.mask_grid}" if view.mask_grid != view.grid else ""
    shifts = sum(moved(view))
    learned = f"; {'all' if shifts == count else shifts} of them moved by the model" if shifts else ""
    return text + f"The mask is aggregated from {count} representations at (row, column) {places}{where}{learned}."


def _polyline(segments: Sequence[tuple[float, float, float, float]]) -> Polyline:
    """Lines from (x, y) to (x, y) as one trace."""
    return {
        "x": [value for x0, _, x1, _ in segments for value in (x0, x1, None)],
        "y": [value for _, y0, _, y1 in segments for value in (y0, y1, None)],
    }


def _squares(view: CellView) -> Polyline:
    """The sides of the neighbours' cells on the grid of representations."""
    height, width = (side / view.mask_grid / 2 for side in view.frame)
    segments = []
    for x, y in dict.fromkeys(map(tuple, centres(view, view.base).tolist())):
        x0, y0, x1, y1 = x - width, y - height, x + width, y + height
        segments += [(x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0)]
    return _polyline(segments)


def cell_figure(pixels: UInt8Array, view: CellView) -> go.Figure:
    """Draw the picture with its level's grid, the cell, the neighbours, their displacements, and the mask's outline.

    Args:
        pixels: (H, W, 3) uint8 RGB, the picture of the view.
        view: of one instance.
    """
    size = pixels.shape[0], pixels.shape[1]
    step = max(1, -(-max(size) // _MAX_SIDE))
    source = "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(pixels[::step, ::step])).decode("ascii")
    drawn = figure(height=min(620, max(260, round(760 * size[0] / size[1]) + 60)))
    place = {"xref": "x", "yref": "y", "x": 0, "y": 0, "sizex": size[1], "sizey": size[0], "sizing": "stretch"}
    drawn.add_layout_image(source=source, layer="below", **place)
    lines = {"mode": "lines", "hoverinfo": "skip"}
    fine = {"color": "rgba(255, 255, 255, 0.42)", "width": 1}
    grid_name = f"grid {view.grid} × {view.grid}"
    drawn.add_scatter(**grid_lines(size, view.frame, view.grid), **lines, line=fine, name=grid_name)
    if view.mask_grid != view.grid:
        coarse = {"color": "rgba(255, 255, 255, 0.85)", "width": 1, "dash": "dot"}
        grid_name = f"grid of representations {view.mask_grid} × {view.mask_grid}"
        drawn.add_scatter(**grid_lines(size, view.frame, view.mask_grid), **lines, line=coarse, name=grid_name)
    drawn.add_trace(_outline(view))
    aggregated = view.neighbours is not None and len(view.base) > 0
    if aggregated:
        drawn.add_scatter(**_squares(view), **lines, line={"color": NEIGHBOUR_COLOUR, "width": 2.5}, name="neighbours")
    x0, y0, x1, y1 = cell_box(view)
    drawn.add_scatter(
        x=[x0, x1, x1, x0, x0],
        y=[y0, y0, y1, y1, y0],
        mode="lines",
        fill="toself",
        fillcolor=translucent(CELL_COLOUR, 0.45),
        line={"color": CELL_COLOUR, "width": 3},
        name=f"cell ({view.row}, {view.column})",
        hoverinfo="name",
    )
    if aggregated:
        _add_positions(drawn, view)
    drawn.update_xaxes(range=[0, size[1]], visible=False, constrain="domain")
    drawn.update_yaxes(range=[size[0], 0], visible=False, scaleanchor="x", constrain="domain")
    legend = {"orientation": "h", "x": 0, "y": -0.02, "yanchor": "top", "bgcolor": "#14181F", "font_color": "#FFFFFF"}
    return drawn.update_layout(legend=legend, margin={"l": 0, "r": 0, "t": 8, "b": 8})


def _outline(view: CellView) -> go.Contour:
    """The line at which the mask's probability is 0.5."""
    dy, dx = (side / cells for side, cells in zip(view.frame, view.mask.shape))
    return go.Contour(
        z=view.mask.numpy(),
        x0=dx / 2,
        dx=dx,
        y0=dy / 2,
        dy=dy,
        contours={"start": 0.5, "end": 0.5, "size": 1, "coloring": "none"},
        line={"color": "#FFFFFF", "width": 2},
        showscale=False,
        hoverinfo="skip",
        name="outline of the mask",
        showlegend=True,
    )


def _add_positions(drawn: go.Figure, view: CellView) -> None:
    """Add the positions of the representations as dots, with arrows where the model moved them."""
    names = [f"{name} {position_text(p)}" for name, p in zip(place_names(view), view.positions.tolist())]
    start, end, shifted = centres(view, view.base), centres(view, view.positions), moved(view)
    drawn.add_scatter(
        x=end[:, 0],
        y=end[:, 1],
        mode="markers",
        text=names,
        hoverinfo="text",
        name="moved to" if any(shifted) else "representations",
        marker={"color": MOVED_COLOUR, "size": 9, "line": {"color": "#FFFFFF", "width": 1.5}},
    )
    arrow = {"arrowcolor": MOVED_COLOUR, "arrowwidth": 2, "arrowhead": 2, "arrowsize": 1, "showarrow": True, "text": ""}
    axes = {"xref": "x", "yref": "y", "axref": "x", "ayref": "y"}
    for (x0, y0), (x1, y1), shift in zip(start.tolist(), end.tolist(), shifted):
        if shift:
            drawn.add_annotation(x=x1, y=y1, ax=x0, ay=y0, **axes, **arrow)
