"""``dynamask runs``: draw the curves of training runs on one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dynamask.cli.common import number_in, print_line
from dynamask.files import write_text
from dynamask.structures import DynaMaskError


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "runs",
        help="draw the curves of training runs on one page",
        description="Draw losses, learning rate, size shares, costs and average precision of all runs in a folder on "
        "an interactive page that works offline.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of a run, or of several runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="HTML file (default: DIR/runs.html)")
    parser.add_argument(
        "--half-life",
        type=number_in(0.0, 1e9),
        default=5.0,
        metavar="ROWS",
        help="initial smoothing: half-life in rows, or 0 for none (default: 5)",
    )
    parser.set_defaults(run=_runs)


def _runs(arguments: argparse.Namespace) -> None:
    from dynamask.reports.runs import read_runs
    from dynamask.viz.charts import page_html
    from dynamask.viz.training_curves import training_curves

    if not 0 <= arguments.half_life < float("inf"):
        raise DynaMaskError(f"--half-life is {arguments.half_life}; give a number of rows, or 0 for no smoothing")
    runs = read_runs(arguments.folder)
    out = arguments.out or arguments.folder / "runs.html"
    if out.is_dir():
        raise DynaMaskError(f"--out {out} is a folder; give a file")
    figure = training_curves(runs, arguments.half_life)
    write_text(out, page_html(figure, plotlyjs=True, div_id="runs", page_title="Training runs"))
    for run in runs:
        steps = run.log["step"]
        final = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in run.final.items())
        print_line(f"{run.name}: {int(steps[-1]) if steps else 0} steps  {final}".rstrip())
    print_line(f"curves in {out}")
