"""Read the logs of training runs."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

from dynamask.structures import DynaMaskError
from dynamask.viz.training_curves import RunCurves


def find_runs(folder: Path) -> list[Path]:
    """Folders with a ``log.csv`` in a folder and its subfolders, sorted by name.

    Raises:
        DynaMaskError: the folder does not exist, or holds no run.
    """
    if not folder.is_dir():
        raise DynaMaskError(f"{folder} is no folder; give one that holds runs, as --out of dynamask train made them")
    found = sorted(path.parent for path in folder.rglob("log.csv"))
    if not found:
        raise DynaMaskError(f"there is no run (log.csv) in {folder}; give the folder that --out of dynamask train made")
    return found


def read_table(path: Path) -> dict[str, list[float]]:
    """Columns of a log by name; empty cells are NaN, and incomplete rows are skipped.

    Raises:
        DynaMaskError: the first column is not "step", or a cell is not a number.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            header, *rows = list(csv.reader(stream)) or [[]]
        complete = [row for row in rows if len(row) == len(header)]
        table = {name: [float(row[at]) if row[at] else math.nan for row in complete] for at, name in enumerate(header)}
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise DynaMaskError(f"{path} cannot be read as a run's log ({error}); remove it from the folder") from error
    if not header or header[0] != "step":
        raise DynaMaskError(f"{path} is no log of a run: its first column is not step; remove it from the folder")
    return table


def read_runs(folder: Path) -> list[RunCurves]:
    """The logs and evaluations of all runs in a folder."""
    runs = []
    for path in find_runs(folder):
        validation = path / "validation.csv"
        name = path.resolve().name if path == folder else str(path.relative_to(folder))
        log = read_table(path / "log.csv")
        found = read_table(validation) if validation.is_file() else {}
        runs.append(RunCurves(name, log, found, _final(path / "evaluation.json")))
    return runs


def _final(path: Path) -> dict[str, float]:
    """Average precisions of an ``evaluation.json``, under the column names of ``validation.csv``; empty without one."""
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        figures = {f"{kind}_AP": summary[kind]["AP"] for kind in summary if kind in ("bbox", "segm", "boundary")}
        return {name: float(value) for name, value in figures.items() if value is not None}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DynaMaskError(f"{path} is no evaluation of a training ({error}); remove it from the folder") from error
