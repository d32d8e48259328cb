"""Files with the state of a run, from which it can be resumed, and the state of the random number generators."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynamask.files import DAMAGED_ZIP, replacing
from dynamask.structures import DynaMaskError

_RUN_NAME = re.compile(r"run-(\d+)\.pt")
_UNREADABLE = (*DAMAGED_ZIP, AttributeError, LookupError, MemoryError, TypeError, pickle.UnpicklingError)
_RUN_KEYS = {"step", "settings", "model", "average", "optimizer", "loader", "random"}


def _is_whole(value: object) -> bool:
    """Whether a value is a whole number, not negative."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _are_tensors(value: object) -> bool:
    """Whether a value is a dict of tensors by name."""
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _is_random_state(value: object) -> bool:
    """Whether a value is a result of :func:`random_state`."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("cpu"), Tensor)
        and value["cpu"].dtype == torch.uint8
        and isinstance(value.get("cuda"), list)
    )


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "step": _is_whole,
    "settings": lambda value: isinstance(value, dict),
    "model": _are_tensors,
    "average": lambda value: (
        value is None
        or (isinstance(value, dict) and _are_tensors(value.get("state")) and _is_whole(value.get("updates")))
    ),
    "optimizer": lambda value: (
        isinstance(value, dict)
        and isinstance(value.get("state"), dict)
        and isinstance(value.get("param_groups"), list)
        and all(isinstance(each, dict) for each in (*value["state"].values(), *value["param_groups"]))
    ),
    "loader": lambda value: (
        isinstance(value, dict) and all(_is_whole(value.get(key)) for key in ("position", "seed", "pictures"))
    ),
    "random": lambda value: isinstance(value, list) and len(value) > 0 and all(map(_is_random_state, value)),
    "parts": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_whole, value)),
    "threads": _is_whole,
}
"""What the entries of a state have to be; damage would otherwise show in the middle of a step."""


def random_state() -> dict[str, Any]:
    """State of torch's random number generators; training draws from no others."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """The inverse of :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def run_file(out: Path, step: int) -> Path:
    """Path of the state of a run after ``step`` steps."""
    return out / f"run-{step:06d}.pt"


def checkpoints(out: Path) -> list[Path]:
    """Paths of the saved states in a folder, oldest first."""
    return sorted((path for path in out.glob("run-*.pt") if _RUN_NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step of a saved state, from its file name."""
    return int(path.stem.removeprefix("run-"))


def save_run(out: Path, state: dict[str, Any], keep: int) -> Path:
    """Write the state of a run atomically to ``out/run-STEP.pt``, then remove all but the last ``keep`` states.

    Raises:
        DynaMaskError: it cannot be written; the states before it are intact.
    """
    path = run_file(out, state["step"])
    with replacing(path) as stream:
        torch.save(state, stream)
    for old in checkpoints(out)[:-keep]:
        with suppress(OSError):  # the next call tries again
            old.unlink(missing_ok=True)
    return path


def load_run(path: Path) -> dict[str, Any]:
    """Read a saved state and verify its checksums; raises :class:`DynaMaskError` if it cannot be used."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} does not fit")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not set(state) >= _RUN_KEYS:
            raise ValueError("it is not the state of a run")
        damaged = next((key for key, check in _CHECKS.items() if key in state and not check(state[key])), None)
        if damaged is not None:
            raise ValueError(f"its {damaged} cannot be used")
        if state["step"] != step_of(path):
            raise ValueError(f"it is the state of step {state['step']}")
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise DynaMaskError(f"the saved state {path} cannot be read ({reason})") from error
    return state


def load_newest_run(out: Path) -> dict[str, Any]:
    """The newest state in a run's folder that can be read.

    Newer files that cannot be read are renamed to ``*.unreadable``, with a warning.

    Raises:
        DynaMaskError: there is no run, or none of its states can be read.
    """
    found = checkpoints(out)
    if not found:
        raise DynaMaskError(f"there is no run to resume in {out}; start it without --resume")
    problems: list[tuple[Path, DynaMaskError]] = []
    for path in reversed(found):
        try:
            state = load_run(path)
        except DynaMaskError as error:
            problems.append((path, error))
            continue
        for broken, problem in problems:
            warnings.warn(f"{problem}; continuing from the one before, {path.name}", stacklevel=2)
            os.replace(broken, broken.with_name(broken.name + ".unreadable"))
        return state
    raise DynaMaskError(f"{problems[0][1]}, nor any before it; start again in another folder")
