"""DynaMask: per-instance dynamic mask resolution for instance segmentation.

The public names are imported on first use, so that ``import dynamask`` and the help of the command line stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamask import viz
    from dynamask.models.build import create_model
    from dynamask.predict import Prediction, Predictor, load
    from dynamask.presets import list_models
    from dynamask.structures import MASK_SIZES, DynaMaskError

__version__ = "0.1.0"
__all__ = ["MASK_SIZES", "DynaMaskError", "Prediction", "Predictor", "create_model", "list_models", "load", "viz"]

_MODULES = {
    "MASK_SIZES": "dynamask.structures",
    "DynaMaskError": "dynamask.structures",
    "Prediction": "dynamask.predict",
    "Predictor": "dynamask.predict",
    "create_model": "dynamask.models.build",
    "list_models": "dynamask.presets",
    "load": "dynamask.predict",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name == "viz":
        return importlib.import_module("dynamask.viz")
    if name not in _MODULES:
        raise AttributeError(f"module 'dynamask' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
