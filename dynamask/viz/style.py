"""Colours, line styles and symbols of mask sizes, classes, pyramid levels and series, for all figures and pictures.

Figures must be legible on white and on dark pages: backgrounds are transparent, and text and lines use one grey that
contrasts with both. Nothing is told apart by colour alone. This module does not import plotly; its dictionaries are
plotly's own arguments.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

from dynamask.structures import MASK_SIZES

# --- colours --------------------------------------------------------------------------------------------------------


def hex_to_rgb(colour: str) -> tuple[int, int, int]:
    """Convert `"#RRGGBB"` to (red, green, blue), each in 0–255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def translucent(colour: str, opacity: float) -> str:
    """CSS `rgba(…)` of a colour `"#RRGGBB"` with an opacity in 0–1."""
    red, green, blue = hex_to_rgb(colour)
    return f"rgba({red}, {green}, {blue}, {opacity:g})"


def luminance(colour: str) -> float:
    """WCAG relative luminance of `"#RRGGBB"`, 0 (black) to 1 (white)."""
    shares = (part / 255 for part in hex_to_rgb(colour))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    """WCAG contrast ratio of two colours `"#RRGGBB"`, 1 to 21."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def contrast_colour(colour: str) -> tuple[int, int, int]:
    """Black or white as (red, green, blue), whichever has the higher contrast to `colour` (`"#RRGGBB"`)."""
    return (0, 0, 0) if contrast(colour, "#000000") > contrast(colour, "#FFFFFF") else (255, 255, 255)


# --- pages ----------------------------------------------------------------------------------------------------------

LIGHT_PAGE, DARK_PAGE = "#FFFFFF", "#111111"
"""Page colours that figures are designed for: JupyterLab's light and dark themes."""
INK = "#7A7A7A"
"""Text and lines of figures: contrast at least 4.2 to both pages (no grey exceeds 4.34 on both)."""
PAGE_INK = "#1F2937"
"""Text of figures on pages that are always white."""
FAINT = translucent(INK, 0.28)
"""Grid lines."""
ACCENT = "#3B82F6"
"""A line or bar that stands for no mask size, such as a budget: contrast at least 3.6 to both pages."""
EDGE: dict[str, Any] = {"color": INK, "width": 1}
"""Plotly outline of bars and markers, so that yellow shows on white and crimson on black."""

_AXIS: dict[str, Any] = {
    "gridcolor": FAINT,
    "zerolinecolor": FAINT,
    "linecolor": INK,
    "tickcolor": INK,
    "title": {"font": {"size": 13}},
    "automargin": True,
}
TEMPLATE: dict[str, Any] = {
    "layout": {
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "font": {"color": INK, "size": 13},  # titles, ticks, legends and annotations inherit it
        "title": {"font": {"size": 15}, "x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12}},
        "margin": {"l": 12, "r": 12, "t": 48, "b": 12},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"bgcolor": "rgba(0, 0, 0, 0)"},
        "annotationdefaults": {"arrowcolor": INK},
        "shapedefaults": {"line": {"color": INK}},
        "coloraxis": {"colorbar": {"outlinewidth": 0}},
        "hoverlabel": {"bgcolor": PAGE_INK, "font": {"color": "#FFFFFF"}, "namelength": -1},
        "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": INK, "activecolor": ACCENT},
    }
}
"""Plotly template of every figure."""

# --- mask sizes -----------------------------------------------------------------------------------------------------

SIZE_COLOURS: dict[int, str] = {14: "#FEE90C", 28: "#66C2A5", 56: "#1F5FBF", 112: "#8E0B2B"}
"""Colour of each mask size: distinguishable with colour-blindness, and darker means finer."""
SIZE_NAMES: dict[int, str] = {size: f"{size}×{size}" for size in MASK_SIZES}
SIZE_DASHES: dict[int, str] = {14: "dot", 28: "dash", 56: "solid", 112: "longdashdot"}
"""Plotly dash of a line."""
SIZE_SYMBOLS: dict[int, str] = {14: "circle", 28: "square", 56: "diamond", 112: "star"}
"""Plotly symbol of a marker."""
SIZE_PATTERNS: dict[int, str] = {14: ".", 28: "/", 56: "", 112: "x"}
"""Plotly fill pattern of a bar."""


@dataclass(frozen=True)
class Outline:
    """Outline of a mask on a picture; lengths in pixels of a picture whose short side is at most 480 px.

    Attributes:
        width: of the line, which lies inside the mask.
        dash: length of the marks in the size's colour.
        gap: length of the black or white gaps between marks; 0 for a solid line.
        core: draw a thin black or white line along the middle, which makes it a double line.
        name: for legends.
    """

    width: int
    dash: int = 1
    gap: int = 0
    core: bool = False
    name: str = "plain outline"


SIZE_OUTLINES: dict[int, Outline] = {
    14: Outline(width=3, dash=5, gap=5, name="dotted outline"),
    28: Outline(width=3, dash=13, gap=6, name="dashed outline"),
    56: Outline(width=3),
    112: Outline(width=5, core=True, name="double outline"),
}
"""Outline of each mask size."""


def size_bar(size: int) -> dict[str, Any]:
    """Plotly marker of a bar for a mask size: colour, pattern and edge."""
    return {"color": SIZE_COLOURS[size], "pattern": {"shape": SIZE_PATTERNS[size]}, "line": EDGE}


def size_dot(size: int, width: float = 10) -> dict[str, Any]:
    """Plotly marker of a point for a mask size: colour, symbol and edge; `width` in pixels."""
    edge = {"color": INK, "width": 1.2}
    return {"color": SIZE_COLOURS[size], "symbol": SIZE_SYMBOLS[size], "size": width, "line": edge}


def size_line(size: int, width: float = 2.5) -> dict[str, Any]:
    """Plotly line for a mask size: colour and dash. Draw its points with :func:`size_dot` (mode lines+markers)."""
    return {"color": SIZE_COLOURS[size], "dash": SIZE_DASHES[size], "width": width}


# --- other series ---------------------------------------------------------------------------------------------------

SERIES_COLOURS = ("#2563EB", "#EA580C", "#0D9488", "#DB2777", "#8B5CF6", "#B45309", "#64748B", "#65A30D")
"""Colours of series that stand for no mask size, in order; contrast at least 3 to both pages."""
SERIES_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "hexagon")
SERIES_PATTERNS = ("", "/", ".", "x", "-", "|", "\\", "+")
SERIES_DASHES = ("solid", "dash", "dot", "dashdot")
LEVEL_COLOURS = ("#32084A", "#A8123E", "#2C6BE0", "#5CC8A8", "#FEE90C")
"""Colour of each pyramid level of a one-stage model, fine to coarse: as for mask sizes, darker means finer."""
LEVEL_OUTLINES = (
    Outline(width=5, core=True, name="double outline"),
    Outline(width=3),
    Outline(width=3, dash=22, gap=6, name="long dashes"),
    Outline(width=3, dash=11, gap=6, name="short dashes"),
    Outline(width=3, dash=4, gap=5, name="dotted outline"),
)
"""Outline of each pyramid level, fine to coarse."""


def series_colour(number: int) -> str:
    """Colour of the series with this number; colours repeat after ``len(SERIES_COLOURS)``."""
    return SERIES_COLOURS[number % len(SERIES_COLOURS)]


def series_bar(number: int) -> dict[str, Any]:
    """Plotly marker of a bar of the series with this number."""
    pattern = SERIES_PATTERNS[number % len(SERIES_PATTERNS)]
    return {"color": series_colour(number), "pattern": {"shape": pattern}, "line": EDGE}


@dataclass(frozen=True)
class LineStyle:
    """Line of a series and the markers on it.

    Attributes:
        colour: sRGB hex.
        dash: Plotly dash of the line.
        symbol: Plotly symbol of the markers.
        width: of the line in pixels.
    """

    colour: str
    dash: str = "solid"
    symbol: str = "circle"
    width: float = 2


def series_style(number: int) -> LineStyle:
    """Line style of the series with this number."""
    dash, symbol = SERIES_DASHES[number % len(SERIES_DASHES)], SERIES_SYMBOLS[number % len(SERIES_SYMBOLS)]
    return LineStyle(series_colour(number), dash, symbol)


POLICY_STYLES: dict[str, LineStyle] = {
    "learned": LineStyle("#DB2777", symbol="hexagram"),
    "budget": LineStyle("#DB2777", width=3),
    "size": LineStyle("#0891B2", symbol="diamond"),
    "random": LineStyle(INK, dash="dot", symbol="x"),
    "mix": LineStyle("#B45309", dash="dash", symbol="square"),
    "class table": LineStyle("#65A30D", dash="dashdot", symbol="cross"),
    "size table": LineStyle("#0891B2", dash="dot", symbol="diamond-open"),
    "class-size table": LineStyle("#65A30D", symbol="star"),
    "oracle": LineStyle("#8B5CF6", dash="dashdot", symbol="triangle-up"),
    "noise-aware oracle": LineStyle("#EA580C", symbol="triangle-down"),
    **{f"fixed:{size}": LineStyle(SIZE_COLOURS[size], SIZE_DASHES[size], SIZE_SYMBOLS[size]) for size in MASK_SIZES},
}
"""Line style of each resolution policy; fixed sizes have the style of their size."""


def class_colour(label: int) -> str:
    """Colour of a class label; neighbouring labels get hues far apart."""
    golden_ratio = 0.618033988749895
    red, green, blue = colorsys.hsv_to_rgb(label * golden_ratio % 1.0, 0.75, 0.85)
    return f"#{round(red * 255):02X}{round(green * 255):02X}{round(blue * 255):02X}"
