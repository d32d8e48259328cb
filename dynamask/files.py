"""Atomic writing of files, and sentences for the errors of the file system."""

from __future__ import annotations

import errno
import lzma
import os
import secrets
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dynamask.structures import DynaMaskError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "it does not exist, or cannot be created there",
    errno.ENOTDIR: "a part of the path is a file and not a folder",
    errno.EEXIST: "a part of the path is a file and not a folder",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its links form a circle",
    errno.EFBIG: "it is larger than the file system or a limit allows",
    errno.EIO: "the disk reports an error",
    errno.EMFILE: "too many files are open",
    errno.EPIPE: "the program that reads it has ended",
}
DAMAGED_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, KeyError, ValueError, OverflowError, NotImplementedError, RuntimeError, OSError),
)
"""Errors of :mod:`zipfile` in opening and reading archives that are damaged, encrypted or of an unknown kind."""
_LONGEST_STEM = 40
"""Characters of a file's name that the name of its partial file keeps; names are limited to 255 bytes."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces ``path`` once it is completely on the disk.

    If an error occurs, an existing file stays unchanged and no partial file is left behind. The new file keeps the
    permissions, and where possible the owner, of the file that it replaces. A symbolic link stays, and the file that
    it points to is replaced. What is not a regular file, such as a device, a pipe or ``/dev/stdout``, is written to.

    Raises:
        DynaMaskError: the file cannot be written (full disk, no permission), or the path is empty or a folder.
    """
    opened = None
    try:
        check_file(path)
        opened = _opened_in_place(path)
        if opened is None:
            with _replaced(Path(os.path.realpath(path))) as stream:
                yield stream
            return
        with opened as stream:
            yield stream
    except BaseException as error:
        reason = system_reason(error)
        if reason is None:
            raise
        kept = ", and nothing that was there is lost" if opened is None else ""
        raise DynaMaskError(f"{path} cannot be written ({reason}){kept}; make room or choose another folder") from error


def check_file(path: Path) -> None:
    """Raise :class:`DynaMaskError` if a path cannot be that of a file to write: if it is empty or a folder."""
    if str(path) == "." or "\0" in str(path):
        raise DynaMaskError("the name of the file to write is empty or not valid; give the name of a file")
    if path.is_dir():
        raise DynaMaskError(f"{path} is a folder; give the name of a file to write")


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """A stream into a partial file beside ``path``, which takes its place at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.stat() if path.exists() else None
    partial = path.with_name(f"{path.name[:_LONGEST_STEM]}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    mode = 0o666 if before is None else stat.S_IMODE(before.st_mode)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            if before is not None:
                _keep_owner(partial, before)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _keep_owner(partial: Path, before: os.stat_result) -> None:
    """Give a new file the owner and the permissions of the one that it will replace."""
    if hasattr(os, "chown"):
        with suppress(OSError):  # only root may give files away
            os.chown(partial, before.st_uid, before.st_gid)
    os.chmod(partial, stat.S_IMODE(before.st_mode))


def _opened_in_place(path: Path) -> BinaryIO | None:
    """A stream into what is no regular file, or is stdout or stderr; None for files that can be replaced."""
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):  # a file to create, or an error that creating it will meet
            return None
        raise
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # replaced by tests and notebooks, or closed
            if os.path.samestat(found, os.fstat(stream.fileno())):
                stream.flush()
                return os.fdopen(os.dup(stream.fileno()), "wb")
    return None if stat.S_ISREG(found.st_mode) else path.open("wb")


def _sync_folder(folder: Path) -> None:
    """Flush the new name of a renamed file to the disk, where the system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_partial_files(folder: Path) -> None:
    """Remove the partial files of writers that were killed; no other process may be writing into the folder."""
    for partial in folder.glob("*.partial"):
        partial.unlink(missing_ok=True)


def system_reason(error: BaseException | None) -> str | None:
    """What the system refused, as a clause, from the OSError that an error is or was caused by; None if there is none.

    ``torch.save`` and other libraries wrap the error.
    """
    while error is not None:
        if isinstance(error, OSError):
            return _REASONS.get(error.errno or 0) or error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None


def explain(error: OSError) -> str:
    """A sentence for an OSError, with the file that it names; the error's own text if it is not of the file system."""
    named = error.filename2 or error.filename
    if error.errno not in _REASONS or not isinstance(named, str | bytes):
        return str(error)
    return f"{os.fsdecode(named)} cannot be used ({_REASONS[error.errno]}); check the path and its permissions"


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, without translating line ends; raises as :func:`replacing`.

    Surrogates, which UTF-8 cannot hold, become "?".
    """
    with replacing(path) as stream:
        stream.write(text.encode("utf-8", errors="replace"))
