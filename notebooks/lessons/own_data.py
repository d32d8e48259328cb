"""Lesson 07: the command line and the app from within a notebook, and what the lesson breaks on purpose."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dynamask.structures import DynaMaskError
from lessons.training_runs import History

_WORKER = """
import contextlib, io, json, sys
from dynamask.cli import main
for line in sys.stdin:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(json.loads(line))
        except SystemExit as leave:
            code = leave.code or 0
    print(json.dumps([code, said.getvalue()]), flush=True)
"""
"""Reads the arguments of one command a line, runs the very `main` of the command `dynamask`, answers with its code and
words. One process for many commands: PyTorch is loaded once."""
START_SECONDS = 120.0
"""How long the app may take until it answers."""


@dataclass(frozen=True)
class Answer:
    """What a command said; at the end of a cell it looks as in a terminal.

    Attributes:
        command: as one types it.
        code: 0, or 2 where something was wrong with what it was given.
        text: its lines.
    """

    command: str
    code: int
    text: str

    def __str__(self) -> str:
        ending = f"\n[exit code {self.code}]" if self.code else ""
        return f"$ {self.command}\n{self.text.rstrip()}{ending}"

    __repr__ = __str__


class Terminal:
    """Runs `dynamask …` commands, one after the other, in a process of its own.

    The process begins at once, loads PyTorch while the notebook does something else, and ends with the notebook.

    Args:
        folder: where the commands run; paths in it are given to them, and shown, relative to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        known = os.environ.get("PYTHONPATH", "")
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([package, *([known] if known else [])])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, encoding="utf-8", cwd=self.folder,
            env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": path},
        )  # fmt: skip
        weakref.finalize(self, _end, self._process)

    def __call__(self, *arguments: object) -> Answer:
        """Run ``dynamask`` with these arguments; a path or a number may be given as it is.

        Raises:
            DynaMaskError: the process ended; what it said is lost.
        """
        words = [self._word(argument) for argument in arguments]
        try:
            _pipe(self._process.stdin).write(json.dumps(words) + "\n")
            _pipe(self._process.stdin).flush()
            line = _pipe(self._process.stdout).readline()
        except (OSError, ValueError):  # ValueError: the pipe was closed here
            line = ""
        if not line:
            raise DynaMaskError("the process that runs the commands has ended; make a new Terminal")
        code, text = json.loads(line)
        shown = "\n".join(row.rpartition("\r")[2] for row in text.split("\n"))  # a bar as it stood at last
        return Answer(shlex.join(["dynamask", *words]), code, shown)

    def _word(self, argument: object) -> str:
        """An argument as one types it."""
        if isinstance(argument, Path) and argument.resolve().is_relative_to(self.folder):
            return str(argument.resolve().relative_to(self.folder))
        return str(argument)

    def close(self) -> None:
        """End the process."""
        _end(self._process)


def _pipe(stream: IO[str] | None) -> IO[str]:
    """A pipe that was asked for, so that it is there."""
    if stream is None:
        raise OSError("no pipe")
    return stream


def _end(process: subprocess.Popen) -> None:
    """End a process that was begun here, if it has not ended itself, and give its pipes back."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def served(*command: str, seconds: float = START_SECONDS) -> Iterator[str]:
    """Start a server, wait until it answers, yield its address, and end it.

    Args:
        command: a Python module and its arguments, such as ``"app", "--weights", "shapes"``; ``--port`` is added.
        seconds: to wait at most.

    Raises:
        DynaMaskError: it ended before it answered (with its last line), or did not answer in time.
    """
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--port", str(port)], cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"},
    )  # fmt: skip
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while not _answers(address):
            if process.poll() is not None:
                lines = _pipe(process.stderr).read().strip().splitlines() or ["it said nothing"]
                raise DynaMaskError(f"{command[0]} ended before it answered: {lines[-1]}")
            if time.monotonic() > deadline:
                raise DynaMaskError(f"{command[0]} did not answer within {seconds:g} seconds; give it more")
            time.sleep(0.2)
        yield address
    finally:
        _end(process)
        if process.stderr is not None:
            process.stderr.close()


def _answers(address: str) -> bool:
    """Whether a server gives a page."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def history_of(run: Path) -> History:
    """What a run's ``log.csv`` says of every logged step.

    Raises:
        DynaMaskError: there is no log.
    """
    path = run / "log.csv"
    if not path.is_file():
        raise DynaMaskError(f"{run} holds no log.csv; give the folder of a run")
    history = History()
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            history.steps.append(int(row.pop("step")))
            for name, value in row.items():
                history.values.setdefault(name, []).append(float(value))
    return history
