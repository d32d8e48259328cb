"""What the notebooks import: one module a lesson, so that a notebook's cells are claims, short calls and pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from dynamask.structures import DynaMaskError

T = TypeVar("T")

FAST: bool = os.environ.get("FAST", "").strip().lower() not in ("", "0", "false", "no")
"""Whether the environment asks for short runs (``FAST=1``): fewer scenes and steps, the same cells."""

EXAMPLES = Path(__file__).resolve().parents[2] / "app" / "examples"
"""The app's photographs: beside the package in a checkout, and in an installed wheel."""


def fast(short: T, full: T) -> T:
    """``short`` under ``FAST=1``, else ``full``."""
    return short if FAST else full


def photograph(name: str) -> Path:
    """Path of one of the app's photographs, by its file name with or without the ending.

    Raises:
        DynaMaskError: there is no such photograph (the message lists those that there are).
    """
    found = {path.name: path for path in sorted(EXAMPLES.glob("*.jpg"))}
    stems = {path.stem: path for path in found.values()}
    if name not in found and name not in stems:
        known = ", ".join(stems) or f"none, for {EXAMPLES.name}/ is not beside the package"
        raise DynaMaskError(f"there is no photograph called {name!r}; choose one of: {known}")
    return found.get(name) or stems[name]
