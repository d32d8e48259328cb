"""Atomic writing of files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dynamask.structures import DynaMaskError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces ``path`` once it is completely on the disk.

    If an error occurs, an existing file stays unchanged and no partial file is left behind.

    Raises:
        DynaMaskError: the file cannot be written (full disk, no permission).
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = system_reason(error)
        if reason is None:
            raise
        raise DynaMaskError(
            f"{path} cannot be written ({reason}), and nothing that was there is lost; make room or choose another "
            "folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Flush the new name of a renamed file to the disk, where the system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def system_reason(error: BaseException | None) -> str | None:
    """Message of the OSError that an error is or was caused by (``torch.save`` wraps it); None if there is none."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, without translating line ends; raises as :func:`replacing`."""
    with replacing(path) as stream:
        stream.write(text.encode("utf-8"))
