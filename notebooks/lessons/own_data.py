"""Notebook 07: the command line and the app, run from a notebook."""

from __future__ import annotations

import contextlib
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

from dynamask.reports.runs import read_runs
from dynamask.structures import DynaMaskError
from lessons.kernels import ROOT
from lessons.training_runs import History

_WORKER = """
import contextlib, io, json, sys
from dynamask.cli import main
for line in sys.stdin:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = main(json.loads(line))
        except SystemExit as exit:
            code = exit.code or 0
    print(json.dumps([code, output.getvalue()]), flush=True)
"""
"""Reads the arguments of one command per line, calls the `main` of the command `dynamask`, and prints exit code and
output. All commands run in one process, so that PyTorch is imported once."""
START_SECONDS = 120.0
"""Time limit for the start of the app."""


@dataclass(frozen=True)
class CommandResult:
    """Output of a command, printed at the end of a cell as in a terminal.

    Attributes:
        command: as typed.
        code: exit code, 0 or 2.
        text: output.
    """

    command: str
    code: int
    text: str

    def __repr__(self) -> str:
        ending = f"\n[exit code {self.code}]" if self.code else ""
        return f"$ {self.command}\n{self.text.rstrip()}{ending}"


class Terminal:
    """Runs `dynamask …` commands one after the other in a process of their own, which ends with the notebook.

    Args:
        folder: working directory of the commands; paths inside it are passed and shown relative to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            cwd=self.folder,
            env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": path},
        )
        weakref.finalize(self, _end, self._process)

    def __call__(self, *arguments: object) -> CommandResult:
        """Run ``dynamask`` with these arguments, which may be paths or numbers.

        Raises:
            DynaMaskError: the process has ended.
        """
        words = [self._word(argument) for argument in arguments]
        line = ""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the pipe is closed
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise DynaMaskError("the process that runs the commands has ended; make a new Terminal")
        code, text = json.loads(line)
        shown = "\n".join(row.rpartition("\r")[2] for row in text.split("\n"))  # the last state of a progress bar
        return CommandResult(shlex.join(["dynamask", *words]), code, shown)

    def _word(self, argument: object) -> str:
        """An argument as text."""
        if isinstance(argument, Path) and argument.resolve().is_relative_to(self.folder):
            return str(argument.resolve().relative_to(self.folder))
        return str(argument)

    def close(self) -> None:
        """End the process."""
        _end(self._process)


def _end(process: subprocess.Popen) -> None:
    """End a process if it is still running, and close its pipes."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
        with contextlib.suppress(OSError):
            stream.close()


@contextlib.contextmanager
def served(*command: str, seconds: float = START_SECONDS) -> Iterator[str]:
    """Start a server on a free port, wait until it responds, yield its address, and end it.

    Args:
        command: a Python module and its arguments, such as ``"app", "--weights", "shapes"``; ``--port`` is added.
        seconds: time limit for the start.

    Raises:
        DynaMaskError: the server ended (with its last line of output), or did not respond in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--port", str(port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"},
    )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while not _responds(address):
            if process.poll() is not None:
                lines = process.stderr.read().strip().splitlines() or ["no output"]
                raise DynaMaskError(f"{command[0]} ended before it responded: {lines[-1]}")
            if time.monotonic() > deadline:
                raise DynaMaskError(f"{command[0]} did not respond within {seconds:g} seconds; raise the limit")
            time.sleep(0.2)
        yield address
    finally:
        _end(process)


def _responds(address: str) -> bool:
    """Whether a server returns a page."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def history_of(run: Path) -> History:
    """Read the values of every logged step of a run.

    Raises:
        DynaMaskError: the folder holds no log.
    """
    history, columns = History(), dict(read_runs(run)[0].log)
    history.steps = [int(step) for step in columns.pop("step")]
    history.values = columns
    return history
