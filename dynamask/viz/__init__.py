"""Charts, overlays and the notebook widget ``explore``."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["explore"]


def __getattr__(name: str) -> Any:
    """Import ``explore`` on first use, since drawing arrays does not need ipywidgets."""
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
