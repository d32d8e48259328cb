"""Why an instance got its mask size, drawn: what the switch believes, what each size costs, what each mask is like."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamask.structures import MASK_SIZES
from dynamask.viz import theme
from dynamask.viz.overlay import SIZE_COLOURS, UInt8Array, hex_to_rgb

NAMES = [f"{size}×{size}" for size in MASK_SIZES]
_TICKS = [str(size) for size in MASK_SIZES]
CROP_HEIGHT = 112
"""Of the crops, in pixels of the page: a cell of the finest mask is one pixel."""

_BARS: dict[str, Any] = {
    "color": [SIZE_COLOURS[size] for size in MASK_SIZES],
    "pattern": {"shape": [theme.SIZE_PATTERNS[size] for size in MASK_SIZES]},
    "line": {"color": theme.INK, "width": 1},
}


def choice_figure(gmacs: Sequence[float]) -> go.Figure:
    """Two panels of bars by mask size: the switch's probabilities (filled in later) and the cost.

    Args:
        gmacs: 4 GMACs of an instance at each size.
    """
    drawn = make_subplots(
        rows=1, cols=2, subplot_titles=["what the switch believes", "cost of a mask, GMACs"], horizontal_spacing=0.1
    )
    common = {"marker": _BARS, "textposition": "outside", "cliponaxis": False, "hoverinfo": "x+text"}
    drawn.add_bar(x=_TICKS, y=[0.0] * len(NAMES), text=[""] * len(NAMES), **common, row=1, col=1)
    drawn.add_bar(x=_TICKS, y=list(gmacs), text=[f"{value:.3g}" for value in gmacs], **common, row=1, col=2)
    drawn.update_xaxes(type="category", autotypenumbers="strict")
    drawn.update_yaxes(range=[0, 1.28], tickformat=".0%", tickvals=[0, 0.5, 1], row=1, col=1)
    drawn.update_yaxes(range=[0, max(gmacs) * 1.25], nticks=4, row=1, col=2)
    return _panels(drawn)


def totals_figure(gmacs: Sequence[float], instances: int) -> go.Figure:
    """Two panels: how many instances have each size, and their mean cost beside that of each fixed size.

    The counts and the mean are filled in later; shape 0 is the line of the budget, hidden at first.

    Args:
        gmacs: 4 GMACs of an instance at each size.
        instances: how many there are.
    """
    titles = ["instances of each size", "mean GMACs per instance"]
    drawn = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.1)
    common = {"textposition": "outside", "cliponaxis": False, "hoverinfo": "x+text"}
    drawn.add_bar(x=_TICKS, y=[0] * len(NAMES), text=[""] * len(NAMES), marker=_BARS, **common, row=1, col=1)
    mean = {"color": theme.ACCENT, "line": {"color": theme.INK, "width": 1}}
    drawn.add_bar(x=["now"], y=[0.0], text=[""], width=[0.5], marker=mean, **common, row=1, col=2)
    drawn.add_shape(
        type="line", y0=gmacs[0], y1=gmacs[0], x0=0, x1=1, xref="x2 domain", yref="y2", visible=False,
        line={"color": theme.INK, "width": 3, "dash": "dash"},
    )  # fmt: skip
    for size, value in zip(MASK_SIZES, gmacs):
        drawn.add_hline(y=value, line={"color": SIZE_COLOURS[size], "width": 3}, layer="below", row=1, col=2)
    drawn.update_xaxes(type="category", autotypenumbers="strict")
    drawn.update_yaxes(range=[0, max(1, instances) * 1.25], nticks=4, row=1, col=1)
    names = [f"all {size}" for size in MASK_SIZES]
    drawn.update_yaxes(range=[0, max(gmacs) * 1.2], tickvals=list(gmacs), ticktext=names, row=1, col=2)
    return _panels(drawn)


def _panels(drawn: go.Figure) -> go.Figure:
    """The look of a low figure with two panels."""
    drawn.update_layout(template=theme.TEMPLATE, showlegend=False, height=230, margin={"l": 8, "r": 8, "t": 32, "b": 8})
    drawn.update_annotations(font={"size": 13, "color": theme.INK})
    return drawn


def crop_jpegs(
    picture: UInt8Array, box: Sequence[float], masks: Sequence[npt.NDArray[np.float32]]
) -> list[bytes]:  # fmt: skip
    """The picture in a box with a mask's own cells over it, for every mask, as JPEG.

    Args:
        picture: (H, W, 3) uint8 RGB.
        box: xyxy in pixels of the picture.
        masks: one (S, S) in [0, 1] for each of ``MASK_SIZES``.
    """
    height, width = picture.shape[:2]
    x0, y0 = (int(np.clip(np.floor(v), 0, limit - 1)) for v, limit in zip(box[:2], (width, height)))
    x1, y1 = (int(np.clip(np.ceil(v), low + 1, limit)) for v, low, limit in zip(box[2:], (x0, y0), (width, height)))
    across = int(np.clip(round(CROP_HEIGHT * (x1 - x0) / (y1 - y0)), 40, 2 * CROP_HEIGHT))
    crop = cv2.resize(picture[y0:y1, x0:x1], (across, CROP_HEIGHT), interpolation=cv2.INTER_AREA)
    found = []
    for size, probs in zip(MASK_SIZES, masks):
        cells = cv2.resize(
            (np.asarray(probs) >= 0.5).astype(np.uint8), (across, CROP_HEIGHT), interpolation=cv2.INTER_NEAREST
        )
        colour = np.array(hex_to_rgb(SIZE_COLOURS[size]))
        shown = np.where(cells[..., None] > 0, crop * 0.35 + colour * 0.65, crop * 0.8).astype(np.uint8)
        found.append(jpeg(shown))
    return found


def jpeg(picture: UInt8Array, quality: int = 88) -> bytes:
    """An (H, W, 3) uint8 RGB picture as JPEG."""
    return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def crops_html(crops: Sequence[bytes], gmacs: Sequence[float], chosen: int, learned: int) -> str:
    """The crops side by side with size and cost; words and a frame say which is chosen and which the switch prefers."""
    cells = []
    for k, (name, data) in enumerate(zip(NAMES, crops)):
        words = [word for word, index in (("chosen", chosen), ("the switch's own", learned)) if k == index]
        frame = f"3px {'solid' if k == chosen else 'dotted'} {theme.INK if words else 'transparent'}"
        caption = f"<b>{name}</b><br>{gmacs[k]:.3g} GMACs" + (f"<br><b>{'<br>'.join(words)}</b>" if words else "")
        source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        alt = ", ".join([f"mask at {name}", *words])
        cells.append(
            f'<figure style="margin: 0; min-width: 130px; text-align: center; line-height: 1.3">'
            f'<img style="border: {frame}; padding: 2px" alt="{alt}" src="{source}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div style="display: flex; flex-wrap: wrap; gap: 8px">{"".join(cells)}</div>'


def choice_sentence(
    title: str, probs: Sequence[float], gmacs: Sequence[float], chosen: int, learned: int, kept: float, why: str
) -> str:
    """What an instance was given and why, as HTML.

    Args:
        title: names the instance.
        probs: 4 probabilities of the switch.
        gmacs: 4 GMACs of an instance at each size.
        chosen, learned: indices of the size that it has and of the one that the switch prefers.
        kept: IoU of the mask that it has with the one that the switch prefers.
        why: the policy in words, such as "under a mean of 0.05 GMACs".
    """
    text = f"<b>{escape(title)}</b>: the switch believes in {NAMES[learned]} ({probs[learned]:.0%})"
    if chosen == learned:
        return f"{text}, and {NAMES[chosen]} it gets, {escape(why)}: {gmacs[chosen]:.3g} GMACs."
    difference = gmacs[chosen] - gmacs[learned]
    more = "more" if difference > 0 else "less"
    return (
        f"{text}; {escape(why)} it gets {NAMES[chosen]} ({probs[chosen]:.0%}), {abs(difference):.3g} GMACs {more}. "
        f"The two masks overlap with an IoU of {kept:.2f}."
    )
