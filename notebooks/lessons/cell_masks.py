"""Notebook 08: cells of one-stage models and their training targets, masks as vectors, matrix NMS, neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamask.config import NEIGHBOURS, STRIDES, SoloConfig
from dynamask.data.shapes import Scene, ShapesDataset
from dynamask.evaluation.mask_quality import mask_iou
from dynamask.models.solo.aggregation import decode, dynamic_network, sample_vectors
from dynamask.models.solo.explain import CellView
from dynamask.models.solo.inference import find_candidates, mask_ious, matrix_nms
from dynamask.models.solo.model import SoloNet
from dynamask.models.solo.targets import Assignment, assign, centres_of_mass
from dynamask.predict import Prediction
from dynamask.viz import charts, style
from dynamask.viz.cells import grid_lines, logit_limit, object_crop, place_names, position_text, tile_pictures
from lessons.picture_grids import LEGEND, error_picture, fit_axes, image_trace, picture_grid, shade, with_slider

NEIGHBOUR_NAMES = ("top", "left", "centre", "right", "bottom")
"""Names of the five representations in their order in ``NEIGHBOURS["4"]``."""
MOSAIC, SHADES = 480, 24
"""Side of a mosaic of maps in pixels, and steps of its colour scale; fewer steps make smaller pages."""


def level_name(level: int) -> str:
    """Return the level as text; "1 of 5" is the finest."""
    return f"{level + 1} of {len(STRIDES)}"


# --- the grid -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SceneTargets:
    """Training targets of a scene: the cells that learn each object.

    Attributes:
        frame: (H, W) of the padded picture that the grids divide.
        scale: network-input pixels per scene pixel.
        centres: (N, 2) float64 (x, y) centres of mass, in the frame.
        sides: (N,) √(w·h), in network-input pixels.
        levels: cells by level, see :class:`Assignment`.
    """

    frame: tuple[int, int]
    scale: float
    centres: Tensor
    sides: Tensor
    levels: list[Assignment]


def targets_of(model: SoloNet, scene: Scene) -> SceneTargets:
    """Compute the training targets of a scene, without running the network."""
    image = torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255
    target = {"boxes": torch.from_numpy(scene.boxes), "labels": torch.from_numpy(scene.labels)}
    batch, (placed,) = model.transform([image], [target])
    (height, width), frame = batch.image_sizes[0], tuple(batch.tensors.shape[-2:])
    ratio = torch.tensor([width / image.shape[-1], height / image.shape[-2]], dtype=torch.float64)
    placed["centres"] = centres_of_mass(torch.from_numpy(scene.masks)) * ratio
    spans = placed["boxes"][:, 2:] - placed["boxes"][:, :2]
    config = model.config
    levels = assign([placed], frame, config.grids, config.scale_ranges, config.centre_share)
    return SceneTargets(frame, float(ratio[0]), placed["centres"], spans.prod(1).sqrt(), levels)


def unlearned(model: SoloNet, dataset: ShapesDataset) -> tuple[int, int]:
    """Count the objects of some scenes without a cell on any level, since others occupy theirs, and all objects."""
    lost = total = 0
    for index in range(len(dataset)):
        scene = dataset.scene(index)
        held = [level.instance for level in targets_of(model, scene).levels] if len(scene) else []
        total += len(scene)
        lost += len(scene) - (len(torch.cat(held).unique()) if held else 0)
    return lost, total


def grid_figure(model: SoloNet, scene: Scene, names: Sequence[str]) -> go.Figure:
    """Show a scene under the grid of each level, with the cells of its objects filled; a slider selects the level."""
    found, config, steps = targets_of(model, scene), model.config, {}
    for level, assigned in enumerate(found.levels):
        grid, (low, high) = config.grids[level], config.scale_ranges[level]
        drawn = _frame_figure(scene, found)
        line = {"color": "rgba(255, 255, 255, 0.55)", "width": 1}
        lines = grid_lines(found.frame, found.frame, grid)
        drawn.add_scatter(**lines, mode="lines", line=line, hoverinfo="skip", showlegend=False)
        for i, name in enumerate(names):
            cells = assigned.cell[assigned.instance == i].tolist()
            cell = (found.frame[0] / grid, found.frame[1] / grid)
            _add_cells(drawn, cells, grid, cell, style.series_colour(i), f"{name}: {len(cells)} cells")
        _add_centres(drawn, found, names)
        _add_note(
            drawn, f"stride {STRIDES[level]}, {grid}×{grid} cells, for objects with √(w·h) of {low} to {high} pixels"
        )
        steps[level_name(level)] = drawn
    return with_slider(steps, "level ", active=2)


def _frame_figure(scene: Scene, found: SceneTargets) -> go.Figure:
    """The picture in coordinates of the frame."""
    legend = {"orientation": "h", "y": -0.02, "yanchor": "top", "x": 0.5, "xanchor": "center"}
    drawn = charts.figure(height=470, margin={"t": 34, "l": 8, "r": 8, "b": 34}, showlegend=True, legend=legend)
    drawn.add_trace(image_trace(scene.image, side=found.scale))
    fit_axes(drawn, found.frame)
    return drawn


def _add_cells(
    drawn: go.Figure, cells: Sequence[int], grid: int, cell: tuple[float, float], colour: str, name: str
) -> None:
    """Add cells as filled rectangles of one trace."""
    x, y = [], []
    for index in cells:
        top, left = index // grid * cell[0], index % grid * cell[1]
        x += [left, left + cell[1], left + cell[1], left, left, None]
        y += [top, top, top + cell[0], top + cell[0], top, None]
    drawn.add_scatter(
        x=x or [None],
        y=y or [None],
        fill="toself",
        fillcolor=style.translucent(colour, 0.6),
        mode="lines",
        line={"color": colour, "width": 2},
        name=name,
        hoverinfo="name",
    )


def _add_centres(drawn: go.Figure, found: SceneTargets, names: Sequence[str]) -> None:
    """Add the centres of mass as crosses."""
    colours = [style.series_colour(i) for i in range(len(names))]
    marker = {"color": colours, "size": 11, "symbol": "x", "line": {"color": "#FFFFFF", "width": 1.5}}
    x, y = found.centres.T.tolist()
    drawn.add_scatter(x=x, y=y, mode="markers", marker=marker, text=list(names), hoverinfo="text", showlegend=False)


def _add_note(drawn: go.Figure, text: str) -> None:
    """Add a line of text above a figure."""
    drawn.add_annotation(text=text, x=0.5, y=1.01, xref="paper", yref="paper", yanchor="bottom", showarrow=False)


def mosaic_figure(prediction: Prediction, picture: np.ndarray, soft: bool = True) -> go.Figure:
    """Show the maps of all cells of a level, each at its cell, beside the picture; a slider selects the level.

    Args:
        prediction: of the picture.
        picture: (H, W, 3) uint8.
        soft: show probabilities instead of logits.
    """
    steps = {}
    for level in range(len(STRIDES)):
        side = prediction.cells.model.config.representation_grids[level]
        titles = [f"level {level_name(level)}: {side}×{side} maps, one per cell", "the picture"]
        steps[level_name(level)] = picture_grid([[mosaic(prediction, level, soft), picture]], [titles], cell=430)
    return with_slider(steps, "level ", active=3)


@torch.no_grad()
def mosaic(prediction: Prediction, level: int, soft: bool = True) -> np.ndarray:
    """Return the reduced maps of all cells, each at its cell, with lines between them, (H, W, 3) uint8."""
    grid = prediction.cells.encoded.grids[level]
    side = grid.vectors.shape[-1]
    vectors = grid.vectors[:1].flatten(2).transpose(1, 2)  # (1, G′², V)
    tile = max(10, MOSAIC // side)
    size = (max(8, round(tile * grid.features.shape[-2] / grid.features.shape[-1])), tile)
    parts = []
    for rows in vectors[0].split(64):
        maps = decode(rows[None], torch.zeros(1, dtype=torch.int64), grid.features)
        maps = maps.sigmoid() if soft else maps
        parts.append(F.interpolate(maps, size=size, mode="area")[0])
    tiles = torch.cat(parts).numpy()
    low, high = (0.0, 1.0) if soft else np.quantile(tiles, [0.02, 0.98])
    tiles = low + (high - low) * np.round((tiles - low) / max(high - low, 1e-12) * SHADES) / SHADES
    out = np.full((side * (size[0] + 1), side * (size[1] + 1), 3), 255, dtype=np.uint8)
    for index, values in enumerate(tiles):
        top, left = index // side * (size[0] + 1), index % side * (size[1] + 1)
        out[top : top + size[0], left : left + size[1]] = shade(values, low, high)
    return out


# --- what dense maps cost -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LevelMaps:
    """Maps of all cells of a level, as SOLO computes them.

    Attributes:
        level: 0–4.
        maps: their number, G².
        size: (h, w) of each.
    """

    level: int
    maps: int
    size: tuple[int, int]

    @property
    def megabytes(self) -> float:
        """Memory of all maps in 10⁶ bytes, float32."""
        return 4 * self.maps * self.size[0] * self.size[1] / 1e6


def dense_maps(config: SoloConfig, height: int, width: int) -> list[LevelMaps]:
    """Return the maps of a padded picture: at half the level's stride for SOLO, at stride 4 for SOLOv2."""
    strides = [4] * len(STRIDES) if config.kind == "solov2" else [stride // 2 for stride in STRIDES]
    return [
        LevelMaps(level, grid * grid, (height // stride, width // stride))
        for level, (grid, stride) in enumerate(zip(config.representation_grids, strides))
    ]


def memory_figure(config: SoloConfig, sizes: Sequence[tuple[int, int]]) -> go.Figure:
    """Draw the memory of all cells' maps by level; a slider selects the picture's size."""
    steps, most = {}, max(row.megabytes for size in sizes for row in dense_maps(config, *size))
    for height, width in sizes:
        rows = dense_maps(config, height, width)
        total = sum(row.megabytes for row in rows)
        drawn = charts.figure(height=330, margin={"t": 40, "b": 30}, showlegend=False)
        drawn.add_bar(
            x=[f"level {level_name(row.level)}" for row in rows],
            y=[row.megabytes for row in rows],
            cliponaxis=False,
            text=[f"{row.maps:,} of {row.size[0]}×{row.size[1]}" for row in rows],
            textposition="outside",
            marker={"color": style.SERIES_COLOURS[: len(rows)], "line": style.EDGE},
        )
        drawn.update_yaxes(title="MB, float32", range=[0, 1.12 * most])
        _add_note(drawn, f"{sum(row.maps for row in rows):,} maps, {total:,.0f} MB in all")
        steps[f"{height}×{width}"] = drawn
    return with_slider(steps, "a picture of ", active=len(steps) - 1)


# --- masks as vectors -----------------------------------------------------------------------------------------------


def kernel_of(prediction: Prediction, index: int) -> Tensor:
    """Return the vector (V,) of an instance's cell."""
    level, cell = int(prediction.cells.level[index]), int(prediction.cells.cell[index])
    grid, side = prediction.cells.encoded.grids[level], prediction.cells.model.config.grids[level]
    return grid.vectors[0, :, cell // side, cell % side]


def feature_of(prediction: Prediction) -> Tensor:
    """Return SOLOv2's mask feature (V, h, w), shared by all levels."""
    return prediction.cells.encoded.grids[0].features[0]


def full_size(prediction: Prediction, logits: Tensor) -> np.ndarray:
    """Resize mask logits (h, w) to the picture as the model does, and threshold them: (H, W) bool."""
    encoded = prediction.cells.encoded
    (height, width), quarter = encoded.network_sizes[0], tuple(side // 4 for side in encoded.frame)
    probs = logits.sigmoid()[None, None]
    for size in (quarter, encoded.frame):
        probs = F.interpolate(probs, size=size, mode="bilinear", align_corners=False)
    inside = probs[..., :height, :width]
    return (F.interpolate(inside, size=prediction.image_size, mode="bilinear")[0, 0] > 0.5).numpy()


def lit(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Darken a picture outside a mask, (H, W, 3) uint8."""
    dark = picture // 32 * 8  # few shades, for smaller pages
    return np.where(mask[..., None], picture, dark).astype(np.uint8)


def mixing_figure(prediction: Prediction, picture: np.ndarray, first: int, second: int) -> go.Figure:
    """Show the masks decoded from mixtures of two instances' vectors; a slider selects the mixture."""
    a, b, feature, steps = kernel_of(prediction, first), kernel_of(prediction, second), feature_of(prediction), {}
    for share in (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0):
        logits = torch.einsum("c,chw->hw", (1 - share) * a + share * b, feature)
        titles = ["probabilities of the mixture", "mask"]
        row = [shade(logits.sigmoid().numpy(), 0, 1), lit(picture, full_size(prediction, logits))]
        steps[f"{share:.0%}"] = picture_grid([row], [titles], cell=330)
    return with_slider(steps, f"share of #{second + 1} in the vector: ")


# --- matrix NMS -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CandidateMasks:
    """Candidates of a picture before matrix NMS, by falling score.

    Attributes:
        names: number, class and level of each.
        labels: (N,) int64.
        scores: (N,) class score times mean mask probability.
        masks: (N, H, W) bool.
        ious: (N, N) at the resolution of decoded masks.
    """

    names: list[str]
    labels: Tensor
    scores: Tensor
    masks: np.ndarray
    ious: Tensor


@torch.no_grad()
def candidates_of(prediction: Prediction, most: int = 12) -> CandidateMasks:
    """Return the candidates with the best scores, at most ``most``, as they enter matrix NMS."""
    model, encoded = prediction.cells.model, prediction.cells.encoded
    found = find_candidates(encoded, 0, model.config.score_threshold)
    logits = [
        model.mask_logits(encoded, level, torch.zeros(1, dtype=torch.int64), torch.tensor([cell]))[0]
        for level, cell in zip(found.level.tolist(), found.cell.tolist())
    ]
    quarter = tuple(side // 4 for side in encoded.frame)
    probs = [F.interpolate(x.sigmoid()[None, None], size=quarter, mode="bilinear")[0, 0] for x in logits]
    soft = torch.stack(probs) if probs else torch.zeros((0, *quarter))
    inside = soft > 0.5
    areas = inside.sum((1, 2))
    scores = found.score * (soft * inside).sum((1, 2)) / areas.clamp_min(1)
    scores = scores * (areas > torch.tensor(STRIDES)[found.level])
    order = scores.argsort(descending=True, stable=True)[:most]
    order = order[scores[order] > 0]
    names = [
        f"{i} {prediction.class_names[int(found.label[k])]}<br>level {level_name(int(found.level[k]))}"
        for i, k in enumerate(order.tolist(), start=1)
    ]
    masks = np.stack([full_size(prediction, logits[k]) for k in order.tolist()]) if len(order) else np.zeros((0, 1, 1))
    return CandidateMasks(names, found.label[order], scores[order], masks, mask_ious(inside[order]))


def candidate_pictures(case: CandidateMasks, picture: np.ndarray, columns: int = 6) -> go.Figure:
    """Show the mask of each candidate."""
    rows = [list(range(start, min(start + columns, len(case.names)))) for start in range(0, len(case.names), columns)]
    pictures = [[lit(picture, case.masks[i]) for i in row] for row in rows]
    titles = [[f"{case.names[i].replace('<br>', ', ')}: {case.scores[i]:.2f}" for i in row] for row in rows]
    return picture_grid(pictures, titles, cell=130)


def suppression_figure(
    case: CandidateMasks, threshold: float, sigmas: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0)
) -> go.Figure:
    """Draw the scores before and after matrix NMS; a slider selects the kernel and its σ."""
    kernels = {"linear": ("linear", 2.0)} | {f"Gaussian, σ = {sigma:g}": ("gaussian", sigma) for sigma in sigmas}
    steps = {}
    for name, (kernel, sigma) in kernels.items():
        after = matrix_nms(case.ious, case.labels, case.scores, kernel, sigma)
        drawn = charts.figure(height=390, margin={"t": 40, "b": 76}, barmode="overlay")
        before = {"color": style.FAINT, "line": style.EDGE}
        drawn.add_bar(x=case.names, y=case.scores.tolist(), name="before", marker=before)
        marker = {"color": style.ACCENT, "line": style.EDGE}
        drawn.add_bar(x=case.names, y=after.tolist(), name="after", width=0.5, marker=marker)
        line = {"color": style.series_colour(1), "dash": "dash", "width": 2}
        limit = [threshold] * len(case.names)
        drawn.add_scatter(x=case.names, y=limit, name=f"threshold {threshold:g}", mode="lines", line=line)
        _add_note(drawn, f"{int((after >= threshold).sum())} of {len(after)} reach the threshold of {threshold:g}")
        drawn.update_yaxes(range=[0, 1], title="score")
        drawn.update_xaxes(tickangle=0, tickfont={"size": 11})
        steps[name] = drawn
    names = list(kernels)
    return with_slider(steps, "kernel: ", active=names.index("Gaussian, σ = 2") if 2.0 in sigmas else 0)


# --- neighbours -----------------------------------------------------------------------------------------------------


def theta_of(prediction: Prediction, index: int) -> Tensor:
    """Return the parameters (1, D) of the aggregation that an instance's cell predicts."""
    level, cell = int(prediction.cells.level[index]), int(prediction.cells.cell[index])
    return prediction.cells.encoded.grids[level].theta.flatten(2)[:1, :, cell]


def representations_of(prediction: Prediction, index: int, moved: Tensor | None = None) -> Tensor:
    """Return logits (S, h, w) of an instance's neighbours, at positions shifted by (S, 2) (Δrow, Δcolumn) cells."""
    model, level = prediction.cells.model, int(prediction.cells.level[index])
    grid, cell = prediction.cells.encoded.grids[level], prediction.cells.cell[index : index + 1]
    aggregation, config = model.aggregation, model.config
    offsets = None if grid.offsets is None else grid.offsets.flatten(2)[:1, :, int(cell)]
    if moved is not None:
        offsets = moved.flatten()[None] + (0 if offsets is None else offsets)
    positions = aggregation.positions(cell, config.grids[level], config.representation_grids[level], offsets)
    image = torch.zeros_like(cell)
    return decode(sample_vectors(grid.vectors, image, positions, aggregation.config.border), image, grid.features)[0]


def representation_pictures(view: CellView) -> go.Figure:
    """Show each representation around an instance as logits, and the resulting mask as probabilities."""
    crop, places = object_crop(view), view.positions.tolist()
    names = [*(f"{name} {position_text(place)}" for name, place in zip(place_names(view), places)), "mask"]
    tiles, limit = tile_pictures(view, crop), logit_limit(view, crop)
    rows = range(0, len(tiles), 3)
    title = f"logits: blue −{limit:.1f}, white 0, red {limit:.1f}; mask: blue 0, yellow 1"
    return picture_grid([tiles[i : i + 3] for i in rows], [names[i : i + 3] for i in rows], title, cell=210)


@torch.no_grad()
def redrawn(
    prediction: Prediction,
    index: int,
    maps: Tensor | None = None,
    theta: Tensor | None = None,
    with_context: bool = True,
) -> Tensor:
    """Compute mask logits (h, w) of an instance with other representations (S, h, w) or parameters θ (1, D)."""
    found = prediction.cells
    config, grid = found.model.aggregation.config, found.encoded.grids[int(found.level[index])]
    maps = representations_of(prediction, index) if maps is None else maps
    theta = theta_of(prediction, index) if theta is None else theta
    context = None if grid.context is None else grid.context[:1] * float(with_context)
    image = torch.zeros(1, dtype=torch.int64)
    return dynamic_network(maps[None], context, image, theta, config.widths, config.kernel)[0]


def swap_figure(prediction: Prediction, picture: np.ndarray, indices: Sequence[int]) -> go.Figure:
    """Show the masks from the representations of each instance (rows) with the θ of each (columns)."""
    rows, titles = [], []
    for i in indices:
        logits = [redrawn(prediction, i, theta=theta_of(prediction, j)) for j in indices]
        rows.append([lit(picture, full_size(prediction, each)) for each in logits])
        titles.append([f"neighbours of #{i + 1}, θ of #{j + 1}" for j in indices])
    return picture_grid(rows, titles, cell=190)


def swapped_ious(prediction: Prediction, indices: Sequence[int]) -> tuple[float, float]:
    """Return the mean IoU of masks with those from another instance's θ, and from its representations."""
    masks = {
        (i, j): full_size(prediction, redrawn(prediction, i, theta=theta_of(prediction, j)))
        for i in indices
        for j in indices
    }
    pairs = [(i, j) for i in indices for j in indices if i != j]
    theta = [mask_iou(masks[i, i], masks[i, j]) for i, j in pairs]
    maps = [mask_iou(masks[i, i], masks[j, i]) for i, j in pairs]
    return (float(np.mean(theta)), float(np.mean(maps))) if pairs else (1.0, 1.0)


def spread_figure(prediction: Prediction, picture: np.ndarray, index: int, truth: np.ndarray) -> go.Figure:
    """Show an instance's mask with its neighbours sampled at other distances; a slider selects the distance.

    Args:
        prediction: of a model with neighbours.
        picture: (H, W, 3) uint8.
        index: of the instance.
        truth: (H, W) bool.
    """
    directions, steps = torch.tensor(NEIGHBOURS[prediction.cells.model.aggregation.config.neighbours]), {}
    for reach in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
        maps = representations_of(prediction, index, directions * (reach - 1.0))
        mask = full_size(prediction, redrawn(prediction, index, maps=maps))
        titles = [f"mask, IoU {mask_iou(truth, mask):.3f}", LEGEND]
        row = [lit(picture, mask), error_picture(truth, mask)]
        steps[f"{reach:g}"] = picture_grid([row], [titles], cell=320)
    return with_slider(steps, "distance of the neighbours in cells: ", active=2)
