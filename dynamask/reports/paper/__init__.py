"""The figures that the two papers print, read from the TOML files beside this module."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

Figure = float | str | None
"""As printed; None for a dash."""
AP_COLUMNS = ("AP", "AP50", "AP75", "APS", "APM", "APL")
SHARE_COLUMNS = ("tiny", "small", "medium", "large")
"""Columns of the shares of the mask sizes, coarse to fine."""
STAR_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU thresholds of SODAR's columns AP*50 … AP*90."""


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        number: under which the paper prints it.
        about: its caption, in short.
        setting: data, backbone and schedule behind its figures.
        beside: the setting of the rows that are shown beside ours, for the head of their column.
        columns: names of its figures.
        rows: (name, figures) from top to bottom.
    """

    number: str
    about: str
    setting: str
    beside: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Figure, ...]], ...]

    def figure(self, row: str, column: str) -> Figure:
        """One figure as printed; None for a dash, an unknown row or an unknown column."""
        found = dict(self.rows).get(row)
        return None if found is None or column not in self.columns else found[self.columns.index(column)]

    def fraction(self, row: str, column: str = "AP") -> float | None:
        """An AP or a share ("35 %") in 0–1; None where there is none."""
        value = self.figure(row, column)
        return None if value is None else round(float(str(value).removesuffix(" %")) / 100, 4)


def row_name(row: str) -> str:
    """The name of a row as text, for example "DynaMask, 28×28" for "fixed:28"."""
    if row.startswith(("fcn:", "fixed:")):
        method, size = row.split(":")
        return f"{'Mask R-CNN' if method == 'fcn' else 'DynaMask'}, {size}×{size}"
    return {"size": "size-based", "panet": "PANet", "bifpn": "BiFPN", "nasfpn": "NAS-FPN"}.get(row, row)


def gains_by_iou(first: str, second: str) -> list[float]:
    """Gain of SODAR's Table III from the second row to the first at AP*50 … AP*90, in 0–1."""
    table = PAPER["sodar-table3"]
    columns = [f"AP*{100 * iou:.0f}" for iou in STAR_IOUS]
    return [round((table.figure(first, c) - table.figure(second, c)) / 100, 4) for c in columns]


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _tables(content: dict[str, Any]) -> dict[str, PaperTable]:
    """Tables by name; a row "TABLE: ROW" repeats a row of an earlier table."""
    tables: dict[str, PaperTable] = {}
    for name, table in content.items():
        rows = []
        for row, figures in table["rows"].items():
            if isinstance(figures, str):
                other, _, origin = figures.partition(": ")
                figures = dict(tables[other].rows)[origin][: len(table["columns"])]
            rows.append((row, tuple(None if figure == "–" else figure for figure in figures)))
        tables[name] = PaperTable(**{**table, "columns": tuple(table["columns"]), "rows": tuple(rows)})
    return tables


_DYNAMASK = _read("dynamask.toml")
FIGURES: dict[str, str] = _DYNAMASK.pop("figures")
"""What the figures of the DynaMask paper show, by the name of the report that makes ours."""
PAPER: dict[str, PaperTable] = {**_tables(_DYNAMASK), **_tables(_read("sodar.toml"))}
"""The tables of both papers by the name of the report that makes ours."""
