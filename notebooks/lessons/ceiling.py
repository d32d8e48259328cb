"""Lesson 01: what a grid of M×M cells can hold of an outline, whatever predicts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from dynamask.data.coco_checks import clipped_box
from dynamask.data.coco_format import read_coco
from dynamask.data.shapes import CLASS_NAMES, SIDES, make_scene
from dynamask.evaluation.ideal_masks import METRICS, IdealQuality, ideal_masks
from dynamask.evaluation.mask_quality import boundary_iou, mask_iou, quality_by_size
from dynamask.ops.masks import BOUNDARY_WIDTH_RATIO, crop_masks, paste_mask_window, paste_window
from dynamask.ops.rle import decode_rle
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.charts import figure
from dynamask.viz.style import INK, TEMPLATE, size_dot, size_line
from lessons.pictures import LEGEND, error_picture, picture_grid, shade, with_slider

OUTLINES = Path(__file__).resolve().parents[2] / "notebooks" / "data" / "coco-outlines.json"
"""Outlines of five COCO classes, without photographs (see `notebooks/data/README.md`)."""
METRIC_NAMES = {"mask_iou": "mask IoU", "boundary_iou": "boundary IoU"}
TOP_LEGEND = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
RoundTrip = Callable[[np.ndarray, Sequence[float], Sequence[int]], list[np.ndarray]]


@dataclass(frozen=True)
class Instance:
    """One object and its true mask.

    Attributes:
        name: of its class.
        mask: (H, W) bool, in its whole picture.
        box: xyxy in continuous pixels.
        area: pixels².
        complexity: in 0–1 where it is known (the shapes world), else NaN.
    """

    name: str
    mask: np.ndarray
    box: tuple[float, float, float, float]
    area: float
    complexity: float = float("nan")


def read_instances(path: str | Path = OUTLINES) -> list[Instance]:
    """All instances of a COCO annotation file that are no crowd and have an area.

    Raises:
        DynaMaskError: the file is missing or no COCO JSON.
    """
    content = read_coco(path)
    coco = content.coco
    names = {category["id"]: category["name"] for category in coco["categories"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    return [
        Instance(
            names[annotation["category_id"]],
            decode_rle(rle),
            clipped_box(annotation["bbox"], sizes[annotation["image_id"]]),
            float(annotation["area"]),
        )
        for annotation, rle in zip(coco["annotations"], content.rles, strict=True)
        if not annotation["iscrowd"]
    ]


def scene_instances(
    seed: int, count: int, size: tuple[int, int] = (288, 352), sides: tuple[float, float] = SIDES
) -> list[Instance]:
    """The objects of the first ``count`` scenes of a shapes world (see :func:`dynamask.data.shapes.make_scene`)."""
    found = []
    for index in range(count):
        scene = make_scene(seed, index, size, sides=sides)
        for mask, box, label, complexity in zip(
            scene.masks, scene.boxes.tolist(), scene.labels.tolist(), scene.complexity.tolist(), strict=True
        ):
            found.append(Instance(CLASS_NAMES[label], mask, tuple(box), float(mask.sum()), complexity))
    return found


def largest(instances: Sequence[Instance], name: str, rank: int = 0) -> Instance:
    """The instance of a class with the largest area, or the next ones of ``rank`` 1, 2, ….

    Raises:
        DynaMaskError: the class has no instance, or not as many.
    """
    own = [instance for instance in instances if instance.name == name]
    if not own:
        raise DynaMaskError(f"there is no {name!r}; choose one of {', '.join(sorted({i.name for i in instances}))}")
    if not 0 <= rank < len(own):
        raise DynaMaskError(f"{name!r} has {len(own)} instances; give a rank from 0 to {len(own) - 1}")
    return sorted(own, key=lambda instance: -instance.area)[rank]


def stock_masks(truth: np.ndarray, box: Sequence[float], sizes: Sequence[int] = MASK_SIZES) -> list[np.ndarray]:
    """The round trip of :func:`dynamask.evaluation.ideal_masks.ideal_masks` through torchvision's own crop and paste.

    The crop is not aligned (half a pixel off); the paste rounds the box to whole pixels.
    """
    mask, edges = torch.from_numpy(truth.astype(np.uint8))[None], torch.tensor([list(box)], dtype=torch.float32)
    pasted = []
    for size in sizes:
        crop = project_masks_on_boxes(mask, edges, torch.zeros(1, dtype=torch.int64), size)  # (1, M, M)
        whole = paste_masks_in_image(crop[:, None].float(), edges, truth.shape, padding=1)  # (1, 1, H, W)
        pasted.append((whole[0, 0] >= 0.5).numpy())
    return pasted


def measure(instances: Sequence[Instance], round_trip: RoundTrip = ideal_masks) -> IdealQuality:
    """Mask and boundary IoU of every instance after a round trip through each mask size.

    Args:
        instances: N of them.
        round_trip: truth, box and sizes → one pasted (H, W) bool mask per size.
    """
    scores = np.zeros((2, len(instances), len(MASK_SIZES)))
    for i, instance in enumerate(instances):
        pasted = [mask[None] for mask in round_trip(instance.mask, instance.box, MASK_SIZES)]
        ious = quality_by_size(instance.mask[None], pasted, BOUNDARY_WIDTH_RATIO)
        scores[:, i] = ious[0][0], ious[1][0]
    names, areas = tuple(i.name for i in instances), np.array([i.area for i in instances], dtype=np.float64)
    return IdealQuality(names, areas, *scores)


def window(instance: Instance, margin: float = 0.06) -> tuple[slice, slice]:
    """Rows and columns of an instance's box with a margin, a share of its longer side, cut to the picture."""
    x0, y0, x1, y1 = instance.box
    edge = margin * max(x1 - x0, y1 - y0)
    height, width = instance.mask.shape
    rows = slice(int(max(0, y0 - edge)), int(min(height, np.ceil(y1 + edge))))
    return rows, slice(int(max(0, x0 - edge)), int(min(width, np.ceil(x1 + edge))))


def ceiling_pictures(
    instances: Sequence[Instance], title: str = "", cell: int = 210, round_trip: RoundTrip = ideal_masks
) -> go.Figure:
    """A row for each instance: its true mask, then the ideal mask of every size with its wrong pixels in colour."""
    pictures, titles = [], []
    for instance in instances:
        view = window(instance)
        masks = round_trip(instance.mask, instance.box, MASK_SIZES)
        pictures.append([error_picture(instance.mask, mask)[view] for mask in (instance.mask, *masks)])
        scores = [f"{boundary_iou(instance.mask, mask):.2f}" for mask in masks]
        texts = [f"<b>{size}×{size}</b>, boundary IoU {score}" for size, score in zip(MASK_SIZES, scores)]
        titles.append([f"<b>{instance.name}</b>, the truth", *texts])
    return picture_grid(pictures, titles, f"{title}   {LEGEND}" if title else LEGEND, cell)


def round_trip_pictures(instance: Instance, size: int) -> go.Figure:
    """The three steps of an ideal mask: the truth, its share of every cell, the bilinear values, the cut at 0.5."""
    rows, columns = window(instance, margin=0.0)
    truth = torch.from_numpy(instance.mask)[None]
    grid = crop_masks(truth, torch.tensor([list(instance.box)]), size)[0]  # (M, M)
    values = paste_mask_window(grid, instance.box, paste_window(instance.box, instance.mask.shape)).numpy()
    cut = ideal_masks(instance.mask, instance.box, [size])[0]
    pictures = [
        error_picture(instance.mask, instance.mask)[rows, columns],
        shade(grid.numpy(), 0, 1),
        shade(values, 0, 1),
        error_picture(instance.mask, cut)[rows, columns],
    ]
    texts = ["1 the truth in its box", f"2 share of each of {size}×{size} cells", "3 bilinear at the pixels", "4 ≥ 0.5"]
    return picture_grid([pictures], [texts], cell=280)


def comb(teeth: int, side: int = 448) -> Instance:
    """A comb: a bar along the top with ``teeth`` teeth hanging down, teeth and gaps equally wide, in a square box.

    Args:
        teeth: ≥ 1.
        side: of the box in pixels.
    """
    mask = np.zeros((side + 40, side + 40), dtype=bool)
    places = (np.arange(side) + 0.5) * (2 * teeth - 1) / side  # tooth, gap, tooth, …
    mask[20 : 20 + side, 20 : 20 + side] = (places.astype(int) % 2 == 0)[None, :]
    mask[20 : 20 + side // 5, 20 : 20 + side] = True
    return Instance(f"comb of {teeth}", mask, (20.0, 20.0, 20.0 + side, 20.0 + side), float(mask.sum()))


def disc(side: int = 448) -> Instance:
    """A disc that fills its square box of ``side`` pixels."""
    ys, xs = np.mgrid[: side + 40, : side + 40] + 0.5
    centre = 20 + side / 2
    mask = (ys - centre) ** 2 + (xs - centre) ** 2 <= (side / 2) ** 2
    return Instance("disc", mask, (20.0, 20.0, 20.0 + side, 20.0 + side), float(mask.sum()))


def comb_slider(teeth: int, cells: Sequence[int]) -> go.Figure:
    """A comb and its ideal M×M mask, with a slider over M, which may be any number of cells."""
    instance = comb(teeth)
    view = window(instance)
    truth = error_picture(instance.mask, instance.mask)[view]
    steps = {}
    for size, mask in zip(cells, ideal_masks(instance.mask, instance.box, cells), strict=True):
        texts = [
            f"{teeth} teeth: {2 * teeth - 1} stripes",
            f"{size} cells, mask IoU {mask_iou(instance.mask, mask):.2f}",
        ]
        steps[str(size)] = picture_grid([[truth, error_picture(instance.mask, mask)[view]]], [texts], LEGEND, cell=320)
    return with_slider(steps, "cells across, M = ")


def losses_by_cells(instance: Instance, cells: Sequence[int]) -> np.ndarray:
    """1 − mask IoU of the ideal mask with each number of cells across, (len(cells),) float64."""
    return np.array([1 - mask_iou(instance.mask, m) for m in ideal_masks(instance.mask, instance.box, cells)])


def loss_curves(instances: Sequence[Instance], cells: Sequence[int]) -> go.Figure:
    """Lost mask IoU against the number of cells across, both logarithmic, a line for each instance."""
    drawn = figure("What an ideal mask loses", height=400)
    for instance, dash in zip(instances, ("solid", "dash", "dot", "dashdot", "longdash"), strict=False):
        lost = losses_by_cells(instance, cells)
        colour = ("#3B82F6", "#E4572E", "#0F9D6E", "#B07AE0", "#C58B00")[len(drawn.data) % 5]
        drawn.add_scatter(
            x=list(cells),
            y=np.maximum(lost, 1e-4).tolist(),
            name=instance.name,
            mode="lines+markers",
            line={"dash": dash, "color": colour, "width": 2.5},
        )
    drawn.update_xaxes(type="log", title="cells across, M", tickvals=list(cells), ticktext=[str(c) for c in cells])
    drawn.update_yaxes(
        type="log",
        title="1 − mask IoU",
        tickvals=[1e-4, 1e-3, 1e-2, 0.1, 1],
        ticktext=["0.0001", "0.001", "0.01", "0.1", "1"],
    )
    drawn.update_layout(legend=TOP_LEGEND)
    return drawn


def slope(cells: Sequence[int], lost: np.ndarray) -> float:
    """Exponent of a power law through the points: the slope of log lost against log cells."""
    return float(np.polyfit(np.log(cells), np.log(np.maximum(lost, 1e-12)), 1)[0])


def shrunk_disc_scores(radii: Sequence[int], image_side: int = 640) -> tuple[np.ndarray, np.ndarray]:
    """Mask and boundary IoU of discs against the same discs with one pixel peeled off, in a square picture.

    Args:
        radii: in pixels, less than half the picture.
        image_side: of the picture in pixels.

    Returns:
        Mask IoU and boundary IoU, (len(radii),) float64 each.
    """
    ys, xs = np.mgrid[:image_side, :image_side] + 0.5 - image_side / 2
    distance = np.hypot(ys, xs)
    pairs = [(distance <= radius, distance <= radius - 1) for radius in radii]
    return np.array([mask_iou(a, b) for a, b in pairs]), np.array([boundary_iou(a, b) for a, b in pairs])


def metric_curves(x: Sequence[float], by_metric: dict[str, np.ndarray], title: str, x_title: str) -> go.Figure:
    """One line for each metric, by its name, over x."""
    drawn = figure(title, height=360)
    looks = (("#3B82F6", "solid", "circle"), ("#E4572E", "dash", "diamond"))
    for (name, values), (colour, dash, symbol) in zip(by_metric.items(), looks, strict=True):
        drawn.add_scatter(
            x=list(x), y=values.tolist(), name=name, mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2.5}, marker={"symbol": symbol, "size": 8},
        )  # fmt: skip
    drawn.update_xaxes(title=x_title)
    drawn.update_yaxes(title="IoU")
    drawn.update_layout(legend=TOP_LEGEND)
    return drawn


def ceiling_curves(groups: dict[str, np.ndarray], quality: IdealQuality, title: str = "") -> go.Figure:
    """Mean mask and boundary IoU of groups of instances against the mask size, a panel for each metric.

    Args:
        groups: by name, (N,) bool: which instances belong to it; an empty group is left out.
        quality: of N instances.
    """
    drawn = make_subplots(
        1, 2, subplot_titles=[METRIC_NAMES[m] for m in METRICS], shared_yaxes=True, horizontal_spacing=0.05
    )
    palette = ("#E4572E", "#3B82F6", "#0F9D6E", "#B07AE0", "#C58B00", "#6B8E23")
    symbols = ("circle", "square", "diamond", "star", "triangle-up", "x")
    places = [str(size) for size in MASK_SIZES]
    for column, metric in enumerate(METRICS, start=1):
        for i, (name, chosen) in enumerate(groups.items()):
            if not chosen.any():
                continue
            drawn.add_scatter(
                x=places, y=getattr(quality, metric)[chosen].mean(axis=0).tolist(), row=1, col=column,
                name=f"{name} ({int(chosen.sum())})", legendgroup=name, showlegend=column == 1, mode="lines+markers",
                line={"color": palette[i % 6], "width": 2.5}, marker={"symbol": symbols[i % 6], "size": 9},
            )  # fmt: skip
    drawn.update_annotations(font={"color": INK})
    drawn.update_xaxes(title="mask size M", type="category")
    drawn.update_layout(template=TEMPLATE, title=title, height=420, margin={"t": 96}, legend={**TOP_LEGEND, "y": 1.12})
    return drawn


def spread_by_size(quality: IdealQuality, values: Sequence[float], x_title: str, title: str = "") -> go.Figure:
    """Boundary IoU of every instance over a number that it has, the four sizes in their colours, with running means."""
    drawn = figure(title, height=440)
    x = np.asarray(values, dtype=np.float64)
    edges = np.quantile(x, np.linspace(0, 1, 6))
    bins = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, 4)
    for k, size in enumerate(MASK_SIZES):
        y = quality.boundary_iou[:, k]
        used = [b for b in range(5) if (bins == b).any()]
        drawn.add_scatter(
            x=x.tolist(), y=y.tolist(), mode="markers", marker={**size_dot(size, 6), "opacity": 0.45},
            showlegend=False, legendgroup=str(size), hovertemplate="%{x:.2f}: %{y:.3f}<extra></extra>",
        )  # fmt: skip
        drawn.add_scatter(
            x=[float(x[bins == b].mean()) for b in used], y=[float(y[bins == b].mean()) for b in used],
            name=f"{size}×{size}", legendgroup=str(size), mode="lines+markers",
            line=size_line(size, 3), marker=size_dot(size, 11),
        )  # fmt: skip
    drawn.update_xaxes(title=x_title)
    drawn.update_yaxes(title="boundary IoU")
    drawn.update_layout(legend=TOP_LEGEND)
    return drawn
