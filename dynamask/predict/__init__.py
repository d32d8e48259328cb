"""Prediction on images: the interface of all model families that the app, the notebooks and the commands use."""

from __future__ import annotations

from pathlib import Path

import torch

from dynamask.config import parse_refine
from dynamask.data.pictures import PictureSource
from dynamask.models.dynamask import DynaMask
from dynamask.models.hub import find_weights
from dynamask.models.openvino import accelerate
from dynamask.models.solo.model import SoloNet
from dynamask.models.weights import load_model, read_header
from dynamask.ops.devices import AUTO, resolve_device
from dynamask.predict.given import check_boxes
from dynamask.predict.prediction import CachedRegions, Cells, Prediction
from dynamask.predict.predictors import OneStagePredictor, Predictor, TwoStagePredictor
from dynamask.structures import DynaMaskError

__all__ = [
    "BACKENDS",
    "CachedRegions",
    "Cells",
    "OneStagePredictor",
    "PictureSource",
    "Prediction",
    "Predictor",
    "TwoStagePredictor",
    "check_boxes",
    "load",
    "predictor_of",
]


BACKENDS = ("torch", "openvino")
"""Back ends of inference; PyTorch is the default and the reference."""


def load(
    name_or_path: str | Path = "things",
    device: str | torch.device = AUTO,
    refine: str | tuple[float, float, float] | None = None,
    backend: str = "torch",
) -> Predictor:
    """Load the predictor of weights of any family.

    Args:
        name_or_path: a bundled name, a .safetensors file, a saved folder, or hf://owner/name[@revision]. Only the last
            is downloaded.
        device: a device of torch, or "auto": CUDA, then MPS, then the CPU. MPS has no float64, which one-stage models
            use, and OpenVINO computes on the CPU, so "auto" leaves these out where they do not fit.
        refine: boundary refinement other than the weights', "dense", "A,B,C" or three shares; see
            :class:`dynamask.config.ModelConfig`.
        backend: one of ``BACKENDS``. "openvino" computes on the CPU and needs the extra ``openvino``. When weights are
            first used with it, they are compiled, which takes some seconds, and the result is stored in the user's
            cache folder.

    Raises:
        DynaMaskError: there are no such weights, the device or the back end is not available, or the model cannot
            refine.
    """
    path = find_weights(name_or_path)
    if backend not in BACKENDS:
        raise DynaMaskError(f"back end {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    one_stage = read_header(path)["config"].get("family") == OneStagePredictor.family
    target = resolve_device("cpu" if backend == "openvino" and device == AUTO else device, mps=not one_stage)
    if isinstance(refine, str):
        refine = parse_refine(refine)
    if refine is not None and one_stage:
        raise DynaMaskError("a one-stage model has no stages to refine; omit refine")
    model = load_model(path, target, **({} if refine is None else {"refine": tuple(refine)}))
    if backend == "openvino":
        accelerate(model)
    return predictor_of(model)


def predictor_of(model: DynaMask | SoloNet) -> Predictor:
    """The predictor of a built model, according to its family."""
    return OneStagePredictor(model) if isinstance(model, SoloNet) else TwoStagePredictor(model)
