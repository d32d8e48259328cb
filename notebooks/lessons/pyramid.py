"""Notebook 02: the inner workings of the region-level FPN, and its masks without some of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import roi_align

from dynamask.data.shapes import ShapesDataset
from dynamask.engine.evaluate import EvaluationOptions, collect
from dynamask.models.masks.region_fpn import LEVEL_STRIDES, STAGE_STRIDES, RegionFPN, RegionState
from dynamask.ops.masks import enlarge_boxes
from dynamask.predict import Predictor
from dynamask.structures import MASK_SIZES
from dynamask.viz import charts
from dynamask.viz.style import SIZE_NAMES
from lessons.picture_grids import (
    LEGEND,
    MISSED,
    box_window,
    error_picture,
    fit_axes,
    image_trace,
    picture_grid,
    shade,
    with_slider,
)


@dataclass(frozen=True)
class StageTrace:
    """Tensors of one stage for one region, with an output of S×S cells.

    Attributes:
        size: S.
        region: L, reduced and upsampled, (C, S, S).
        image: P, the crop of the projected feature map, (C, S, S).
        align_offsets: Δo of Deform Conv 1, (2·g·9, S, S) in cells, (Δy, Δx) pairs.
        aligned: L after Deform Conv 1 and ReLU, (C, S, S).
        attend_offsets: the offsets of Deform Conv 2, likewise.
        fused: the output, (C, S, S).
    """

    size: int
    region: Tensor
    image: Tensor
    align_offsets: Tensor
    aligned: Tensor
    attend_offsets: Tensor
    fused: Tensor


@dataclass(frozen=True)
class RegionTrace:
    """Tensors of one region in the r-FPN.

    Attributes:
        picture: (H, W, 3) uint8, the whole picture.
        box: xyxy in its pixels, with the margin of the mask branch.
        features: the region feature after each size, K tensors (C_k, S_k, S_k).
        mask_probs: K tensors (S_k, S_k) in [0, 1].
        edge_probs: likewise, of the edge predictors.
        stages: of the three stages.
    """

    picture: np.ndarray
    box: tuple[float, float, float, float]
    features: list[Tensor]
    mask_probs: list[Tensor]
    edge_probs: list[Tensor]
    stages: list[StageTrace]

    def crop(self) -> np.ndarray:
        """Return the picture inside the box, (h, w, 3) uint8."""
        return self.picture[box_window(self.box, self.picture.shape[:2], margin=0.0)]


@contextmanager
def _watching(fpn: RegionFPN) -> Iterator[dict[tuple[int, str], Tensor]]:
    """Collect the outputs inside the stages by (stage, name), and the two inputs of each aggregation module."""
    seen: dict[tuple[int, str], Tensor] = {}
    handles = []

    def keep(k: int, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[k, name] = output
            if name == "aggregate":
                seen[k, "region"], seen[k, "image"] = inputs[:2]

        return hook

    for k, stage in enumerate(fpn.stages):
        modules = {"aggregate": stage.aggregate, **dict(stage.aggregate.named_children())}
        handles += [module.register_forward_hook(keep(k, name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def region_state(predictor: Predictor, picture: np.ndarray, boxes: Tensor, labels: Tensor) -> RegionState:
    """Return the mask branch's state before its stages, for boxes (R, 4) in pixels of the picture and labels (R,)."""
    tensor = torch.from_numpy(picture).permute(2, 0, 1).float() / 255.0
    encoded, _ = predictor.model.detector.encode([tensor])
    inside = resize_boxes(boxes.float(), tuple(picture.shape[:2]), encoded.images.image_sizes[0])
    return predictor.model.regions(encoded, [inside], [labels])


@torch.no_grad()
def trace(predictor: Predictor, picture: np.ndarray, box: Sequence[float], label: int = 1) -> RegionTrace:
    """Compute one region at all sizes and keep all intermediate tensors.

    Args:
        predictor: with its model on the CPU.
        picture: (H, W, 3) uint8 RGB.
        box: xyxy in pixels.
        label: class of the mask, ≥ 1.
    """
    fpn = predictor.model.mask_branch.region_fpn
    state = region_state(predictor, picture, torch.tensor([list(box)]), torch.tensor([label]))
    row = torch.tensor([0])
    with _watching(fpn) as seen:
        masks = [fpn.mask_logits(state, k, row)[0].sigmoid() for k in range(len(MASK_SIZES))]
    edges = [fpn.edge_logits(state, k, row)[0].sigmoid() for k in range(len(MASK_SIZES))]
    stages = [
        StageTrace(
            size,
            seen[k, "region"][0],
            seen[k, "image"][0],
            seen[k, "align_offsets"][0],
            F.relu(seen[k, "align"][0]),
            seen[k, "attend_offsets"][0],
            seen[k, "aggregate"][0],
        )
        for k, size in enumerate(MASK_SIZES[1:])
    ]
    margin = predictor.model.mask_branch.region_margin
    region = enlarge_boxes(torch.tensor(list(box), dtype=torch.float64), margin)
    return RegionTrace(picture, tuple(region.tolist()), [f[0] for f in state.features], masks, edges, stages)


def components(feature: Tensor) -> np.ndarray:
    """Show a (C, S, S) feature by its three principal components as red, green and blue, (S, S, 3) uint8.

    Places of one colour have similar features; the colours have no further meaning. A constant feature is grey.
    """
    channels, side = feature.shape[0], feature.shape[-1]
    flat = feature.reshape(channels, -1).double()
    flat = flat - flat.mean(dim=1, keepdim=True)
    bases, _, _ = torch.linalg.svd(flat @ flat.T)
    axes = bases[:, :3] * bases[:, :3].gather(0, bases[:, :3].abs().argmax(dim=0, keepdim=True)).sign()
    values = (axes.T @ flat).reshape(-1, side, side)  # (3, S, S)
    low, high = (torch.quantile(values.flatten(1), q, dim=1)[:, None, None] for q in (0.02, 0.98))
    flat_parts = (high - low) < 1e-9
    share = torch.where(flat_parts, torch.full_like(values, 0.5), (values - low) / (high - low).clamp_min(1e-9))
    return (share.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def coarse_to_fine(traced: RegionTrace, cell: int = 200) -> go.Figure:
    """Show region features, mask and edge probabilities at every size, beside the picture in the box."""
    crop = traced.crop()
    rows = [
        [crop, *(components(feature) for feature in traced.features)],
        [None, *(shade(probs.numpy(), 0, 1) for probs in traced.mask_probs)],
        [None, *(shade(probs.numpy(), 0, 1) for probs in traced.edge_probs)],
    ]
    texts = [
        ["the box", *(f"feature {f.shape[0]}×{f.shape[1]}×{f.shape[2]}" for f in traced.features)],
        ["", *(f"mask {size}×{size}" for size in MASK_SIZES)],
        ["", *(f"edge {size}×{size}" for size in MASK_SIZES)],
    ]
    return picture_grid(rows, texts, cell=cell)


def mask_pictures(
    picture: np.ndarray, truth: np.ndarray, box: Sequence[float], masks: Sequence[np.ndarray], cell: int = 210
) -> go.Figure:
    """Show the picture in a box and masks (H, W) of every size with wrong pixels in colour."""
    view = box_window(box, truth.shape, margin=0.0)
    texts = ["the box", *SIZE_NAMES.values()]
    return picture_grid([[picture[view], *(error_picture(truth, mask)[view] for mask in masks)]], [texts], LEGEND, cell)


def stage_pictures(traced: RegionTrace, cell: int = 190) -> go.Figure:
    """Show the features inside each stage: upsampled L, cropped P, aligned L, and the output."""
    rows = [[components(f) for f in (s.region, s.image, s.aligned, s.fused)] for s in traced.stages]
    texts = [
        [f"L, upsampled to {s.size}", f"P, stride {stride}", "L after Deform Conv 1", "after Deform Conv 2"]
        for s, stride in zip(traced.stages, STAGE_STRIDES)
    ]
    return picture_grid(rows, texts, cell=cell)


@torch.no_grad()
def stride_pictures(predictor: Predictor, picture: np.ndarray, box: Sequence[float], cell: int = 190) -> go.Figure:
    """Show the crop P of each stage with the stride of its map, and with stride 4 for every map."""
    state = region_state(predictor, picture, torch.tensor([list(box)]), torch.tensor([1]))
    head = predictor.model.mask_branch.head
    own, wrong, texts = [], [], [[], []]
    for map_, size, stride in zip(state.maps, MASK_SIZES[1:], head.map_strides, strict=True):
        for crops, used, row in ((own, stride, 0), (wrong, LEVEL_STRIDES[0], 1)):
            here = head.on_map(state.rois, stride)
            crop = roi_align(map_, here, size, 1.0 / used, sampling_ratio=1, aligned=True)[0]
            crops.append(components(crop))
            texts[row].append(f"P of stride {stride}, cropped with {used}")
    return picture_grid([own, wrong], texts, cell=cell)


def attention_pictures(traced: RegionTrace, cell: int = 210) -> go.Figure:
    """Show how often the deformable convolutions of every stage sample each place, compared with plain convolutions."""
    rows, texts = [], []
    for name, key in (("Deform Conv 1", "align_offsets"), ("Deform Conv 2", "attend_offsets")):
        maps = [attention_map(getattr(stage, key)) for stage in traced.stages]
        rows.append([traced.crop(), *(shade(np.clip(m, 0, 3), 0, 3) for m in maps)])
        texts.append(
            ["the box", *(f"{name} at {stage.size}, up to {m.max():.0f}×" for stage, m in zip(traced.stages, maps))]
        )
    return picture_grid(
        rows,
        texts,
        "Samples per place: dark none, blue as many as a plain convolution, pale three times as many or more",
        cell,
    )


def mean_offset(offsets: Tensor) -> Tensor:
    """Average an offset field (2·g·9, S, S) over taps and groups: (2, S, S) mean (Δy, Δx) in cells."""
    return offsets.reshape(-1, 2, *offsets.shape[-2:]).mean(dim=0)


def neighbour_agreement(offsets: Tensor) -> float:
    """Return the mean cosine, −1 to 1, between the mean offsets of adjacent cells; it is near 0 for noise."""
    field = F.normalize(mean_offset(offsets), dim=0)
    across, down = (field[:, :, 1:] * field[:, :, :-1]).sum(0), (field[:, 1:] * field[:, :-1]).sum(0)
    return float((across.sum() + down.sum()) / (across.numel() + down.numel()))


def sampling_places(offsets: Tensor) -> Tensor:
    """Return the positions that a 3×3 deformable convolution samples, (g·9, 2, S, S) rows and columns in cells."""
    side = offsets.shape[-1]
    taps = torch.stack(torch.meshgrid(torch.arange(-1.0, 2), torch.arange(-1.0, 2), indexing="ij"))  # (2, 3, 3)
    own = torch.stack(torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij"))  # (2, S, S)
    delta = offsets.reshape(-1, 9, 2, side, side)  # (g, 9, 2, S, S)
    places = delta + taps.reshape(2, 9).T[None, :, :, None, None] + own
    return places.reshape(-1, 2, side, side)


def attention_map(offsets: Tensor) -> np.ndarray:
    """Return how often each cell is sampled, (S, S) float, relative to a plain convolution.

    Every position counts for its four neighbouring cells by their bilinear weights; positions outside the crop do not
    count. Cells at the rim are compared with a plain convolution at the rim.
    """
    side = offsets.shape[-1]
    plain = torch.zeros_like(offsets[:18])
    return (_splat(sampling_places(offsets), side) / _splat(sampling_places(plain), side)).numpy() / (
        len(offsets) // 18
    )


def _splat(places: Tensor, side: int) -> Tensor:
    """Sum the bilinear weights of positions (n, 2, S, S) by cell, (S, S)."""
    y, x = places.permute(1, 0, 2, 3).reshape(2, -1)
    total = torch.zeros(side * side)
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = y.floor() + dy, x.floor() + dx
            weight = (1 - (y - row).abs()).clamp_min(0) * (1 - (x - column).abs()).clamp_min(0)
            inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
            total.index_add_(0, (row * side + column)[inside].long(), weight[inside])
    return total.reshape(side, side)


def offset_arrows(traced: RegionTrace, size_index: int, stretch: float = 1.0, attend: bool = False) -> go.Figure:
    """Draw the mean offsets of a stage's deformable convolution as arrows over the picture in the box, 14 across.

    Args:
        traced: of one region.
        size_index: 1–3, the stage to 28, 56 or 112.
        stretch: factor of the arrows' length.
        attend: show Deform Conv 2 instead of 1.
    """
    stage = traced.stages[size_index - 1]
    field = mean_offset(stage.attend_offsets if attend else stage.align_offsets).numpy()
    crop, size = traced.crop(), stage.size
    height, width = crop.shape[:2]
    steps = np.arange(size // 28, size, size // 14)
    columns, rows = np.meshgrid(steps, steps)
    start = np.stack([columns, rows]) + 0.5  # (2, 14, 14) x, y in cells
    end = start + stretch * field[::-1][:, rows, columns]
    lines = np.stack([start, end, np.full_like(start, np.nan)], axis=-1).reshape(2, -1)
    x, y = lines * np.array([[width], [height]]) / size
    drawn = charts.figure(height=520, showlegend=False)
    drawn.add_trace(image_trace(crop, 4, opacity=0.75))
    tips = {"symbol": "arrow", "size": [0, 9, 0] * len(steps) ** 2, "angleref": "previous", "line": {"width": 0}}
    drawn.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        line={"color": MISSED, "width": 1.6},
        marker={**tips, "color": MISSED},
        hoverinfo="skip",
    )
    fit_axes(drawn, (height, width))
    name = "Deform Conv 2" if attend else "Deform Conv 1"
    title = f"{name} at {size}×{size}: mean length {float(np.hypot(*field).mean()):.2f} cells"
    return drawn.update_layout(title=title + (f", drawn {stretch:g} times as long" if stretch != 1 else ""))


def sampling_slider(traced: RegionTrace, size_index: int, rows: Sequence[int], column: int) -> go.Figure:
    """Show the nine positions that Deform Conv 1 samples for one output cell and the plain 3×3 grid, with a slider.

    Args:
        traced: of one region.
        size_index: 1–3, the stage to 28, 56 or 112.
        rows: of the output cells, one step of the slider each.
        column: of all of them.
    """
    stage = traced.stages[size_index - 1]
    side, background = stage.size, components(stage.region)
    looks = {
        "plain 3×3": (torch.zeros(18, side, side), "circle-open", "#FFFFFF"),
        "deformed": (stage.align_offsets, "x", "#FF7F50"),
    }
    steps = {}
    for row in rows:
        drawn = charts.figure(f"L at {side}×{side}", height=520, margin={"t": 60})
        drawn.add_trace(image_trace(background, 8))
        for name, (offsets, symbol, colour) in looks.items():
            places = sampling_places(offsets)[:, :, row, column] + 0.5  # (g·9, 2) y, x
            marker = {"symbol": symbol, "size": 10, "color": colour, "line": {"width": 2.2}}
            drawn.add_scatter(
                x=places[:, 1].tolist(), y=places[:, 0].tolist(), mode="markers", name=name, marker=marker
            )
        fit_axes(drawn, (side, side))
        drawn.update_layout(legend={"bgcolor": "#25508C", "font": {"color": "#FFFFFF"}, "x": 1, "y": 1})
        steps[str(row)] = drawn
    return with_slider(steps, "row of the output cell: ", active=len(steps) // 2)


def _zeros(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return torch.zeros_like(output)


@contextmanager
def zero_offsets(fpn: RegionFPN, align: bool = True, attend: bool = True) -> Iterator[None]:
    """Set the offsets of the deformable convolutions to zero inside the context; nothing else changes."""
    with ExitStack() as stack:
        for stage in fpn.stages:
            chosen = [stage.aggregate.align_offsets] * align + [stage.aggregate.attend_offsets] * attend
            for conv in chosen:
                stack.callback(conv.register_forward_hook(_zeros).remove)
        yield


@contextmanager
def _moved_crops(fpn: RegionFPN, move: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Let each stage crop P at other RoIs (R, 5) inside the context: ``move(size_index, rois)``."""
    usual = fpn.stage

    def stage(size_index: int, coarse: Tensor, projected_map: Tensor, rois: Tensor) -> Tensor:
        return usual(size_index, coarse, projected_map, move(size_index, rois))

    fpn.stage = stage
    try:
        yield
    finally:
        del fpn.stage


def crops_with_stride(fpn: RegionFPN, stride: int = 4) -> AbstractContextManager[None]:
    """Crop every map as if it had this stride inside the context."""

    def move(size_index: int, rois: Tensor) -> Tensor:
        return torch.cat([rois[:, :1], rois[:, 1:] * (fpn.map_strides[size_index - 1] / stride)], dim=1)

    return _moved_crops(fpn, move)


def crops_not_aligned(fpn: RegionFPN) -> AbstractContextManager[None]:
    """Crop P as RoIAlign with ``aligned=False`` inside the context: half a cell further right and down."""

    def move(size_index: int, rois: Tensor) -> Tensor:
        return torch.cat([rois[:, :1], rois[:, 1:] + fpn.map_strides[size_index - 1] / 2], dim=1)

    return _moved_crops(fpn, move)


@contextmanager
def without_image(fpn: RegionFPN) -> Iterator[None]:
    """Replace P by zeros in every stage inside the context."""

    def hook(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return inputs[0], torch.zeros_like(inputs[1])

    with ExitStack() as stack:
        for stage in fpn.stages:
            stack.callback(stage.aggregate.register_forward_pre_hook(hook).remove)
        yield


def boundary_scores(predictor: Predictor, dataset: ShapesDataset) -> np.ndarray:
    """Measure the boundary IoU (N, K) of every object of a data set at every size, in its true box."""
    options = EvaluationOptions(boxes="gt")
    return collect(predictor, dataset, range(len(dataset)), options, every_size=True).quality("boundary_iou")


def ablation_bars(scores: dict[str, np.ndarray], title: str = "") -> go.Figure:
    """Draw the mean boundary IoU at every size under each condition, from scores (N, K) by condition."""
    names = list(SIZE_NAMES.values())
    series = {condition: dict(zip(names, values.mean(axis=0), strict=True)) for condition, values in scores.items()}
    return charts.bar_chart(series, title, "mean boundary IoU", number_format=".2f", height=420)
