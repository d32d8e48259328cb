"""Notebook 08: comparison of two one-stage models on the same scenes, ablation of neighbours, and costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from dynamask.config import SoloConfig
from dynamask.data.shapes import Scene, ShapesDataset
from dynamask.engine.evaluate import EvaluationOptions, collect
from dynamask.evaluation.bootstrap import PictureBootstrap, interval_of
from dynamask.evaluation.mask_quality import boundary_iou, mask_iou
from dynamask.evaluation.resampled_ap import Matches, ResampledAP
from dynamask.models.masks.costs import MaskBranchCosts
from dynamask.models.solo.costs import decoding_macs
from dynamask.ops.rle import decode_rle
from dynamask.predict import Prediction, Predictor
from dynamask.structures import MASK_SIZES, Interval
from dynamask.viz import charts, style
from lessons.cell_masks import NEIGHBOUR_NAMES, full_size, redrawn, representations_of
from lessons.counting import flops
from lessons.picture_grids import LEGEND, error_picture, mask_window, picture_grid, with_slider

MEASURES = ("AP", "AP50", "AP60", "AP70", "AP80", "AP90", "boundary AP")
FOUR = "all four"
"""Name of the four neighbours together in :func:`neighbour_losses`."""
MIN_SCENES = 20
"""Number of scenes below which a bootstrap interval is too narrow to be reliable."""


# --- two models on the same scenes ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Detections of a model on some scenes, matched with the truth.

    Attributes:
        results: COCO results with masks.
        judge: evaluator of the results.
        segm, boundary: matches of the detections.
    """

    results: list[dict[str, Any]]
    judge: ResampledAP
    segm: Matches
    boundary: Matches

    def precision(self, name: str, weights: np.ndarray | None = None) -> np.ndarray:
        """Return an average precision, one of ``MEASURES``, on B resampled sets of scenes, (B,)."""
        if name == "boundary AP":
            return self.judge.average_precision(self.boundary, weights)
        if name == "AP":
            return self.judge.average_precision(self.segm, weights)
        row = (int(name.removeprefix("AP")) - 50) // 5
        return self.judge.at_thresholds(self.segm, weights)[row]


def judged(predictor: Predictor, dataset: ShapesDataset, score: float = 0.05) -> Judged:
    """Run a model on all scenes and match its detections."""
    found = collect(predictor, dataset, range(len(dataset)), EvaluationOptions(score=score))
    results = [{**result, "segmentation": rles[0]} for result, rles in zip(found.results, found.rles)]
    judge = ResampledAP(dataset.coco, found.results, found.rles, dataset.image_ids)
    first = np.zeros(len(results), dtype=np.int64)
    return Judged(results, judge, judge.match(first, "segm"), judge.match(first, "boundary"))


@dataclass(frozen=True)
class Compared:
    """Two models on the same scenes.

    Attributes:
        titles: names of the models.
        first, second: average precision by measure, 0–1.
        difference: second − first by measure, with the interval over scenes.
        scenes: their number.
    """

    titles: tuple[str, str]
    first: dict[str, float]
    second: dict[str, float]
    difference: dict[str, Interval]
    scenes: int

    def rows(self) -> list[list[object]]:
        """Return table rows: measure, both values, the difference and its interval."""
        return [
            [name, self.first[name], self.second[name], f"{d.mean:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}"]
            for name, d in self.difference.items()
        ]

    def verdict(self, name: str = "AP") -> str:
        """Return one sentence on a measure: a difference counts if its interval excludes 0."""
        (a, b), found = self.titles, self.difference[name]
        if found.low > 0 or found.high < 0:
            result = f"{b} is {'better' if found.low > 0 else 'worse'} than {a} on these {self.scenes} scenes"
        else:
            result = f"no significant difference between {a} and {b} on {self.scenes} scenes"
        doubt = f"; {self.scenes} scenes are too few for a reliable interval" if self.scenes < MIN_SCENES else ""
        return f"{name}: {result}, {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]{doubt}"


def compare(titles: tuple[str, str], first: Judged, second: Judged, samples: int = 500, seed: int = 0) -> Compared:
    """Compare the average precisions of two models on the same resampled sets of scenes."""
    drawn = PictureBootstrap(first.judge.image_ids, samples, seed).weights
    weights = np.concatenate([np.ones((1, drawn.shape[1]), dtype=drawn.dtype), drawn])
    values = [{name: each.precision(name, weights) for name in MEASURES} for each in (first, second)]
    return Compared(
        titles,
        {name: float(values[0][name][0]) for name in MEASURES},
        {name: float(values[1][name][0]) for name in MEASURES},
        {name: interval_of(values[1][name] - values[0][name], centre=True) for name in MEASURES},
        len(first.judge.image_ids),
    )


def comparison_figure(found: Compared) -> go.Figure:
    """Draw the average precisions of both models by measure, and below them the difference with its interval."""
    titles = ["average precision", f"{found.titles[1]} minus {found.titles[0]}, with 95 % intervals over scenes"]
    drawn = charts.panel_figure(titles, 560, columns=1, row_heights=[0.58, 0.42], vertical_spacing=0.16)
    bars = charts.bar_chart(dict(zip(found.titles, (found.first, found.second))), number_format=".2f")
    drawn.add_traces(bars.data, rows=1, cols=1)
    intervals = list(found.difference.values())
    drawn.add_scatter(
        x=list(found.difference),
        y=[interval.mean for interval in intervals],
        mode="markers",
        error_y=charts.error_bars(intervals, color=style.INK),
        showlegend=False,
        marker={"color": style.series_colour(1), "size": 11},
        row=2,
        col=1,
    )
    drawn.add_hline(0, line=style.EDGE, row=2, col=1)
    drawn.update_layout(margin={"t": 64, "b": 20}, barmode="group", legend={**charts.LEGEND_ABOVE, "y": 1.05})
    return drawn.update_yaxes(range=[0, 1.1], row=1, col=1)


@dataclass(frozen=True)
class Pair:
    """Object that both models have found.

    Attributes:
        scene: index in the data set.
        instance: row in its target.
        masks: of both models, (H, W) bool.
        boundary: boundary IoU of both with the truth.
    """

    scene: int
    instance: int
    masks: tuple[np.ndarray, np.ndarray]
    boundary: tuple[float, float]


def pairs(first: Judged, second: Judged, dataset: ShapesDataset, least: float = 0.5) -> list[Pair]:
    """Return the objects whose best mask of the right class has at least this IoU in both models."""
    found = []
    for index, image_id in enumerate(dataset.image_ids):
        target = dataset.target(index)
        for row, label in enumerate(target["labels"].tolist()):
            truth = target["masks"][row].numpy().astype(bool)
            category = dataset.category_ids[label - 1]
            masks = [_best_mask(each, image_id, category, truth, least) for each in (first, second)]
            if masks[0] is not None and masks[1] is not None:
                edges = (boundary_iou(truth, masks[0]), boundary_iou(truth, masks[1]))
                found.append(Pair(index, row, (masks[0], masks[1]), edges))
    return found


def _best_mask(each: Judged, image_id: int, category: int, truth: np.ndarray, least: float) -> np.ndarray | None:
    own = [r for r in each.results if r["image_id"] == image_id and r["category_id"] == category]
    masks = [decode_rle(r["segmentation"]) for r in own]
    best = max(masks, key=lambda mask: mask_iou(truth, mask), default=None)
    return best if best is not None and mask_iou(truth, best) >= least else None


def outline_difference(found: Sequence[Pair], image_ids: Sequence[int], samples: int = 500) -> Interval:
    """Return the mean of second − first boundary IoU over the given objects, with its interval over scenes."""
    drawn = PictureBootstrap(image_ids, samples)
    rows = np.array([pair.scene for pair in found], dtype=np.int64)
    return drawn.interval(np.array([pair.boundary[1] - pair.boundary[0] for pair in found]), rows)


def pairs_figure(found: Sequence[Pair], dataset: ShapesDataset, titles: tuple[str, str], count: int = 3) -> go.Figure:
    """Show the objects at which the models differ most, the best and worst of the second, with a slider."""
    order = sorted(found, key=lambda pair: pair.boundary[1] - pair.boundary[0], reverse=True)
    shown, steps = [*order[:count], *order[max(count, len(order) - count) :]], {}
    for number, pair in enumerate(shown, start=1):
        scene = dataset.scene(pair.scene)
        truth, label = scene.masks[pair.instance], dataset.class_names[int(scene.labels[pair.instance])]
        window = mask_window(truth | pair.masks[0] | pair.masks[1])
        texts = [f"{name}: boundary IoU {value:.2f}" for name, value in zip(titles, pair.boundary)]
        row = [scene.image[window], *(error_picture(truth, mask)[window] for mask in pair.masks)]
        better = titles[1] if pair.boundary[1] > pair.boundary[0] else titles[0]
        steps[f"{number}: {label}"] = picture_grid([row], [[f"{better} is better: {LEGEND}", *texts]], cell=330)
    return with_slider(steps)


# --- ablation of neighbours -----------------------------------------------------------------------------------------


@torch.no_grad()
def neighbour_losses(predictor: Predictor, scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Measure the IoU that masks lose without an input of the aggregation, (N,) for N found objects.

    One neighbour, or all four, is replaced by the centre's representation, the centre by the mean of the neighbours',
    and the context by zeros.
    """
    centre, others = NEIGHBOUR_NAMES.index("centre"), [k for k, name in enumerate(NEIGHBOUR_NAMES) if name != "centre"]
    groups = {NEIGHBOUR_NAMES[k]: [k] for k in others} | {FOUR: others}
    lost: dict[str, list[float]] = {name: [] for name in (*groups, "centre", "context")}
    for scene in scenes:
        prediction = predictor(scene.image)
        for row, index in matched(prediction, scene):
            maps, truth = representations_of(prediction, index), scene.masks[row]
            changed = {name: _with(maps, rows, maps[centre]) for name, rows in groups.items()}
            changed["centre"] = _with(maps, [centre], maps[others].mean(0))
            logits = {name: redrawn(prediction, index, fewer) for name, fewer in changed.items()}
            logits["context"] = redrawn(prediction, index, with_context=False)
            whole = mask_iou(truth, full_size(prediction, redrawn(prediction, index)))
            for name, each in logits.items():
                lost[name].append(whole - mask_iou(truth, full_size(prediction, each)))
    return {name: np.array(values) for name, values in lost.items()}


def _with(maps: Tensor, rows: Sequence[int], values: Tensor) -> Tensor:
    """Copy maps (S, h, w) with some rows replaced by (h, w)."""
    changed = maps.clone()
    changed[list(rows)] = values
    return changed


def matched(prediction: Prediction, scene: Scene, least: float = 0.5) -> list[tuple[int, int]]:
    """Return (row in the scene, index of the best instance) of every object that was found."""
    found = []
    for row, label in enumerate(scene.labels.tolist()):
        own = [i for i in range(len(prediction)) if int(prediction.labels[i]) == label]
        ious = [mask_iou(scene.masks[row], prediction.mask(i).numpy()) for i in own]
        if ious and max(ious) >= least:
            found.append((row, own[int(np.argmax(ious))]))
    return found


def losses_figure(lost: dict[str, np.ndarray]) -> go.Figure:
    """Draw the means of :func:`neighbour_losses` as bars, with a dot for each object."""
    drawn = charts.figure("IoU lost without …", height=360, showlegend=False)
    means = [values.mean() for values in lost.values()]
    numbers = {FOUR: 4, "centre": 2, "context": 1}
    colours = [style.series_colour(numbers.get(name, 0)) for name in lost]
    drawn.add_bar(y=means, marker={"color": colours, "line": style.EDGE}, hoverinfo="y")
    for k, (name, values) in enumerate(lost.items()):
        spread = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else np.zeros(1)
        dots = {"color": style.INK, "size": 5, "opacity": 0.7}
        drawn.add_scatter(x=k + spread, y=values, mode="markers", hoverinfo="y", name=name, marker=dots)
    texts = [f"{name}<br>{mean:+.3f}" for name, mean in zip(lost, means)]
    drawn.update_xaxes(tickvals=[*range(len(texts))], ticktext=texts)
    return drawn.update_yaxes(title="IoU of the whole − IoU without")


# --- costs ----------------------------------------------------------------------------------------------------------


def spent(predictor: Predictor, image: np.ndarray) -> dict[str, float]:
    """Count the GMACs of a prediction: of the network, of the masks of the instances, and of discarded work.

    The total is counted by torch's flop counter, deformable convolutions included. "discarded" are the masks of
    candidates that become no instance, masks decoded a second time, and the overlaps in matrix NMS.
    """
    held: dict[str, Any] = {}
    run: Callable[[], None] = lambda: held.update(prediction=predictor(image))  # noqa: E731
    total = flops(run) / 2
    prediction = held["prediction"]
    masks = int(prediction.macs.sum())
    if predictor.family == "one-stage":
        network = sum(prediction.image_macs.values())
        return {"network": network / 1e9, "masks": masks / 1e9, "discarded": max(0.0, total - network - masks) / 1e9}
    return {"network": (total - masks) / 1e9, "masks": masks / 1e9, "discarded": 0.0}


def spent_figure(cases: dict[str, dict[str, float]]) -> go.Figure:
    """Draw the GMACs of :func:`spent` as one stacked bar per model."""
    series = {part: {case: parts[part] for case, parts in cases.items()} for part in ("network", "masks", "discarded")}
    return charts.bar_chart(series, "GMACs of one picture", "GMACs", stacked=True, horizontal=True)


def growth_figure(configs: dict[str, SoloConfig], costs: MaskBranchCosts, sides: Sequence[int]) -> go.Figure:
    """Draw the GMACs of one mask against the picture's short side, of one-stage models and of DynaMask.

    Args:
        configs: one-stage models by name, with a mask feature at stride 4.
        costs: of the mask branch beside them.
        sides: short sides in pixels; the long side is 8/5 of it.
    """
    one_stage = {
        name: [decoding_macs(s // 4, s * 8 // 20, config.kernel_channels, config.aggregation) / 1e9 for s in sides]
        for name, config in configs.items()
    }
    series = charts.numbered_series(list(sides), one_stage)
    for size, macs in zip(MASK_SIZES, costs.macs_per_instance):
        name, look = f"DynaMask, {style.SIZE_NAMES[size]}", style.POLICY_STYLES[f"fixed:{size}"]
        series.append(charts.Series(name, list(sides), [macs / 1e9] * len(sides), style=look, mode="lines"))
    title, x_title = "GMACs of one mask by the size of the picture", "short side of the picture, pixels"
    drawn = charts.curve_chart({"": series}, title, x_title, "GMACs")
    return drawn.update_yaxes(type="log", exponentformat="none", dtick=1)
