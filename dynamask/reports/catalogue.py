"""The reports by their names on the command line, read from ``reports.toml`` beside this file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReportEntry:
    """A report.

    Attributes:
        title: title, followed by the number in the paper in parentheses; also the help of the command.
        columns: columns of a table, keys of ``MEASURES`` and ``_COLUMNS`` in :mod:`dynamask.reports.tables`.
        text: description of a table.
        needs: weights and data that are needed to compare a table with the paper's.
    """

    title: str
    columns: tuple[str, ...] = ()
    text: str = ""
    needs: str = ""


_CONTENT = tomllib.loads(Path(__file__).with_name("reports.toml").read_text(encoding="utf-8"))
REPORTS: dict[str, ReportEntry] = {
    name: ReportEntry(**{**entry, "columns": tuple(entry.get("columns", ()))}) for name, entry in _CONTENT.items()
}
