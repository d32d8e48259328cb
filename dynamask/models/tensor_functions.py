"""The functions of a model that take nearly all of its time: tensors in, tensors out, without data-dependent branches.

A back end of inference such as :mod:`dynamask.models.openvino` replaces them one by one, so that everything between
them (proposals, NMS, the choice of sizes, which region needs which stage) stays the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

MAP_SIDES = (128, 160)
"""Height and width of the pictures of examples: two sides that differ."""
EXAMPLE_REGIONS = 2
"""Number of regions of examples."""


@dataclass(frozen=True)
class TensorFunction:
    """A method of a module that maps float32 tensors, and possibly int64 indices, to float32 tensors.

    Attributes:
        name: unique within a model; letters, digits, "-" and "_".
        owner: the module.
        example: arguments of the method; tensors, or lists and dictionaries of tensors.
        method: name of the method.
        regions: the first axis of every tensor counts independent regions, and all other sides are fixed. Otherwise
            tensors are maps of whole pictures, whose sides vary, too.
    """

    name: str
    owner: nn.Module
    example: tuple[Any, ...]
    method: str = "forward"
    regions: bool = False


def picture_function(name: str, module: nn.Module, channels: int = 3, stride: int = 1) -> TensorFunction:
    """A module that takes maps (B, channels, H, W), for example pictures, at a stride."""
    height, width = MAP_SIDES
    return TensorFunction(name, module, (torch.zeros(1, channels, height // stride, width // stride),))


def region_function(
    name: str, module: nn.Module, *shapes: tuple[int, ...], method: str = "forward", cells: int | None = None
) -> TensorFunction:
    """A method of a module that takes tensors (n, *shape) of n regions, and possibly a number of listed cells."""
    example = tuple(torch.rand(EXAMPLE_REGIONS, *shape) for shape in shapes)
    if cells is not None:
        example = (*example, torch.arange(cells).expand(EXAMPLE_REGIONS, -1).contiguous())
    return TensorFunction(name, module, example, method, regions=True)
