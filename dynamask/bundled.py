"""The weights that travel with the package, named in `checkpoints/manifest.json`.

The manifest is a JSON object: name → entry. Every entry has `file`, the name of a file in the same folder; what else
it holds (model, data, recipe, seed, sha256, scores) is provenance for people and is passed on unread.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynamask.structures import DynaMaskError


def checkpoint_dir() -> Path:
    """Folder of the bundled weights.

    A built wheel carries it inside the package; in a checkout (an editable install included) it lies beside it.
    """
    package = Path(__file__).resolve().parent
    inside = package / "checkpoints"
    return inside if inside.is_dir() else package.parent / "checkpoints"


def list_bundled() -> dict[str, dict[str, Any]]:
    """Manifest entries of the bundled weights by name, in the manifest's order; empty where none are bundled.

    Raises:
        DynaMaskError: the manifest cannot be read as a JSON object of entries that each name a file.
    """
    manifest = checkpoint_dir() / "manifest.json"
    if not manifest.is_file():
        return {}
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DynaMaskError("the manifest of the bundled weights is unreadable; reinstall dynamask") from error
    if not isinstance(entries, dict) or not all(isinstance(e, dict) and "file" in e for e in entries.values()):
        raise DynaMaskError("the manifest of the bundled weights does not name a file for each; reinstall dynamask")
    return entries


def list_baselines() -> dict[str, dict[str, Any]]:
    """Entries of the bundled weights with another mask branch, as :func:`list_bundled` gives them."""
    return {}


def bundled_path(name: str) -> Path:
    """Path of the bundled weights called `name`.

    Raises:
        DynaMaskError: no bundled weights have this name (the message lists those that do), or their file is missing.
    """
    entries = list_bundled()
    if name not in entries:
        known = ", ".join(entries) or "none"
        raise DynaMaskError(f"no bundled weights are called {name!r}; choose from {known}, or give a .safetensors file")
    path = checkpoint_dir() / entries[name]["file"]
    if not path.is_file():
        raise DynaMaskError(f"the file {path.name} of the bundled weights {name!r} is missing; reinstall dynamask")
    return path
