"""torch.compile, where there is a compiler."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from dynamask.structures import DynaMaskError


def compile_body(model: nn.Module, device: torch.device) -> bool:
    """Compile the body of a model's backbone in place, at its first step and with sizes as symbols.

    PyTorch 2.14 fixes some of them in the backward pass of a convolution all the same, so that every new size of the
    padded batch is compiled anew, up to its limit of eight; further sizes then run as they are. The rest of a detector
    is no case for it: its shapes change with every picture's regions. Weights keep their names.

    Returns:
        Whether it was done; without a compiler that works, a warning says why it was not.

    Raises:
        DynaMaskError: the model has no backbone with a body.
    """
    body = getattr(getattr(model, "backbone", None), "body", None)
    if body is None:
        raise DynaMaskError("--compile is for a model with a backbone, and this one has none")
    try:
        torch.compile(_probe)(torch.ones(8, device=device))
    except Exception as error:  # what a missing compiler raises depends on the backend
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"the backbone is not compiled, no compiler works here ({reason})", stacklevel=2)
        return False
    body.compile(dynamic=True)
    return True


def _probe(values: torch.Tensor) -> torch.Tensor:
    return (values * 2 + 1).relu()
