"""Figures in a notebook that change in place, fill their place, and leave the keys to the controls beside them."""

from __future__ import annotations

import anywidget
import plotly.graph_objects as go

_SCRIPT = """
function render({ el }) {
  el.style.display = "none";
  const fit = (box) => {
    for (const plot of box.querySelectorAll(".js-plotly-plot")) {
      const drawn = plot.querySelector(".main-svg");
      if (drawn && plot.clientWidth && Math.abs(drawn.clientWidth - plot.clientWidth) > 1) {
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


def living(drawn: go.Figure) -> go.FigureWidget:
    """The figure as a widget whose traces can be changed in place; put it in a box with :class:`PageManners`.

    Within one ``batch_update`` set the same properties of every trace that is touched: plotly takes what only another
    trace was given as a wish to unset it.
    """
    widget = go.FigureWidget(drawn)
    widget._config = {**widget._config, "responsive": True, "displaylogo": False}
    return widget
