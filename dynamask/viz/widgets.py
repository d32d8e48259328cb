"""Notebook widgets: an image that can be clicked, figures that change in place, and the set-up of their page."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import anywidget
import plotly.graph_objects as go
import traitlets

_IMAGE_SCRIPT = """
function render({ model, el }) {
  const image = document.createElement("img");
  image.className = "dynamask-picture";
  image.tabIndex = 0;
  el.append(image);
  let asked = 0;
  const draw = async () => {
    const number = ++asked;
    const url = URL.createObjectURL(new Blob([model.get("jpeg")], { type: "image/jpeg" }));
    const next = new Image();
    next.src = url;
    try { await next.decode(); } catch { URL.revokeObjectURL(url); return; }
    if (number !== asked) { URL.revokeObjectURL(url); return; }
    if (image.src) URL.revokeObjectURL(image.src);
    image.src = url;
  };
  const name = () => { image.alt = model.get("alt"); };
  image.addEventListener("click", (event) => {
    const place = image.getBoundingClientRect();
    const x = (event.clientX - place.left) / place.width, y = (event.clientY - place.top) / place.height;
    model.send({ x, y });
  });
  image.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    model.send({ step });
  });
  model.on("change:jpeg", draw);
  model.on("change:alt", name);
  draw();
  name();
  return () => { model.off("change:jpeg", draw); model.off("change:alt", name); };
}
export default { render };
"""
_IMAGE_STYLE = """
.dynamask-picture { display: block; width: 100%; height: auto; cursor: pointer; }
.dynamask-picture:focus-visible { outline: 3px solid #3b82f6; outline-offset: 2px; }
"""
_PAGE_SCRIPT = """
function render({ el }) {
  el.style.display = "none";
  const fit = (box) => {
    for (const plot of box.querySelectorAll(".js-plotly-plot")) {
      const drawn = plot.querySelector(".main-svg");
      const wrong = drawn && plot.clientWidth && Math.abs(drawn.clientWidth - plot.clientWidth) > 1;
      if (wrong && plot._context?.responsive) {
        window.dispatchEvent(new Event("resize"));
        return;
      }
    }
  };
  let observer, timer;
  const begin = (left) => {
    const box = el.parentElement?.closest(".widget-box");
    if (!box) {
      if (left) timer = setTimeout(begin, 100, left - 1);
      return;
    }
    box.dataset.lmSuppressShortcuts = "true";
    observer = new ResizeObserver(() => fit(box));
    observer.observe(box);
    const look = (more) => { fit(box); if (more) timer = setTimeout(look, 250, more - 1); };
    look(60);
  };
  begin(100);
  return () => { observer?.disconnect(); clearTimeout(timer); };
}
export default { render };
"""


class ClickableImage(anywidget.AnyWidget):
    """JPEG image that reports clicks, and arrow keys while it has the focus.

    Args:
        jpeg: the encoded image; setting it redraws.
        alt: alternative text.
        on_click: called with (x, y), each in 0–1 of width and height.
        on_step: called with 1 or −1 for an arrow key.
    """

    _esm = _IMAGE_SCRIPT
    _css = _IMAGE_STYLE
    jpeg = traitlets.Bytes(b"").tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        jpeg: bytes = b"",
        alt: str = "",
        on_click: Callable[[float, float], None] = lambda x, y: None,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        super().__init__(jpeg=jpeg, alt=alt)
        self._on_click, self._on_step = on_click, on_step
        self.on_msg(self._receive)

    def _receive(self, _: object, content: dict[str, Any], __: object) -> None:
        """Handle a message of the page."""
        if "step" in content:
            self._on_step(int(content["step"]))
        elif "x" in content and "y" in content:
            self._on_click(float(content["x"]), float(content["y"]))


class PageSetup(anywidget.AnyWidget):
    """Invisible widget that resizes the figures of its box and gives keyboard events to the focused control.

    Without it a FigureWidget keeps its first width, and JupyterLab interprets the arrow keys of a focused slider as
    commands that fold headings and move between cells.
    """

    _esm = _PAGE_SCRIPT


class LiveFigure(go.FigureWidget):
    """FigureWidget that is restored in its current state when the page is reloaded."""

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """Return the state for the page; Plotly itself does not update a whole state (no key)."""
        if key is None and self.comm is not None:
            self._trait_values["_widget_data"] = deepcopy(self._data)
            self._trait_values["_widget_layout"] = deepcopy(self._layout_obj._props)
        return super().get_state(key, drop_defaults)


def live_figure(drawn: go.Figure) -> LiveFigure:
    """Return a figure as a widget whose traces can be changed in place; put it in a box with :class:`PageSetup`.

    An axis whose categories look like numbers (``"14"``) needs ``autotypenumbers="strict"``, since Plotly guesses the
    type of the axis again whenever the data change.
    """
    widget = LiveFigure(drawn)
    widget._config = {**widget._config, "responsive": True, "displayModeBar": False}
    return widget
