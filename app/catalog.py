"""The weights a visitor can choose from, each loaded once, when it is first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dynamask.models.weights import list_bundled
from dynamask.structures import DynaMaskError

if TYPE_CHECKING:
    from dynamask.predict import Predictor

ABOUT = {
    "people": "in photographs",
    "shapes": "in drawn scenes",
    "objects": "anything, unnamed",
    "shapes-solov2": "drawn scenes, one-stage",
    "shapes-sodar": "drawn scenes, one-stage, neighbours aggregated",
    "shapes-sodar-mask": "drawn scenes, one-stage, coarser mask grid",
}
"""A few words on each bundled set of weights."""

AT_HOME = {"scene": "shapes", "photo": "people"}
"""The weights made for a kind of picture."""


class WeightsCatalog:
    """Named weights and their predictors.

    Args:
        load: weights (a bundled name or the path of a .safetensors file) → predictor.
        first: the weights that the page opens with.
        bundled: the bundled names that are offered beside it.

    Attributes:
        names: what the page offers; the opening weights first.
        first: name of the opening weights.
    """

    def __init__(self, load: Callable[[str], Predictor], first: str, bundled: list[str]) -> None:
        path = Path(first)
        self.first = path.stem if path.suffix == ".safetensors" else first
        self.names = [self.first, *(name for name in bundled if name != self.first)]
        self._sources = {**{name: name for name in self.names}, self.first: first}
        self._load, self._lock = load, threading.Lock()
        self._loaded: dict[str, Predictor] = {}

    def get(self, name: str) -> Predictor:
        """The predictor of weights on the shelf.

        Raises:
            DynaMaskError: no weights have this name, or they cannot be loaded.
        """
        if name not in self._sources:
            raise DynaMaskError(f"there are no weights {str(name)[:40]!r} here; choose one of {', '.join(self.names)}")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._load(self._sources[name])
            return self._loaded[name]

    def suited(self, kind: str, present: str) -> str:
        """The weights for a picture: the present ones, unless they were made for the other kind alone.

        Args:
            kind: "scene" or "photo".
            present: the weights in use.
        """
        other = AT_HOME["photo" if kind == "scene" else "scene"]
        return AT_HOME[kind] if present == other and AT_HOME[kind] in self.names else present

    def described(self) -> list[dict[str, str]]:
        """Name and a few words of each, for the page."""
        return [{"name": name, "about": ABOUT.get(name, "")} for name in self.names]


def open_catalog(first: str, device: str) -> WeightsCatalog:
    """The bundled weights and the ones the page opens with, on one device; the latter are loaded now.

    Raises:
        DynaMaskError: the first weights or the device cannot be used, or the weights are two-stage and have no switch
            to explore.
    """
    from dynamask.predict import load

    shelf = WeightsCatalog(lambda source: load(source, device=device), first, list(list_bundled()))
    opening = shelf.get(shelf.first)
    if opening.family != "one-stage":
        opening.check_switch("the page")
    return shelf
