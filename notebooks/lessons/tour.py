"""Notebook 00: one photograph, its resolutions, and what a budget does to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go

from dynamask.predict import Prediction, Predictor
from dynamask.structures import MASK_SIZES
from dynamask.viz import charts, style
from dynamask.viz.overlay import draw_overlay
from dynamask.viz.style import SIZE_COLOURS, hex_to_rgb
from lessons.pictures import picture_grid
from lessons.show import Table

NAMES = [f"{size}×{size}" for size in MASK_SIZES]


def instances(prediction: Prediction) -> Table:
    """Every instance in a line: what it is, its size, what the size costs, how sure the switch was."""
    rows = []
    for i, (label, score) in enumerate(zip(prediction.labels.tolist(), prediction.scores.tolist())):
        box = prediction.boxes[i].tolist()
        size, gmacs = int(prediction.mask_size[i]), float(prediction.macs[i]) / 1e9
        sure = float(prediction.switch_probs[i][MASK_SIZES.index(size)])
        side = f"{box[2] - box[0]:.0f} × {box[3] - box[1]:.0f}"
        name = f"#{i + 1} {prediction.class_names[label]}"
        rows.append([name, f"{score:.0%}", side, f"{size}×{size}", f"{gmacs:.4f}", f"{sure:.0%}"])
    return Table(["instance", "score", "box, pixels", "mask size", "GMACs", "the switch's belief in it"], rows)


def window(prediction: Prediction, index: int, margin: float = 0.06) -> tuple[slice, slice]:
    """Rows and columns of the picture around an instance's box, a margin of its sides added."""
    x0, y0, x1, y1 = prediction.boxes[index].tolist()
    height, width = prediction.image_size
    across, down = margin * (x1 - x0), margin * (y1 - y0)
    rows = slice(max(0, int(y0 - down)), min(height, int(y1 + down) + 1))
    return rows, slice(max(0, int(x0 - across)), min(width, int(x1 + across) + 1))


def grids(prediction: Prediction, index: int) -> go.Figure:
    """One instance at the four sizes: the mask as the network gives it, and pasted onto the picture."""
    rows, columns = window(prediction, index)
    cells = [prediction.mask_probs_at(index, size).numpy() for size in MASK_SIZES]
    shades = []
    for size, probs in zip(MASK_SIZES, cells):
        colour = np.array(hex_to_rgb(SIZE_COLOURS[size]))
        shades.append((255 - (255 - colour) * probs[..., None]).astype(np.uint8))  # (S, S, 3), white where 0
    pasted = []
    for size in MASK_SIZES:
        mask = prediction.mask_at(index, size).numpy()[None]
        pasted.append(draw_overlay(prediction.picture, mask, [size], opacity=0.45)[rows, columns])
    titles = [[f"{name} cells" for name in NAMES], [f"pasted from {name}" for name in NAMES]]
    return picture_grid([shades, pasted], titles, cell=230)


def costs(predictor: Predictor) -> go.Figure:
    """GMACs of one instance's mask at each size, and of the switch that decides."""
    drawn = charts.figure("What a mask costs", height=300, showlegend=False)
    for size, macs in zip(MASK_SIZES, predictor.costs.macs_per_instance):
        drawn.add_bar(
            x=[f"{size}×{size}"], y=[macs / 1e9], text=[f"{macs / 1e9:.4f}"], textposition="outside",
            marker=style.size_bar(size), cliponaxis=False,
        )  # fmt: skip
    switch = predictor.costs.switch_macs / 1e9
    drawn.add_bar(x=["the switch"], y=[switch], text=[f"{switch:.4f}"], textposition="outside",
                  marker={"color": style.INK})  # fmt: skip
    drawn.update_yaxes(title="GMACs per instance", range=[0, 1.15 * predictor.costs.macs_per_instance[-1] / 1e9])
    return drawn


def budgets(predictor: Predictor, count: int = 60) -> np.ndarray:
    """``count`` budgets in mean GMACs per instance, from every mask at the cheapest size to every one at the finest."""
    macs = predictor.costs.macs_per_instance
    return np.linspace(macs[0], macs[-1], count) / 1e9


def sweep(predictor: Predictor, prediction: Prediction, gmacs: Sequence[float]) -> np.ndarray:
    """Mask sizes (B, R) of every instance under every budget."""
    return np.stack([predictor.select(prediction, budget=float(g)).mask_size.numpy() for g in gmacs])


def sweep_figure(gmacs: Sequence[float], sizes: np.ndarray) -> go.Figure:
    """Shares of the sizes over the budget, from sizes (B, R), stacked."""
    drawn = charts.figure("What each budget buys", height=340)
    for size in MASK_SIZES:
        look = style.size_bar(size)
        drawn.add_scatter(
            x=list(gmacs), y=(sizes == size).mean(axis=1), stackgroup="sizes", name=f"{size}×{size}",
            mode="lines", line={"color": style.INK, "width": 1, "shape": "hv"}, fillcolor=look["color"],
            fillpattern={**look["pattern"], "bgcolor": look["color"], "fgcolor": "#FFFFFF", "size": 7, "solidity": 0.2},
        )  # fmt: skip
    drawn.update_xaxes(title="budget, mean GMACs per instance", range=[min(gmacs), max(gmacs)])
    drawn.update_yaxes(title="share of the instances", tickformat=".0%", range=[0, 1])
    drawn.update_layout(legend={"traceorder": "reversed"})
    return drawn


def overlaps(prediction: Prediction) -> np.ndarray:
    """(R, 4) IoU of each instance's mask at every size with its own finest one, in picture pixels."""
    found = np.ones((len(prediction), len(MASK_SIZES)))
    for i in range(len(prediction)):
        finest = prediction.mask_at(i, MASK_SIZES[-1]).numpy()
        for k, size in enumerate(MASK_SIZES[:-1]):
            mask = prediction.mask_at(i, size).numpy()
            either = (mask | finest).sum()
            found[i, k] = (mask & finest).sum() / either if either else 1.0
    return found


def overlap_figure(prediction: Prediction) -> go.Figure:
    """One row an instance: what of its finest mask each coarser one keeps; the chosen size has a ring."""
    found, count = overlaps(prediction), len(prediction)
    drawn = charts.figure("How alike an instance's four masks are (ring: its size)", height=130 + 30 * count)
    names = [f"#{i + 1} {prediction.class_names[int(prediction.labels[i])]}" for i in range(count)]
    spans = [value for row in found for value in (row.min(), row.max(), None)]
    rows = [value for name in names for value in (name, name, None)]
    line = {"color": style.FAINT, "width": 6}
    drawn.add_scatter(x=spans, y=rows, mode="lines", line=line, showlegend=False, hoverinfo="skip")
    for k, size in enumerate(MASK_SIZES):
        chosen = [int(each) == size for each in prediction.mask_size]
        look = style.size_dot(size)
        look["opacity"] = 1.0
        look["size"] = [16 if ring else 10 for ring in chosen]
        look["line"] = {"color": style.INK, "width": [3.5 if ring else 1.2 for ring in chosen]}
        drawn.add_scatter(
            x=found[:, k], y=names, mode="markers", marker=look, name=f"{size}×{size}", cliponaxis=False,
            hovertemplate=f"%{{y}}: {size}×{size} keeps %{{x:.3f}}<extra></extra>",
        )  # fmt: skip
    drawn.update_xaxes(title="IoU with the instance's own 112×112 mask")
    drawn.update_yaxes(autorange="reversed")
    return drawn


def milliseconds(call: Callable[[], object], times: int = 5) -> float:
    """Median time of a call on this machine, in milliseconds."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append((time.perf_counter() - start) * 1e3)
    return float(np.median(taken))
