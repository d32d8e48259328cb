"""``dynamask report``: one command a report, each writing Markdown, CSV, JSON and an interactive page."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dynamask.bundled import TWO_STAGE, list_baselines, list_bundled
from dynamask.cli.common import add_json, check_folder, opened_data, say, write_json
from dynamask.cli.one_stage_reports import ONE_STAGE, add_all
from dynamask.cli.reporting import (
    Arguments,
    Kind,
    Parser,
    add_options,
    add_summary,
    add_target,
    check_summary,
    source_of,
    write_all,
)
from dynamask.engine.memory import keep_freed_memory
from dynamask.predict import load
from dynamask.reports import budget_curve, classes, everything, speed
from dynamask.reports.cache import check_cache
from dynamask.reports.collecting import Collected
from dynamask.reports.comparing import provenance_table
from dynamask.reports.facts import checkpoint_facts
from dynamask.reports.figure5 import make_figure5
from dynamask.reports.figure7 import make_figure7
from dynamask.reports.tables import HOW, TABLES, make_table
from dynamask.reports.world import TableOptions, Wanted, World, world_facts
from dynamask.reports.writer import Report, write_report
from dynamask.structures import DynaMaskError


def _curve_flags(parser: Parser) -> None:
    defaults = budget_curve.CurveOptions()
    for name, what in (
        ("budgets", "budgets on the curve"),
        ("views", "other views of each picture for the noise-aware oracle"),
        ("permutations", "drawn for the random choice on detections"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=getattr(defaults, name), help=f"{what} (default: %(default)s)"
        )


def _budget_curve_flags(parser: Parser) -> None:
    _curve_flags(parser)
    parser.add_argument("--no-detections", action="store_true", help="judge in true boxes only")


def _curve_options(arguments: Arguments) -> budget_curve.CurveOptions:
    return budget_curve.CurveOptions(arguments.budgets, arguments.views, arguments.permutations)


def _budget_curve(arguments: Arguments, world: World) -> Report:
    return budget_curve.make_report(world, _curve_options(arguments))


def _classes_flags(parser: Parser) -> None:
    parser.add_argument("--boxes", default="gt", choices=("gt", "detected"), help="default: %(default)s")
    parser.add_argument("--budget", type=float, metavar="G", help="mean GMACs per instance over the data set")
    parser.add_argument("--min-instances", type=int, default=5, metavar="N",
                        help="classes with fewer are listed apart (default: %(default)s)")  # fmt: skip
    parser.add_argument("--score", type=float, default=0.5, help="of detections to keep (default: %(default)s)")


def _classes_wanted(arguments: Arguments) -> Wanted:
    if not 0 <= arguments.score <= 1:
        raise DynaMaskError(f"--score {arguments.score} is out of range; give a number from 0 to 1")
    detected = arguments.boxes == "detected"
    return Wanted(given=not detected, detected=detected, score=arguments.score)


def _classes(arguments: Arguments, world: World) -> Report:
    return _class_report(world, world.main.kept, arguments.budget, arguments.min_instances, arguments.score)


def _class_report(
    world: World, kept: Collected, budget: float | None = None, least: int = 5, score: float = 0.5
) -> Report:
    main = world.main
    source = dataclasses.replace(world.source, weights=main.name)
    return classes.make_report(
        kept, main.macs, world.dataset, len(world.indices), source, main.checkpoint, budget, least, score
    )


def _figure8(arguments: Arguments, world: World) -> Report:
    return dataclasses.replace(_classes(arguments, world), name="figure8")


def _figure7_flags(parser: Parser) -> None:
    parser.add_argument("--pictures", type=int, default=6, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--budget", type=float, metavar="G", help="mean GMACs per instance in every picture")
    parser.add_argument("--score", type=float, default=0.5, help="of detections to draw (default: %(default)s)")


def _table6_flags(parser: Parser) -> None:
    defaults = speed.SpeedOptions()
    for field, what in (
        ("rounds", "timed runs of each case"),
        ("pictures", "that the rounds go through in turn"),
        ("detections", "that every model keeps"),
    ):
        value = getattr(defaults, field)
        parser.add_argument(f"--{field}", type=int, default=value, metavar="N", help=f"{what} (default: %(default)s)")


def _table6(arguments: Arguments, world: World) -> Report:
    return speed.make_table6(world, speed.SpeedOptions(arguments.rounds, arguments.pictures, arguments.detections))


def _table(name: str) -> Kind:
    return Kind(TABLES[name].help, lambda _arguments, world: make_table(name, world))


_TAB6 = Kind("pictures a second beside torchvision's Mask R-CNN (Tab. 6)", _table6, _table6_flags)
REPORTS: dict[str, Kind] = {
    **{name: _table(name) for name in list(TABLES)[:5]},
    "table6": _TAB6,
    **{name: _table(name) for name in list(TABLES)[5:]},
    "figure5": Kind(
        "edge loss and mask loss by mask size, and how they rank the sizes (Fig. 5)",
        lambda _arguments, world: make_figure5(world),
        wanted=lambda _arguments: Wanted(detected=False, signals=True),
    ),
    "figure7": Kind(
        "pictures with the masks in the colours of their sizes (Fig. 7)",
        lambda a, world: make_figure7(world, a.pictures, a.budget, a.score),
        _figure7_flags,
        single=True,
    ),
    "figure8": Kind("classes, under the name of the paper's Fig. 8", _figure8, _classes_flags, _classes_wanted, True),
    "budget-curve": Kind(
        "quality against mean MACs: the switch and what it has to beat",
        _budget_curve,
        _budget_curve_flags,
        lambda a: Wanted(detected=not a.no_detections, views=_curve_options(a).views),
        single=True,
    ),
    "classes": Kind("which mask sizes each class gets (Fig. 8)", _classes, _classes_flags, _classes_wanted, True),
    **ONE_STAGE,
}
"""Every report by its name on the command line."""

_ALL: dict[str, Callable[[Arguments, World], Report]] = {
    **{name: REPORTS[name].make for name in TABLES},
    "table6": lambda _arguments, world: speed.make_table6(world, speed.SpeedOptions()),
    "figure5": REPORTS["figure5"].make,
    "figure7": lambda _arguments, world: make_figure7(world),
    "figure8": lambda _arguments, world: dataclasses.replace(
        _class_report(world, Collected(given=world.main.kept.given)), name="figure8"
    ),
    "budget-curve": _budget_curve,
}
"""What ``report all`` makes of one collection, in this order after sorting by the names in ``REPORTS``."""


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "report",
        help="the paper's tables and figures on data at hand, as Markdown, CSV, JSON and interactive pages",
        description="Judge weights on a data set; each report writes Markdown, CSV, JSON and an interactive page.",
    )
    reports = parser.add_subparsers(dest="report", required=True, metavar="report", parser_class=type(parser))
    for name, kind in REPORTS.items():
        own = reports.add_parser(name, help=kind.help, description=f"{kind.help[0].upper()}{kind.help[1:]}.")
        (kind.common or _add_flags)(own, kind.flags)
        own.set_defaults(run=_report, kind=kind, parser=own)
    whole = reports.add_parser(
        "all",
        help="every table and figure that fits the data, from one collection",
        description="Every table and figure that fits the data, from one pass over the pictures for each weights file.",
    )
    _add_flags(whole, _curve_flags)
    add_summary(whole)
    whole.set_defaults(run=_everything, parser=whole)
    add_all(reports)


def _add_flags(parser: Parser, own: Callable[[Parser], None]) -> None:
    parser.add_argument(
        "--weights", required=True, nargs="+", metavar="W",
        help="bundled names or .safetensors files; one bundled name brings what is bundled on its detector",
    )  # fmt: skip
    add_target(parser)
    add_options(parser)
    own(parser)
    add_json(parser)


def _report(arguments: Arguments) -> None:
    check_folder(arguments.out)
    kind: Kind = arguments.kind
    world = kind.world(arguments) if kind.world else _world(arguments, kind.wanted(arguments), kind.single)
    report = kind.make(arguments, world)
    paths = write_report(report, arguments.out)
    say(f"{report.title}: {', '.join(map(str, paths))}", arguments.json)
    write_json(report.data, arguments.json)


def _everything(arguments: Arguments) -> None:
    check_summary(arguments)
    world = _world(arguments, Wanted(views=_curve_options(arguments).views, signals=True))
    makers = {name: partial(_ALL[name], arguments, world) for name in REPORTS if name in _ALL}

    def summarised(reports: list[Report], missing: dict[str, str]) -> str:
        checkpoints = provenance_table(world, world.evidences)
        return everything.summary(world_facts(world), HOW, reports, missing, checkpoints)

    write_all(arguments, makers, summarised)


def with_relatives(names: Sequence[str]) -> list[str]:
    """One bundled name with what is bundled on its detector (NAME-…); several names, or files, as they are.

    One-stage weights have no detector to share, so those of such a name are none.
    """
    if len(names) != 1 or names[0] not in list_bundled():
        return list(names)
    switches = [name for name in list_bundled(TWO_STAGE) if name.startswith(f"{names[0]}-")]
    baselines = [name for name, entry in list_baselines().items() if entry["detector"]["name"] == names[0]]
    return [names[0], *switches, *baselines]


def _world(arguments: Arguments, wanted: Wanted, single: bool = False) -> World:
    """Open weights and data."""
    check_cache(arguments.cache)
    options = TableOptions(
        arguments.samples, arguments.ap_samples, arguments.seed, arguments.cache, sys.stderr.isatty()
    )
    if single and len(arguments.weights) > 1:
        raise DynaMaskError(f"report {arguments.report} is about one weights file; give one with --weights")
    keep_freed_memory()
    names = list(arguments.weights) if single else with_relatives(arguments.weights)
    loaded = [(name, checkpoint_facts(name), load(name, arguments.device)) for name in names]
    dataset, indices = opened_data(arguments, loaded[0][2].class_names)
    source = source_of(arguments, names)
    world = World(dataset, indices, source, options, wanted)
    for name, checkpoint, predictor in loaded:
        world.add(name, predictor, checkpoint)
    return world
