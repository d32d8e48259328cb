"""torch.compile of the backbone."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from dynamask.structures import DynaMaskError


def compile_body(model: nn.Module, device: torch.device) -> bool:
    """Compile the body of a model's backbone in place, with dynamic shapes; it is compiled at the first step.

    PyTorch 2.14 still specialises the backward pass of a convolution on some sizes, so that each new size of the padded
    batch is compiled again, up to a limit of eight; further sizes run uncompiled. The other layers are not compiled,
    because their shapes change with the number of regions. The names of the parameters do not change.

    Returns:
        Whether the body is compiled; if no compiler works here, a warning gives the reason.

    Raises:
        DynaMaskError: the model has no backbone with a body.
    """
    body = getattr(getattr(model, "backbone", None), "body", None)
    if body is None:
        raise DynaMaskError("--compile is for a model with a backbone, and this one has none")
    try:
        torch.compile(_probe)(torch.ones(8, device=device))
    except Exception as error:  # a missing compiler raises different errors, depending on the backend
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"the backbone is not compiled, no compiler works here ({reason})", stacklevel=2)
        return False
    body.compile(dynamic=True)
    return True


def _probe(values: torch.Tensor) -> torch.Tensor:
    return (values * 2 + 1).relu()
