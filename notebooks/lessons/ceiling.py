"""Notebook 01: how well a grid of M×M cells can represent an outline, independently of any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from dynamask.data.coco_checks import clipped_box
from dynamask.data.coco_format import read_coco
from dynamask.data.shapes import CLASS_NAMES, SIDES, make_scene
from dynamask.evaluation.ideal_masks import METRICS, IdealQuality, ideal_masks
from dynamask.evaluation.mask_quality import boundary_iou, mask_iou, quality_by_size
from dynamask.ops.masks import BOUNDARY_WIDTH_RATIO, crop_masks, paste_mask_window, paste_window
from dynamask.ops.rle import decode_rle
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.charts import LEGEND_ABOVE, curve_chart, figure, numbered_series
from dynamask.viz.style import SIZE_NAMES, size_dot, size_line
from lessons.picture_grids import LEGEND, box_window, error_picture, picture_grid, shade, with_slider

OUTLINES = Path(__file__).resolve().parents[1] / "data" / "coco-outlines.json"
"""Outlines of five COCO classes, without photographs (see `notebooks/data/README.md`)."""
METRIC_NAMES = {"mask_iou": "mask IoU", "boundary_iou": "boundary IoU"}
RoundTrip = Callable[[np.ndarray, Sequence[float], Sequence[int]], list[np.ndarray]]


@dataclass(frozen=True)
class TrueInstance:
    """One object and its true mask.

    Attributes:
        name: of its class.
        mask: (H, W) bool, in the whole picture.
        box: xyxy in continuous pixels.
        area: in pixels².
        complexity: of the outline, 0–1, known for generated shapes only, else NaN.
    """

    name: str
    mask: np.ndarray
    box: tuple[float, float, float, float]
    area: float
    complexity: float = float("nan")


def read_instances(path: str | Path = OUTLINES) -> list[TrueInstance]:
    """Read all instances of a COCO annotation file that are not crowds and have an area.

    Raises:
        DynaMaskError: the file is missing or not COCO JSON.
    """
    content = read_coco(path)
    coco = content.coco
    names = {category["id"]: category["name"] for category in coco["categories"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    return [
        TrueInstance(
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
) -> list[TrueInstance]:
    """Return the objects of the first ``count`` generated scenes (see :func:`dynamask.data.shapes.make_scene`)."""
    found = []
    for index in range(count):
        scene = make_scene(seed, index, size, sides=sides)
        for mask, box, label, complexity in zip(
            scene.masks, scene.boxes.tolist(), scene.labels.tolist(), scene.complexity.tolist(), strict=True
        ):
            found.append(TrueInstance(CLASS_NAMES[label], mask, tuple(box), float(mask.sum()), complexity))
    return found


def largest(instances: Sequence[TrueInstance], name: str, rank: int = 0) -> TrueInstance:
    """Return the largest instance of a class, or the next smaller ones with ``rank`` 1, 2, ….

    Raises:
        DynaMaskError: the class has no instance, or none of this rank.
    """
    own = [instance for instance in instances if instance.name == name]
    if not own:
        raise DynaMaskError(f"there is no {name!r}; choose one of {', '.join(sorted({i.name for i in instances}))}")
    if not 0 <= rank < len(own):
        raise DynaMaskError(f"{name!r} has {len(own)} instances; give a rank from 0 to {len(own) - 1}")
    return sorted(own, key=lambda instance: -instance.area)[rank]


def stock_masks(truth: np.ndarray, box: Sequence[float], sizes: Sequence[int] = MASK_SIZES) -> list[np.ndarray]:
    """Compute ideal masks as :func:`dynamask.evaluation.ideal_masks.ideal_masks`, with torchvision's crop and paste.

    That crop is not aligned (half a pixel off), and that paste rounds the box to whole pixels.
    """
    mask, edges = torch.from_numpy(truth.astype(np.uint8))[None], torch.tensor([list(box)], dtype=torch.float32)
    pasted = []
    for size in sizes:
        crop = project_masks_on_boxes(mask, edges, torch.zeros(1, dtype=torch.int64), size)  # (1, M, M)
        whole = paste_masks_in_image(crop[:, None].float(), edges, truth.shape, padding=1)  # (1, 1, H, W)
        pasted.append((whole[0, 0] >= 0.5).numpy())
    return pasted


def measure(instances: Sequence[TrueInstance], round_trip: RoundTrip = ideal_masks) -> IdealQuality:
    """Measure mask and boundary IoU of every instance after a round trip through each mask size.

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


def ceiling_pictures(
    instances: Sequence[TrueInstance], title: str = "", cell: int = 210, round_trip: RoundTrip = ideal_masks
) -> go.Figure:
    """Show the true mask of each instance and its ideal mask at every size, with wrong pixels in colour."""
    pictures, titles = [], []
    for instance in instances:
        view = box_window(instance.box, instance.mask.shape)
        masks = round_trip(instance.mask, instance.box, MASK_SIZES)
        pictures.append([error_picture(instance.mask, mask)[view] for mask in (instance.mask, *masks)])
        scores = [f"{boundary_iou(instance.mask, mask):.2f}" for mask in masks]
        texts = [f"<b>{size}×{size}</b>, boundary IoU {score}" for size, score in zip(MASK_SIZES, scores)]
        titles.append([f"<b>{instance.name}</b>, the truth", *texts])
    return picture_grid(pictures, titles, f"{title}   {LEGEND}" if title else LEGEND, cell)


def round_trip_pictures(instance: TrueInstance, size: int) -> go.Figure:
    """Show the steps of an ideal mask: the truth, its share of every cell, bilinear values, and the cut at 0.5."""
    rows, columns = box_window(instance.box, instance.mask.shape, margin=0.0)
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


def comb(teeth: int, side: int = 448) -> TrueInstance:
    """Return a comb: a bar along the top with ``teeth`` teeth, as wide as the gaps between them, in a square box.

    Args:
        teeth: ≥ 1.
        side: of the box in pixels.
    """
    mask = np.zeros((side + 40, side + 40), dtype=bool)
    places = (np.arange(side) + 0.5) * (2 * teeth - 1) / side  # tooth, gap, tooth, …
    mask[20 : 20 + side, 20 : 20 + side] = (places.astype(int) % 2 == 0)[None, :]
    mask[20 : 20 + side // 5, 20 : 20 + side] = True
    return TrueInstance(f"comb of {teeth}", mask, (20.0, 20.0, 20.0 + side, 20.0 + side), float(mask.sum()))


def disc(side: int = 448) -> TrueInstance:
    """Return a disc that fills its square box of ``side`` pixels."""
    ys, xs = np.mgrid[: side + 40, : side + 40] + 0.5
    centre = 20 + side / 2
    mask = (ys - centre) ** 2 + (xs - centre) ** 2 <= (side / 2) ** 2
    return TrueInstance("disc", mask, (20.0, 20.0, 20.0 + side, 20.0 + side), float(mask.sum()))


def comb_slider(teeth: int, cells: Sequence[int]) -> go.Figure:
    """Show a comb and its ideal M×M mask, with a slider over M, which may be any number of cells."""
    instance = comb(teeth)
    view = box_window(instance.box, instance.mask.shape)
    truth = error_picture(instance.mask, instance.mask)[view]
    steps = {}
    for size, mask in zip(cells, ideal_masks(instance.mask, instance.box, cells), strict=True):
        texts = [
            f"{teeth} teeth: {2 * teeth - 1} stripes",
            f"{size} cells, mask IoU {mask_iou(instance.mask, mask):.2f}",
        ]
        steps[str(size)] = picture_grid([[truth, error_picture(instance.mask, mask)[view]]], [texts], LEGEND, cell=320)
    return with_slider(steps, "cells across, M = ")


def losses_by_cells(instance: TrueInstance, cells: Sequence[int]) -> np.ndarray:
    """Return 1 − mask IoU of the ideal mask for each number of cells across, (len(cells),) float64."""
    return np.array([1 - mask_iou(instance.mask, m) for m in ideal_masks(instance.mask, instance.box, cells)])


def loss_curves(instances: Sequence[TrueInstance], cells: Sequence[int]) -> go.Figure:
    """Draw the lost mask IoU against the number of cells across on logarithmic axes, one line per instance."""
    losses = {instance.name: np.maximum(losses_by_cells(instance, cells), 1e-4) for instance in instances}
    series = numbered_series(list(cells), losses)
    drawn = curve_chart({"": series}, "Mask IoU lost by an ideal mask", "cells across, M", "1 − mask IoU")
    drawn.update_xaxes(type="log", tickvals=list(cells), ticktext=[str(count) for count in cells])
    return drawn.update_yaxes(type="log", tickvals=[1e-4, 1e-3, 1e-2, 0.1, 1], tickformat="~g")


def slope(cells: Sequence[int], lost: np.ndarray) -> float:
    """Fit the exponent of a power law: the slope of log lost against log cells."""
    return float(np.polyfit(np.log(cells), np.log(np.maximum(lost, 1e-12)), 1)[0])


def shrunk_disc_scores(radii: Sequence[int], image_side: int = 640) -> tuple[np.ndarray, np.ndarray]:
    """Compare discs with the same discs less their outermost pixel, in a square picture.

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
    """Draw one line per metric over x."""
    return curve_chart({"": numbered_series(x, by_metric)}, title, x_title, "IoU")


def ceiling_curves(groups: dict[str, np.ndarray], quality: IdealQuality, title: str = "") -> go.Figure:
    """Draw the mean mask and boundary IoU of groups of instances against the mask size, one panel per metric.

    Args:
        groups: by name, (N,) bool: which instances belong to it; an empty group is left out.
        quality: of N instances.
        title: of the figure.
    """
    panels = {}
    for metric in METRICS:
        means = {
            f"{name} ({int(chosen.sum())})": getattr(quality, metric)[chosen].mean(axis=0)
            for name, chosen in groups.items()
            if chosen.any()
        }
        panels[METRIC_NAMES[metric]] = numbered_series([str(size) for size in MASK_SIZES], means)
    return curve_chart(panels, title, "mask size M").update_xaxes(type="category").update_yaxes(matches="y")


def spread_by_size(quality: IdealQuality, values: Sequence[float], x_title: str, title: str = "") -> go.Figure:
    """Draw the boundary IoU of every instance over a property of it, by mask size, with running means."""
    x = np.asarray(values, dtype=np.float64)
    edges = np.quantile(x, np.linspace(0, 1, 6))
    bins = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, 4)
    filled = [b for b in range(5) if (bins == b).any()]
    drawn = figure(title, height=440, legend=LEGEND_ABOVE)
    for k, size in enumerate(MASK_SIZES):
        y = quality.boundary_iou[:, k]
        drawn.add_scatter(
            x=x.tolist(),
            y=y.tolist(),
            mode="markers",
            marker={**size_dot(size, 6), "opacity": 0.45},
            showlegend=False,
            legendgroup=str(size),
            hovertemplate="%{x:.2f}: %{y:.3f}<extra></extra>",
        )
        drawn.add_scatter(
            x=[float(x[bins == b].mean()) for b in filled],
            y=[float(y[bins == b].mean()) for b in filled],
            name=SIZE_NAMES[size],
            legendgroup=str(size),
            mode="lines+markers",
            line=size_line(size, 3),
            marker=size_dot(size, 11),
        )
    drawn.update_xaxes(title=x_title)
    return drawn.update_yaxes(title="boundary IoU")
