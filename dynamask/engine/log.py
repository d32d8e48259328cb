"""Logs of a run: scalars as CSV files, and scalars and images for TensorBoard."""

from __future__ import annotations

import csv
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynamask.files import replacing, system_reason
from dynamask.structures import DynaMaskError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class LogError(DynaMaskError):
    """The log of a run cannot be written."""


class ScalarTable:
    """A CSV file whose first column is the step; new columns may be added at any row.

    Args:
        path: of the file, which may exist.
        step: of the run; rows of later steps, incomplete rows and repeated rows are removed.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        if path.exists():
            self._truncate(step)

    def _truncate(self, step: int) -> None:
        """Keep complete rows up to a step, one per step."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        header, *rows = text.splitlines(keepends=True) or [""]
        kept, last = [header], 0
        for row in rows:
            cells = row.split(",")
            whole = row.endswith("\n") and len(cells) == header.count(",") + 1 and cells[0].isdecimal()
            if whole and last < int(cells[0]) <= step:
                kept, last = [*kept, row], int(cells[0])
        if len(kept) == 1:
            self.path.unlink()
            return
        self.columns = header.rstrip("\n").split(",")[1:]
        if "".join(kept) != text:
            with replacing(self.path) as stream:
                stream.write("".join(kept).encode())

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step, with nine digits (exact for float32); cells without a value are empty."""
        new = [name for name in values if name not in self.columns]
        if new and self.columns:
            self._widen(new)
        first = not self.columns
        self.columns += new
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream, lineterminator="\n")
            if first:
                rows.writerow(["step", *self.columns])
            rows.writerow([step, *(f"{values[name]:.9g}" if name in values else "" for name in self.columns)])

    def _widen(self, new: list[str]) -> None:
        """Rewrite the file with more columns, which are empty in the existing rows."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        text = io.StringIO()
        for row, cells in enumerate((new, *([""] * len(new) for _ in lines[1:]))):
            text.write(",".join([lines[row], *cells]) + "\n")
        with replacing(self.path) as stream:
            stream.write(text.getvalue().encode())

    def flush(self) -> None:
        """Write everything to the disk."""
        if self.path.exists():
            with self.path.open("rb+") as stream:
                os.fsync(stream.fileno())


class RunLog:
    """Scalars and images of a run, in ``log.csv``, ``validation.csv`` and the folder ``tensorboard``.

    Args:
        out: folder of the run.
        step: of the run; entries of later steps are removed.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.out = out
        self.table, self.validation = ScalarTable(out / "log.csv", step), ScalarTable(out / "validation.csv", step)
        self.writer = _tensorboard_writer(out / "tensorboard", step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step.

        Raises:
            DynaMaskError: the file cannot be written, for example because the disk is full.
        """
        self._append(self.table, "", step, values)

    def write_validation(self, step: int, values: dict[str, float]) -> None:
        """Append the results of an evaluation after a step; raises as :meth:`write`."""
        self._append(self.validation, "validation/", step, values)

    def _append(self, table: ScalarTable, prefix: str, step: int, values: dict[str, float]) -> None:
        try:
            table.write(step, values)
            for name, value in values.items() if self.writer else ():
                self.writer.add_scalar(prefix + name, value, step)
        except OSError as error:
            raise self._error(error) from error

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Add an image (H, W, 3) uint8 RGB of a step; raises as :meth:`write`."""
        if self.writer is None:
            return
        try:
            self.writer.add_image(name, pixels, step, dataformats="HWC")
        except OSError as error:
            raise self._error(error) from error

    def flush(self) -> None:
        """Write everything to the disk; raises as :meth:`write`."""
        try:
            if self.writer is not None:
                self.writer.flush()
            self.table.flush()
            self.validation.flush()
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Close the TensorBoard file; an error gives a warning."""
        if self.writer is None:
            return
        try:
            self.writer.close()
        except OSError as error:
            warnings.warn(f"the TensorBoard log could not be completed ({system_reason(error)})", stacklevel=2)

    def _error(self, error: OSError) -> LogError:
        return LogError(
            f"the log in {self.out} cannot be written ({system_reason(error)}), and the saved states are "
            "intact; free some space, then --resume continues from the last one"
        )


def _tensorboard_writer(folder: Path, step: int) -> SummaryWriter | None:
    """A writer of TensorBoard events that replaces those after ``step``; None, with a warning, without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warnings.warn(
            "TensorBoard is not installed, so this run is logged in CSV files only; "
            "`pip install 'dynamask[train]'` adds it",
            stacklevel=2,
        )
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
