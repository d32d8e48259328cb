"""Run ``dynamask`` commands in this process, and parse commands of documents."""

from __future__ import annotations

import shlex
from importlib import import_module
from pathlib import Path

import pytest

from app.__main__ import parse_arguments as parse_app_arguments
from dynamask import cli
from dynamask.cli.recipes import apply_recipe

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = {"curl", "unzip", "mkdir", "hf", "pip", "pytest", "jupyter", "FAST=1", "for", "done"}
"""First words of commands that are not this project's."""


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, list[str]]:
    """Exit code, stdout and the lines of stderr of ``dynamask`` with these words."""
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that ends with exit code 2; warnings before it are left out."""
    code, _, lines = run(capsys, *words)
    lines = [line for line in lines if not line.startswith("dynamask: warning: ")]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("dynamask: error: "), lines
    return lines[0]


def check_command(command: str) -> None:
    """Parse a shell command with the parser of its program; argparse exits where it does not fit."""
    words = shlex.split(command, comments=True)
    if words[0] == "torchrun":
        assert words[1] == "--nproc-per-node" and words[2].isdecimal() and words[3:5] == ["-m", "dynamask"], command
        words = words[4:]
    if words[0] == "dynamask":
        arguments = cli.build_parser().parse_args(words[1:])
        if arguments.command == "train":
            apply_recipe(arguments)
    elif words[:3] == ["python", "-m", "app"]:
        parse_app_arguments(words[3:])
    elif words[0] == "python" and words[1].startswith(("benchmarks/", "tools/")):
        import_module(words[1].removesuffix(".py").replace("/", ".")).build_parser().parse_args(words[2:])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), command
    else:
        assert words[0] in FOREIGN, f"{command!r} is not a command of this project"
