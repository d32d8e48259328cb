"""Why an instance of a one-stage model looks as it does, drawn: cell, neighbours, their masks and what came out.

Everything is in pixels of the picture that was given. A grid of G × G cells covers the padded frame, so cell (i, j) is
centred on ((i + ½) · H / G, (j + ½) · W / G) with (H, W) of the frame.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from dynamask.models.solo.config import NEIGHBOURS
from dynamask.models.solo.explain import CellView
from dynamask.viz.charts import figure, panel_figure
from dynamask.viz.overlay import UInt8Array, encode_jpeg
from dynamask.viz.style import hex_to_rgb

CELL_COLOUR, NEIGHBOUR_COLOUR, MOVED_COLOUR = "#FFB000", "#7FE7FF", "#FF5FA2"
"""Of the cell, of its neighbours, and of the places where representations are taken."""
LOGIT_SCALE, PROBABILITY_SCALE = "RdBu_r", "Cividis"
"""Plotly's colour scales of representations (red inside, white undecided, blue outside) and of the mask."""

_CORNERS = ("top right", "bottom right", "bottom left", "top left")
_SIDES = {-1: ("top", "left"), 0: ("", ""), 1: ("bottom", "right")}
_MOVED = 0.05
"""Cells from which on a neighbour counts as moved."""
MOST_LOGIT = 10.0
"""Colours end there: a probability within 0.00005 of 0 or 1 is as sure as it needs to be."""
TILE_SIDE = 240
"""Least longer side of a panel drawn as a picture, in pixels."""
_LARGEST = 1600
"""Longer side of the picture inside a figure, in pixels."""

Crop = tuple[int, int, int, int]  # rows and columns of a map: top, bottom, left, right; ends exclusive


def place_names(view: CellView) -> list[str]:
    """Where each of the S representations lies: "top", "centre", …; "cell" where there is one alone."""
    if view.neighbours == "corners":
        return list(_CORNERS)[: len(view.base)]
    if len(view.base) <= 1:
        return ["cell"] * len(view.base)
    steps = NEIGHBOURS[str(view.neighbours)]
    return [" ".join(filter(None, (_SIDES[y][0], _SIDES[x][1]))) or "centre" for y, x in steps]


def moved(view: CellView) -> list[bool]:
    """Which of the S neighbours the model moved, by at least a twentieth of a cell."""
    return ((view.positions - view.base).abs().amax(1) >= _MOVED).tolist() if len(view.base) else []


def position_text(position: Sequence[float]) -> str:
    """(row, column), whole numbers without digits behind the point."""
    return "({}, {})".format(*(f"{value:.1f}".removesuffix(".0") for value in position))


def centres(view: CellView, positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Positions (S, 2) (row, column) on the grid of representations → (S, 2) (x, y) in pixels of the picture."""
    spots = (np.asarray(positions, dtype=np.float64).reshape(-1, 2) + 0.5) * (np.array(view.frame) / view.mask_grid)
    return spots[:, ::-1]


def cell_box(view: CellView) -> tuple[float, float, float, float]:
    """The classification cell, xyxy in pixels of the picture."""
    height, width = (side / view.grid for side in view.frame)
    return view.column * width, view.row * height, (view.column + 1) * width, (view.row + 1) * height


def grid_lines(size: tuple[int, int], frame: tuple[float, float], grid: int) -> tuple[list[float], list[float]]:
    """Inner lines of a grid over a padded frame as far as they lie in the picture: x of the upright, y of the others.

    Args:
        size: (H, W) of the picture in pixels.
        frame: (H, W) of the padded picture in the same pixels.
        grid: cells along each side.
    """
    across, down = (
        [side * i / grid for i in range(1, grid) if side * i / grid < limit]
        for side, limit in ((frame[1], size[1]), (frame[0], size[0]))
    )
    return across, down


def object_crop(view: CellView, margin: float = 0.35, size: tuple[int, int] | None = None) -> Crop:
    """The part of the maps (h, w) around the mask's largest piece, or around the cell where the mask is empty.

    Args:
        margin: on every side, as a share of the object's longer side.
        size: (H, W) of the picture in pixels, to leave out what lies in the padding alone.
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
    """Where a crop of the maps lies, xyxy in pixels of the picture."""
    height, width = view.frame[0] / view.mask.shape[0], view.frame[1] / view.mask.shape[1]
    return crop[2] * width, crop[0] * height, crop[3] * width, crop[1] * height


def logit_limit(view: CellView, crop: Crop) -> float:
    """Up to which logit, in size, the colours of all representations of a view reach: from 1 to ``MOST_LOGIT``."""
    part = view.representations[:, crop[0] : crop[1], crop[2] : crop[3]].abs().flatten()
    return float(np.clip(np.quantile(part.numpy(), 0.98), 1.0, MOST_LOGIT)) if len(part) else 1.0


def sampled_colours(scale: str, count: int) -> list[str]:
    """`count` colours (sRGB hex) from one end of a plotly colour scale to the other."""
    shades = sample_colorscale(scale, [i / (count - 1) for i in range(count)], colortype="tuple")
    return ["#" + "".join(f"{round(255 * part):02x}" for part in shade) for shade in shades]


def tile_pictures(view: CellView, crop: Crop, side: int = TILE_SIDE) -> list[UInt8Array]:
    """The panels of :func:`representations_figure` as pictures (h, w, 3) uint8 RGB: S representations, then the mask.

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
    """Level, cell and neighbours of an instance in plain English."""
    text = (
        f"Level {view.level + 1} of 5 (stride {view.stride}, a grid of {view.grid} × {view.grid} cells) because of the "
        f"object's size; cell (row {view.row}, column {view.column}) because the model sees its centre of mass there. "
    )
    count, places = len(view.positions), ", ".join(position_text(p) for p in view.positions.tolist())
    if view.neighbours is None:
        return text + "Its mask is the representation of this one cell: nothing is aggregated."
    if count == 0:
        return text + "Its mask comes from the context feature alone: no representation enters."
    if count == 1:
        return text + f"Its mask is made of the one representation at {places} and what the network adds."
    where = f" of the coarser grid of {view.mask_grid} × {view.mask_grid}" if view.mask_grid != view.grid else ""
    shifts = sum(moved(view))
    learned = f"; {'all' if shifts == count else shifts} of them moved by the model" if shifts else ""
    return text + f"Its mask is aggregated from {count} representations at (row, column) {places}{where}{learned}."


def _picture_source(pixels: UInt8Array) -> str:
    """A picture for a figure as `data:` text, thinned out where it is very large."""
    step = max(1, -(-max(pixels.shape[:2]) // _LARGEST))
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(pixels[::step, ::step])).decode("ascii")


def _polyline(segments: Iterator[tuple[float, float, float, float]]) -> dict[str, list[float | None]]:
    """Lines from (x, y) to (x, y) as the x and y of one plotly trace."""
    x: list[float | None] = []
    y: list[float | None] = []
    for x0, y0, x1, y1 in segments:
        x += [x0, x1, None]
        y += [y0, y1, None]
    return {"x": x, "y": y}


def _grid_trace(size: tuple[int, int], view: CellView, grid: int, name: str, line: dict[str, object]) -> go.Scatter:
    """The lines of a grid over the picture."""
    across, down = grid_lines(size, view.frame, grid)
    upright = [(x, 0.0, x, float(size[0])) for x in across]
    level = [(0.0, y, float(size[1]), y) for y in down]
    return go.Scatter(**_polyline(iter(upright + level)), mode="lines", line=line, name=name, hoverinfo="skip")


def _squares(view: CellView, positions: npt.ArrayLike) -> Iterator[tuple[float, float, float, float]]:
    """The sides of cells of the grid of representations around positions (S, 2)."""
    height, width = (side / view.mask_grid / 2 for side in view.frame)
    for x, y in dict.fromkeys(map(tuple, centres(view, positions).tolist())):
        x0, y0, x1, y1 = x - width, y - height, x + width, y + height
        yield from ((x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0))


def cell_figure(pixels: UInt8Array, view: CellView) -> go.Figure:
    """The picture under its level's grid, with the cell, the neighbours, where they were moved, and the mask's outline.

    Args:
        pixels: (H, W, 3) uint8 RGB, the picture that the view is of.
        view: of one instance.
    """
    size = pixels.shape[0], pixels.shape[1]
    drawn = figure(height=min(620, max(260, round(760 * size[0] / size[1]) + 60)))
    drawn.add_layout_image(
        source=_picture_source(pixels), xref="x", yref="y", x=0, y=0, sizex=size[1], sizey=size[0], sizing="stretch",
        layer="below",
    )  # fmt: skip
    fine = {"color": "rgba(255, 255, 255, 0.42)", "width": 1}
    drawn.add_trace(_grid_trace(size, view, view.grid, f"grid {view.grid} × {view.grid}", fine))
    if view.mask_grid != view.grid:
        coarse = {"color": "rgba(255, 255, 255, 0.85)", "width": 1, "dash": "dot"}
        name = f"grid of representations {view.mask_grid} × {view.mask_grid}"
        drawn.add_trace(_grid_trace(size, view, view.mask_grid, name, coarse))
    drawn.add_trace(_outline(view, (0, view.mask.shape[0], 0, view.mask.shape[1]), "#FFFFFF", "the mask's outline"))
    aggregated = view.neighbours is not None and len(view.base) > 0
    if aggregated:
        drawn.add_scatter(
            **_polyline(_squares(view, view.base)), mode="lines", line={"color": NEIGHBOUR_COLOUR, "width": 2.5},
            name="neighbours", hoverinfo="skip",
        )  # fmt: skip
    x0, y0, x1, y1 = cell_box(view)
    drawn.add_scatter(
        x=[x0, x1, x1, x0, x0], y=[y0, y0, y1, y1, y0], mode="lines", fill="toself",
        fillcolor="rgba(255, 176, 0, 0.45)", line={"color": CELL_COLOUR, "width": 3},
        name=f"the cell ({view.row}, {view.column})", hoverinfo="name",
    )  # fmt: skip
    if aggregated:
        _add_positions(drawn, view)
    drawn.update_xaxes(range=[0, size[1]], visible=False, constrain="domain")
    drawn.update_yaxes(range=[size[0], 0], visible=False, scaleanchor="x", constrain="domain")
    legend = {"orientation": "h", "x": 0, "y": -0.02, "yanchor": "top", "bgcolor": "#14181F", "font_color": "#FFFFFF"}
    drawn.update_layout(legend=legend, margin={"l": 0, "r": 0, "t": 8, "b": 8})
    return drawn


def _outline(view: CellView, crop: Crop, colour: str, name: str) -> go.Contour:
    """Where the mask's probability is a half."""
    z = view.mask[crop[0] : crop[1], crop[2] : crop[3]].numpy()
    return _contour(view, crop, z, 0.5, colour, name)


def _contour(view: CellView, crop: Crop, z: npt.NDArray[np.float32], at: float, colour: str, name: str) -> go.Contour:
    """One line around the part of a map that is above a value."""
    (x0, y0, _, _), (dy, dx) = crop_box(view, crop), (f / m for f, m in zip(view.frame, view.mask.shape))
    return go.Contour(
        z=z, x0=x0 + dx / 2, dx=dx, y0=y0 + dy / 2, dy=dy,
        contours={"start": at, "end": at, "size": 1, "coloring": "none"}, line={"color": colour, "width": 2},
        showscale=False, hoverinfo="skip", name=name, showlegend=name != "",
    )  # fmt: skip


def _add_positions(drawn: go.Figure, view: CellView) -> None:
    """The places of the representations as dots, and arrows where the model moved them."""
    names = [f"{name} {position_text(p)}" for name, p in zip(place_names(view), view.positions.tolist())]
    start, end, shifted = centres(view, view.base), centres(view, view.positions), moved(view)
    drawn.add_scatter(
        x=end[:, 0], y=end[:, 1], mode="markers", text=names, hoverinfo="text",
        name="moved to" if any(shifted) else "representations",
        marker={"color": MOVED_COLOUR, "size": 9, "line": {"color": "#FFFFFF", "width": 1.5}},
    )  # fmt: skip
    for (x0, y0), (x1, y1), shift in zip(start.tolist(), end.tolist(), shifted):
        if shift:
            drawn.add_annotation(
                x=x1, y=y1, ax=x0, ay=y0, xref="x", yref="y", axref="x", ayref="y", text="", showarrow=True,
                arrowcolor=MOVED_COLOUR, arrowwidth=2, arrowhead=2, arrowsize=1,
            )  # fmt: skip


def representations_figure(view: CellView, crop: Crop | None = None) -> go.Figure:
    """Small multiples: each representation alone as logits, then the mask that came out as probability.

    All have the same crop, the same scale and, but for the last, the same colours; a line shows where each is
    undecided.

    Args:
        view: of one instance.
        crop: of the maps, see :func:`object_crop`, which is taken where none is given.
    """
    crop = object_crop(view) if crop is None else crop
    part = (slice(crop[0], crop[1]), slice(crop[2], crop[3]))
    titles = [
        f"{name} {position_text(place)}" for name, place in zip(place_names(view), view.positions.tolist())
    ] + ["the mask"]  # fmt: skip
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    (x0, y0, x1, y1), limit = crop_box(view, crop), logit_limit(view, crop)
    side = 210 * min(1.4, max(0.5, (y1 - y0) / (x1 - x0)))
    height = round(rows * (side + 34) + 70)
    drawn = panel_figure(titles, height, columns, horizontal_spacing=0.03, vertical_spacing=0.28 / (rows + 1))
    dx, dy = (x1 - x0) / (crop[3] - crop[2]), (y1 - y0) / (crop[1] - crop[0])
    place = {"x0": x0 + dx / 2, "dx": dx, "y0": y0 + dy / 2, "dy": dy}
    for i, title in enumerate(titles):
        last = i == len(titles) - 1
        z = (view.mask if last else view.representations[i])[part].numpy()
        row, column = i // columns + 1, i % columns + 1
        heat = go.Heatmap(
            z=z, **place, coloraxis="coloraxis2" if last else "coloraxis", name=title, hovertemplate="%{z:.2f}"
        )
        drawn.add_trace(heat, row=row, col=column)
        line = _contour(view, crop, z, 0.5 if last else 0.0, "#FFFFFF" if last else "#111111", "")
        drawn.add_trace(line, row=row, col=column)
        anchor = drawn.data[-1].xaxis or "x"
        drawn.update_xaxes(range=[x0, x1], visible=False, constrain="domain", row=row, col=column)
        drawn.update_yaxes(range=[y1, y0], visible=False, scaleanchor=anchor, constrain="domain", row=row, col=column)
    drawn.update_layout(
        margin={"l": 4, "r": 4, "t": 34, "b": 4},
        coloraxis={"colorscale": LOGIT_SCALE, "cmin": -limit, "cmax": limit, "colorbar": _bar("logit", 0.0)},
        coloraxis2={"colorscale": PROBABILITY_SCALE, "cmin": 0, "cmax": 1, "colorbar": _bar("probability", 0.52)},
    )
    return drawn


def _bar(title: str, start: float) -> dict[str, object]:
    """A low colour bar under the figure."""
    return {
        "orientation": "h", "x": start, "xanchor": "left", "len": 0.46, "thickness": 10, "y": -0.02, "yanchor": "top",
        "title": {"text": title, "side": "bottom", "font": {"size": 12}}, "nticks": 5,
        "tickfont": {"size": 11}, "outlinewidth": 0,
    }  # fmt: skip
