"""Writing files: atomically, through links, into what is no regular file, and one training per folder."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading

import pytest
from helpers.runs import ROOT, toy_run

from dynamask.cli.common import run_command, write_json
from dynamask.engine.folder_lock import LOCK, locked
from dynamask.engine.train import train
from dynamask.files import replacing, write_text
from dynamask.structures import DynaMaskError


def failing(number: int):
    """A function that raises an OSError."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


# Replacing


def test_permissions_and_links_stay(tmp_path):
    file, link = tmp_path / "private.json", tmp_path / "link.json"
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to(file.name)
    write_text(link, "new")
    assert link.is_symlink() and file.read_text() == "new" and stat.S_IMODE(file.stat().st_mode) == 0o600
    dangling = tmp_path / "later.json"
    dangling.symlink_to("made/later.json")
    write_text(dangling, "x")
    assert dangling.is_symlink() and (tmp_path / "made" / "later.json").read_text() == "x"


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("x")
    write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_devices_and_pipes_are_written_to(tmp_path):
    write_text(tmp_path / "../../../../../../../../../../dev/null", "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(10)
    assert read == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("to_file", [False, True])
def test_standard_output_as_a_file(tmp_path, to_file):
    program = (
        "from pathlib import Path\nfrom dynamask.files import write_text\n"
        "print('before')\nwrite_text(Path('/dev/stdout'), 'json\\n')\nprint('after')"
    )
    with (tmp_path / "out").open("w") as stream:
        target = {"stdout": stream} if to_file else {"capture_output": True}
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, **target)
    assert ((tmp_path / "out").read_text() if to_file else done.stdout) == "before\njson\nafter\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"1" * 9)
        second.write(b"2" * 5)
    assert path.read_bytes() == b"1" * 9 and list(tmp_path.iterdir()) == [path]


def test_long_names_can_be_written(tmp_path):
    write_text(tmp_path / ("ü" * 127), "x")
    with pytest.raises(DynaMaskError, match="the name is too long"):
        write_text(tmp_path / ("ü" * 128), "x")


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("", "the name of the file to write is empty"),
        ("folder", "folder is a folder; give the name of a file"),
        ("file/x.json", "folder file of --json does not exist"),
        ("circle", "circle cannot be written (its links form a circle)"),
    ],
)
def test_json_targets_that_are_no_files(tmp_path, monkeypatch, capsys, target, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    assert run_command("dynamask", lambda: write_json({}, target), target) == 2
    line = capsys.readouterr().err
    assert line.startswith("dynamask: error: ") and sentence in line and line.count("\n") == 1 and "Errno" not in line


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission is denied")],
)
def test_other_errors_of_the_system_are_sentences(capsys, number, reason):
    def act():
        raise OSError(number, os.strerror(number), "some/file")

    assert run_command("dynamask", act) == 2
    line = capsys.readouterr().err
    assert line.startswith("dynamask: error: some/file cannot be used") and reason in line and "Errno" not in line


# Faults


class Fault:
    """Replaces a function of ``os``: its ``at``-th call ends the process, or raises an OSError."""

    def __init__(self, monkeypatch, name: str, at: int, number: int | None) -> None:
        self.usual, self.at, self.number, self.calls = getattr(os, name), at, number, 0
        monkeypatch.setattr(os, name, self)

    def __call__(self, *values, **named):
        self.calls += 1
        if self.calls == self.at:
            if self.number is None:
                os._exit(99)
            raise OSError(self.number, os.strerror(self.number))
        return self.usual(*values, **named)


@pytest.mark.parametrize("name", ["open", "fdopen", "fsync", "replace"])
def test_an_error_at_any_call_leaves_the_old_file(tmp_path, monkeypatch, name):
    path = tmp_path / "file"
    path.write_text("old")
    for number in (errno.ENOSPC, errno.EROFS, errno.EIO):
        with monkeypatch.context() as patch:
            fault = Fault(patch, name, 1, number)
            with pytest.raises(DynaMaskError, match="cannot be written .* nothing that was there is lost"):
                write_text(path, "new")
        assert fault.calls and path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_text(path, "new")
    assert path.read_text() == "new"


# One training per folder


def test_a_folder_in_use_is_refused(tmp_path):
    run, other, problems = toy_run(tmp_path), toy_run(tmp_path), []

    def start_other():
        try:
            train(other, progress=False)
        except DynaMaskError as error:
            problems.append(str(error))

    def during(step_run, values):
        if step_run.step == 2:
            second = threading.Thread(target=start_other)
            second.start()
            second.join()

    assert train(run, progress=False, on_step=during) and not (tmp_path / LOCK).exists()
    assert len(problems) == 1 and f"used by another training (process {os.getpid()} on " in problems[0]


HOLD = """
import os, sys, time
from pathlib import Path
from dynamask.engine.folder_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_another_process_holds_until_it_is_killed(tmp_path):
    out = tmp_path / "new" / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DynaMaskError, match=rf"process {holder.pid} on .*wait for it to end"), locked(out):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert (out / LOCK).exists()
    with locked(out), locked(out):
        assert (out / LOCK).read_text().split() == [str(os.getpid()), socket.gethostname()]
    assert not (out / LOCK).exists() and out.exists()


def test_the_lock_of_another_host_is_not_taken_over(tmp_path):
    (tmp_path / LOCK).write_text("12 elsewhere\n")
    with pytest.raises(DynaMaskError, match=r"process 12 on elsewhere\); if it has ended, delete .*run\.lock"):
        train(toy_run(tmp_path), progress=False)
    assert (tmp_path / LOCK).read_text() == "12 elsewhere\n"
    (tmp_path / LOCK).write_text("half a li")  # of a process that was killed while it wrote
    assert train(toy_run(tmp_path), progress=False)


def test_without_locks_of_the_system_the_process_decides(tmp_path, monkeypatch):
    from dynamask.engine import folder_lock

    monkeypatch.setattr(folder_lock, "fcntl", None)
    (tmp_path / LOCK).write_text(f"{os.getppid()} {socket.gethostname()}\n")
    with pytest.raises(DynaMaskError, match="used by another training"), locked(tmp_path):
        pass
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / LOCK).write_text(f"{ended.pid} {socket.gethostname()}\n")
    with locked(tmp_path):
        pass


def test_a_lock_leaves_no_folders(tmp_path, monkeypatch):
    with locked(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "open", failing(errno.EROFS))
    with pytest.raises(DynaMaskError, match="cannot be written .the file system is read-only"), locked(tmp_path):
        pass
