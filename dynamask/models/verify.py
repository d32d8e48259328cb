"""Are weights what they claim to be? Checksums, headers, a strict load, cards and licences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dynamask.bundled import BASELINES, checkpoint_dir, list_baselines, list_bundled
from dynamask.models.dynamask import DynaMask
from dynamask.models.hub import CARD, CONFIG, WEIGHTS, check_folder_config
from dynamask.models.weights import file_digest, load_model, stored_state
from dynamask.structures import DynaMaskError


def verify_bundled(name: str) -> list[str]:
    """What is wrong with bundled weights, each a clause; empty where all is well.

    The file is there and has the manifest's SHA-256, loads strictly into the model that its header describes, which is
    the manifest's with the manifest's MACs, all its numbers are finite, and licence and card are there.

    Raises:
        DynaMaskError: the manifest has no such name, or cannot be read.
    """
    entries, baselines = list_bundled(), list_baselines()
    if name not in entries and name not in baselines:
        raise DynaMaskError(f"no bundled weights are called {name!r}; choose from {', '.join(entries) or 'none'}")
    entry = entries.get(name) or baselines[name]
    folder = checkpoint_dir() if name in entries else checkpoint_dir() / BASELINES
    path = folder / entry["file"]
    card = path.with_suffix(".md") if name in entries else folder / "README.md"
    problems = [f"the manifest gives no {key}" for key in ("sha256", "licence", "model", "data") if not entry.get(key)]
    if not card.is_file():
        problems.append(f"the card {card.name} is missing")
    if not path.is_file():
        return [*problems, f"the file {path.name} is missing"]
    if entry.get("sha256") and file_digest(path) != entry["sha256"]:
        problems.append("its SHA-256 is not the manifest's")
    return [*problems, *_problems_of_file(path, entry)]


def verify_path(path: Path) -> list[str]:
    """What is wrong with a weights file, or with a saved folder: its three files, its licence and its weights."""
    if not path.is_dir():
        return _problems_of_file(path, {})
    missing = [f"{name} is missing" for name in (CONFIG, WEIGHTS, CARD) if not (path / name).is_file()]
    if f"{CARD} is missing" not in missing and "\nlicense:" not in (path / CARD).read_text(encoding="utf-8"):
        missing.append(f"{CARD} names no licence")
    if not (path / WEIGHTS).is_file():
        return missing
    try:
        check_folder_config(path / WEIGHTS)
    except DynaMaskError as error:
        return [*missing, str(error)]
    return [*missing, *_problems_of_file(path / WEIGHTS, {})]


def _problems_of_file(path: Path, entry: dict[str, Any]) -> list[str]:
    """Header, strict load, finite numbers; model and MACs as the manifest's entry has them, where it does."""
    try:
        model = load_model(path)
    except (DynaMaskError, KeyError, TypeError, ValueError) as error:
        return [f"it cannot be loaded: {error}"]
    problems = []
    broken = [key for key, value in stored_state(model).items() if not torch.isfinite(value).all()]
    if broken:
        problems.append(f"{len(broken)} tensors hold numbers that are not finite, first {broken[0]}")
    if entry.get("model", model.config.name) != model.config.name:
        problems.append(f"it is a {model.config.name}, and the manifest says {entry['model']}")
    if not isinstance(model, DynaMask):
        return problems
    macs = list(model.mask_branch.costs.macs_per_instance)
    if entry.get("macs_per_instance", macs) != macs:
        problems.append(f"its masks cost {macs} MACs, and the manifest says {entry['macs_per_instance']}")
    return problems
