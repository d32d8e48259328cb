"""The weights that travel with the package, named in `checkpoints/manifest.json`.

The manifest is a JSON object: name → entry. Every entry has `file`, the name of a file in the same folder, and those of
another family than DynaMask's have `family`; what else it holds (model, data, recipe, seed, sha256, scores) is
provenance for people and is passed on unread.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynamask.structures import DynaMaskError

TWO_STAGE = "two-stage"
"""The family of an entry that names none."""
BASELINES = "baselines"
"""Folder of the baselines within the bundled weights, with a manifest of its own."""


def checkpoint_dir() -> Path:
    """Folder of the bundled weights.

    A built wheel carries it inside the package; in a checkout (an editable install included) it lies beside it.
    """
    package = Path(__file__).resolve().parent
    inside = package / "checkpoints"
    return inside if inside.is_dir() else package.parent / "checkpoints"


def list_bundled(family: str | None = None) -> dict[str, dict[str, Any]]:
    """Manifest entries of the bundled weights by name, in the manifest's order; empty where none are bundled.

    Args:
        family: leave out those of another, "two-stage" or "one-stage"; None lists all.

    Raises:
        DynaMaskError: the manifest cannot be read as a JSON object of entries that each name a file.
    """
    entries = _read_manifest(checkpoint_dir())
    return {name: e for name, e in entries.items() if family in (None, e.get("family", TWO_STAGE))}


def list_baselines() -> dict[str, dict[str, Any]]:
    """As :func:`list_bundled`, the baselines that DynaMask is compared with: mask branches on a bundled detector.

    They are loaded by name like all bundled weights; lists that offer weights to use leave them out.
    """
    return _read_manifest(checkpoint_dir() / BASELINES)


def bundled_path(name: str) -> Path:
    """Path of the bundled weights or baseline called `name`.

    Raises:
        DynaMaskError: no bundled weights have this name (the message lists those that do), or their file is missing.
    """
    folder, entry = _find(name)
    path = folder / entry["file"]
    if not path.is_file():
        raise DynaMaskError(f"the file {path.name} of the bundled weights {name!r} is missing; reinstall dynamask")
    return path


def _find(name: str) -> tuple[Path, dict[str, Any]]:
    """Folder and entry of bundled weights or a baseline."""
    shelves = {checkpoint_dir(): list_bundled(), checkpoint_dir() / BASELINES: list_baselines()}
    for folder, entries in shelves.items():
        if name in entries:
            return folder, entries[name]
    known = ", ".join(each for entries in shelves.values() for each in entries) or "none"
    raise DynaMaskError(f"no bundled weights are called {name!r}; choose from {known}, or give a .safetensors file")


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return {}
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DynaMaskError("the manifest of the bundled weights is unreadable; reinstall dynamask") from error
    if not isinstance(entries, dict) or not all(isinstance(e, dict) and "file" in e for e in entries.values()):
        raise DynaMaskError("the manifest of the bundled weights does not name a file for each; reinstall dynamask")
    return entries
