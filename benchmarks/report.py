"""What the benchmark commands share: the held-out pictures, JSON out and errors in one line."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dynamask.cli.common import add_data, held_out
from dynamask.data.sources import Data, open_data
from dynamask.files import write_text
from dynamask.structures import DynaMaskError


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text columns, the first to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    )


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """``--data``, or ``--images`` and ``--annotations``, and ``--holdout``."""
    add_data(parser, "split as `dynamask train --holdout M` does; without it, all pictures")


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """``--json FILE``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")


def opened(arguments: argparse.Namespace, class_names: Sequence[str] | None = None, transforms: Any = None) -> Data:
    """The data set that the flags of :func:`add_data_flags` name, as weights with these classes see it."""
    source = (arguments.data, arguments.images, arguments.annotations)
    return open_data(*source, class_names, transforms, split=arguments.split)


def split(dataset: Data, modulus: int | None, validation: bool) -> list[int]:
    """Dataset indices of one side of the published split, or of all pictures without a modulus."""
    if modulus is None:
        return list(range(len(dataset)))
    return held_out(dataset, modulus, validation)


def check_json_target(path: Path | None) -> None:
    """Refuse a ``--json`` target that cannot be written, before the work starts."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise DynaMaskError(f"--json {path} cannot be written; give a file in a folder that exists")


def write_json(value: object, path: Path | None) -> None:
    """Write JSON atomically; nothing without a path."""
    if path is None:
        return
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def run(name: str, command: Callable[[], None]) -> int:
    """Run a command; a mistake of the user becomes one line on stderr and exit code 2."""
    warnings.showwarning = lambda message, *_, **__: print(f"{name}: warning: {message}", file=sys.stderr)
    try:
        command()
    except (DynaMaskError, OSError) as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
