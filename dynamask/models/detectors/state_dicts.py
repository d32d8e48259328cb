"""Reads the state dicts of other projects; files that contain more than tensors and plain values are refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from dynamask.structures import DynaMaskError, first_sentence

CHECKPOINTS = (".pth", ".pt", ".ckpt")
"""Suffixes of PyTorch checkpoints."""
_NESTED = ("model", "state_dict")
"""Keys under which training code stores the state dict."""


def read_state_dict(path: Path, network: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a PyTorch checkpoint.

    A checkpoint holds a state dict, or a dictionary with one under "model" or "state_dict". It is unpickled with
    ``weights_only=True``, so no code of the file runs.

    Args:
        path: of the file.
        network: what the tensors should belong to, for the messages.

    Raises:
        DynaMaskError: the file is missing, incomplete, holds other Python objects, or no state dict.
    """
    if not path.is_file():
        raise DynaMaskError(f"weights {path} do not exist; give a .pth, .ckpt or .safetensors file of {network}")
    try:
        if path.suffix == ".safetensors":
            stored = load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DynaMaskError(
            f"weights {path} cannot be read as a file of tensors alone: they are damaged, or contain other Python "
            "objects, which are not loaded because they may run any code; give a file with only the state dict"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        detail = first_sentence(error) or "unexpected end of file"
        raise DynaMaskError(
            f"weights {path} cannot be read ({detail}); if the file is incomplete, copy or download it again"
        ) from error
    if isinstance(stored, dict):
        stored = next((stored[key] for key in _NESTED if isinstance(stored.get(key), dict)), stored)
    if not isinstance(stored, dict) or not stored or not all(isinstance(value, Tensor) for value in stored.values()):
        raise DynaMaskError(f"weights {path} hold no state dict; give one of {network}")
    return stored


def has_foreign_tensor(path: Path, name: str) -> bool:
    """Return whether a .safetensors file that dynamask did not write holds a tensor of this name."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as stored:
            ours = (stored.metadata() or {}).get("format", "").startswith("dynamask")
            return not ours and name in stored.keys()  # noqa: SIM118
    except (SafetensorError, OSError):
        return False  # reading it as a weights file gives the error message


def check_fit(picked: dict[str, Tensor], own: dict[str, Tensor], source: str | Path) -> None:
    """Refuse tensors whose names or shapes differ from those of the model's detector.

    Raises:
        DynaMaskError: with the number of missing, additional and unfit tensors, and the names of the first ones.
    """
    missing, foreign = sorted(set(own) - set(picked)), sorted(set(picked) - set(own))
    shapes = sorted(key for key in set(own) & set(picked) if own[key].shape != picked[key].shape)
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''}"
        for what, keys in (("missing", missing), ("too many", foreign), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise DynaMaskError(f"weights {source} do not fit this model's detector ({'; '.join(problems)})")
