"""Faults at every operation on files: the process is killed, the disk is full, the folder becomes read-only."""

import errno
import itertools
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from helpers.runs import toy_run

from dynamask.engine import log
from dynamask.engine.checkpoint import checkpoints, load_run, step_of
from dynamask.engine.folder_lock import LOCK
from dynamask.engine.train import train
from dynamask.files import replacing
from dynamask.structures import DynaMaskError

KILLED = 99
OPERATIONS = ("open", "fsync", "replace", "unlink", "write", "ftruncate")
"""Functions of ``os`` that the writing of files calls; the writes into its streams are counted with them."""


class Stream:
    """A stream whose writes are operations."""

    def __init__(self, stream, operate) -> None:
        self.stream, self.operate = stream, operate

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def write(self, content):
        self.operate()
        return self.stream.write(content)


class Operations:
    """Counts operations on files; at number ``at`` the process ends, or the operation raises an OSError.

    Args:
        error: number of the error; None ends the process at once, as SIGKILL does.
    """

    def __init__(self, patch, at: int = 0, error: int | None = None) -> None:
        self.count, self.at, self.error = 0, at, error
        for name in OPERATIONS:
            patch.setattr(os, name, self.counted(getattr(os, name)))
        patch.setattr(os, "fdopen", self.with_stream(os.fdopen))
        patch.setattr(Path, "open", self.with_stream(self.counted(Path.open)))

    def operate(self) -> None:
        self.count += 1
        if self.count == self.at:
            if self.error is None:
                os._exit(KILLED)
            raise OSError(self.error, os.strerror(self.error))

    def counted(self, usual):
        def act(*values, **named):
            self.operate()
            return usual(*values, **named)

        return act

    def with_stream(self, usual):
        return lambda *values, **named: Stream(usual(*values, **named), self.operate)


def save_weights(run) -> None:
    with replacing(run.out / "weights.bin") as stream:
        stream.write(run.model.weight.detach().numpy().tobytes())


def go_on(out: Path) -> None:
    """What ``dynamask train --resume`` does."""
    run = toy_run(out, save_every=1)
    if checkpoints(out):
        run.resume()
    train(run, on_save=save_weights, progress=False)


@pytest.fixture(scope="module")
def without_tensorboard():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "_tensorboard_writer", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def paused(tmp_path_factory, without_tensorboard) -> Path:
    """Folder of a training with a state of step 2 of 4."""
    run = toy_run(tmp_path_factory.mktemp("paused"), save_every=1)
    train(run, on_save=save_weights, progress=False, should_stop=lambda: run.step == 2)
    return run.out


@pytest.fixture(scope="module")
def straight(paused, tmp_path_factory) -> Path:
    """Folder of a training that nothing happened to."""
    out = tmp_path_factory.mktemp("straight") / "run"
    go_on(out)
    return out


@pytest.fixture(scope="module")
def count(paused, straight, tmp_path_factory) -> int:
    """Number of operations from the state of step 2 to the end."""
    out = tmp_path_factory.mktemp("counted") / "run"
    shutil.copytree(paused, out)
    with pytest.MonkeyPatch.context() as patch:
        operations = Operations(patch)
        go_on(out)
    return operations.count


def check_and_go_on(out: Path, straight: Path) -> None:
    """All files that are there are whole, no state is lost, and the same command ends as without the fault."""
    assert max(map(step_of, checkpoints(out))) >= 2
    for path in checkpoints(out):
        load_run(path)
    assert len((out / "weights.bin").read_bytes()) == 8
    go_on(out)
    assert (out / "weights.bin").read_bytes() == (straight / "weights.bin").read_bytes()
    assert (out / "log.csv").read_text() == (straight / "log.csv").read_text()
    ours, theirs = (load_run(checkpoints(folder)[-1]) for folder in (out, straight))
    assert all(torch.equal(ours["model"][name], value) for name, value in theirs["model"].items())
    left = [path.name for path in out.iterdir() if path.suffix in (".partial", ".unreadable") or path.name == LOCK]
    assert not left


def test_the_faults_cover_writes_syncs_and_renames(count):
    assert count > 40


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_killed_at_every_operation(paused, straight, count, tmp_path):
    for at in range(1, count + 1):
        out = tmp_path / str(at)
        shutil.copytree(paused, out)
        child = os.fork()
        if not child:
            try:
                Operations(pytest.MonkeyPatch(), at)
                go_on(out)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED, at
        check_and_go_on(out, straight)


def test_an_error_at_every_operation(paused, straight, count, tmp_path):
    for at, error in zip(range(1, count + 1), itertools.cycle([errno.ENOSPC, errno.EROFS])):
        out = tmp_path / str(at)
        shutil.copytree(paused, out)
        with pytest.MonkeyPatch.context() as patch:
            operations = Operations(patch, at, error)
            try:
                go_on(out)
            except (DynaMaskError, OSError) as problem:
                assert "\n" not in str(problem)
        assert operations.count >= at
        check_and_go_on(out, straight)


def test_a_clock_that_jumps_changes_nothing(straight, tmp_path, monkeypatch):
    jumps = itertools.cycle([0.0, 4e9, 1.0, 2e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "monotonic", lambda: next(jumps))
    go_on(tmp_path / "run")
    assert (tmp_path / "run" / "log.csv").read_bytes() == (straight / "log.csv").read_bytes()
    assert (tmp_path / "run" / "weights.bin").read_bytes() == (straight / "weights.bin").read_bytes()
