"""A short self-test of weights: figures of a model's outputs on a generated image, compared with stored ones.

The figures hold across machines and numbers of threads, whose rounding differs, because they are compared with a
tolerance and come before any choice that rounding could change, such as that of detections.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamask.structures import first_sentence

if TYPE_CHECKING:
    from dynamask.models.hub import PretrainedModel

TOLERANCE = 0.01
"""Largest difference of a figure, relative to the root mean square of the output."""
_SIZE, _GRAIN = (96, 128), 8


def self_test(model: PretrainedModel, seed: int = 0) -> dict[str, Any]:
    """Run a model on the image of a seed.

    Returns:
        JSON values: ``seed``, and ``outputs``, a dict: name → [root mean square, mean with random signs], the second
        times the square root of the number of values. Figures that are not finite are None.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, *(side // _GRAIN for side in _SIZE)), generator=generator)
    image = F.interpolate(coarse, size=_SIZE, mode="bilinear", align_corners=False)[0]
    outputs = model.probe(image.to(next(model.parameters()).device))
    return {"seed": seed, "outputs": {name: _figures(value, seed) for name, value in outputs.items()}}


def _figures(output: Tensor, seed: int) -> list[float | None]:
    """Root mean square, and sum with random signs over √n, of the values of an output; six digits."""
    values = output.detach().double().flatten().cpu()
    signs = torch.randint(0, 2, (len(values),), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    both = (float(values.square().mean().sqrt()), float((values * signs).sum()) / math.sqrt(len(values)))
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in both]


def self_test_problems(model: PretrainedModel, stored: Mapping[str, Any] | None = None) -> list[str]:
    """Run the self-test.

    Args:
        stored: result of :func:`self_test` for the same weights; None checks only that the outputs are usable.

    Returns:
        The problems, each a clause; empty where there are none.
    """
    try:
        found = self_test(model, int(stored["seed"]) if stored else 0)["outputs"]
    except (
        ArithmeticError,
        LookupError,
        RuntimeError,
        ValueError,
    ) as error:  # of boxes that are not finite
        return [f"its self-test fails ({first_sentence(error)})"]
    broken = [name for name, (size, _) in found.items() if size is None]
    if broken:
        return [f"in the self-test its {broken[0]} are not finite"]
    empty = [name for name, (size, _) in found.items() if size == 0]
    if empty:
        return [f"in the self-test its {empty[0]} are all zero"]
    if not stored:
        return []
    before = stored["outputs"]
    if before.keys() != found.keys():
        return [f"its self-test gives {', '.join(found)}, and the stored one {', '.join(before)}"]
    far = [name for name, ours in found.items() if not _close(ours, before[name])]
    return [f"in the self-test its {far[0]} differ from the stored figures"] if far else []


def _close(ours: list[float], theirs: list[float]) -> bool:
    """Whether two pairs of figures are equal within the tolerance."""
    return all(abs(a - b) <= TOLERANCE * max(ours[0], theirs[0]) for a, b in zip(ours, theirs, strict=True))
