"""Static HTML of notebook widgets, for pages without a kernel.

:func:`install` is run in the kernel before the first cell of a notebook that is converted to a page. From then on every
displayed widget carries HTML of its current state.
"""

from __future__ import annotations

import base64
from html import escape
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go
import plotly.io as pio
from IPython import get_ipython

from dynamask.viz.widgets import PageSetup

CONFIG = {"displaylogo": False, "responsive": True}


def install() -> None:
    """Display widgets as HTML in this kernel, and figures as data."""
    pio.renderers.default = "plotly_mimetype"
    get_ipython().display_formatter.formatters["text/html"].for_type(widgets.Widget, page_of)


def figure_html(figure: go.Figure | dict[str, Any]) -> str:
    """Return a figure as an element of a page that includes plotly.js."""
    return pio.to_html(figure, include_plotlyjs=False, full_html=False, config=CONFIG)


def page_of(widget: widgets.Widget) -> str:
    """Return a widget and its children as one element of a page."""
    return f'<div class="static-widget">{html_of(widget)}</div>'


def html_of(widget: widgets.Widget) -> str:
    """Return a widget and its children as HTML."""
    if isinstance(widget, PageSetup):
        return ""
    if isinstance(widget, go.FigureWidget):  # its `layout` is plotly's
        return f'<div style="width: 100%; min-width: 0">{figure_html(go.Figure(widget))}</div>'
    layout = getattr(widget, "layout", None)
    if layout is not None and (layout.display == "none" or layout.visibility == "hidden"):
        return ""
    style = _style(layout)
    if isinstance(widget, widgets.Box):
        direction = "row" if isinstance(widget, widgets.HBox) else "column"
        grid = "display: grid" if isinstance(widget, widgets.GridBox) else f"display: flex; flex-direction: {direction}"
        return f'<div style="{grid}; gap: 4px; {style}">{"".join(html_of(child) for child in _children(widget))}</div>'
    return f'<div style="{style}">{_leaf(widget)}</div>'


def _children(box: widgets.Box) -> list[widgets.Widget]:
    """The visible children of a box; of tabs only the selected one."""
    if isinstance(box, widgets.Tab):
        return [box.children[box.selected_index or 0]] if box.children else []
    return list(box.children)


def _leaf(widget: widgets.Widget) -> str:
    """HTML of a widget without children."""
    if isinstance(widget, widgets.HTML | widgets.HTMLMath):
        return widget.value
    if isinstance(widget, widgets.Image) or hasattr(widget, "jpeg"):
        kind, data = (widget.format, widget.value) if isinstance(widget, widgets.Image) else ("jpeg", widget.jpeg)
        text = escape(getattr(widget, "alt", ""), quote=True)
        wide = "max-width" if isinstance(widget, widgets.Image) else "width"
        return f'<img alt="{text}" style="{wide}: 100%" src="data:image/{kind};base64,{_base64(data)}">'
    if isinstance(widget, widgets.Button):
        return f"<button disabled>{escape(widget.description)}</button>"
    if isinstance(widget, widgets.Output):
        return "".join(_output(output) for output in widget.outputs)
    name = f"<b>{escape(widget.description)}</b> " if getattr(widget, "description", "") else ""
    if hasattr(widget, "min") and hasattr(widget, "max"):
        low, high, value = widget.min, widget.max, widget.value
        place = f'min="{low}" max="{high}" step="any" value="{value}"'
        return f'<label>{name}<input type="range" disabled {place}> {_number(widget)}</label>'
    if hasattr(widget, "options"):
        return f"<label>{name}{_options(widget)}</label>"
    return f"<label>{name}{escape(str(getattr(widget, 'value', '')))}</label>"


def _options(widget: Any) -> str:
    """HTML of a choice: the list with the selected line, or the selected line alone."""
    chosen = escape(str(getattr(widget, "label", widget.value)))
    if not isinstance(widget, widgets.Select):
        return chosen
    labels = [escape(str(label)) for label in widget._options_labels]
    lines = [f"<option{' selected' if label == chosen else ''}>{label}</option>" for label in labels]
    return f'<select disabled size="{widget.rows or 8}" style="width: 100%">{"".join(lines)}</select>'


def _number(widget: Any) -> str:
    """The value as a slider prints it; sliders use formats that are the same in d3 and Python."""
    try:
        return format(widget.value, widget.readout_format)
    except (AttributeError, ValueError, TypeError):
        return f"{widget.value}"


def _output(output: dict[str, Any]) -> str:
    """HTML of one output of an Output widget."""
    if output["output_type"] == "stream":
        return f"<pre>{escape(output['text'])}</pre>"
    data = output.get("data", {})
    if "application/vnd.plotly.v1+json" in data:
        return figure_html(data["application/vnd.plotly.v1+json"])
    return data.get("text/html") or f"<pre>{escape(data.get('text/plain', ''))}</pre>"


def _style(layout: widgets.Layout | None) -> str:
    """CSS of a layout."""
    if layout is None:
        return ""
    names = [name for name in layout.trait_names(sync=True) if not name.startswith("_")]
    given = {name.replace("_", "-"): getattr(layout, name) for name in names if getattr(layout, name) is not None}
    return "; ".join(f"{name}: {value}" for name, value in given.items())


def _base64(data: bytes | memoryview) -> str:
    return base64.b64encode(bytes(data)).decode()
