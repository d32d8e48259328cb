"""Lesson 06: average precision by hand, rims of masks, budgets and baselines, and the paper's tables beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dynamask.data.shapes import ShapesDataset
from dynamask.engine.evaluate import Instances
from dynamask.evaluation.bootstrap import PictureBootstrap, PrecisionBootstrap
from dynamask.evaluation.choices import at, permuted, shares
from dynamask.evaluation.mask_quality import boundary_width, mask_iou
from dynamask.evaluation.resampled_ap import ResampledAP
from dynamask.ops.knapsack import best_under_budget
from dynamask.ops.rle import decode_rle
from dynamask.reports.budget_curve import TITLES, CurveResult, chosen, compute_curve, curve_series
from dynamask.reports.collecting import Collected
from dynamask.reports.curve_points import CurvePoint
from dynamask.reports.options import CurveOptions
from dynamask.reports.size_choices import at_budget, choice_of, mean_macs
from dynamask.reports.writer import with_interval
from dynamask.structures import MASK_SIZES, Interval
from dynamask.viz import charts, style
from dynamask.viz.charts import class_distribution
from lessons.pictures import with_slider

RECALLS = np.linspace(0.0, 1.0, 101)
"""The recalls at which COCO reads the precision."""
FIXED = tuple(f"fixed:{size}" for size in MASK_SIZES)

PAPER_TABLE_7 = {14: 32.9, 28: 36.1, 56: 37.1, 112: 37.6}
"""Mask AP on COCO val 2017, per cent, of one size for all instances (R50-FPN, 1×): Tab. 7 of the paper."""
PAPER_TABLE_8 = {
    "size-based (Eq. 8)": ((0.47, 0.32, 0.14, 0.08), 0.56, 35.9),
    "DynaMask, C_t = 0.4": ((0.35, 0.34, 0.21, 0.10), 0.64, 36.8),
    "DynaMask, 19 % saved": ((0.05, 0.13, 0.25, 0.56), 1.13, 37.6),
}
"""Shares of the sizes 14 … 112, mean GMACs and mask AP on COCO val 2017, per cent: Tab. 8 of the paper."""


@dataclass(frozen=True)
class Curve:
    """Precision against recall of one class at one IoU threshold, D detections by falling score.

    Attributes:
        hit: (D,) bool, the detection found a true instance.
        scores: (D,) falling.
        recall, precision: (D,) of the detections so far.
        envelope: (D,) the best precision at this recall or more.
        sampled: (101,) the envelope at ``RECALLS``, 0 beyond the last hit.
        ap: their mean.
    """

    hit: np.ndarray
    scores: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    envelope: np.ndarray
    sampled: np.ndarray
    ap: float


def precision_recall(scores: Sequence[float], hit: Sequence[bool], positives: int) -> Curve:
    """The curve of detections in any order.

    Args:
        scores: (D,).
        hit: (D,) whether each found a true instance that none before it had found.
        positives: true instances in all, at least 1.
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    found = np.asarray(hit, dtype=bool)[order]
    recall = found.cumsum() / positives
    precision = found.cumsum() / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(recall, RECALLS, side="left")
    sampled = np.append(envelope, 0.0)[first]
    return Curve(found, np.asarray(scores, dtype=np.float64)[order], recall, precision, envelope, sampled,
                 float(sampled.mean()))  # fmt: skip


def match_greedily(ious: np.ndarray, threshold: float) -> np.ndarray:
    """(D,) bool: each detection, best score first, takes the best true instance that is left and fits.

    Args:
        ious: (D, G) of detections by falling score with the true instances of their picture and class.
        threshold: the least IoU that fits.
    """
    left, hit = np.ones(ious.shape[1], dtype=bool), np.zeros(len(ious), dtype=bool)
    for row, values in enumerate(ious):
        fitting = np.where(left & (values >= threshold), values, -1.0)
        if fitting.size and fitting.max() >= 0:
            hit[row], left[fitting.argmax()] = True, False
    return hit


@dataclass(frozen=True)
class ClassDetections:
    """All detections of one class, picture by picture, with what they are compared to.

    Attributes:
        scores: per picture (d,) falling.
        ious: per picture (d, g) mask IoU with the true instances.
        positives: true instances in all pictures.
    """

    scores: list[np.ndarray]
    ious: list[np.ndarray]
    positives: int

    def curve(self, threshold: float) -> Curve:
        """Precision against recall at an IoU threshold."""
        hits = [match_greedily(ious, threshold) for ious in self.ious]
        return precision_recall(np.concatenate(self.scores), np.concatenate(hits), self.positives)


def detections_of_class(found: Instances, choice: np.ndarray, dataset: ShapesDataset, name: str) -> ClassDetections:
    """Detections of a class at chosen sizes (N,), compared pixel by pixel with the true masks of all pictures."""
    label = dataset.class_names.index(name)
    scores, ious, positives = [], [], 0
    for index, image_id in enumerate(dataset.image_ids):
        target = dataset.target(index)
        truths = target["masks"][target["labels"] == label].numpy().astype(bool)
        rows = [
            i for i, r in enumerate(found.results) if r["image_id"] == image_id and r["category_id"] == label
        ]  # fmt: skip
        rows.sort(key=lambda i: -found.results[i]["score"])
        masks = [decode_rle(found.rles[i][int(choice[i])]) for i in rows]
        scores.append(np.array([found.results[i]["score"] for i in rows]))
        ious.append(np.array([[mask_iou(m, t) for t in truths] for m in masks]).reshape(len(rows), len(truths)))
        positives += len(truths)
    return ClassDetections(scores, ious, positives)


def coco_of_class(
    found: Instances, choice: np.ndarray, dataset: ShapesDataset, name: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and results of one class alone, as :func:`evaluate_coco` takes them; sizes as chosen (N,)."""
    label = dataset.class_names.index(name)
    coco = {
        **dataset.coco,
        "categories": [c for c in dataset.coco["categories"] if c["id"] == label],
        "annotations": [a for a in dataset.coco["annotations"] if a["category_id"] == label],
    }
    results = [
        {**r, "segmentation": rles[int(k)]}
        for r, rles, k in zip(found.results, found.rles, choice)
        if r["category_id"] == label
    ]
    return coco, results


def precision_recall_figure(curve: Curve, title: str = "") -> go.Figure:
    """Every detection as a point, the envelope over them, and the area that is the AP (written into it)."""
    figure = charts.figure(title, height=420)
    figure.add_annotation(x=0.03, y=0.06, xref="paper", yref="paper", xanchor="left", yanchor="bottom", showarrow=False,
                          text=f"AP = {curve.ap:.3f}", font={"size": 22, "color": style.INK})  # fmt: skip
    figure.add_scatter(
        x=RECALLS, y=curve.sampled, mode="lines", line={"color": style.ACCENT, "width": 3, "shape": "vh"},
        fill="tozeroy", fillcolor="rgba(59, 130, 246, 0.18)", name="envelope, read at 101 recalls",
    )  # fmt: skip
    figure.add_scatter(
        x=curve.recall, y=curve.precision, mode="lines", line={"color": style.INK, "width": 1, "dash": "dot"},
        name="after each detection", hoverinfo="skip",
    )  # fmt: skip
    for word, wanted, symbol, colour in (("hit", True, "circle", "#16A34A"), ("miss", False, "x", "#DC2626")):
        rows = np.flatnonzero(curve.hit == wanted)
        figure.add_scatter(
            x=curve.recall[rows], y=curve.precision[rows], mode="markers", name=word, customdata=curve.scores[rows],
            marker={"symbol": symbol, "color": colour, "size": 9, "line": {"color": style.INK, "width": 1}},
            hovertemplate="score %{customdata:.3f}<br>recall %{x:.2f}, precision %{y:.2f}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="recall", range=[0, 1.02])
    figure.update_yaxes(title="precision", range=[0, 1.05])
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}, margin={"t": 56, "b": 48})
    return figure


def rim(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: the pixels of a mask that boundary IoU compares, those within reach of its border."""
    width = boundary_width(mask.shape)
    kernel = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
    inner = cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & ~inner.astype(bool)


def cut_out(mask: np.ndarray, margin: int = 10) -> tuple[slice, slice]:
    """The window around a mask that is not empty, as an index of (H, W) arrays."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (slice(max(0, rows[0] - margin), rows[-1] + 1 + margin),
            slice(max(0, columns[0] - margin), columns[-1] + 1 + margin))  # fmt: skip


def baselines(
    found: Instances, macs: Sequence[int], dataset: ShapesDataset, judge: ResampledAP, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """What each way of choosing sizes reaches on detections.

    Args:
        found: detections with the masks of all sizes, matched to true instances.
        macs: MACs of an instance at each size.
        judge: of the same detections.
        seed: of the random choice, a permutation of the learned sizes.

    Returns:
        By policy "fixed:14" … "fixed:112", "size", "random", "learned", "oracle": ``choice`` (N,), ``gmacs``,
        ``shares`` (4,), ``segm`` and ``boundary`` AP in 0–1. Random and oracle spend what learned spends; the oracle
        knows the IoU of the detections that match a true instance and leaves the others as learned has them.
    """
    choices = {policy: choice_of(policy, found, dataset) for policy in (*FIXED, "size")}
    learned = choice_of("learned", found, dataset)
    choices["random"] = np.random.default_rng(seed).permutation(learned)
    choices["learned"] = learned
    quality, best = found.quality("mask_iou"), learned.copy()
    known = ~np.isnan(quality).any(axis=1)
    if known.any():
        best[known] = best_under_budget(quality[known], macs, mean_macs(learned[known], macs))
    choices["oracle"] = best
    return {
        name: {
            "choice": choice,
            "gmacs": mean_macs(choice, macs) / 1e9,
            "shares": shares(choice),
            **{k: float(judge.average_precision(judge.match(choice, k))[0]) for k in ("segm", "boundary")},
        }
        for name, choice in choices.items()
    }


def budget_figure(
    given: Instances, macs: Sequence[int], bootstrap: PictureBootstrap, share: float, measure: str = "mask_iou"
) -> go.Figure:
    """What the switch makes of a budget in true boxes: the sizes it gives, and what that is worth, with intervals.

    Args:
        given: instances in true boxes, every size known.
        share: of the full branch's MACs that may be spent, 0–1.
        measure: "mask_iou" or "boundary_iou".
    """
    choice = at_budget(given.logits(), macs, share * macs[-1])
    quality, limit = given.quality(measure), mean_macs(choice, macs)
    rows = bootstrap.rows(np.array([result["image_id"] for result in given.results]))
    chosen_by = {
        "at random": (permuted(quality, choice), style.POLICY_STYLES["random"].colour),
        "learned": (at(quality, choice), style.POLICY_STYLES["learned"].colour),
        "oracle": (at(quality, best_under_budget(quality, macs, limit)), style.POLICY_STYLES["oracle"].colour),
        f"all at {MASK_SIZES[-1]}": (quality[:, -1], style.size_dot(MASK_SIZES[-1])["color"]),
    }
    titles = [f"sizes; {limit / macs[-1]:.0%} of the full MACs are spent", f"mean {TITLES[measure].split(' ', 1)[1]}"]
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.12)
    for size, part in zip(MASK_SIZES, shares(choice).tolist()):
        figure.add_bar(x=[f"{size}"], y=[part], marker=style.size_bar(size), text=[f"{part:.0%}"],
                       textposition="outside", cliponaxis=False, row=1, col=1)  # fmt: skip
    for name, (values, colour) in chosen_by.items():
        one = bootstrap.interval(values, rows)
        reach = {"array": [one.high - one.mean], "arrayminus": [one.mean - one.low]}
        figure.add_scatter(
            x=[f"{name}<br>{one.mean:.3f}"], y=[one.mean], mode="markers",
            marker={"size": 14, "color": colour, "line": {"color": style.INK, "width": 1.5}},
            error_y={"type": "data", "symmetric": False, "color": style.INK, "thickness": 1.5, "width": 6, **reach},
            row=1, col=2,
        )  # fmt: skip
    figure.update_layout(template=style.TEMPLATE, height=380, showlegend=False, margin={"t": 40, "b": 48})
    figure.update_xaxes(type="category")
    figure.update_xaxes(title="mask size", row=1, col=1)
    figure.update_yaxes(range=[0, 1.12], tickformat=".0%", row=1, col=1)
    figure.update_yaxes(range=[0.5, 1.0], row=1, col=2)
    figure.update_annotations(font={"color": style.INK, "size": 13})
    return figure


def slider_below(steps: dict[str, go.Figure], prefix: str = "", active: int = 0) -> go.Figure:
    """:func:`lessons.pictures.with_slider` for figures that have titles on their x axes: it keeps clear."""
    drawn = with_slider(steps, prefix, active)
    drawn.update_layout(height=drawn.layout.height + 36, margin={"b": drawn.layout.margin.b + 36})
    drawn.layout.sliders[0].pad.t = 62
    return drawn


def classes_figure(given: Instances, dataset: ShapesDataset, choice: np.ndarray) -> go.Figure:
    """Shares of the sizes by class for chosen sizes (N,), as Fig. 8 of the paper has them, in the notebooks' look."""
    labels = [result["category_id"] for result in given.results]
    drawn = class_distribution(labels, np.array(MASK_SIZES)[choice], dataset.class_names)
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.35, "traceorder": "normal"}
    drawn.update_layout(margin={"t": 56, "b": 56, "r": 36}, legend=legend)
    return drawn


def bootstrap_figure(drawn: np.ndarray, estimate: Interval, title: str) -> go.Figure:
    """Histogram of a figure under resampling (B,), with its own value and the bounds of the 95 % interval."""
    figure = charts.figure(title, height=340, showlegend=False, bargap=0.05)
    figure.add_histogram(x=drawn, nbinsx=40, marker={"color": style.ACCENT, "line": {"color": style.INK, "width": 1}})
    for value, dash, text in (
        (estimate.low, "dash", "2.5 %"),
        (estimate.mean, "solid", "ours"),
        (estimate.high, "dash", "97.5 %"),
    ):
        figure.add_vline(x=value, line={"color": style.INK, "dash": dash, "width": 2}, annotation_text=text,
                         annotation_position="top", annotation_font={"color": style.INK})  # fmt: skip
    figure.add_vline(x=0, line={"color": "#DC2626", "width": 2})
    figure.update_yaxes(title="resampled sets of pictures")
    return figure


def iou_scatter(mask_iou: np.ndarray, boundary_iou: np.ndarray, sizes: Sequence[int] = MASK_SIZES) -> go.Figure:
    """Boundary IoU against mask IoU, (N, 4) each; a point is an object at one of some sizes."""
    figure = charts.figure("The same masks, measured twice", height=420, margin={"b": 90})
    for size in sizes:
        k = MASK_SIZES.index(size)
        figure.add_scatter(x=mask_iou[:, k], y=boundary_iou[:, k], mode="markers", name=f"{size}×{size}",
                           marker=style.size_dot(size, 9), opacity=0.85)  # fmt: skip
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="equal", hoverinfo="skip",
                       line={"color": style.INK, "dash": "dot", "width": 1.5})  # fmt: skip
    low = float(np.floor(min(mask_iou.min(initial=0.9), boundary_iou.min(initial=0.9)) * 10) / 10)
    figure.update_xaxes(title="mask IoU", range=[low, 1.01])
    figure.update_yaxes(title="boundary IoU", range=[low, 1.01])
    figure.update_layout(legend={"orientation": "h", "y": -0.18, "yanchor": "top"})
    return figure


def curves(
    kept: Collected, macs: Sequence[int], dataset: ShapesDataset, options: CurveOptions, samples: int, ap_samples: int
) -> CurveResult:
    """The budget curve of what was predicted on all pictures of a data set, see :func:`compute_curve`.

    Args:
        samples: resampled sets of pictures for means over instances.
        ap_samples: the same for AP, at most ``samples``.
    """
    bootstrap, precision = PictureBootstrap(dataset.image_ids, samples, 0), None
    if kept.found is not None:
        ap = ResampledAP(dataset.coco, kept.found.results, kept.found.rles, dataset.image_ids)
        precision = PrecisionBootstrap(ap, bootstrap.weights[:ap_samples])
    return compute_curve(kept, macs, dataset, bootstrap, precision, options)


def curves_figure(points: Sequence[CurvePoint], boxes: str, measures: Sequence[str], title: str) -> go.Figure:
    """Quality against cost of every policy, one panel a measure, from the points of a budget curve.

    Args:
        points: of :func:`dynamask.reports.budget_curve.compute_curve`.
        boxes: "gt" or "detected".
        measures: "mask_iou" and "boundary_iou", or "segm_ap" and "boundary_ap".
        title: of the figure.
    """
    policies = ("random", "mix", "oracle", "noise-aware oracle", "budget", *FIXED, "size", "learned")
    panels = {TITLES[m]: curve_series(points, boxes, m, policies, bands=("budget",)) for m in measures}
    return charts.curve_chart(panels, title, "mean GMACs per instance", height=560)


def share_rows(points: Sequence[CurvePoint]) -> list[list[str]]:
    """Cells of a table: what the switch spends, and which shares of the oracles' gains it reaches, by rising cost."""
    table = []
    columns = [("mask_iou", "oracle"), ("mask_iou", "noise-aware oracle"), ("boundary_iou", "noise-aware oracle")]
    found = [chosen(points, "gt", m, "budget", f"share of {o}") for m, o in columns]
    for own in zip(*found):
        if all(point.value.mean is not None for point in own):
            gmacs = own[0].mean_macs / 1e9
            table.append([f"{gmacs:.4f} GMACs", *(with_interval(point.value, 2) for point in own)])
    return table
