"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dynamask.structures import DynaMaskError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` once all of it is on the disk.

    Whatever goes wrong, a file that was there before stays as it was and no partial file is left behind.

    Raises:
        DynaMaskError: the system refuses to write (a full disk, no permission).
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
    """Bring a renamed file's new name to the disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def system_reason(error: BaseException | None) -> str | None:
    """The system's words for the OSError that an error is or arose from; torch.save hides it behind its own."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as :func:`replacing` does, line ends as they are; :class:`DynaMaskError` where it cannot be."""
    with replacing(path) as stream:
        stream.write(text.encode("utf-8"))
