"""What the reports of both families share on the command line: their flags, their writing, all of them at once."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamask.cli.common import add_data, add_json, check_folder, say, write_json
from dynamask.files import write_text
from dynamask.reports.options import TableOptions, Wanted
from dynamask.structures import DynaMaskError

if TYPE_CHECKING:
    from dynamask.reports.facts import Source
    from dynamask.reports.writer import Report

Parser = argparse.ArgumentParser
Arguments = argparse.Namespace


def no_flags(_parser: Parser) -> None:
    """A report without flags of its own."""


@dataclass(frozen=True)
class Kind:
    """A report.

    Attributes:
        help: its line of help.
        make: the report of a world.
        flags: adds its own flags.
        wanted: what is predicted for it, in the two-stage family.
        single: it is about one weights file.
        common: adds the flags that it shares with its family; None for those of the two-stage family.
        world: opens weights and data; None for the two-stage family's way.
    """

    help: str
    make: Callable[[Arguments, Any], Report]
    flags: Callable[[Parser], None] = no_flags
    wanted: Callable[[Arguments], Wanted] = lambda _arguments: Wanted()
    single: bool = False
    common: Callable[[Parser, Callable[[Parser], None]], None] | None = None
    world: Callable[[Arguments], Any] | None = None


def add_options(parser: Parser, which: Sequence[str] = ("samples", "ap_samples", "seed")) -> None:
    """Flags of :class:`TableOptions`, and the cache."""
    defaults = TableOptions()
    said = {
        "samples": "resampled sets of pictures for intervals in true boxes",
        "ap_samples": "resampled sets of pictures for intervals of AP",
        "seed": "of views, resampling and permutations",
    }
    for name in which:
        flag, text = f"--{name.replace('_', '-')}", f"{said[name]} (default: %(default)s)"
        parser.add_argument(flag, type=int, default=getattr(defaults, name), help=text)
    parser.add_argument("--cache", type=Path, metavar="DIR",
                        help="keep here what was predicted, and use what fits weights, data and settings")  # fmt: skip


def add_target(parser: Parser) -> None:
    """``--data`` and its kin, ``--out`` and ``--device``."""
    add_data(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the report's files")
    parser.add_argument("--device", default="cpu")


def add_summary(parser: Parser) -> None:
    """``--summary`` of a command that makes several reports."""
    parser.add_argument("--summary", type=Path, metavar="FILE.md", help="write the tables into one Markdown file, too")


def add_out_alone(parser: Parser, own: Callable[[Parser], None]) -> None:
    """Flags of a report that needs neither weights nor data."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the report's files")
    own(parser)
    add_json(parser)


def source_of(arguments: Arguments, names: Sequence[str]) -> Source:
    """Where the figures of a report on these weights come from."""
    from dynamask.reports.facts import Source

    split = "all pictures"
    if arguments.holdout is not None:
        split = f"held out: the SHA-256 of the decimal image id is divisible by {arguments.holdout}"
    command = command_line(arguments.parser, arguments)
    return Source(", ".join(names), str(arguments.data or arguments.annotations), split, command)


def command_line(parser: Parser, arguments: Arguments, leave: Sequence[str] = ("json",)) -> str:
    """The command that parses to these arguments, defaults left away."""
    words = shlex.split(parser.prog)
    for action in parser._actions:
        value = getattr(arguments, action.dest, None)
        if action.option_strings and action.dest not in leave and value != action.default and value is not None:
            given = [] if action.nargs == 0 else value if isinstance(value, list) else [value]
            words += [action.option_strings[-1], *map(str, given)]
    return shlex.join(words)


def check_summary(arguments: Arguments) -> None:
    """Refuse an ``--out`` that is a file and a ``--summary`` that is a folder, before the work starts."""
    check_folder(arguments.out)
    if arguments.summary is not None and arguments.summary.is_dir():
        raise DynaMaskError(f"--summary {arguments.summary} is a folder; give a Markdown file")


def write_all(
    arguments: Arguments,
    makers: dict[str, Callable[[], Report]],
    summarised: Callable[[list[Report], dict[str, str]], str],
) -> None:
    """Make and write every report that can be made, and the summary where it is asked for.

    Args:
        makers: by name; one that raises :class:`DynaMaskError` is passed over and its reason said.
        summarised: the Markdown of the reports, and by name why others were not made.

    Raises:
        DynaMaskError: none can be made.
    """
    from dynamask.reports.writer import write_report

    reports: list[Report] = []
    missing: dict[str, str] = {}
    for name, make in makers.items():
        try:
            report = make()
        except DynaMaskError as error:
            missing[name] = str(error)
            say(f"{name} was not made: {error}", arguments.json)
            continue
        reports.append(report)
        say(f"{report.title}: {', '.join(map(str, write_report(report, arguments.out)))}", arguments.json)
    if not reports:
        raise DynaMaskError(f"no report fits the data: {next(iter(missing.values()))}")
    if arguments.summary is not None:
        write_text(arguments.summary, summarised(reports, missing))
        say(f"summary: {arguments.summary}", arguments.json)
    write_json({report.name: report.data for report in reports} | {"not_made": missing}, arguments.json)
