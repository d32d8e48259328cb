"""Tables for the end of a cell, which Jupyter sets and a terminal prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Table:
    """A table for the end of a cell; in a terminal it prints as Markdown.

    Attributes:
        header: names of the columns.
        rows: cells, as many as the header has; a float is shown with three decimals, None as a dash.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]

    def _repr_markdown_(self) -> str:
        lines = [self.header, ["---", *["--:"] * (len(self.header) - 1)]]
        cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
        cells += [[cell_text(cell).replace("|", "\\|") for cell in row] for row in self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in cells)

    def __repr__(self) -> str:
        return self._repr_markdown_()


def cell_text(value: object) -> str:
    """A cell as text."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)
