"""What the benchmarks share: the command line, processes and browsers to measure in, and how results are written.

A benchmark is a module with ``build_parser()``. The default ``measure`` of its parser, or of each subparser, is a
function from the parsed flags to a :class:`Result`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynamask.cli.common import add_data, run_command, write_json
from dynamask.evaluation.efficiency import machine, machine_line, resident
from dynamask.structures import DynaMaskError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Result:
    """What a benchmark measured.

    Attributes:
        figures: for ``--json``.
        text: for the terminal.
    """

    figures: dict[str, Any]
    text: str


def make_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser that describes a benchmark by the first line of its docstring."""
    return argparse.ArgumentParser(prog=name, description=(doc or "").split("\n", 1)[0])


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``, ``--split``, ``--images``, ``--annotations`` and ``--holdout``."""
    add_data(parser, "split as `dynamask train --holdout M` does (default: all pictures)")


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Raise :class:`DynaMaskError` unless these flags are at least 1."""
    for name in names:
        if getattr(arguments, name) < 1:
            raise DynaMaskError(f"--{name} is {getattr(arguments, name)}; give a whole number of at least 1")


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Measure as the flags say, print the machine and the result, and write ``--json``; returns the exit code."""
    arguments = parser.parse_args(argv)
    facts = machine()

    def command() -> None:
        result: Result = arguments.measure(arguments)
        measured_on = {**facts, "threads": torch.get_num_threads()}
        print(machine_line(measured_on))
        print(result.text)
        write_json({"machine": measured_on, **result.figures}, arguments.json)

    return run_command(parser.prog, command, arguments.json)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text columns, the first to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    )


def spread(milliseconds: Sequence[float]) -> dict[str, float | int]:
    """Median, 95 % quantile and number of times."""
    median, p95 = np.quantile(milliseconds, [0.5, 0.95])
    return {"median_ms": round(float(median), 2), "p95_ms": round(float(p95), 2), "count": len(milliseconds)}


def peak_memory(step: Callable[[], object]) -> int:
    """Most resident bytes while a step runs, above those before it (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def in_child(script: str, *words: object) -> Any:
    """The JSON value that a script prints in a new process, so that no earlier case has touched its memory."""
    command = [sys.executable, script, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium driven by Playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise DynaMaskError("this benchmark needs Playwright and Chromium; pip install -e '.[dev]'") from error
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()
