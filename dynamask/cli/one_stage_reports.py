"""``dynamask report sodar-…``: SODAR's tables on one-stage weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dynamask.cli.common import add_json, opened_data
from dynamask.cli.reporting import (
    Arguments,
    Kind,
    Parser,
    add_options,
    add_out_alone,
    add_summary,
    add_target,
    check_summary,
    command_line,
    no_flags,
    source_of,
    write_all,
)
from dynamask.reports.options import DEFAULT_RIVAL, DEFAULT_WEIGHTS, VOTING_IOUS, TableOptions
from dynamask.reports.titles import TITLES
from dynamask.structures import DynaMaskError

if TYPE_CHECKING:
    from dynamask.reports.one_stage.world import OneStageWorld
    from dynamask.reports.writer import Report

_BOTH = ("sodar-table8", "sodar-all")
"""Reports that take two-stage weights, too."""
COUNTS = "sodar-table7"
"""The report that needs neither weights nor data."""


def _voting_flags(parser: Parser) -> None:
    parser.add_argument(
        "--voting-iou", type=float, nargs="+", default=list(VOTING_IOUS), metavar="IOU",
        help="overlaps from which candidates vote in Table II, each in turn (default: 0.7)",
    )  # fmt: skip


def _common(parser: Parser, own: Callable[[Parser], None]) -> None:
    """Flags of the tables that need weights."""
    parser.add_argument(
        "--weights", nargs="+", metavar="W",
        help="one-stage weights, bundled names or .safetensors files; those of one configuration are seeds of one "
        f"model (default: {', '.join(DEFAULT_WEIGHTS)}, as far as they are bundled)",
    )  # fmt: skip
    add_target(parser)
    add_options(parser, ("ap_samples", "seed"))
    own(parser)
    add_json(parser)


def _weights(arguments: Arguments) -> list[str]:
    """The weights that were named, else the bundled ones."""
    from dynamask.models.weights import list_bundled

    if arguments.weights:
        return list(arguments.weights)
    names = [name for name in DEFAULT_WEIGHTS if name in list_bundled()]
    if not names:
        raise DynaMaskError(
            "no one-stage weights are bundled here; name some with --weights, such as `dynamask train --model "
            "sodar_v2_mobilenetv2_fpn_small` writes"
        )
    rival = [DEFAULT_RIVAL] if arguments.report in _BOTH and DEFAULT_RIVAL in list_bundled() else []
    return [*names, *rival]


def _world(arguments: Arguments) -> OneStageWorld:
    """Open weights and data."""
    from dynamask.engine.memory import keep_freed_memory
    from dynamask.models.hub import find_weights
    from dynamask.models.weights import read_header
    from dynamask.predict import load
    from dynamask.reports.cache import check_cache
    from dynamask.reports.facts import checkpoint_facts
    from dynamask.reports.one_stage.world import OneStageWorld

    check_cache(arguments.cache)
    progress = sys.stderr.isatty()
    options = TableOptions(ap_samples=arguments.ap_samples, seed=arguments.seed, cache=arguments.cache,
                           progress=progress)  # fmt: skip
    names = _weights(arguments)
    keep_freed_memory()
    loaded = [(name, load(name, arguments.device)) for name in names]
    dataset, indices = opened_data(arguments, loaded[0][1].class_names)
    both = arguments.report in _BOTH
    world = OneStageWorld(dataset, indices, source_of(arguments, names), options, both)
    for name, predictor in loaded:
        training = read_header(find_weights(name))["training"]
        world.add(name, predictor, checkpoint_facts(name), training)
    return world


def _make(name: str, arguments: Arguments, world: OneStageWorld) -> Report:
    from dynamask.reports.one_stage.tables import make_table

    return make_table(name, world, getattr(arguments, "voting_iou", VOTING_IOUS))


def _counts(arguments: Arguments, _: object) -> Report:
    from dynamask.reports.one_stage.counting import make_counts

    return make_counts(command_line(arguments.parser, arguments))


def _kinds() -> dict[str, Kind]:
    kinds = {
        name: Kind(
            title,
            partial(_make, name),
            _voting_flags if name == "sodar-table2" else no_flags,
            common=_common,
            world=_world,
        )
        for name, title in TITLES.items()
        if name.startswith("sodar-")
    }
    kinds[COUNTS] = Kind(TITLES[COUNTS], _counts, common=add_out_alone, world=lambda _arguments: None)
    return kinds


ONE_STAGE: dict[str, Kind] = _kinds()
"""The reports by their names on the command line."""


def add_all(reports: object) -> None:
    """Add ``report sodar-all`` to the subparsers of ``report``."""
    whole = reports.add_parser(
        "sodar-all",
        help="all seven tables of SODAR from the given weights",
        description="Every table of SODAR that the given weights allow, from one pass over the pictures for each of "
        "them, and one more for every way of voting.",
    )
    _common(whole, _voting_flags)
    add_summary(whole)
    whole.set_defaults(run=_everything, parser=whole)


def _everything(arguments: Arguments) -> None:
    from dynamask.reports import everything
    from dynamask.reports.one_stage.comparing import provenance_table
    from dynamask.reports.one_stage.tables import HOW
    from dynamask.reports.world import world_facts

    check_summary(arguments)
    world = _world(arguments)
    makers = {name: partial(kind.make, arguments, world) for name, kind in ONE_STAGE.items()}

    def summarised(reports: list[Report], missing: dict[str, str]) -> str:
        checkpoints = provenance_table(world, world.evidences)
        return everything.summary(world_facts(world), HOW, reports, missing, checkpoints)

    write_all(arguments, makers, summarised)
