"""``dynamask report``: one command a report, each writing Markdown, CSV, JSON and an interactive page."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamask.cli.common import add_data, add_json, check_folder, opened_data, say, write_json
from dynamask.data.sources import Data
from dynamask.engine.memory import keep_freed_memory
from dynamask.predictor import Predictor, load
from dynamask.reports import budget_curve, classes
from dynamask.reports.collecting import collect_all
from dynamask.reports.facts import Source, checkpoint_facts
from dynamask.reports.writer import Report, write_report
from dynamask.structures import DynaMaskError


@dataclass(frozen=True)
class Given:
    """What every report starts from: weights, data and what names them."""

    predictor: Predictor
    dataset: Data
    indices: list[int]
    source: Source
    checkpoint: dict[str, Any]
    progress: bool

    @property
    def macs(self) -> tuple[int, ...]:
        """MACs of an instance at each size."""
        return tuple(self.predictor.costs.macs_per_instance)

    @property
    def origin(self) -> tuple[str, ...]:
        """What names weights and data beyond doubt."""
        return (self.checkpoint["sha256"], self.source.data, self.source.split)


@dataclass(frozen=True)
class Kind:
    """A report: its line of help, its own flags, and how it is made."""

    help: str
    flags: Callable[[argparse.ArgumentParser], None]
    make: Callable[[argparse.Namespace, Given], Report]


def _budget_curve_flags(parser: argparse.ArgumentParser) -> None:
    defaults = budget_curve.CurveOptions()
    for name, what in (
        ("budgets", "budgets on the curve"),
        ("views", "other views of each picture for the noise-aware oracle"),
        ("samples", "resampled sets of pictures for intervals in true boxes"),
        ("ap_samples", "the same for AP"),
        ("permutations", "drawn for the random choice on detections"),
        ("seed", "of views, resampling and permutations"),
    ):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=getattr(defaults, name), help=f"{what} (default: %(default)s)")
    parser.add_argument("--no-detections", action="store_true", help="judge in true boxes only")
    parser.add_argument("--cache", type=Path, metavar="FILE.npz",
                        help="keep what was predicted here, and use it if it is there")  # fmt: skip


def _budget_curve(arguments: argparse.Namespace, given: Given) -> Report:
    given.predictor.check_switch("a budget curve")
    options = budget_curve.CurveOptions(
        arguments.budgets,
        arguments.views,
        arguments.samples,
        arguments.ap_samples,
        arguments.permutations,
        arguments.seed,
        not arguments.no_detections,
    )
    kept = budget_curve.gather(
        given.predictor, given.dataset, given.indices, options, given.origin, arguments.cache, given.progress
    )
    result = budget_curve.judge_curves(kept, given.macs, given.dataset, given.indices, options)
    return budget_curve.make_report(
        result, kept, given.macs, len(given.indices), given.source, given.checkpoint, options
    )


def _classes_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--boxes", default="gt", choices=("gt", "detected"), help="default: %(default)s")
    parser.add_argument("--budget", type=float, metavar="G", help="mean GMACs per instance over the data set")
    parser.add_argument("--min-instances", type=int, default=5, metavar="N",
                        help="classes with fewer are listed apart (default: %(default)s)")  # fmt: skip
    parser.add_argument("--score", type=float, default=0.5, help="of detections to keep (default: %(default)s)")


def _classes(arguments: argparse.Namespace, given: Given) -> Report:
    if not 0 <= arguments.score <= 1:
        raise DynaMaskError(f"--score {arguments.score} is out of range; give a number from 0 to 1")
    given.predictor.check_switch("the report on classes")
    detected = arguments.boxes == "detected"
    kept = collect_all(
        given.predictor,
        given.dataset,
        given.indices,
        not detected,
        detected,
        progress=given.progress,
        score=arguments.score,
    )
    return classes.make_report(
        kept,
        given.macs,
        given.dataset,
        len(given.indices),
        given.source,
        given.checkpoint,
        arguments.budget,
        arguments.min_instances,
        arguments.score,
    )


REPORTS: dict[str, Kind] = {
    "budget-curve": Kind(
        "quality against mean MACs: the switch and what it has to beat", _budget_curve_flags, _budget_curve
    ),
    "classes": Kind("which mask sizes each class gets (Fig. 8)", _classes_flags, _classes),
}
"""Every report by its name on the command line."""


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "report",
        help="judge weights and write Markdown, CSV, JSON and an interactive page",
        description="Judge weights on a data set; each report writes Markdown, CSV, JSON and an interactive page.",
    )
    reports = parser.add_subparsers(dest="report", required=True, metavar="report", parser_class=type(parser))
    for name, kind in REPORTS.items():
        own = reports.add_parser(name, help=kind.help, description=f"{kind.help[0].upper()}{kind.help[1:]}.")
        own.add_argument("--weights", required=True, help="bundled name or .safetensors file")
        add_data(own)
        own.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the report's files")
        own.add_argument("--device", default="cpu")
        kind.flags(own)
        add_json(own)
        own.set_defaults(run=_report, kind=kind, parser=own)


def _report(arguments: argparse.Namespace) -> None:
    check_folder(arguments.out)
    report = arguments.kind.make(arguments, _given(arguments))
    paths = write_report(report, arguments.out)
    say(f"{report.title}: {', '.join(map(str, paths))}", arguments.json)
    write_json(report.data, arguments.json)


def _given(arguments: argparse.Namespace) -> Given:
    """Open weights and data."""
    keep_freed_memory()
    checkpoint = checkpoint_facts(arguments.weights)
    predictor = load(arguments.weights, arguments.device)
    dataset, indices = opened_data(arguments, predictor.class_names)
    split = "all pictures"
    if arguments.holdout:
        split = f"held out: the SHA-256 of the decimal image id is divisible by {arguments.holdout}"
    command = command_line(arguments.parser, arguments)
    source = Source(arguments.weights, str(arguments.data or arguments.annotations), split, command)
    return Given(predictor, dataset, indices, source, checkpoint, sys.stderr.isatty())


def command_line(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, leave: Sequence[str] = ("json",)
) -> str:
    """The command that parses to these arguments, defaults left away."""
    words = shlex.split(parser.prog)
    for action in parser._actions:
        value = getattr(arguments, action.dest, None)
        if action.option_strings and action.dest not in leave and value != action.default and value is not None:
            words += [action.option_strings[-1]] + ([] if action.nargs == 0 else [str(value)])
    return shlex.join(words)
