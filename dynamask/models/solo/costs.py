"""Cost of one-stage models: parameters, and MACs counted while the modules run (1 MAC = 2 FLOPs).

There are two rules. "macs" counts the multiply–accumulates of convolutions. "table7" counts what Table VII of SODAR
appears to count: also one operation per output element with a bias, two for BatchNorm, four for GroupNorm and one for
ReLU; functional convolutions, including the aggregation network, are not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from dynamask.config import MASK_NETWORK_WIDTHS, STRIDES, AggregationConfig, SoloConfig
from dynamask.models.solo.aggregation import instances_at_once
from dynamask.models.solo.inference import CHUNK
from dynamask.models.solo.model import SoloNet


@cache
def frozen_norms() -> tuple[type[nn.Module], ...]:
    """Frozen batch norms of torchvision and timm; timm is imported here because it takes long."""
    from timm.layers import FrozenBatchNormAct2d

    return FrozenBatchNorm2d, FrozenBatchNormAct2d


@cache
def operations_per_element() -> dict[type[nn.Module], int]:
    """Operations per output element that SODAR's Table VII counts in addition to convolutions."""
    return {nn.GroupNorm: 4, nn.ReLU: 1, nn.BatchNorm2d: 2, **dict.fromkeys(frozen_norms(), 2)}


def trainable_parameters(model: SoloNet) -> int:
    """Number of trainable parameters, including scale and shift of frozen BatchNorms after trainable convolutions.

    The public code of SODAR counts these, too: its BatchNorms are in evaluation mode, but have parameters.
    """
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    trains = False
    for module in model.backbone.body.modules():  # a norm is registered after its convolution
        if isinstance(module, nn.Conv2d):
            trains = module.weight.requires_grad
        elif isinstance(module, frozen_norms()) and trains:
            count += module.weight.numel() + module.bias.numel()
    return count


def network_macs(model: SoloNet, height: int = 800, width: int = 1280, rule: str = "macs") -> dict[str, int]:
    """MACs on a picture by part ("body", "fpn", "head", "dense masks"), counted on meta tensors.

    "dense masks" are SOLO's mask maps of all cells, which the paper computes.

    Args:
        rule: "macs" or "table7", see the module.
    """
    copy, counts = deepcopy(model).to("meta").eval(), Counter()
    parts = {"body": copy.backbone.body, "fpn": copy.backbone.fpn, "head": copy.head}
    for part, root in parts.items():
        for module in root.modules():
            module.register_forward_hook(_counter(counts, part, rule))
    with torch.no_grad():
        grids = copy.head(copy.backbone(torch.zeros(1, 3, height, width, device="meta")))
    if model.config.kind == "solo":  # the 1×1 convolutions of all cells; inference runs those of the candidates
        pixels = [grid.features.shape[-2] * grid.features.shape[-1] for grid in grids]
        fan_in = model.config.tower_channels + (rule == "table7")
        counts["dense masks"] = sum(g * g * fan_in * n for g, n in zip(model.config.representation_grids, pixels))
    return {part: counts[part] for part in (*parts, "dense masks")}


def _counter(counts: Counter, part: str, rule: str) -> Callable:
    def hook(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            counts[part] += output.numel() * (fan_in + (rule == "table7" and module.bias is not None))
        elif rule == "table7":
            counts[part] += operations_per_element().get(type(module), 0) * getattr(output, "numel", int)()

    return hook


def representation_macs(config: SoloConfig) -> int:
    """MACs of a pixel of one mask representation: the channels of a 1×1 convolution, or CondInst's mask network."""
    if config.kind == "condinst":
        return sum(a * b for a, b in zip(MASK_NETWORK_WIDTHS, MASK_NETWORK_WIDTHS[1:]))
    return config.tower_channels if config.kind == "solo" else config.kernel_channels


def decoding_macs(height: int, width: int, kernel_channels: int, config: AggregationConfig | None) -> int:
    """MACs of the mask of one instance on a (height, width) feature: its representations and their aggregation.

    ``kernel_channels`` are the MACs of a pixel of one representation, see :func:`representation_macs`.
    """
    per_pixel = kernel_channels * (1 if config is None else config.samples)
    if config is not None:
        per_pixel += sum(a * b for a, b in zip(config.widths, config.widths[1:])) * config.kernel**2
    return per_pixel * height * width


def mask_strides(config: SoloConfig) -> tuple[int, ...]:
    """Strides of the masks of the levels: half of the head's in SOLO, 4 in SOLOv2, 8 on CondInst's four levels."""
    if config.kind == "condinst":
        return (8,) * 4
    return (4,) * len(STRIDES) if config.kind == "solov2" else tuple(stride // 2 for stride in STRIDES)


def decoded_values(config: SoloConfig, height: int, width: int) -> dict[str, int]:
    """Number of values of mask representations in memory for a padded picture; counted, not measured.

    Returns:
        "dense": the maps of all cells of all levels, as in the code of the papers; "held": the largest number that is
        decoded at once here without gradients, that of one chunk of cells on the finest level.
    """
    sizes = [(-(-height // stride), -(-width // stride)) for stride in mask_strides(config)]
    dense = sum(grid * grid * h * w for grid, (h, w) in zip(config.representation_grids, sizes))
    aggregation, (h, w) = config.aggregation, sizes[0]
    if aggregation is None:
        return {"dense": dense, "held": CHUNK * h * w}
    together = min(CHUNK, instances_at_once(aggregation.in_channels, h, w))
    return {"dense": dense, "held": together * aggregation.samples * h * w}
