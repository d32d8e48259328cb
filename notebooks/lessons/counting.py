"""Notebook 03: the cost of the mask branch by hand, by formula, by counter and by clock."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d
from torchvision.ops import roi_align

from dynamask.models.build import build_mask_branch
from dynamask.models.masks.branch import MaskBranch
from dynamask.models.masks.costs import MaskBranchCosts
from dynamask.models.masks.region_fpn import LEVEL_STRIDES, RegionStage, level_key
from dynamask.ops.deform import sampled_deform_conv2d
from dynamask.ops.listed import band_cells
from dynamask.predict import Prediction
from dynamask.presets import model_config
from dynamask.reports.paper import PAPER, SHARE_COLUMNS
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz import charts
from dynamask.viz.style import SIZE_NAMES, hex_to_rgb, size_bar
from lessons import milliseconds
from lessons.picture_grids import MISSED, box_window, picture_grid
from lessons.table import MarkdownTable

PAPER_GMACS = tuple(PAPER["table7"].figure(f"fixed:{size}", "G") for size in MASK_SIZES)
"""Cost of an instance at each size in GMACs: Table 7 of the paper."""
PAPER_SHARES = tuple(PAPER["table8"].fraction("DynaMask (C_t = 0.4)", column) for column in SHARE_COLUMNS)
"""Shares of the four sizes at C_t = 0.4: Table 8 of the paper."""
PARTS = ("crop", "reduce", "upsample", "offsets", "deform")
"""Parts of a stage that are timed."""
_STAGE_MARKERS = {"base": size_bar(14), **{f"stage to {size}": size_bar(size) for size in MASK_SIZES[1:]}}


def branch_of_preset(
    name: str = "dynamask_resnet50_fpn", refine: tuple[float, float, float] | None = None
) -> MaskBranch:
    """Return the mask branch of a preset with random weights, without backbone and detector.

    Args:
        refine: shares of the cells at 28, 56 and 112 that are computed; None for all.
    """
    return build_mask_branch(model_config(name, refine=refine)).eval()


def random_features(branch: MaskBranch, height: int = 320, width: int = 416, seed: int = 0) -> dict[str, Tensor]:
    """Return feature maps {"0": P2, …, "3": P5} of noise for a picture of height × width network-input pixels."""
    channels, generator = branch.region_fpn.base[0].in_channels, torch.Generator().manual_seed(seed)
    shapes = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in LEVEL_STRIDES]
    return {str(i): torch.randn(1, channels, *shape, generator=generator) for i, shape in enumerate(shapes)}


def random_rois(count: int, height: int = 320, width: int = 416, seed: int = 0) -> Tensor:
    """Return random boxes (R, 5) of image 0 with sides of 40 to 200 pixels inside a picture of height × width."""
    generator = torch.Generator().manual_seed(seed)
    sides = 40 + 160 * torch.rand(count, 2, generator=generator)
    low = torch.rand(count, 2, generator=generator) * (torch.tensor([float(width), float(height)]) - sides)
    return torch.cat([torch.zeros(count, 1), low, low + sides], dim=1)


@dataclass(frozen=True)
class LayerCost:
    """Cost of a layer for one region.

    Attributes:
        layer: its name.
        side: of its output, in cells.
        formula: the product in numbers.
        macs: value of the product.
    """

    layer: str
    side: int
    formula: str
    macs: int


def layer_cost(layer: str, conv: nn.Module, side: int) -> LayerCost:
    """Cost of a plain or deformable convolution: side² · kernel² · inputs · outputs.

    The bilinear sampling of deformable convolutions is not counted.
    """
    outputs, inputs, kernel, _ = conv.weight.shape
    formula = f"{side}² · {kernel}² · {inputs} · {outputs}"
    return LayerCost(layer, side, formula, side * side * conv.weight.numel())


def stage_costs(branch: MaskBranch, size_index: int) -> list[LayerCost]:
    """Cost of the five layers of the stage to ``MASK_SIZES[size_index]``, size_index 1–3."""
    stage, side = branch.region_fpn.stages[size_index - 1], MASK_SIZES[size_index]
    fam = stage.aggregate
    return [
        layer_cost("reduce", stage.reduce, side // 2),
        layer_cost("offsets 1", fam.align_offsets, side),
        layer_cost("deform 1", fam.align, side),
        layer_cost("offsets 2", fam.attend_offsets, side),
        layer_cost("deform 2", fam.attend, side),
    ]


def base_costs(branch: MaskBranch) -> list[LayerCost]:
    """Cost of the two convolutions of the 14×14 base."""
    return [layer_cost(f"base {i}", branch.region_fpn.base[j], MASK_SIZES[0]) for i, j in ((1, 0), (2, 2))]


def cost_table(costs: Sequence[LayerCost]) -> MarkdownTable:
    """Table of layers with their sum in MMACs, 10⁶ multiply–accumulates."""
    rows = [[cost.layer, cost.side, cost.formula, f"{cost.macs / 1e6:.2f}"] for cost in costs]
    total = f"**{sum(cost.macs for cost in costs) / 1e6:.2f}**"
    return MarkdownTable(["layer", "side", "product", "MMACs"], [*rows, ["**sum**", "", "", total]])


def check_answers(answers: dict[str, float | None], costs: Sequence[LayerCost]) -> MarkdownTable:
    """Check a reader's figures and give hints; the correct values are never shown.

    Args:
        answers: MMACs by name of the layer, correct within 1 %, or None where there is no answer yet.
        costs: the true ones.

    Raises:
        DynaMaskError: an answer is for none of the layers.
    """
    truth = {cost.layer: cost.macs / 1e6 for cost in costs}
    unknown = sorted(set(answers) - set(truth))
    if unknown:
        raise DynaMaskError(f"there is no layer {unknown[0]!r}; the layers are {', '.join(truth)}")
    rows = []
    for layer, correct in truth.items():
        answer = answers.get(layer)
        rows.append([layer, None if answer is None else f"{answer:g}", _verdict(answer, correct)])
    return MarkdownTable(["layer", "your MMACs", ""], rows)


def _verdict(answer: float | None, correct: float) -> str:
    """Say whether an answer is correct, or give a hint from its ratio to the correct value."""
    verdicts = {
        1.0: "✓ correct",
        2.0: "twice the correct value: are these FLOPs?",
        0.5: "half of the correct value: is an input missing? L and P are concatenated for the offsets",
        9.0: "nine times the correct value: the kernel is 1×1 here",
        1 / 9: "a ninth of the correct value: the kernel has nine taps",
        4.0: "four times the correct value: which side has the output?",
        0.25: "a quarter of the correct value: which side has the output?",
    }
    if answer is None:
        return "to do"
    for ratio, hint in verdicts.items():
        if abs(answer / correct - ratio) <= 0.01 * ratio:
            return hint
    return "not yet: side² · kernel² · inputs · outputs"


def deform_flops(*args: Any, out_shape: Sequence[int] | None = None, **kwargs: Any) -> int:
    """FLOPs of ``torchvision.ops.deform_conv2d`` for the flop counter: 2 · outputs · inputs · kernel area.

    Args:
        args: shapes of the operator's arguments: input, weight (C_out, C_in / groups, kh, kw), offset, …
        out_shape: (N, C_out, H, W).
    """
    _, inputs, height, width = args[1]
    return 2 * math.prod(out_shape or ()) * inputs * height * width


@torch.no_grad()
def flops(run: Callable[[], object], with_formula: bool = True) -> int:
    """Count the FLOPs of a run with ``torch.utils.flop_counter``; a multiply–accumulate is 2 FLOPs.

    Args:
        run: called once.
        with_formula: register a formula for torchvision's deformable convolution, which otherwise counts as 0.
    """
    mapping = {torch.ops.torchvision.deform_conv2d: deform_flops} if with_formula else None
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return counter.get_total_flops()


def deformable_case(branch: MaskBranch, size_index: int, count: int = 1, seed: int = 0) -> tuple[Tensor, ...]:
    """Return random input and offsets, weight and bias of a stage's Deform Conv 1 for ``count`` regions."""
    conv, side = branch.region_fpn.stages[size_index - 1].aggregate.align, MASK_SIZES[size_index]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, conv.weight.shape[1], side, side, generator=generator)
    offset = torch.randn(count, conv.offset_channels, side, side, generator=generator)
    return x, offset, conv.weight.detach(), conv.bias.detach()


def three_ways(case: tuple[Tensor, ...]) -> dict[str, Callable[[], Tensor]]:
    """Return functions that run a layer as torchvision's operator, as this library does, and as a plain convolution."""
    x, offset, weight, bias = case
    return {
        "torchvision's operator": lambda: torchvision_deform_conv2d(x, offset, weight, bias, padding=1),
        "this library": lambda: sampled_deform_conv2d(x, offset, weight, bias),
        "a plain convolution": lambda: F.conv2d(x, weight, bias, padding=1),
    }


@torch.no_grad()
def run_branch(branch: MaskBranch, features: dict[str, Tensor], rois: Tensor, choice: Tensor) -> list[Tensor]:
    """Compute the masks of regions at their chosen sizes, with projections, base, switch and stages."""
    state = branch.begin(features, rois, torch.ones(len(rois), dtype=torch.int64))
    return branch.masks(state, choice)


def claimed_macs(branch: MaskBranch, features: dict[str, Tensor], choice: Tensor) -> dict[str, int]:
    """Return the MACs of :func:`run_branch` by formula: of the instances, the switch and each projection."""
    costs = branch.costs
    maps = [tuple(features[level].shape[-2:]) for level in map(level_key, branch.head.map_strides)]
    rows = costs.image_macs(maps, len(choice))
    return {"instances": sum(costs.macs_per_instance[k] for k in choice.tolist()), **rows}


@contextmanager
def counted_rows(branch: MaskBranch) -> Iterator[dict[str, int]]:
    """Count the regions that go through the base and each stage inside the context, by name of the size."""
    seen = dict.fromkeys(SIZE_NAMES.values(), 0)

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] += len(inputs[0])

        return hook

    modules = [branch.region_fpn.base, *branch.region_fpn.stages]
    handles = [module.register_forward_hook(watch(name)) for module, name in zip(modules, seen, strict=True)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def mixed_choice(count: int, shares: Sequence[float] = PAPER_SHARES) -> Tensor:
    """Return size indices (count,) int64 with these shares (largest remainders), in a fixed random order."""
    exact = [share / sum(shares) * count for share in shares]
    whole = [math.floor(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda k: whole[k] - exact[k])
    for k in order[: count - sum(whole)]:
        whole[k] += 1
    choice = torch.repeat_interleave(torch.arange(len(shares)), torch.tensor(whole))
    return choice[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


@dataclass(frozen=True)
class Timed:
    """MACs and milliseconds of a part of a stage for one region."""

    size: int
    part: str
    macs: int
    milliseconds: float


@torch.no_grad()
def stage_times(branch: MaskBranch, count: int = 8, repeats: int = 5) -> list[Timed]:
    """Time the parts of every stage on ``count`` regions of noise: crop, reduce, upsample, offsets, deform."""
    features, rois, timed = random_features(branch), random_rois(count), []
    for k, (size, stride) in enumerate(zip(MASK_SIZES[1:], branch.head.map_strides), start=1):
        stage = branch.region_fpn.stages[k - 1]
        macs = Counter()
        for cost in stage_costs(branch, k):
            macs[cost.layer.split()[0]] += cost.macs  # "offsets 1" and "offsets 2" are one part
        projected = branch.region_fpn.projections[k - 1](features[level_key(stride)])
        for part, run in _stage_parts(stage, projected, rois, size, stride).items():
            timed.append(Timed(size, part, macs[part], milliseconds(run, repeats) / count))
    return timed


def _stage_parts(
    stage: RegionStage, projected: Tensor, rois: Tensor, size: int, stride: int
) -> dict[str, Callable[[], object]]:
    """Functions that run the parts of one stage on noise for the regions of a projected map."""
    count, width, fam = len(rois), stage.reduce.out_channels, stage.aggregate
    coarse = torch.randn(count, 2 * width, size // 2, size // 2)
    narrow = torch.randn(count, width, size // 2, size // 2)
    both, region = torch.randn(count, 2 * width, size, size), torch.randn(count, width, size, size)
    offset = fam.align_offsets(both)
    return {
        "crop": lambda: roi_align(projected, rois, size, 1.0 / stride, sampling_ratio=1, aligned=True),
        "reduce": lambda: stage.reduce(coarse),
        "upsample": lambda: F.interpolate(narrow, scale_factor=2.0, mode="bilinear", align_corners=False),
        "offsets": lambda: (fam.align_offsets(both), fam.attend_offsets(both)),
        "deform": lambda: (fam.align(region, offset), fam.attend(region, offset)),
    }


def time_bars(timed: Sequence[Timed]) -> go.Figure:
    """Draw MACs and milliseconds of every stage side by side, each split into its parts."""
    panels = {"GMACs per region": lambda one: one.macs / 1e9, "milliseconds per region": lambda one: one.milliseconds}
    drawn = charts.panel_figure(list(panels), 420)
    for column, value in enumerate(panels.values(), start=1):
        series = {part: {str(one.size): value(one) for one in timed if one.part == part} for part in PARTS}
        for trace in charts.bar_chart(series, stacked=True).data:
            trace.update(legendgroup=trace.name, showlegend=column == 1)
            drawn.add_trace(trace, row=1, col=column)
    drawn.update_xaxes(title="stage to", type="category")
    return drawn.update_layout(barmode="stack", margin={"t": 90}, legend={**charts.LEGEND_ABOVE, "y": 1.12})


def steps_of(widths: Sequence[int], groups: Sequence[int] = (4, 2, 1)) -> list[int]:
    """Return the MACs of three stages with these numbers of channels and offset groups."""
    with torch.device("meta"):
        stages = [RegionStage(width, group) for width, group in zip(widths, groups, strict=True)]
    return [stage.macs(size) for stage, size in zip(stages, MASK_SIZES[1:])]


def step_bars(cases: dict[str, Sequence[int]]) -> go.Figure:
    """Draw the MACs of the three stages of several designs: a group of bars per design, a bar per stage."""
    sizes = MASK_SIZES[1:]
    series = {f"stage to {s}": {n: steps[k] / 1e9 for n, steps in cases.items()} for k, s in enumerate(sizes)}
    return charts.bar_chart(series, axis="GMACs per region", number_format=".3g", markers=_STAGE_MARKERS)


def memory_rows(branch: MaskBranch) -> list[dict[str, float]]:
    """Return megabytes (10⁶ bytes, float32) per region at each stage: of crop P, offsets 1, and gathered columns.

    A deformable convolution gathers nine values for each input channel and cell before its matrix product.
    """
    rows = []
    for stage, size in zip(branch.region_fpn.stages, MASK_SIZES[1:]):
        cells, width = size * size, stage.reduce.out_channels
        values = {"crop": width, "offsets": stage.aggregate.align.offset_channels, "columns": 9 * width}
        rows.append({"size": size, **{name: count * cells * 4 / 1e6 for name, count in values.items()}})
    return rows


def listed_cells(prediction: Prediction, row: int, size_index: int, count: int) -> np.ndarray:
    """Return the cells of an instance's mask at ``MASK_SIZES[size_index]`` that a refined stage lists.

    They are the ``count`` cells where the mask of the size before, upsampled, is least certain.

    Args:
        prediction: with the mask of the size before.

    Returns:
        (S, S) bool.
    """
    coarse, size = prediction.mask_probs_at(row, MASK_SIZES[size_index - 1]), MASK_SIZES[size_index]
    listed = np.zeros(size * size, dtype=bool)
    listed[band_cells(torch.logit(coarse[None].float(), eps=1e-6), size, count)[0].numpy()] = True
    return listed.reshape(size, size)


def listed_pictures(prediction: Prediction, row: int, cells: Sequence[int], cell: int = 210) -> go.Figure:
    """Show the box of an instance and its masks from 28 on, grey, with the cells that are computed in colour.

    Args:
        prediction: of all sizes.
        cells: number of cells that are computed at each size.
    """
    window = box_window(prediction.boxes[row].tolist(), prediction.image_size, margin=0.0)
    pictures, texts = [prediction.picture[window]], ["the box"]
    for k, size in enumerate(MASK_SIZES[1:], start=1):
        listed = listed_cells(prediction, row, k, cells[k])
        shade = (prediction.mask_probs_at(row, size).numpy()[..., None] * 255).astype(np.uint8).repeat(3, axis=2)
        if cells[k] < size * size:
            shade[listed] = shade[listed] // 2 + np.array(hex_to_rgb(MISSED), dtype=np.uint8) // 2
        pictures.append(shade)
        texts.append(f"{SIZE_NAMES[size]}: {cells[k]} of {size * size} cells")
    return picture_grid([pictures], [texts], cell=cell)


def price_parts(branch: MaskBranch) -> dict[str, dict[str, float]]:
    """Return the GMACs of an instance at each size, split into base and stages (without the small predictors)."""
    parts = {"base": sum(cost.macs for cost in base_costs(branch)) / 1e9}
    prices = {SIZE_NAMES[MASK_SIZES[0]]: dict(parts)}
    for k, size in enumerate(MASK_SIZES[1:], start=1):
        parts[f"stage to {size}"] = sum(cost.macs for cost in stage_costs(branch, k)) / 1e9
        prices[SIZE_NAMES[size]] = dict(parts)
    return prices


def picture_parts(
    costs: MaskBranchCosts, map_sizes: Sequence[tuple[int, int]], counts: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Return GMACs per instance of pictures with these numbers of instances, with mixed sizes and all at 112.

    Args:
        costs: of a branch.
        map_sizes: (h, w) of the maps at strides 16, 8 and 4.
        counts: numbers of instances.
    """
    cases: dict[str, dict[str, float]] = {}
    for count in counts:
        rows = costs.image_macs(list(map_sizes), count)
        projections = sum(value for name, value in rows.items() if name.startswith("projection"))
        everyone = torch.full((count,), len(MASK_SIZES) - 1)
        for name, choice in (("mixed", mixed_choice(count)), ("all at 112", everyone)):
            masks = sum(costs.macs_per_instance[k] for k in choice.tolist())
            parts = {"masks": masks, "switch": rows["switch"] + rows.get("quality_head", 0), "projections": projections}
            cases[f"{count} instances, {name}"] = {part: macs / count / 1e9 for part, macs in parts.items()}
    return cases


def cost_bars(title: str, cases: dict[str, dict[str, float]]) -> go.Figure:
    """Draw GMACs as one stacked horizontal bar per case, split into named parts."""
    names = dict.fromkeys(name for parts in cases.values() for name in parts)
    series = {name: {case: parts.get(name, 0.0) for case, parts in cases.items()} for name in names}
    return charts.bar_chart(series, title, "GMACs", stacked=True, horizontal=True, markers=_STAGE_MARKERS)
