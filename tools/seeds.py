"""Tabulate budget-curve reports of models that differ in their seed alone: each seed, and the mean with its range.

python tools/seeds.py --reports runs/seed0/budget-curve.json runs/seed1/budget-curve.json --out seeds.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dynamask.cli.common import run_command
from dynamask.files import write_text
from dynamask.structures import MASK_SIZES, DynaMaskError
from tools.decision_tables import table

MEASURES = {"mask AP": "segm_ap", "boundary AP": "boundary_ap"}
RIVALS = {
    "the same sizes at random": "random",
    "size-based": "size",
    **{f"all at {size}": f"fixed:{size}" for size in MASK_SIZES[1:3]},
}
Figure = dict[str, float]


def find(data: dict[str, Any], measure: str, policy: str, against: str = "") -> Figure:
    """The row of a report's table with these keys; what is compared with a rival is held to the rival's mean MACs.

    Raises:
        DynaMaskError: there is no such row.
    """
    for row in data["rows"]:
        curve = row["budget_macs"] is not None and policy == "learned"
        if not curve and (row["measure"], row["policy"], row["against"]) == (measure, policy, against):
            return row
    raise DynaMaskError(f"a report has no row for {policy} {against} in {measure}; make it again, with detections")


def figures(data: dict[str, Any]) -> dict[str, tuple[Figure, str]]:
    """The main rows of a report: a figure with its interval, and how to print it."""
    found: dict[str, tuple[Figure, str]] = {}
    for name, measure in MEASURES.items():
        for size in MASK_SIZES:
            found[f"{name}, all at {size}"] = (find(data, measure, f"fixed:{size}"), ".3f")
        found[f"{name}, learned sizes"] = (find(data, measure, "learned"), ".3f")
        for words, rival in RIVALS.items():
            policy = "learned" if rival == "random" else "budget"
            found[f"{name}, learned minus {words}"] = (find(data, measure, policy, rival), "+.3f")
        half = data["operating_points"]["half"][f"{measure}_minus_full"]
        found[f"{name}, at half the full MACs minus all at 112"] = (half, "+.3f")
    for name, measure in {"mask IoU": "mask_iou", "boundary IoU": "boundary_iou"}.items():
        row = find(data, measure, "learned", "share of noise-aware oracle")
        found[f"{name}, share of the noise-aware oracle's gain"] = (row, ".2f")
    for key in ("complexity", "object_size"):
        words = key.replace("_", " ")
        found[f"Spearman, size at half the full MACs and {words}"] = (data["known_complexity"][key], ".2f")
    return found


def markdown(reports: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A table with a column for each report and one for their mean with the smallest and the largest."""
    columns = [figures(data) for data in reports]
    rows = []
    for name, (_, form) in columns[0].items():
        values = [column[name][0] for column in columns]
        cells = [f"{v['mean']:{form}} [{v['low']:{form}}, {v['high']:{form}}]" for v in values]
        means = [value["mean"] for value in values]
        cells.append(f"{statistics.fmean(means):{form}} ({min(means):{form}} to {max(means):{form}})")
        rows.append([name, *cells])
    return table(["", *names, "mean (range)"], rows)


def write(arguments: argparse.Namespace) -> None:
    """Print the table, and write it to ``--out``."""
    reports = []
    for path in arguments.reports:
        try:
            reports.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise DynaMaskError(f"report {path} cannot be read ({error}); give a budget-curve.json") from error
    names = arguments.names or [f"seed {number}" for number in range(len(reports))]
    if len(names) != len(reports):
        raise DynaMaskError(f"there are {len(names)} names for {len(reports)} reports; give one each")
    text = markdown(reports, names)
    print(text)
    if arguments.out is not None:
        write_text(arguments.out, text + "\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(prog="seeds", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--reports", nargs="+", type=Path, required=True, metavar="JSON")
    parser.add_argument("--names", nargs="+", help="of the columns (default: seed 0, seed 1, …)")
    parser.add_argument("--out", type=Path, metavar="MD", help="Markdown file for the table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("seeds", lambda: write(arguments))


if __name__ == "__main__":
    sys.exit(main())
