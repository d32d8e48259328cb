"""A lock on the folder of a run, so that two trainings never write into it at the same time."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from dynamask.files import system_reason
from dynamask.structures import DynaMaskError

try:
    import fcntl
except ImportError:  # not on Windows, where the process id decides
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
"""Name of the lock file: it holds the process id and the host of the training, and is removed at the end."""


@dataclasses.dataclass
class _Hold:
    """A lock that this process holds; ``depth`` counts nested uses by one thread."""

    descriptor: int
    path: Path
    created: list[Path]
    thread: int
    depth: int = 0


_guard = threading.RLock()
_holds: dict[tuple[int, str], _Hold] = {}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is created if it does not exist; the thread that holds it may do so again.

    The system releases the lock when its process ends, however it ends, so the lock file of a killed training is taken
    over. A lock file that another host wrote is never taken over, because some network drives do not share locks.

    Raises:
        DynaMaskError: another training uses the folder, or the folder cannot be written.
    """
    key = (os.getpid(), os.path.realpath(folder))
    with _guard:
        hold = _holds.get(key)
        if hold is None:
            hold = _holds[key] = _acquire(Path(folder))
        elif hold.thread != threading.get_ident():
            raise _in_use(folder, f"{os.getpid()} {socket.gethostname()}")
        hold.depth += 1
    try:
        yield
    finally:
        with _guard:
            hold.depth -= 1
            if not hold.depth:
                del _holds[key]
                _release(hold)


def _acquire(folder: Path) -> _Hold:
    """Take the lock of a folder."""
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _take(descriptor, folder)
                if _is_current(descriptor, path):
                    return _Hold(descriptor, path, created, threading.get_ident())
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # the training that held it has just ended and removed it
    except OSError as error:
        raise DynaMaskError(
            f"the folder {folder} cannot be written ({system_reason(error)}); make room or choose another folder"
        ) from error


def _take(descriptor: int, folder: Path) -> None:
    """Lock an open lock file and write this process into it; raise if another training holds it."""
    holder = os.read(descriptor, 300).decode(errors="replace")
    found = re.match(r"(\d+) (\S+)", holder)
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no locks")
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        running = False
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _in_use(folder, holder) from None
        running = found is not None and _is_running(int(found[1]))  # the system or the drive has no locks
    if found and (running or found[2] != socket.gethostname()):
        raise _in_use(folder, holder)
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())


def _is_running(process: int) -> bool:
    """Whether a process of this host runs; without a way to ask, it does."""
    if os.name == "nt":  # there, signal 0 ends a process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _is_current(descriptor: int, path: Path) -> bool:
    """Whether a path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _in_use(folder: Path, holder: str) -> DynaMaskError:
    """The error for a folder that the process and host in ``holder`` use."""
    found = re.match(r"(\d+) (\S+)", holder)
    who = f"process {found[1]} on {found[2]}" if found else "another process"
    cure = "wait for it to end, or choose another --out"
    if found and found[2] != socket.gethostname():
        cure = f"if it has ended, delete {folder / LOCK}; otherwise choose another --out"
    return DynaMaskError(f"{folder} is used by another training ({who}); {cure}")


def _release(hold: _Hold) -> None:
    """Remove the lock file, and the folders that were created for it if nothing else came into them."""
    with contextlib.suppress(OSError):
        hold.path.unlink(missing_ok=True)
    os.close(hold.descriptor)
    for folder in hold.created:
        with contextlib.suppress(OSError):
            folder.rmdir()
