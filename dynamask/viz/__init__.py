"""Pictures and figures of predictions: arrays in, arrays or figures out; and `explore`, the notebook's widget."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["explore"]


def __getattr__(name: str) -> Any:
    """``explore`` on first use: it brings ipywidgets and the predictor, which the drawing of arrays does without."""
    if name == "explore":
        try:
            return importlib.import_module("dynamask.viz.explorer").explore
        except ModuleNotFoundError as error:
            if error.name not in ("anywidget", "ipywidgets"):
                raise
            raise ImportError(
                f"explore needs {error.name}; install it with `pip install 'dynamask[notebooks]'`"
            ) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
