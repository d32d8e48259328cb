"""Weights with their configuration in one safetensors file: written whole, read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from dynamask.config import ModelConfig
from dynamask.files import replacing
from dynamask.models.factory import build_model
from dynamask.models.rcnn.model import DynaMaskRCNN
from dynamask.structures import DynaMaskError

FORMAT = "dynamask-1"


def save_model(
    model: DynaMaskRCNN,
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
    tensors = {key: value.detach().cpu().contiguous() for key, value in (state or model.state_dict()).items()}
    header = {"format": FORMAT, "config": json.dumps(model.config.to_dict()), "training": json.dumps(training or {})}
    with replacing(path) as stream:
        stream.write(save(tensors, metadata=header))


def read_header(path: Path) -> dict[str, Any]:
    """``config`` and ``training`` of a weights file; :class:`DynaMaskError` for a file that is not ours."""
    if not path.is_file():
        raise DynaMaskError(f"weights {path} do not exist; give a bundled name or the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DynaMaskError(
            f"weights {path} cannot be read as safetensors; give a file written by dynamask train ({error})"
        ) from error
    if header.get("format") != FORMAT:
        raise DynaMaskError(f"weights {path} were not written by dynamask; give a file written by dynamask train")
    return {"config": json.loads(header["config"]), "training": json.loads(header["training"])}


def load_model(path: Path, device: str | torch.device = "cpu") -> DynaMaskRCNN:
    """Build the model that a weights file describes and load it strictly, in evaluation mode."""
    model = build_model(ModelConfig.from_dict(read_header(path)["config"]))
    load_weights(model, path)
    return model.to(device).eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Load every tensor of a weights file into an equal model; a mismatch names the first keys that do not fit."""
    read_header(path)
    stored, own = load_file(path), model.state_dict()
    unfit = sorted(set(stored) ^ set(own)) + sorted(
        k for k in set(stored) & set(own) if stored[k].shape != own[k].shape
    )
    if unfit:
        raise DynaMaskError(
            f"weights {path} do not fit the model: {len(unfit)} tensors differ, first {', '.join(unfit[:3])}"
        )
    model.load_state_dict(stored)
