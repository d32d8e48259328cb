"""The device that a computation runs on: the one named, or the best of this machine."""

from __future__ import annotations

import torch

from dynamask.structures import DynaMaskError

AUTO = "auto"
"""Name for the best device of the machine."""


def best_device(mps: bool = True) -> str:
    """The best device of this machine: "cuda", else "mps" if ``mps`` allows it, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if mps and torch.backends.mps.is_available() else "cpu"


def resolve_device(device: str | torch.device = AUTO, mps: bool = True) -> torch.device:
    """The device of a name, checked by placing a tensor on it.

    Args:
        device: a device of torch, or "auto" for :func:`best_device`.
        mps: whether "auto" may be MPS, which has no float64.

    Raises:
        DynaMaskError: torch does not know the device, or this machine does not have it.
    """
    name = best_device(mps) if str(device) == AUTO else device
    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise DynaMaskError(
            f"device {str(device)!r} is not available here; use auto, which is {best_device(mps)} on this machine"
        ) from error
    return found
