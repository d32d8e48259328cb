"""Helpers of the notebooks: one module per notebook, and what several of them share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dynamask.structures import DynaMaskError

T = TypeVar("T")

FAST: bool = os.environ.get("FAST", "").strip().lower() not in ("", "0", "false", "no")
"""Whether the environment asks for short runs (``FAST=1``): fewer scenes and steps in the same cells."""

EXAMPLES = Path(__file__).resolve().parents[2] / "app" / "examples"
"""Photographs of the app."""


def fast(short: T, full: T) -> T:
    """Return ``short`` under ``FAST=1``, else ``full``."""
    return short if FAST else full


def photograph(name: str) -> Path:
    """Return the path of one of the app's photographs, by its file name with or without the extension.

    Raises:
        DynaMaskError: there is no such photograph (the message lists the known ones).
    """
    found = {path.name: path for path in sorted(EXAMPLES.glob("*.jpg"))}
    stems = {path.stem: path for path in found.values()}
    if name not in found and name not in stems:
        raise DynaMaskError(f"there is no photograph called {name!r}; choose one of: {', '.join(stems)}")
    return found.get(name) or stems[name]


def milliseconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Time a call: the fastest of ``repeats`` runs after one warm-up, in milliseconds."""
    run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append((time.perf_counter() - start) * 1e3)
    return min(taken)
