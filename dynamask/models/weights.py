"""Weights with their configuration in one safetensors file: written whole, read strictly."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from dynamask.bundled import bundled_path
from dynamask.files import replacing
from dynamask.models.build import build_model, config_from_dict
from dynamask.models.dynamask import DynaMask
from dynamask.models.solo.model import SoloNet
from dynamask.structures import DynaMaskError

FORMAT = "dynamask-1"
BRANCH_FORMAT = "dynamask-branch-1"
"""Of files that hold a mask branch alone and name the bundled weights that its detector is part of."""
STORED_PREFIXES = {"detector.": "", "mask_branch.": "roi_heads.mask_branch."}
"""Prefixes of modules → prefixes of their tensors in weights files; other names are the same in both."""
BACKBONE_PREFIX = "backbone."
"""Prefix, in weights files, of the tensors of backbone and FPN of either family."""
BRANCH_PREFIX = STORED_PREFIXES["mask_branch."]
AGGREGATION_PREFIXES = ("head.aggregation", "head.context.", "aggregation.")
"""Prefixes of the tensors of SODAR's aggregation."""


def stored_name(name: str) -> str:
    """The name in weights files of a tensor of ``model.state_dict()``."""
    prefix = next((p for p in STORED_PREFIXES if name.startswith(p)), "")
    return STORED_PREFIXES.get(prefix, "") + name.removeprefix(prefix)


def stored_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's tensors under their names in weights files."""
    return {stored_name(name): value for name, value in model.state_dict().items()}


def _load_stored(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Load tensors under their names in weights files; the model's other tensors stay as they are."""
    own = {stored_name(name): name for name in model.state_dict()}
    model.load_state_dict({own[name]: value for name, value in tensors.items()}, strict=False)


def save_model(
    model: DynaMask | SoloNet,
    path: Path,
    state: dict[str, torch.Tensor] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write weights and configuration to one safetensors file, atomically.

    Args:
        model: whose configuration, and weights unless ``state`` is given, are stored.
        path: a .safetensors file; replaced if it exists.
        state: weights to store instead of the model's (a moving average).
        training: JSON values kept beside the configuration (recipe, seed, images seen).
    """
    named = (state or model.state_dict()).items()
    tensors = {stored_name(name): value.detach().cpu().contiguous() for name, value in named}
    header = {"format": FORMAT, "config": json.dumps(model.config.to_dict()), "training": json.dumps(training or {})}
    with replacing(path) as stream:
        stream.write(save(tensors, metadata=header))


def save_branch(source: Path, path: Path, detector: str) -> None:
    """Write the mask branch alone of a weights file, with the name and SHA-256 of its detector's bundled weights.

    Args:
        source: whole weights, whose detector must be, bit for bit, that of the bundled weights.
        path: a .safetensors file; replaced if it exists.
        detector: the name of bundled weights.

    Raises:
        DynaMaskError: the detectors differ; the first tensors that do are named.
    """
    header, tensors = read_header(source), load_file(source)
    whole = bundled_path(detector)
    theirs, own = _detector_of(load_file(whole)), _detector_of(tensors)
    unfit = _mismatch(theirs, own) or [key for key in sorted(own) if not torch.equal(own[key], theirs[key])]
    if unfit:
        raise DynaMaskError(
            f"the detector of {source} is not that of {detector!r}: {len(unfit)} tensors differ, first "
            f"{', '.join(unfit[:3])}; train it with --init {detector} --freeze detector"
        )
    branch = {key: value for key, value in tensors.items() if key.startswith(BRANCH_PREFIX)}
    named = {"name": detector, "sha256": file_digest(whole)}
    texts = {key: json.dumps(value) for key, value in {**header, "detector": named}.items()}
    with replacing(path) as stream:
        stream.write(save(branch, metadata={"format": BRANCH_FORMAT, **texts}))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_header(path: Path) -> dict[str, Any]:
    """``config`` and ``training`` of a weights file, of a mask branch alone also its ``detector``.

    Raises:
        DynaMaskError: the file is not ours.
    """
    if not path.is_file():
        raise DynaMaskError(f"weights {path} do not exist; give a bundled name or the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DynaMaskError(
            f"weights {path} cannot be read as safetensors; give a file written by dynamask train ({error})"
        ) from error
    if header.get("format") not in (FORMAT, BRANCH_FORMAT):
        raise DynaMaskError(f"weights {path} were not written by dynamask; give a file written by dynamask train")
    try:
        found = {part: dict(json.loads(header[part])) for part in ("config", "training")}
        if header["format"] == BRANCH_FORMAT:
            named = json.loads(header["detector"])
            found["detector"] = {"name": str(named["name"]), "sha256": str(named["sha256"])}
    except (KeyError, TypeError, ValueError) as error:
        raise DynaMaskError(f"the header of {path} is damaged; give a file written by dynamask train") from error
    return found


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a weights file; those of a mask branch's detector come from the bundled weights that it names.

    Raises:
        DynaMaskError: the file is not ours, or its detector is not bundled or another than it was trained on.
    """
    header, tensors = read_header(path), load_file(path)
    if "detector" not in header:
        return tensors
    named = header["detector"]
    try:
        whole = bundled_path(named["name"])
    except DynaMaskError as error:
        raise DynaMaskError(f"weights {path} hold a mask branch alone, and its detector is missing: {error}") from error
    if file_digest(whole) != named["sha256"]:
        raise DynaMaskError(
            f"weights {path} hold a mask branch alone, trained on another version of the detector {named['name']!r} "
            "than the bundled one; train it again or install the version that brought it"
        )
    return {**_detector_of(load_file(whole)), **tensors}


def _detector_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All tensors but the mask branch's and the aggregation's."""
    apart = (BRANCH_PREFIX, *AGGREGATION_PREFIXES)
    return {key: value for key, value in tensors.items() if not key.startswith(apart)}


def _mismatch(stored: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> list[str]:
    """Keys that only one side has, then those whose shapes differ."""
    both = set(stored) & set(own)
    return sorted(set(stored) ^ set(own)) + sorted(key for key in both if stored[key].shape != own[key].shape)


def load_model(path: Path, device: str | torch.device = "cpu") -> DynaMask | SoloNet:
    """Build the model that a weights file describes and load it strictly, in evaluation mode."""
    model = build_model(config_from_dict(read_header(path)["config"]))
    load_weights(model, path)
    return model.to(device).eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Load every tensor of a weights file into an equal model; a mismatch names the first keys that do not fit."""
    stored = read_tensors(path)
    unfit = _mismatch(stored, stored_state(model))
    if unfit:
        raise DynaMaskError(
            f"weights {path} do not fit the model: {len(unfit)} tensors differ, first {', '.join(unfit[:3])}"
        )
    _load_stored(model, stored)


def load_detector(model: nn.Module, path: Path) -> None:
    """Load all but the mask branch, or the aggregation, of a weights file into a model, whose own stays as it is.

    Raises:
        DynaMaskError: the detectors differ; the first keys that do not fit are named, and nothing is loaded.
    """
    stored = _detector_of(read_tensors(path))
    unfit = _mismatch(stored, _detector_of(stored_state(model)))
    if unfit:
        raise DynaMaskError(
            f"the detector of {path} does not fit the model: {len(unfit)} tensors differ, first {', '.join(unfit[:3])}"
        )
    _load_stored(model, stored)


def load_backbone(model: nn.Module, path: Path) -> None:
    """Load backbone and FPN of a weights file into a model of either family; all else stays as it is.

    Raises:
        DynaMaskError: they differ; the first keys that do not fit are named, and nothing is loaded.
    """
    stored, own = (
        {key: value for key, value in tensors.items() if key.startswith(BACKBONE_PREFIX)}
        for tensors in (read_tensors(path), stored_state(model))
    )
    unfit = _mismatch(stored, own)
    if unfit:
        raise DynaMaskError(
            f"the backbone of {path} does not fit the model: {len(unfit)} tensors differ, first {', '.join(unfit[:3])}"
        )
    _load_stored(model, stored)
