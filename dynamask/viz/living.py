"""Figures in a notebook that change in place, fill their place, and leave the keys to the controls beside them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import anywidget
import plotly.graph_objects as go

_SCRIPT = """
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


class PageManners(anywidget.AnyWidget):
    """Shows nothing. In the box that holds it, figures fill their place, and keys belong to the focused control.

    Without it a FigureWidget keeps the width that it was born with, and JupyterLab takes the arrow keys of a focused
    slider for its own, to fold headings and change cells.
    """

    _esm = _SCRIPT


class LivingFigure(go.FigureWidget):
    """A FigureWidget that a reloaded page gets as it stands, and that fits its place beside :class:`PageManners`."""

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """The state for the page; a whole one (no key) is brought up to date first, which plotly leaves out."""
        if key is None and self.comm is not None:
            self._trait_values["_widget_data"] = deepcopy(self._data)
            self._trait_values["_widget_layout"] = deepcopy(self._layout_obj._props)
        return super().get_state(key, drop_defaults)


def living(drawn: go.Figure) -> LivingFigure:
    """The figure as a widget whose traces can be changed in place; put it in a box with :class:`PageManners`.

    An axis of words that look like numbers (``"14"``) needs ``autotypenumbers="strict"``: at every change of the data
    plotly guesses its type anew.
    """
    widget = LivingFigure(drawn)
    widget._config = {**widget._config, "responsive": True, "displayModeBar": False}
    return widget
