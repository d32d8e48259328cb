"""``dynamask report``: one command a report, each writing Markdown, CSV, JSON and an interactive page."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

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
from dynamask.reports.options import CurveOptions, SpeedOptions, TableOptions, Wanted
from dynamask.reports.titles import TITLES
from dynamask.structures import DynaMaskError

if TYPE_CHECKING:
    from dynamask.reports.collecting import Collected
    from dynamask.reports.world import World
    from dynamask.reports.writer import Report


def _curve_flags(parser: Parser) -> None:
    defaults = CurveOptions()
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


def _curve_options(arguments: Arguments) -> CurveOptions:
    return CurveOptions(arguments.budgets, arguments.views, arguments.permutations)


def _budget_curve(arguments: Arguments, world: World) -> Report:
    from dynamask.reports import budget_curve

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
    from dynamask.reports import classes

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
    defaults = SpeedOptions()
    for field, what in (
        ("rounds", "timed runs of each case"),
        ("pictures", "that the rounds go through in turn"),
        ("detections", "that every model keeps"),
    ):
        value = getattr(defaults, field)
        parser.add_argument(f"--{field}", type=int, default=value, metavar="N", help=f"{what} (default: %(default)s)")


def _table6(arguments: Arguments, world: World) -> Report:
    from dynamask.reports.speed import make_table6

    return make_table6(world, SpeedOptions(arguments.rounds, arguments.pictures, arguments.detections))


def _table(name: str, _arguments: Arguments, world: World) -> Report:
    from dynamask.reports.tables import make_table

    return make_table(name, world)


def _figure5(_arguments: Arguments, world: World) -> Report:
    from dynamask.reports.figure5 import make_figure5

    return make_figure5(world)


def _figure7(arguments: Arguments, world: World) -> Report:
    from dynamask.reports.figure7 import make_figure7

    return make_figure7(world, arguments.pictures, arguments.budget, arguments.score)


def _tables(*names: str) -> dict[str, Kind]:
    return {name: Kind(TITLES[name], partial(_table, name)) for name in names}


REPORTS: dict[str, Kind] = {
    **_tables("table1", "table2", "table3", "table4", "table5"),
    "table6": Kind(TITLES["table6"], _table6, _table6_flags),
    **_tables("table7", "table8", "tableS1", "tableS2", "tableS3"),
    "figure5": Kind(TITLES["figure5"], _figure5, wanted=lambda _arguments: Wanted(detected=False, signals=True)),
    "figure7": Kind(TITLES["figure7"], _figure7, _figure7_flags, single=True),
    "figure8": Kind(TITLES["figure8"], _figure8, _classes_flags, _classes_wanted, True),
    "budget-curve": Kind(
        TITLES["budget-curve"],
        _budget_curve,
        _budget_curve_flags,
        lambda a: Wanted(detected=not a.no_detections, views=_curve_options(a).views),
        single=True,
    ),
    "classes": Kind(TITLES["classes"], _classes, _classes_flags, _classes_wanted, True),
    **ONE_STAGE,
}
"""Every report by its name on the command line."""


def _all_reports(arguments: Arguments, world: World) -> dict[str, Callable[[], Report]]:
    """What ``report all`` makes of one collection, in the order of ``REPORTS``, each with its own defaults."""
    from dynamask.reports.collecting import Collected
    from dynamask.reports.figure7 import make_figure7
    from dynamask.reports.speed import make_table6

    def figure8() -> Report:
        collected = Collected(given=world.main.kept.given)
        return dataclasses.replace(_class_report(world, collected), name="figure8")

    makers = {
        "table6": partial(make_table6, world, SpeedOptions()),
        "figure7": partial(make_figure7, world),
        "figure8": figure8,
    }
    return {
        name: makers.get(name) or partial(kind.make, arguments, world)
        for name, kind in REPORTS.items()
        if name not in ONE_STAGE and name != "classes"
    }


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
    from dynamask.reports.writer import write_report

    check_folder(arguments.out)
    kind: Kind = arguments.kind
    world = kind.world(arguments) if kind.world else _world(arguments, kind.wanted(arguments), kind.single)
    report = kind.make(arguments, world)
    paths = write_report(report, arguments.out)
    say(f"{report.title}: {', '.join(map(str, paths))}", arguments.json)
    write_json(report.data, arguments.json)


def _everything(arguments: Arguments) -> None:
    from dynamask.reports import everything
    from dynamask.reports.comparing import provenance_table
    from dynamask.reports.tables import HOW
    from dynamask.reports.world import world_facts

    check_summary(arguments)
    world = _world(arguments, Wanted(views=_curve_options(arguments).views, signals=True))

    def summarised(reports: list[Report], missing: dict[str, str]) -> str:
        checkpoints = provenance_table(world, world.evidences)
        return everything.summary(world_facts(world), HOW, reports, missing, checkpoints)

    write_all(arguments, _all_reports(arguments, world), summarised)


def with_relatives(names: Sequence[str]) -> list[str]:
    """One bundled name with what is bundled on its detector (NAME-…); several names, or files, as they are.

    One-stage weights have no detector to share, so those of such a name are none.
    """
    from dynamask.config import ModelConfig
    from dynamask.models.weights import list_baselines, list_bundled

    if len(names) != 1 or names[0] not in list_bundled():
        return list(names)
    switches = [name for name in list_bundled(ModelConfig.FAMILY) if name.startswith(f"{names[0]}-")]
    baselines = [name for name, entry in list_baselines().items() if entry["detector"]["name"] == names[0]]
    return [names[0], *switches, *baselines]


def _world(arguments: Arguments, wanted: Wanted, single: bool = False) -> World:
    """Open weights and data."""
    from dynamask.engine.memory import keep_freed_memory
    from dynamask.predict import load
    from dynamask.reports.cache import check_cache
    from dynamask.reports.facts import checkpoint_facts
    from dynamask.reports.world import World

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
