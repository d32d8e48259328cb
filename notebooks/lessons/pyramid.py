"""Lesson 02: the region-level FPN from the inside, and what becomes of its masks when a part is taken away."""

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

from dynamask.data.shapes import Scene
from dynamask.evaluation.mask_quality import boundary_iou, mask_iou
from dynamask.models.masks.region_fpn import LEVEL_STRIDES, STAGE_STRIDES, RegionFPN, RegionState
from dynamask.ops.masks import paste_mask
from dynamask.predict import Predictor
from dynamask.structures import MASK_SIZES
from dynamask.viz.style import INK, TEMPLATE
from lessons.pictures import LEGEND, data_uri, error_picture, picture_grid, shade, with_slider

ARROW = "#E4572E"


@dataclass(frozen=True)
class StageTrace:
    """What went through one stage for one region, S being the side of its output.

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
class Trace:
    """One region on its way through the r-FPN.

    Attributes:
        picture: (H, W, 3) uint8, the whole picture.
        box: xyxy in its pixels.
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
        """The picture inside the box, (h, w, 3) uint8."""
        x0, y0, x1, y1 = (round(v) for v in self.box)
        return self.picture[max(0, y0) : max(y1, y0 + 1), max(0, x0) : max(x1, x0 + 1)]


@contextmanager
def _watching(fpn: RegionFPN) -> Iterator[dict[tuple[int, str], Tensor]]:
    """Collect by (stage, name) what flows through the stages; of the aggregate, its two inputs."""
    seen: dict[tuple[int, str], Tensor] = {}
    handles = []

    def keep(k: int, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[k, name] = output
            if name == "aggregate":
                seen[k, "region"], seen[k, "image"] = inputs

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
    """The mask branch's state after its shared work, for boxes (R, 4) in the picture's pixels and labels (R,)."""
    tensor = torch.from_numpy(picture).permute(2, 0, 1).float() / 255.0
    encoded, _ = predictor.model.detector.encode([tensor])
    inside = resize_boxes(boxes.float(), tuple(picture.shape[:2]), encoded.images.image_sizes[0])
    return predictor.model.regions(encoded, [inside], [labels])


@torch.no_grad()
def trace(predictor: Predictor, picture: np.ndarray, box: Sequence[float], label: int = 1) -> Trace:
    """Run one region through all sizes and keep everything on the way.

    Args:
        predictor: with its model on the CPU.
        picture: (H, W, 3) uint8 RGB.
        box: xyxy in pixels.
        label: ≥ 1, whose mask is predicted.
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
    return Trace(picture, tuple(float(v) for v in box), [f[0] for f in state.features], masks, edges, stages)


def components(feature: Tensor) -> np.ndarray:
    """A (C, S, S) feature as (S, S, 3) uint8: its three principal components over the crop as red, green and blue.

    Colours mean nothing by themselves; places of one colour have similar features. A constant feature is grey.
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


def coarse_to_fine(traced: Trace, cell: int = 200) -> go.Figure:
    """Region features, mask and edge probabilities at every size, beside the picture in the box."""
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
    """The picture in a box and its masks of every size, wrong pixels in colour; all arrays are of the whole picture."""
    x0, y0, x1, y1 = (max(0, round(v)) for v in box)
    view = slice(y0, y1), slice(x0, x1)
    texts = ["the box", *(f"{size}×{size}" for size in MASK_SIZES)]
    return picture_grid([[picture[view], *(error_picture(truth, mask)[view] for mask in masks)]], [texts], LEGEND, cell)


def stage_pictures(traced: Trace, cell: int = 190) -> go.Figure:
    """The inside of each stage: L as it comes up, P as it is cropped, L aligned, both fused."""
    rows = [[components(f) for f in (s.region, s.image, s.aligned, s.fused)] for s in traced.stages]
    texts = [
        [f"L, upsampled to {s.size}", f"P, stride {stride}", "L after Deform Conv 1", "after Deform Conv 2"]
        for s, stride in zip(traced.stages, STAGE_STRIDES)
    ]
    return picture_grid(rows, texts, cell=cell)


@torch.no_grad()
def stride_pictures(predictor: Predictor, picture: np.ndarray, box: Sequence[float], cell: int = 190) -> go.Figure:
    """What each stage is given if P is cropped with its own stride, and what if every map is cropped with stride 4."""
    state = region_state(predictor, picture, torch.tensor([list(box)]), torch.tensor([1]))
    own, wrong, texts = [], [], [[], []]
    for map_, size, stride in zip(state.maps, MASK_SIZES[1:], STAGE_STRIDES, strict=True):
        for crops, used, row in ((own, stride, 0), (wrong, LEVEL_STRIDES[0], 1)):
            crop = roi_align(map_, state.rois, size, 1.0 / used, sampling_ratio=1, aligned=True)[0]
            crops.append(components(crop))
            texts[row].append(f"P of stride {stride}, cropped with {used}")
    return picture_grid([own, wrong], texts, cell=cell)


def attention_pictures(traced: Trace, cell: int = 210) -> go.Figure:
    """Where the two deformable convolutions of every stage read more (bright) or less often than plain ones would."""
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
        "How often a place is read: darkest never, blue as by a plain convolution, pale three times or more",
        cell,
    )


def mean_offset(offsets: Tensor) -> Tensor:
    """(2, S, S) mean (Δy, Δx) over taps and groups, in cells, of an offset field (2·g·9, S, S)."""
    return offsets.reshape(-1, 2, *offsets.shape[-2:]).mean(dim=0)


def neighbour_agreement(offsets: Tensor) -> float:
    """Mean cosine, in −1–1, between the mean offsets of cells that lie side by side: near 0 for noise."""
    field = F.normalize(mean_offset(offsets), dim=0)
    across, down = (field[:, :, 1:] * field[:, :, :-1]).sum(0), (field[:, 1:] * field[:, :-1]).sum(0)
    return float((across.sum() + down.sum()) / (across.numel() + down.numel()))


def sampling_places(offsets: Tensor) -> Tensor:
    """Where a 3×3 deformable convolution reads: (g·9, 2, S, S) rows and columns in cells, for an offset field."""
    side = offsets.shape[-1]
    taps = torch.stack(torch.meshgrid(torch.arange(-1.0, 2), torch.arange(-1.0, 2), indexing="ij"))  # (2, 3, 3)
    own = torch.stack(torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij"))  # (2, S, S)
    delta = offsets.reshape(-1, 9, 2, side, side)  # (g, 9, 2, S, S)
    places = delta + taps.reshape(2, 9).T[None, :, :, None, None] + own
    return places.reshape(-1, 2, side, side)


def attention_map(offsets: Tensor) -> np.ndarray:
    """How often each cell is read, (S, S) float: 1 where an undeformed convolution would read as often.

    Every place that is read counts for its four neighbours by their bilinear weights; places beyond the crop count for
    nothing. The rim of the crop is divided by what an undeformed convolution reads there.
    """
    side = offsets.shape[-1]
    plain = torch.zeros_like(offsets[:18])
    return (_splat(sampling_places(offsets), side) / _splat(sampling_places(plain), side)).numpy() / (
        len(offsets) // 18
    )


def _splat(places: Tensor, side: int) -> Tensor:
    """Sum of the bilinear weights (S, S) that places (n, 2, S, S) give to the cells."""
    y, x = places.permute(1, 0, 2, 3).reshape(2, -1)
    total = torch.zeros(side * side)
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = y.floor() + dy, x.floor() + dx
            weight = (1 - (y - row).abs()).clamp_min(0) * (1 - (x - column).abs()).clamp_min(0)
            inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
            total.index_add_(0, (row * side + column)[inside].long(), weight[inside])
    return total.reshape(side, side)


def offset_arrows(traced: Trace, size_index: int, stretch: float = 1.0, attend: bool = False) -> go.Figure:
    """The mean offset of a stage's deformable convolution as arrows over the picture in the box, 14 across.

    Args:
        size_index: 1–3, the stage to 28, 56 or 112.
        stretch: how many times their true length the arrows have.
        attend: of Deform Conv 2 instead of 1.
    """
    stage = traced.stages[size_index - 1]
    field = mean_offset(stage.attend_offsets if attend else stage.align_offsets).numpy()
    crop, size = traced.crop(), stage.size
    every = size // 14
    height, width = crop.shape[:2]
    steps = np.arange(every // 2, size, every)
    columns, rows = np.meshgrid(steps, steps)
    dy, dx = field[0, rows, columns], field[1, rows, columns]
    scale = (width / size, height / size)
    from_x, from_y = (columns + 0.5) * scale[0], (rows + 0.5) * scale[1]
    to_x, to_y = from_x + stretch * dx * scale[0], from_y + stretch * dy * scale[1]
    gaps = np.full(from_x.size, None)
    drawn = go.Figure(go.Image(source=data_uri(crop, 4), dx=0.25, dy=0.25, opacity=0.75, hoverinfo="skip"))
    drawn.add_scatter(
        x=np.stack([from_x.ravel(), to_x.ravel(), gaps], axis=1).ravel().tolist(),
        y=np.stack([from_y.ravel(), to_y.ravel(), gaps], axis=1).ravel().tolist(),
        mode="lines+markers",
        line={"color": ARROW, "width": 1.6},
        marker={
            "symbol": "arrow",
            "size": [0, 9, 0] * from_x.size,
            "angleref": "previous",
            "color": ARROW,
            "line": {"width": 0},
        },
        hoverinfo="skip",
    )
    drawn.update_xaxes(visible=False, range=[0, width], constrain="domain")
    drawn.update_yaxes(visible=False, range=[height, 0], scaleanchor="x", constrain="domain")
    name = "Deform Conv 2" if attend else "Deform Conv 1"
    title = f"{name} at {size}×{size}: {float(np.hypot(field[0], field[1]).mean()):.2f} cells on average"
    title += f", drawn {stretch:g} times as long" if stretch != 1 else ""
    drawn.update_layout(template=TEMPLATE, height=520, title=title, showlegend=False)
    return drawn


def reading_slider(traced: Trace, size_index: int, rows: Sequence[int], column: int) -> go.Figure:
    """What Deform Conv 1 reads for one output cell, nine places, against the plain 3×3 grid; a slider moves the cell.

    Args:
        size_index: 1–3.
        rows: of the output cells.
        column: of all of them.
    """
    stage = traced.stages[size_index - 1]
    side, background = stage.size, components(stage.region)
    places = sampling_places(stage.align_offsets).numpy()
    plain = sampling_places(torch.zeros(18, side, side)).numpy()
    steps = {}
    for row in rows:
        drawn = go.Figure(go.Image(source=data_uri(background, 8), dx=1 / 8, dy=1 / 8, x0=0, y0=0, hoverinfo="skip"))
        for name, where, symbol, colour in (
            ("plain 3×3", plain, "circle-open", "#FFFFFF"),
            ("deformed", places, "x", "#FF7F50"),
        ):
            drawn.add_scatter(
                x=(where[:, 1, row, column] + 0.5).tolist(),
                y=(where[:, 0, row, column] + 0.5).tolist(),
                mode="markers",
                name=name,
                marker={"symbol": symbol, "size": 10, "color": colour, "line": {"width": 2.2}},
            )
        drawn.update_xaxes(visible=False, range=[0, side], constrain="domain")
        drawn.update_yaxes(visible=False, range=[side, 0], scaleanchor="x", constrain="domain")
        drawn.update_layout(template=TEMPLATE, height=520, margin={"t": 60}, title=f"L at {side}×{side}")
        drawn.update_layout(legend={"bgcolor": "#25508C", "font": {"color": "#FFFFFF"}, "x": 1, "y": 1})
        steps[str(row)] = drawn
    return with_slider(steps, "row of the output cell: ", active=len(steps) // 2)


def _zeros(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return torch.zeros_like(output)


@contextmanager
def zero_offsets(fpn: RegionFPN, align: bool = True, attend: bool = True) -> Iterator[None]:
    """Inside, the deformable convolutions read their plain 3×3 grid: their offsets are zero, nothing else changes."""
    with ExitStack() as stack:
        for stage in fpn.stages:
            chosen = [stage.aggregate.align_offsets] * align + [stage.aggregate.attend_offsets] * attend
            for conv in chosen:
                stack.callback(conv.register_forward_hook(_zeros).remove)
        yield


@contextmanager
def _moved_crops(fpn: RegionFPN, move: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Inside, each stage crops P at other rois (R, 5): ``move(size_index, rois)``."""
    usual = fpn.stage

    def stage(size_index: int, coarse: Tensor, projected_map: Tensor, rois: Tensor) -> Tensor:
        return usual(size_index, coarse, projected_map, move(size_index, rois))

    fpn.stage = stage
    try:
        yield
    finally:
        del fpn.stage


def crops_with_stride(fpn: RegionFPN, stride: int = 4) -> AbstractContextManager[None]:
    """Context: every map is cropped as if it had this stride, whatever its own."""

    def move(size_index: int, rois: Tensor) -> Tensor:
        return torch.cat([rois[:, :1], rois[:, 1:] * (STAGE_STRIDES[size_index - 1] / stride)], dim=1)

    return _moved_crops(fpn, move)


def crops_not_aligned(fpn: RegionFPN) -> AbstractContextManager[None]:
    """Context: P is cropped as by RoIAlign with ``aligned=False``, half a cell of the map further right and down."""

    def move(size_index: int, rois: Tensor) -> Tensor:
        return torch.cat([rois[:, :1], rois[:, 1:] + STAGE_STRIDES[size_index - 1] / 2], dim=1)

    return _moved_crops(fpn, move)


@contextmanager
def without_image(fpn: RegionFPN) -> Iterator[None]:
    """Inside, every stage is given zeros in place of P: it upsamples what it has."""

    def hook(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return inputs[0], torch.zeros_like(inputs[1])

    with ExitStack() as stack:
        for stage in fpn.stages:
            stack.callback(stage.aggregate.register_forward_pre_hook(hook).remove)
        yield


@torch.no_grad()
def scene_scores(predictor: Predictor, scenes: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Mask and boundary IoU of every object of the scenes at every size, in its true box: (N, K) float64 each."""
    fpn, scores = predictor.model.mask_branch.region_fpn, []
    for scene in scenes:
        if not len(scene):
            continue
        boxes = torch.from_numpy(scene.boxes)
        state = region_state(predictor, scene.image, boxes, torch.from_numpy(scene.labels))
        every = torch.arange(len(scene))
        by_size = [fpn.mask_logits(state, k, every).sigmoid() for k in range(len(MASK_SIZES))]
        for i, truth in enumerate(scene.masks):
            pasted = [paste_mask(probs[i], boxes[i], truth.shape).numpy() for probs in by_size]
            scores.append([[iou(truth, mask) for mask in pasted] for iou in (mask_iou, boundary_iou)])
    array = np.array(scores, dtype=np.float64).reshape(-1, 2, len(MASK_SIZES))
    return array[:, 0], array[:, 1]


def ablation_bars(scores: dict[str, np.ndarray], title: str = "") -> go.Figure:
    """Mean boundary IoU at every size under each condition, bars in groups; scores are (N, K)."""
    colours = ("#3B82F6", "#0F9D6E", "#C58B00", "#B07AE0", "#E4572E", "#7A8CA3")
    patterns = ("", "/", ".", "x", "-", "|")
    drawn = go.Figure()
    for i, (name, values) in enumerate(scores.items()):
        means = values.mean(axis=0)
        drawn.add_bar(
            x=[f"{size}×{size}" for size in MASK_SIZES],
            y=means.tolist(),
            name=name,
            text=[f"{mean:.2f}" for mean in means],
            textposition="outside",
            textangle=0,
            cliponaxis=False,
            marker={
                "color": colours[i % 6],
                "pattern": {"shape": patterns[i % 6]},
                "line": {"color": INK, "width": 1},
            },
        )
    drawn.update_layout(template=TEMPLATE, title=title, height=420, barmode="group", margin={"t": 96})
    drawn.update_layout(legend={"orientation": "h", "x": 0, "y": 1.03, "yanchor": "bottom"})
    drawn.update_yaxes(title="mean boundary IoU", rangemode="tozero")
    return drawn
