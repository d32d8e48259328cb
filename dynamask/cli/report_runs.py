"""Make the reports that ``dynamask report`` names; see :mod:`dynamask.cli.report` for its flags."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial

from dynamask.cli.common import check_folder, open_selected_data, print_line, write_json
from dynamask.config import BaseModelConfig, ModelConfig
from dynamask.engine.memory import keep_freed_memory
from dynamask.files import write_text
from dynamask.models.hub import find_weights
from dynamask.models.weights import list_baselines, list_bundled, read_header
from dynamask.predict import load
from dynamask.reports import dynamask_tables, sodar_tables
from dynamask.reports.budget_curve import make_budget_curve
from dynamask.reports.cache import check_cache
from dynamask.reports.catalogue import REPORTS
from dynamask.reports.classes import make_classes
from dynamask.reports.comparison import Comparison
from dynamask.reports.figures import make_figure5, make_figure7
from dynamask.reports.options import (
    DEFAULT_ONE_STAGE_WEIGHTS,
    DEFAULT_TWO_STAGE_WEIGHTS,
    CollectOptions,
    CurveOptions,
    ReportOptions,
    SpeedOptions,
)
from dynamask.reports.predicted_quality import make_quality
from dynamask.reports.provenance import Provenance, read_checkpoint
from dynamask.reports.render import Report, summary, write_report
from dynamask.reports.sodar_counts import NAME as COUNTS
from dynamask.reports.sodar_counts import make_counts
from dynamask.reports.speed import make_table6
from dynamask.reports.tables import checkpoint_table, make_table
from dynamask.structures import DynaMaskError

_BOTH_FAMILIES = ("sodar-table8", "sodar-all")
_ONE_WEIGHTS_FILE = ("figure7", "figure8", "budget-curve", "quality", "classes")
Make = Callable[[], Report]


def run(arguments: argparse.Namespace) -> None:
    """Make and write the report or the reports that were asked for."""
    check_folder(arguments.out)
    if arguments.report in ("all", "sodar-all"):
        _write_all(arguments)
        return
    report = _make(arguments)
    paths = write_report(report, arguments.out)
    print_line(f"{report.title}: {', '.join(map(str, paths))}", arguments.json)
    write_json(report.data, arguments.json)


def _make(arguments: argparse.Namespace) -> Report:
    """The one report that was asked for."""
    name = arguments.report
    if name == COUNTS:
        return make_counts(command_line(arguments))
    if name.startswith("sodar-"):
        return _sodar_makers(arguments, open_comparison(arguments))[name]()
    if name in ("classes", "figure8"):
        score = arguments.score
        if score is None:
            score = BaseModelConfig.from_dict(read_header(find_weights(arguments.weights[0]))["config"]).display_score
        if not 0 <= score <= 1:
            raise DynaMaskError(f"--score {score} is out of range; give a number from 0 to 1")
        detected = arguments.boxes == "detected"
        collect = CollectOptions(true_boxes=not detected, detections=detected, score=score)
        options = (arguments.boxes, arguments.budget, arguments.min_instances, score, name)
        return make_classes(open_comparison(arguments, collect), *options)
    if name == "budget-curve":
        curve = CurveOptions(arguments.budgets, arguments.views, arguments.permutations, tuple(arguments.refine))
        collect = CollectOptions(detections=not arguments.no_detections, views=curve.views)
        return make_budget_curve(open_comparison(arguments, collect), curve)
    if name == "quality":
        return make_quality(open_comparison(arguments))
    if name == "table6":
        speed = SpeedOptions(arguments.rounds, arguments.pictures, arguments.detections)
        return make_table6(open_comparison(arguments), speed)
    if name == "figure5":
        return make_figure5(open_comparison(arguments, CollectOptions(detections=False, size_losses=True)))
    if name == "figure7":
        return make_figure7(open_comparison(arguments), arguments.pictures, arguments.budget, arguments.score)
    return _dynamask_table(name, open_comparison(arguments))()


def _dynamask_table(name: str, comparison: Comparison) -> Make:
    return partial(make_table, name, dynamask_tables.STYLE, dynamask_tables.TABLES[name], comparison)


def _sodar_makers(arguments: argparse.Namespace, comparison: Comparison) -> dict[str, Make]:
    """Makers of all reports of the SODAR paper."""
    plans = dict(sodar_tables.TABLES)
    if hasattr(arguments, "voting_iou"):
        plans["sodar-table2"] = partial(sodar_tables.plan_voting, ious=arguments.voting_iou)
    makers = {name: partial(make_table, name, sodar_tables.STYLE, plan, comparison) for name, plan in plans.items()}
    return {**makers, COUNTS: partial(make_counts, command_line(arguments))}


def _write_all(arguments: argparse.Namespace) -> None:
    """Make and write every report that fits the weights and the data, and the summary if asked for.

    Raises:
        DynaMaskError: none can be made.
    """
    if arguments.summary is not None and arguments.summary.is_dir():
        raise DynaMaskError(f"--summary {arguments.summary} is a folder; give a Markdown file")
    if arguments.report == "sodar-all":
        comparison, style = open_comparison(arguments), sodar_tables.STYLE
        makers = _sodar_makers(arguments, comparison)
    else:
        curve, style = CurveOptions(arguments.budgets, arguments.views, arguments.permutations), dynamask_tables.STYLE
        comparison = open_comparison(arguments, CollectOptions(views=curve.views, size_losses=True))
        makers = {name: _dynamask_table(name, comparison) for name in dynamask_tables.TABLES}
        makers |= {
            "table6": partial(make_table6, comparison, SpeedOptions()),
            "figure5": partial(make_figure5, comparison),
            "figure7": partial(make_figure7, comparison),
            "figure8": partial(make_classes, comparison, name="figure8"),
            "budget-curve": partial(make_budget_curve, comparison, curve),
            "quality": partial(make_quality, comparison),
        }
    reports: list[Report] = []
    missing: dict[str, str] = {}
    for name in sorted(makers, key=list(REPORTS).index):
        try:
            report = makers[name]()
        except DynaMaskError as error:
            missing[name] = str(error)
            print_line(f"{name} was not made: {error}", arguments.json)
            continue
        reports.append(report)
        print_line(f"{report.title}: {', '.join(map(str, write_report(report, arguments.out)))}", arguments.json)
    if not reports:
        raise DynaMaskError(f"no report fits the data: {next(iter(missing.values()))}")
    if arguments.summary is not None:
        checkpoints = checkpoint_table(comparison.evidences, style.kinds(comparison))
        write_text(arguments.summary, summary(comparison.facts(), style.how, reports, missing, checkpoints))
        print_line(f"summary: {arguments.summary}", arguments.json)
    write_json({report.name: report.data for report in reports} | {"not_made": missing}, arguments.json)


def open_comparison(arguments: argparse.Namespace, collect: CollectOptions | None = None) -> Comparison:
    """Open the weights and the data of a report.

    Args:
        collect: selects what is predicted; by default everything that tables need.
    """
    check_cache(arguments.cache)
    one_stage = arguments.report.startswith("sodar-")
    options = ReportOptions(
        samples=ReportOptions.samples if one_stage else arguments.samples,
        ap_samples=arguments.ap_samples,
        seed=arguments.seed,
        cache=arguments.cache,
        progress=sys.stderr.isatty(),
    )
    names = _one_stage_weights(arguments) if one_stage else _two_stage_weights(arguments)
    keep_freed_memory()
    loaded = [(name, load(name, arguments.device), read_checkpoint(name)) for name in names]
    dataset, indices = open_selected_data(arguments, loaded[0][1].class_names)
    split = "all pictures"
    if arguments.holdout is not None:
        split = f"held out: the SHA-256 of the decimal image id is divisible by {arguments.holdout}"
    source = Provenance(str(arguments.data or arguments.annotations), split, command_line(arguments))
    families = ("one-stage",) if one_stage else ("two-stage",)
    if arguments.report in _BOTH_FAMILIES:
        families = ("one-stage", "two-stage")
    if one_stage:
        collect = CollectOptions(true_boxes=False)
    comparison = Comparison(dataset, indices, source, options, collect, families)
    for name, predictor, checkpoint in loaded:
        comparison.add(name, predictor, checkpoint)
    return comparison


def _two_stage_weights(arguments: argparse.Namespace) -> list[str]:
    """The weights that were named, with their relatives where a report is about several."""
    if arguments.report not in _ONE_WEIGHTS_FILE:
        return with_relatives(arguments.weights)
    if len(arguments.weights) > 1:
        raise DynaMaskError(f"report {arguments.report} is about one weights file; give one with --weights")
    return list(arguments.weights)


def with_relatives(names: Sequence[str]) -> list[str]:
    """Add to a single bundled name the other two-stage weights that are bundled for its detector ("NAME-…").

    Several names, and files, are returned as they are.
    """
    if len(names) != 1 or names[0] not in list_bundled():
        return list(names)
    switches = [name for name in list_bundled(ModelConfig.FAMILY) if name.startswith(f"{names[0]}-")]
    baselines = [name for name, entry in list_baselines().items() if entry["detector"]["name"] == names[0]]
    return [names[0], *switches, *baselines]


def _one_stage_weights(arguments: argparse.Namespace) -> list[str]:
    """The weights that were named, or else the bundled ones."""
    if arguments.weights:
        return list(arguments.weights)
    names = [name for name in DEFAULT_ONE_STAGE_WEIGHTS if name in list_bundled()]
    if not names:
        raise DynaMaskError(
            "no one-stage weights are bundled here; name some with --weights, such as `dynamask train --model "
            "sodar_v2_mobilenetv2_fpn_small` writes"
        )
    both = arguments.report in _BOTH_FAMILIES and DEFAULT_TWO_STAGE_WEIGHTS in list_bundled()
    return [*names, DEFAULT_TWO_STAGE_WEIGHTS] if both else names


def command_line(arguments: argparse.Namespace) -> str:
    """The command that parses to these arguments, without ``--json`` and flags that have their default."""
    words = shlex.split(arguments.parser.prog)
    for action in arguments.parser._actions:
        value = getattr(arguments, action.dest, None)
        if action.option_strings and action.dest != "json" and value != action.default and value is not None:
            given = [] if action.nargs == 0 else value if isinstance(value, list) else [value]
            words += [action.option_strings[-1], *map(str, given)]
    return shlex.join(words)
