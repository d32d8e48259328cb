"""Checks of the numbers in a request; what cannot be used raises DynaMaskError with the argument's name."""

from __future__ import annotations

import math
from typing import Any

from dynamask.structures import DynaMaskError


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold; a bool is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def shortened(value: Any) -> str:
    """A value for an error message, in quotes and at most 40 characters long."""
    long_integer = isinstance(value, int) and value.bit_length() > 128  # Python does not print those of 4,300 digits
    return "'a number of many digits'" if long_integer else repr(str(value)[:40])


def number(value: Any, name: str, low: float, high: float) -> float:
    """A finite number from `low` to `high`."""
    if not is_number(value) or not low <= value <= high:
        raise DynaMaskError(f"{name} {shortened(value)} is not usable; give a number from {low:g} to {high:g}")
    return float(value)


def whole_number(value: Any, name: str, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    if not is_number(value) or not low <= value <= high or value != int(value):
        raise DynaMaskError(f"{name} {shortened(value)} is not usable; give a whole number from {low} to {high}")
    return int(value)
