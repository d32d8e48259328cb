"""Lesson 03: what the mask branch costs, by hand, by formula, by counter and by clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from plotly.subplots import make_subplots
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d
from torchvision.ops import roi_align

from dynamask.models.build import preset
from dynamask.models.macs import conv_macs
from dynamask.models.masks.branch import MaskBranch
from dynamask.models.masks.costs import MaskBranchCosts
from dynamask.models.masks.region_fpn import LEVEL_STRIDES, STAGE_LEVELS, STAGE_STRIDES, RegionFPN, RegionStage
from dynamask.models.masks.switch import MaskSwitchModule
from dynamask.ops.deform import sampled_deform_conv2d
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.style import INK, TEMPLATE, size_bar

PAPER_GMACS = (0.23, 0.62, 1.01, 1.40)
"""The paper's Table 7: an instance's cost at each size, G multiply–accumulates."""
PAPER_SHARES = (0.35, 0.34, 0.21, 0.10)
"""The paper's Table 8, C_t = 0.4: shares of the four sizes."""
PART_COLOURS = {
    "crop": ("#7A8CA3", ""),
    "reduce": ("#C58B00", "."),
    "upsample": ("#B07AE0", "|"),
    "offsets": ("#3B82F6", "/"),
    "deform": ("#E4572E", "x"),
}
"""Colour and pattern of the parts of a stage."""


def branch_of_preset(name: str = "dynamask_resnet50_fpn") -> MaskBranch:
    """The mask branch of a named model with random weights, without its backbone and detector."""
    config = preset(name)
    fpn = RegionFPN(config.fpn_channels, config.region_channels, len(config.class_names) - 1, config.offset_groups)
    switch = MaskSwitchModule(config.region_channels, config.switch_channels, config.switch_hidden)
    return MaskBranch(fpn, switch).eval()


def random_features(branch: MaskBranch, height: int = 320, width: int = 416, seed: int = 0) -> dict[str, Tensor]:
    """Feature maps {"0": P2, …, "3": P5} of noise, as of one picture of height × width network-input pixels."""
    channels, generator = branch.region_fpn.base[0].in_channels, torch.Generator().manual_seed(seed)
    shapes = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in LEVEL_STRIDES]
    return {str(i): torch.randn(1, channels, *shape, generator=generator) for i, shape in enumerate(shapes)}


def random_rois(count: int, height: int = 320, width: int = 416, seed: int = 0) -> Tensor:
    """Random boxes (R, 5) with sides of 40 to 200 pixels inside a picture of height × width, batch index 0."""
    generator = torch.Generator().manual_seed(seed)
    sides = 40 + 160 * torch.rand(count, 2, generator=generator)
    low = torch.rand(count, 2, generator=generator) * (torch.tensor([float(width), float(height)]) - sides)
    return torch.cat([torch.zeros(count, 1), low, low + sides], dim=1)


@dataclass(frozen=True)
class Row:
    """A layer's cost for one region.

    Attributes:
        layer: its name.
        side: of its output, in cells.
        formula: the product in numbers.
        macs: its value.
    """

    layer: str
    side: int
    formula: str
    macs: int


def conv_row(layer: str, conv: nn.Conv2d, side: int) -> Row:
    """Cost of a plain convolution: side² · kernel² · inputs · outputs."""
    kernel = conv.kernel_size[0]
    formula = f"{side}² · {kernel}² · {conv.in_channels} · {conv.out_channels}"
    return Row(layer, side, formula, conv_macs(conv, side, side))


def deform_row(layer: str, conv: nn.Module, side: int) -> Row:
    """Cost of a deformable convolution: as the plain one; its bilinear reads are not counted."""
    out_channels, in_channels, kernel, _ = conv.weight.shape
    formula = f"{side}² · {kernel}² · {in_channels} · {out_channels}"
    return Row(layer, side, formula, side * side * conv.weight.numel())


def stage_rows(branch: MaskBranch, size_index: int) -> list[Row]:
    """The five layers of the stage to ``MASK_SIZES[size_index]``, size_index 1–3."""
    stage, side = branch.region_fpn.stages[size_index - 1], MASK_SIZES[size_index]
    fam = stage.aggregate
    return [
        conv_row("reduce", stage.reduce, side // 2),
        conv_row("offsets 1", fam.align_offsets, side),
        deform_row("deform 1", fam.align, side),
        conv_row("offsets 2", fam.attend_offsets, side),
        deform_row("deform 2", fam.attend, side),
    ]


def base_rows(branch: MaskBranch) -> list[Row]:
    """The two convolutions of the 14×14 base."""
    return [conv_row(f"base {i}", branch.region_fpn.base[j], MASK_SIZES[0]) for i, j in ((1, 0), (2, 2))]


def rows_table(rows: Sequence[Row]) -> str:
    """Rows with their sum, as Markdown; in MMACs, 10⁶ multiply–accumulates."""
    lines = ["| layer | side | product | MMACs |", "|---|---:|---|---:|"]
    lines += [f"| {row.layer} | {row.side} | {row.formula} | {row.macs / 1e6:.2f} |" for row in rows]
    return "\n".join([*lines, f"| **sum** | | | **{sum(row.macs for row in rows) / 1e6:.2f}** |"])


def check_answers(answers: dict[str, float | None], rows: Sequence[Row]) -> str:
    """Judge a reader's figures in MMACs, by layer, as a Markdown table; right values are never shown.

    Args:
        answers: by the name of the layer, MMACs within 1 %, or None where there is no answer yet.
        rows: the true ones.

    Raises:
        DynaMaskError: an answer for a layer that is not among the rows.
    """
    truth = {row.layer: row.macs / 1e6 for row in rows}
    unknown = sorted(set(answers) - set(truth))
    if unknown:
        raise DynaMaskError(f"there is no layer {unknown[0]!r}; the layers are {', '.join(truth)}")
    lines = ["| layer | your MMACs | |", "|---|---:|---|"]
    for layer, true in truth.items():
        answer = answers.get(layer)
        lines.append(f"| {layer} | {'–' if answer is None else f'{answer:g}'} | {_verdict(answer, true)} |")
    return "\n".join(lines)


def _verdict(answer: float | None, true: float) -> str:
    """Right, or a hint that the ratio of answer and truth gives."""
    hints = {
        2.0: "twice too much: are these FLOPs?",
        0.5: "half of it: is an input missing? L and P are concatenated for the offsets",
        9.0: "nine times too much: the kernel is 1×1 here",
        1 / 9: "a ninth: the kernel has nine taps",
        4.0: "four times too much: which side has the output?",
        0.25: "a quarter: which side has the output?",
    }
    if answer is None:
        return "to do"
    for ratio, hint in {1.0: "✓ right", **hints}.items():
        if abs(answer / true - ratio) <= 0.01 * ratio:
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
    """FLOPs that ``torch.utils.flop_counter`` sees in a run; 2 a multiply–accumulate.

    Args:
        run: called once.
        with_formula: know torchvision's deformable convolution; without, the counter takes it for nothing.
    """
    mapping = {torch.ops.torchvision.deform_conv2d: deform_flops} if with_formula else None
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return counter.get_total_flops()


def deformable_case(branch: MaskBranch, size_index: int, count: int = 1, seed: int = 0) -> tuple[Tensor, ...]:
    """Random input, offsets, weight and bias of a stage's Deform Conv 1, for ``count`` regions."""
    conv, side = branch.region_fpn.stages[size_index - 1].aggregate.align, MASK_SIZES[size_index]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, conv.weight.shape[1], side, side, generator=generator)
    offset = torch.randn(count, conv.offset_channels, side, side, generator=generator)
    return x, offset, conv.weight.detach(), conv.bias.detach()


def three_ways(case: tuple[Tensor, ...]) -> dict[str, Callable[[], Tensor]]:
    """One layer as torchvision's operator, as this library's fast path, and as the plain convolution of equal MACs."""
    x, offset, weight, bias = case
    return {
        "torchvision's operator": lambda: torchvision_deform_conv2d(x, offset, weight, bias, padding=1),
        "our fast path": lambda: sampled_deform_conv2d(x, offset, weight, bias),
        "a plain convolution": lambda: F.conv2d(x, weight, bias, padding=1),
    }


@torch.no_grad()
def run_branch(branch: MaskBranch, features: dict[str, Tensor], rois: Tensor, choice: Tensor) -> list[Tensor]:
    """Masks of the regions at their chosen sizes, everything included: projections, base, switch, stages."""
    state = branch.begin(features, rois, torch.ones(len(rois), dtype=torch.int64))
    return branch.masks(state, choice)


def claimed_macs(branch: MaskBranch, features: dict[str, Tensor], choice: Tensor) -> dict[str, int]:
    """What the formulas say of :func:`run_branch`: MACs of the instances, of the switch and of each projection."""
    costs = branch.costs
    maps = [tuple(features[level].shape[-2:]) for level in STAGE_LEVELS]
    rows = costs.image_macs(maps, len(choice))
    return {"instances": sum(costs.macs_per_instance[k] for k in choice.tolist()), **rows}


@contextmanager
def counted_rows(branch: MaskBranch) -> Iterator[dict[str, int]]:
    """Inside, counts how many regions go through the base and each stage, by the name of their size."""
    seen = {f"{size}×{size}": 0 for size in MASK_SIZES}

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
    """(count,) int64 size indices in these shares (largest remainders), in a fixed shuffled order."""
    exact = [share / sum(shares) * count for share in shares]
    whole = [math.floor(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda k: whole[k] - exact[k])
    for k in order[: count - sum(whole)]:
        whole[k] += 1
    choice = torch.repeat_interleave(torch.arange(len(shares)), torch.tensor(whole))
    return choice[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


@torch.no_grad()
def clock(run: Callable[[], object], repeats: int = 5) -> float:
    """Milliseconds of a run: the least of ``repeats`` after one to warm up, the one that others disturbed least."""
    run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append((time.perf_counter() - start) * 1e3)
    return min(taken)


@dataclass(frozen=True)
class Timed:
    """A part of a stage: its MACs for one region, and milliseconds for one region on this machine."""

    size: int
    part: str
    macs: int
    milliseconds: float


@torch.no_grad()
def stage_times(branch: MaskBranch, count: int = 8, repeats: int = 5) -> list[Timed]:
    """Clock the parts of every stage on ``count`` regions of noise: crop, reduce, upsample, offsets, deform."""
    features, rois, timed = random_features(branch), random_rois(count), []
    for k, (size, stride) in enumerate(zip(MASK_SIZES[1:], STAGE_STRIDES), start=1):
        stage, map_ = (
            branch.region_fpn.stages[k - 1],
            branch.region_fpn.projections[k - 1](features[STAGE_LEVELS[k - 1]]),
        )
        fam, rows = stage.aggregate, {row.layer: row.macs for row in stage_rows(branch, k)}
        width = stage.reduce.out_channels
        coarse, narrow = (
            torch.randn(count, 2 * width, size // 2, size // 2),
            torch.randn(count, width, size // 2, size // 2),
        )
        both, region = torch.randn(count, 2 * width, size, size), torch.randn(count, width, size, size)
        offset = fam.align_offsets(both)

        def crop(map_: Tensor = map_, size: int = size, stride: int = stride) -> Tensor:
            return roi_align(map_, rois, size, 1.0 / stride, sampling_ratio=1, aligned=True)

        def offsets(fam: nn.Module = fam, both: Tensor = both) -> tuple[Tensor, Tensor]:
            return fam.align_offsets(both), fam.attend_offsets(both)

        def deform(fam: nn.Module = fam, region: Tensor = region, offset: Tensor = offset) -> tuple[Tensor, Tensor]:
            return fam.align(region, offset), fam.attend(region, offset)

        def upsample(narrow: Tensor = narrow) -> Tensor:
            return F.interpolate(narrow, scale_factor=2.0, mode="bilinear", align_corners=False)

        for part, run, macs in (
            ("crop", crop, 0),
            ("reduce", lambda stage=stage, coarse=coarse: stage.reduce(coarse), rows["reduce"]),
            ("upsample", upsample, 0),
            ("offsets", offsets, rows["offsets 1"] + rows["offsets 2"]),
            ("deform", deform, rows["deform 1"] + rows["deform 2"]),
        ):
            timed.append(Timed(size, part, macs, clock(run, repeats) / count))
    return timed


def time_bars(timed: Sequence[Timed]) -> go.Figure:
    """MACs and milliseconds of every stage side by side, each split into its parts."""
    drawn = make_subplots(1, 2, subplot_titles=["GMACs per region", "milliseconds per region, this machine"])
    stages = [str(size) for size in MASK_SIZES[1:]]
    for part, (colour, pattern) in PART_COLOURS.items():
        own = [one for one in timed if one.part == part]
        for column, values in ((1, [o.macs / 1e9 for o in own]), (2, [o.milliseconds for o in own])):
            drawn.add_bar(
                x=stages, y=values, name=part, legendgroup=part, showlegend=column == 1, row=1, col=column,
                marker={"color": colour, "pattern": {"shape": pattern}, "line": {"color": INK, "width": 1}},
            )  # fmt: skip
    drawn.update_annotations(font={"color": INK, "size": 14})
    drawn.update_xaxes(title="stage to", type="category")
    drawn.update_layout(template=TEMPLATE, barmode="stack", height=420, margin={"t": 90})
    drawn.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.12, "yanchor": "bottom"})
    return drawn


def steps_of(widths: Sequence[int], groups: Sequence[int] = (4, 2, 1)) -> list[int]:
    """MACs of the three stages if they had these numbers of channels and offset groups; no weights are made."""
    with torch.device("meta"):
        stages = [RegionStage(width, group) for width, group in zip(widths, groups, strict=True)]
    return [stage.macs(size) for stage, size in zip(stages, MASK_SIZES[1:])]


def step_bars(cases: dict[str, Sequence[int]]) -> go.Figure:
    """The steps of several designs: a group of bars for each, a bar for each stage in the colour of its size."""
    drawn = go.Figure()
    for k, size in enumerate(MASK_SIZES[1:]):
        values = [steps[k] / 1e9 for steps in cases.values()]
        drawn.add_bar(
            x=list(cases), y=values, name=f"stage to {size}", marker=size_bar(size),
            text=[f"{value:.3g}" for value in values], textposition="outside", textangle=0, cliponaxis=False,
        )  # fmt: skip
    drawn.update_layout(template=TEMPLATE, barmode="group", height=400, margin={"t": 70})
    drawn.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.04, "yanchor": "bottom"})
    drawn.update_yaxes(title="GMACs per region")
    return drawn


def memory_rows(branch: MaskBranch) -> list[dict[str, float]]:
    """Megabytes (10⁶ bytes, float32) per region at each stage: crop P, offsets 1, and the columns that are multiplied.

    Columns are what a deformable convolution gathers before its product: nine values for each input channel and cell.
    """
    rows = []
    for stage, size in zip(branch.region_fpn.stages, MASK_SIZES[1:]):
        cells, width = size * size, stage.reduce.out_channels
        values = {"crop": width, "offsets": stage.aggregate.align.offset_channels, "columns": 9 * width}
        rows.append({"size": size, **{name: count * cells * 4 / 1e6 for name, count in values.items()}})
    return rows


def price_parts(branch: MaskBranch) -> dict[str, dict[str, float]]:
    """What an instance pays at each size, in GMACs: the base and the stages up to it (without the small predictors)."""
    parts = {"base": sum(row.macs for row in base_rows(branch)) / 1e9}
    prices = {f"{MASK_SIZES[0]}×{MASK_SIZES[0]}": dict(parts)}
    for k, size in enumerate(MASK_SIZES[1:], start=1):
        parts[f"stage to {size}"] = sum(row.macs for row in stage_rows(branch, k)) / 1e9
        prices[f"{size}×{size}"] = dict(parts)
    return prices


def picture_parts(
    costs: MaskBranchCosts, map_sizes: Sequence[tuple[int, int]], counts: Sequence[int]
) -> dict[str, dict[str, float]]:
    """GMACs per instance of pictures with these numbers of instances, sizes mixed (the paper's shares) and all at 112.

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
            parts = {"masks": masks, "switch": rows["switch"], "projections": projections}
            cases[f"{count} instances, {name}"] = {part: macs / count / 1e9 for part, macs in parts.items()}
    return cases


def cost_bars(title: str, parts: dict[str, dict[str, float]]) -> go.Figure:
    """Stacked horizontal bars in GMACs: one for each case, split into named parts; stages have their sizes' colours."""
    looks = (*PART_COLOURS.values(), ("#0F9D6E", "-"))
    names = list(dict.fromkeys(name for case in parts.values() for name in case))
    drawn = go.Figure()
    sized = {"base": 14, **{f"stage to {size}": size for size in MASK_SIZES}}
    for name, (colour, pattern) in zip(names, looks, strict=False):
        marker = {"color": colour, "pattern": {"shape": pattern}, "line": {"color": INK, "width": 1}}
        drawn.add_bar(
            y=list(parts), x=[case.get(name, 0.0) for case in parts.values()], orientation="h", name=name,
            marker=size_bar(sized[name]) if name in sized else marker,
        )  # fmt: skip
    drawn.update_layout(template=TEMPLATE, title=title, barmode="stack", height=150 + 60 * len(parts), margin={"t": 96})
    drawn.update_layout(legend={"orientation": "h", "x": 0, "y": 1.03, "yanchor": "bottom", "traceorder": "normal"})
    drawn.update_xaxes(title="GMACs")
    drawn.update_yaxes(autorange="reversed")
    return drawn
