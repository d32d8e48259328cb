"""Tables as the result of a notebook cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MarkdownTable:
    """Table that Jupyter renders and a terminal prints as Markdown.

    Attributes:
        header: names of the columns.
        rows: cells, as many as the header has; floats are shown with three decimals, None as a dash.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]

    def _repr_markdown_(self) -> str:
        rule = ["---", *["--:"] * (len(self.header) - 1)]
        lines = [self.header, rule, *self.rows]
        return "\n".join("| " + " | ".join(_text(cell) for cell in line) + " |" for line in lines)

    def __repr__(self) -> str:
        return self._repr_markdown_()


def _text(value: object) -> str:
    """Text of a cell."""
    if value is None:
        return "–"
    text = f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)
    return text.replace("|", "\\|")
