"""The tabs beside Explore; each module has `build(shared)`, called inside its tab."""

from __future__ import annotations

from pathlib import Path

TABS_DIR = Path(__file__).resolve().parent


def page_text(name: str) -> str:
    """Text of one of the tabs' files."""
    return (TABS_DIR / name).read_text(encoding="utf-8")
