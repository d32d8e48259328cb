"""A picture in a notebook that is redrawn quickly and says where it was clicked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

_SCRIPT = """
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
_STYLE = """
.dynamask-picture { display: block; width: 100%; height: auto; cursor: pointer; }
.dynamask-picture:focus-visible { outline: 3px solid #3b82f6; outline-offset: 2px; }
"""


class ClickablePicture(anywidget.AnyWidget):
    """A JPEG that answers to clicks, and to the arrow keys while it has the focus.

    Args:
        jpeg: the encoded picture; setting it redraws.
        alt: what the picture shows, for those who do not see it.
        on_click: called with (x, y), each 0-1 of width and height.
        on_step: called with 1 or −1 for an arrow key.
    """

    _esm = _SCRIPT
    _css = _STYLE
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
        self._clicked, self._stepped = on_click, on_step
        self.on_msg(self._receive)

    def _receive(self, _: object, content: dict[str, Any], __: object) -> None:
        """A message of the page."""
        if "step" in content:
            self._stepped(int(content["step"]))
        elif "x" in content and "y" in content:
            self._clicked(float(content["x"]), float(content["y"]))
