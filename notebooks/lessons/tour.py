"""Notebook 00: one photograph, the masks of its instances at every size, and their sizes under every budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from dynamask.evaluation.mask_quality import mask_iou
from dynamask.predict import Prediction, Predictor
from dynamask.structures import MASK_SIZES
from dynamask.viz import charts
from dynamask.viz.overlay import draw_overlay
from dynamask.viz.style import FAINT, INK, SIZE_COLOURS, SIZE_NAMES, hex_to_rgb, size_dot
from lessons.picture_grids import box_window, picture_grid
from lessons.table import MarkdownTable


def instances(prediction: Prediction) -> MarkdownTable:
    """List every instance with its score, box, mask size, cost and switch probability."""
    rows = []
    for i, (label, score) in enumerate(zip(prediction.labels.tolist(), prediction.scores.tolist())):
        x0, y0, x1, y1 = prediction.boxes[i].tolist()
        size, gmacs = int(prediction.mask_size[i]), float(prediction.macs[i]) / 1e9
        probability = float(prediction.switch_probs[i][MASK_SIZES.index(size)])
        name = f"#{i + 1} {prediction.class_names[label]}"
        box = f"{x1 - x0:.0f} × {y1 - y0:.0f}"
        rows.append([name, f"{score:.0%}", box, SIZE_NAMES[size], f"{gmacs:.4f}", f"{probability:.0%}"])
    return MarkdownTable(["instance", "score", "box, pixels", "mask size", "GMACs", "switch probability"], rows)


def grids(prediction: Prediction, index: int) -> go.Figure:
    """Show the masks of one instance at the four sizes, as predicted and pasted onto the picture."""
    rows, columns = box_window(prediction.mask_boxes[index].tolist(), prediction.image_size)
    cells, pasted = [], []
    for size, colour in SIZE_COLOURS.items():
        probs = prediction.mask_probs_at(index, size).numpy()[..., None]  # (S, S, 1)
        cells.append((255 - (255 - np.array(hex_to_rgb(colour))) * probs).astype(np.uint8))  # white where 0
        mask = prediction.mask_at(index, size).numpy()[None]
        pasted.append(draw_overlay(prediction.picture, mask, [size], opacity=0.45)[rows, columns])
    names = SIZE_NAMES.values()
    titles = [[f"{name} cells" for name in names], [f"pasted from {name}" for name in names]]
    return picture_grid([cells, pasted], titles, cell=230)


def costs(predictor: Predictor) -> go.Figure:
    """Draw the GMACs of an instance's mask at each size, and of the switch."""
    macs = {**dict(zip(SIZE_NAMES.values(), predictor.costs.macs_per_instance)), "switch": predictor.costs.switch_macs}
    series = {name: {name: value / 1e9} for name, value in macs.items()}
    drawn = charts.bar_chart(series, "Cost of a mask", "GMACs per instance", number_format=".4f", height=300)
    return drawn.update_layout(showlegend=False, barmode="stack")


def budgets(predictor: Predictor, count: int = 60) -> np.ndarray:
    """Return ``count`` budgets in mean GMACs per instance, from the cheapest to the finest size for all instances."""
    macs = predictor.costs.macs_per_instance
    return np.linspace(macs[0], macs[-1], count) / 1e9


def sweep(
    predictor: Predictor, prediction: Prediction, gmacs: Sequence[float], policy: str | None = None
) -> np.ndarray:
    """Return the mask sizes (B, R) of every instance under every budget, which follows ``policy``."""
    return np.stack([predictor.select(prediction, policy, float(g)).mask_size.numpy() for g in gmacs])


def sweep_figure(gmacs: Sequence[float], sizes: np.ndarray) -> go.Figure:
    """Draw the shares of the sizes over the budget, from sizes (B, R)."""
    drawn = charts.figure("Mask sizes by budget", height=340, legend={"traceorder": "reversed"})
    shares = (sizes[..., None] == np.array(MASK_SIZES)).mean(axis=1)  # (B, 4)
    charts.add_size_areas(drawn, gmacs, shares, line={"color": INK, "width": 1, "shape": "hv"})
    drawn.update_xaxes(title="budget, mean GMACs per instance", range=[min(gmacs), max(gmacs)])
    return drawn.update_yaxes(title="share of the instances", tickformat=".0%", range=[0, 1])


def overlaps(prediction: Prediction) -> np.ndarray:
    """Return the IoU (R, 4) of each instance's mask at every size with its finest mask, in pixels of the picture."""
    found = np.ones((len(prediction), len(MASK_SIZES)))
    for i in range(len(prediction)):
        finest = prediction.mask_at(i, MASK_SIZES[-1]).numpy()
        for k, size in enumerate(MASK_SIZES[:-1]):
            mask = prediction.mask_at(i, size).numpy()
            found[i, k] = mask_iou(mask, finest) if mask.any() or finest.any() else 1.0
    return found


def overlap_figure(prediction: Prediction) -> go.Figure:
    """Draw one row per instance: the IoU of each mask with the finest one; the chosen size is larger."""
    found, count = overlaps(prediction), len(prediction)
    drawn = charts.figure("IoU of the masks of an instance with its finest one (large: chosen size)", 130 + 30 * count)
    names = [f"#{i + 1} {prediction.class_names[int(prediction.labels[i])]}" for i in range(count)]
    drawn.add_scatter(
        x=[value for row in found for value in (row.min(), row.max(), None)],
        y=[value for name in names for value in (name, name, None)],
        mode="lines",
        line={"color": FAINT, "width": 6},
        showlegend=False,
        hoverinfo="skip",
    )
    for k, size in enumerate(MASK_SIZES):
        chosen = [int(each) == size for each in prediction.mask_size]
        edge = {"color": INK, "width": [3.5 if large else 1.2 for large in chosen]}
        drawn.add_scatter(
            x=found[:, k],
            y=names,
            mode="markers",
            marker={**size_dot(size), "opacity": 1.0, "size": [16 if large else 10 for large in chosen], "line": edge},
            name=SIZE_NAMES[size],
            cliponaxis=False,
            hovertemplate=f"%{{y}}: {SIZE_NAMES[size]} %{{x:.3f}}<extra></extra>",
        )
    drawn.update_xaxes(title="IoU with the 112×112 mask")
    return drawn.update_yaxes(autorange="reversed")
