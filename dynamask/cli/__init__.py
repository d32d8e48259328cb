"""Command line: ``dynamask <command>``, one module per command. Bad input exits with code 2 and one line on stderr.

The modules of the commands import only the standard library and the light modules of dynamask (``config``, ``presets``,
``recipes``, …) at the top, and everything that needs torch inside the functions that run, so that ``-h`` and errors in
the arguments are answered at once.
"""

from __future__ import annotations

import argparse
import os
import typing
from collections.abc import Sequence

from dynamask.cli import analyze, costs, data, evaluate, predict, recipes, report, runs, shapes, train, weights
from dynamask.cli.common import replace_unencodable, run_command

COMMANDS = (costs, predict, train, recipes, runs, evaluate, report, shapes, analyze, data, weights)
"""Modules with ``add(commands)``, in the order of the help."""


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line."""

    def error(self, message: str) -> typing.NoReturn:
        """Exit with code 2 and one line, which only the first of several distributed processes prints."""
        line = f"dynamask: error: {' '.join(message.split())}; see {self.prog} -h\n"
        self.exit(2, line if os.environ.get("RANK", "0") == "0" else None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for findings of ``data check``, 2 for an error, 130 after Ctrl-C."""
    replace_unencodable()
    arguments = build_parser().parse_args(argv)
    return run_command("dynamask", lambda: arguments.run(arguments), vars(arguments).get("json"))


def build_parser() -> argparse.ArgumentParser:
    """The parser with its subcommands."""
    parser = _Parser(prog="dynamask", description="Per-instance dynamic mask resolution for instance segmentation.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)
    for command in COMMANDS:
        command.add(commands)
    return parser
