"""Checks of the numbers in a request; what cannot be used raises DynaMaskError with the argument's name."""

from __future__ import annotations

import math
from typing import Any

from dynamask.structures import DynaMaskError


def number(value: Any, name: str, low: float, high: float) -> float:
    """A finite number from `low` to `high`."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not usable or not low <= value <= high:
        raise DynaMaskError(f"{name} {str(value)[:40]!r} is not usable; give a number from {low:g} to {high:g}")
    return float(value)


def whole_number(value: Any, name: str, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not usable or not low <= value <= high or value != int(value):
        raise DynaMaskError(f"{name} {str(value)[:40]!r} is not usable; give a whole number from {low} to {high}")
    return int(value)
