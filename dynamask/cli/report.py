"""``dynamask report``: the tables and figures of both papers, each as Markdown, CSV, JSON and an interactive page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dynamask.cli.common import MOST, add_data, add_device, add_json, number_in
from dynamask.reports.catalogue import REPORTS
from dynamask.reports.options import (
    DEFAULT_ONE_STAGE_WEIGHTS,
    REFINE_SETTINGS,
    VOTING_IOUS,
    CurveOptions,
    ReportOptions,
    SpeedOptions,
)

_WHOLE = {
    "all": (
        "every table and figure that fits the data, from one collection",
        "Every table and figure that fits the data, from one pass over the pictures for each weights file.",
    ),
    "sodar-all": (
        "all seven tables of SODAR from the given weights",
        "Every table of SODAR that the given weights allow, from one pass over the pictures for each of them, and one "
        "more for every kind of voting.",
    ),
}
"""Help and description of the commands that make several reports."""
_NUMBERS = {
    "samples": ("resampled sets of pictures for intervals in true boxes", ReportOptions.samples),
    "ap_samples": ("resampled sets of pictures for intervals of AP", ReportOptions.ap_samples),
    "seed": ("of views, resampling and permutations", ReportOptions.seed),
    "budgets": ("budgets on the curve", CurveOptions.budgets),
    "views": ("other views of each picture for the noise-aware oracle", CurveOptions.views),
    "permutations": ("of the random choice on detections", CurveOptions.permutations),
    "rounds": ("timed runs of each case", SpeedOptions.rounds),
    "pictures": ("number of pictures to time on", SpeedOptions.pictures),
    "detections": ("number of detections that every model keeps", SpeedOptions.detections),
}
"""Help and default of the flags that are whole numbers."""
_CURVE = ("budgets", "views", "permutations")
_SPEED = ("rounds", "pictures", "detections")


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "report",
        help="the papers' tables and figures on given data, as Markdown, CSV, JSON and interactive pages",
        description="Evaluate weights on a data set; each report writes Markdown, CSV, JSON and an interactive page.",
    )
    reports = parser.add_subparsers(dest="report", required=True, metavar="report", parser_class=type(parser))
    texts = {name: (entry.title, f"{entry.title[0].upper()}{entry.title[1:]}.") for name, entry in REPORTS.items()}
    for name, (text, description) in {**texts, **_WHOLE}.items():
        own = reports.add_parser(name, help=text, description=description)
        if name != "sodar-table7":
            _add_common_flags(own, one_stage=name.startswith("sodar-"))
        own.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the report's files")
        _add_own_flags(own, name)
        add_json(own)
        own.set_defaults(run=_run, parser=own)


def _add_common_flags(parser: argparse.ArgumentParser, one_stage: bool) -> None:
    """Flags of reports on weights and data."""
    if one_stage:
        text = (
            "one-stage weights, bundled names or .safetensors files; those of one configuration are seeds of one model "
            f"(default: {', '.join(DEFAULT_ONE_STAGE_WEIGHTS)}, if they are bundled)"
        )
    else:
        text = (
            "bundled names or .safetensors files; to a single bundled name, the other switches and the baselines that "
            "are bundled for its detector are added"
        )
    parser.add_argument("--weights", required=not one_stage, nargs="+", metavar="W", help=text)
    add_data(parser)
    add_device(parser)
    _add_numbers(parser, *(() if one_stage else ("samples",)), "ap_samples", "seed")
    text = "folder to store predictions in, and to read them from where weights, data and settings are the same"
    parser.add_argument("--cache", type=Path, metavar="DIR", help=text)


def _add_numbers(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        text, default = _NUMBERS[name]
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag, type=number_in(0, MOST), default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )


def _add_own_flags(parser: argparse.ArgumentParser, name: str) -> None:
    """Flags of single reports."""
    score = {"type": number_in(0.0, 1.0), "help": "detections below it are left out (default: that of the weights)"}
    if name in ("classes", "figure8"):
        parser.add_argument("--boxes", default="gt", choices=("gt", "detected"), help="default: %(default)s")
        parser.add_argument("--budget", type=float, metavar="G", help="mean GMACs per instance over the data set")
        text = "classes with fewer are listed apart (default: %(default)s)"
        parser.add_argument("--min-instances", type=number_in(0, MOST), default=5, metavar="N", help=text)
        parser.add_argument("--score", **score)
    elif name == "figure7":
        parser.add_argument(
            "--pictures", type=number_in(1, MOST), default=6, metavar="N", help="how many (default: %(default)s)"
        )
        parser.add_argument("--budget", type=float, metavar="G", help="mean GMACs per instance in every picture")
        parser.add_argument("--score", **score)
    elif name in ("budget-curve", "all"):
        _add_numbers(parser, *_CURVE)
    elif name == "table6":
        _add_numbers(parser, *_SPEED)
    elif name in ("sodar-table2", "sodar-all"):
        text = "overlaps from which candidates vote in Table II, each in turn (default: 0.7)"
        parser.add_argument(
            "--voting-iou", type=number_in(0.0, 1.0), nargs="+", default=list(VOTING_IOUS), metavar="IOU", help=text
        )
    if name == "budget-curve":
        parser.add_argument("--no-detections", action="store_true", help="evaluate in true boxes only")
        text = (
            "settings of boundary refinement beside the dense sizes, each the shares of cells at 28, 56 and 112; none "
            f"leaves them out (default: {' '.join(REFINE_SETTINGS)})"
        )
        default = list(REFINE_SETTINGS)
        parser.add_argument("--refine", nargs="*", default=default, metavar="A,B,C", help=text)
    if name in _WHOLE:
        text = "also write the tables into one Markdown file"
        parser.add_argument("--summary", type=Path, metavar="FILE.md", help=text)


def _run(arguments: argparse.Namespace) -> None:
    from dynamask.cli.report_runs import run

    run(arguments)
