"""Run ``dynamask report`` and read what it wrote."""

import shlex
from pathlib import Path

from dynamask import cli


def run_report(capsys, *words):
    """Run a report; returns the exit code and what was printed."""
    try:
        code = cli.main(["report", *map(str, words)])
    except SystemExit as end:  # the parser refuses an argument
        code = end.code
    return code, capsys.readouterr()


def parsed_command(document: Path):
    """Arguments of the command that a report's Markdown names."""
    lines = document.read_text().splitlines()
    command = next(line for line in lines if line.startswith("- command")).split("`")[1]
    return parsed(command)


def parsed(command: str):
    """Arguments of a dynamask command."""
    return cli.build_parser().parse_args(shlex.split(command)[1:])
