"""Notebook 06: average precision by hand, boundaries of masks, budgets, baselines and the paper's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dynamask.data.shapes import ShapesDataset
from dynamask.engine.evaluate import Instances
from dynamask.evaluation import mask_quality
from dynamask.evaluation.bootstrap import PictureBootstrap, PrecisionBootstrap
from dynamask.evaluation.choices import at, permuted, shares
from dynamask.evaluation.mask_quality import boundary_width, mask_iou
from dynamask.evaluation.matching import match_greedily
from dynamask.evaluation.resampled_ap import ResampledAP
from dynamask.ops.knapsack import best_under_budget
from dynamask.ops.rle import decode_rle
from dynamask.reports.budget_curve import NAMES, TITLES, CurveResult, chosen, compute_curve, curve_series
from dynamask.reports.collect import Collected
from dynamask.reports.curve_points import CurvePoint
from dynamask.reports.options import CurveOptions
from dynamask.reports.paper import PAPER, SHARE_COLUMNS
from dynamask.reports.render import with_interval
from dynamask.reports.size_choices import at_budget, choice_of, mean_macs
from dynamask.structures import MASK_SIZES, Interval
from dynamask.viz import charts, style

RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO samples the precision."""
FIXED = tuple(f"fixed:{size}" for size in MASK_SIZES)

PAPER_TABLE_7 = {size: PAPER["table7"].figure(f"fixed:{size}", "AP") for size in MASK_SIZES}
"""Mask AP in per cent on COCO val 2017 with one size for all instances (R50-FPN, 1×): Table 7 of the paper."""
PAPER_SHARES = {
    name: (
        tuple(PAPER["tableS1"].fraction(row, column) for column in SHARE_COLUMNS),
        PAPER["tableS1"].figure(row, "G"),
        PAPER["tableS1"].figure(row, "AP"),
    )
    for name, row in {
        "size-based (Eq. 8)": "size",
        "DynaMask, C_t = 0.4": "DynaMask (54 % ↓)",
        "DynaMask, 19 % saved": "DynaMask (19 % ↓)",
    }.items()
}
"""Shares of the sizes, mean GMACs and mask AP in per cent on COCO val 2017: Table S1 of the paper."""


@dataclass(frozen=True)
class PrecisionRecall:
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


def precision_recall(scores: Sequence[float], hit: Sequence[bool], positives: int) -> PrecisionRecall:
    """Compute precision and recall of detections in any order.

    Args:
        scores: (D,).
        hit: (D,) whether each matches a true instance that no better one matches.
        positives: number of true instances, at least 1.
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    found = np.asarray(hit, dtype=bool)[order]
    recall = found.cumsum() / positives
    precision = found.cumsum() / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(recall, RECALLS, side="left")
    sampled = np.append(envelope, 0.0)[first]
    ordered = np.asarray(scores, dtype=np.float64)[order]
    return PrecisionRecall(found, ordered, recall, precision, envelope, sampled, float(sampled.mean()))


@dataclass(frozen=True)
class ClassDetections:
    """All detections of one class by picture.

    Attributes:
        scores: per picture (d,) falling.
        ious: per picture (d, g) mask IoU with the true instances.
        positives: number of true instances.
    """

    scores: list[np.ndarray]
    ious: list[np.ndarray]
    positives: int

    def curve(self, threshold: float) -> PrecisionRecall:
        """Return precision and recall at an IoU threshold."""
        matches = [match for ious in self.ious for match in match_greedily(ious, threshold=threshold)]
        hits = [match is not None for match in matches]
        return precision_recall(np.concatenate(self.scores), hits, self.positives)


def detections_of_class(found: Instances, choice: np.ndarray, dataset: ShapesDataset, name: str) -> ClassDetections:
    """Compare the detections of a class at chosen sizes (N,) with the true masks of all pictures."""
    label = dataset.class_names.index(name)
    scores, ious, positives = [], [], 0
    for index, image_id in enumerate(dataset.image_ids):
        target = dataset.target(index)
        truths = target["masks"][target["labels"] == label].numpy().astype(bool)
        rows = [i for i, r in enumerate(found.results) if (r["image_id"], r["category_id"]) == (image_id, label)]
        rows.sort(key=lambda i: -found.results[i]["score"])
        masks = [decode_rle(found.rles[i][int(choice[i])]) for i in rows]
        scores.append(np.array([found.results[i]["score"] for i in rows]))
        ious.append(np.array([[mask_iou(m, t) for t in truths] for m in masks]).reshape(len(rows), len(truths)))
        positives += len(truths)
    return ClassDetections(scores, ious, positives)


def coco_of_class(
    found: Instances, choice: np.ndarray, dataset: ShapesDataset, name: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return annotations and results of one class for :func:`evaluate_coco`, at chosen sizes (N,)."""
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


def precision_recall_figure(curve: PrecisionRecall, title: str = "") -> go.Figure:
    """Draw every detection as a point, the envelope above them, and the area under it, the AP."""
    figure = charts.figure(title, height=420, legend=charts.LEGEND_ABOVE, margin={"t": 56, "b": 48})
    figure.add_annotation(
        x=0.03,
        y=0.06,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
        text=f"AP = {curve.ap:.3f}",
        font={"size": 22},
    )
    figure.add_scatter(
        x=RECALLS,
        y=curve.sampled,
        mode="lines",
        line={"color": style.ACCENT, "width": 3, "shape": "vh"},
        fill="tozeroy",
        fillcolor=style.translucent(style.ACCENT, 0.18),
        name="envelope, sampled at 101 recalls",
    )
    line = {"color": style.INK, "width": 1, "dash": "dot"}
    figure.add_scatter(x=curve.recall, y=curve.precision, mode="lines", line=line, name="detections", hoverinfo="skip")
    for word, wanted, symbol, colour in (("hit", True, "circle", "#16A34A"), ("miss", False, "x", "#DC2626")):
        rows = np.flatnonzero(curve.hit == wanted)
        figure.add_scatter(
            x=curve.recall[rows],
            y=curve.precision[rows],
            mode="markers",
            name=word,
            customdata=curve.scores[rows],
            marker={"symbol": symbol, "color": colour, "size": 9, "line": style.EDGE},
            hovertemplate="score %{customdata:.3f}<br>recall %{x:.2f}, precision %{y:.2f}<extra></extra>",
        )
    figure.update_xaxes(title="recall", range=[0, 1.02])
    return figure.update_yaxes(title="precision", range=[0, 1.05])


def rim(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask (H, W) bool that boundary IoU compares: those near its border."""
    return mask_quality.rim(mask.astype(np.uint8), boundary_width(mask.shape)).astype(bool)


def baselines(
    found: Instances, macs: Sequence[int], dataset: ShapesDataset, judge: ResampledAP, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Evaluate several policies on detections.

    Args:
        found: detections with masks of all sizes, matched to true instances.
        macs: MACs of an instance at each size.
        judge: evaluator of the same detections.
        seed: of the random choice, a permutation of the learned sizes.

    Returns:
        By policy "fixed:14" … "fixed:112", "size", "random", "learned", "oracle": ``choice`` (N,), ``gmacs``,
        ``shares`` (4,), ``segm`` and ``boundary`` AP in 0–1. Random and oracle cost as much as learned; the oracle uses
        the true IoU of matched detections and keeps the learned sizes of the others.
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
    """Draw the sizes that the switch gives under a budget in true boxes, and their quality with intervals.

    Args:
        given: instances in true boxes, with all sizes.
        macs: MACs of an instance at each size.
        bootstrap: over the pictures.
        share: budget as a share of the full branch's MACs, 0–1.
        measure: "mask_iou" or "boundary_iou".
    """
    choice = at_budget(given.logits(), macs, share * macs[-1])
    quality, limit = given.quality(measure), mean_macs(choice, macs)
    rows = bootstrap.rows(np.array([result["image_id"] for result in given.results]))
    values = {
        "random": permuted(quality, choice),
        "learned": at(quality, choice),
        "oracle": at(quality, best_under_budget(quality, macs, limit)),
        f"fixed:{MASK_SIZES[-1]}": quality[:, -1],
    }
    titles = [f"sizes; {limit / macs[-1]:.0%} of the full MACs are spent", f"mean {TITLES[measure].split(' ', 1)[1]}"]
    figure = charts.panel_figure(titles, 380, horizontal_spacing=0.12)
    parts = shares(choice).tolist()
    charts.add_size_bars(figure, parts, [f"{part:.0%}" for part in parts])
    for policy, each in values.items():
        interval, look = bootstrap.interval(each, rows), style.POLICY_STYLES[policy]
        figure.add_scatter(
            x=[f"{'at random' if policy == 'random' else NAMES[policy]}<br>{interval.mean:.3f}"],
            y=[interval.mean],
            mode="markers",
            marker={"size": 14, "color": look.colour, "symbol": look.symbol, "line": style.EDGE},
            error_y=charts.error_bars([interval], color=style.INK, width=6),
            row=1,
            col=2,
        )
    figure.update_layout(showlegend=False, margin={"t": 40, "b": 48})
    figure.update_xaxes(type="category", row=1, col=2)
    figure.update_xaxes(title="mask size", row=1, col=1)
    figure.update_yaxes(range=[0, 1.12], tickformat=".0%", row=1, col=1)
    return figure.update_yaxes(range=[0.5, 1.0], row=1, col=2)


def classes_figure(given: Instances, dataset: ShapesDataset, choice: np.ndarray) -> go.Figure:
    """Draw the shares of the sizes by class for chosen sizes (N,), as Fig. 8 of the paper."""
    classes = [dataset.class_names[result["category_id"]] for result in given.results]
    return charts.class_distribution(classes, np.array(MASK_SIZES)[choice]).update_layout(margin={"b": 56, "r": 36})


def bootstrap_figure(resampled: np.ndarray, estimate: Interval, title: str) -> go.Figure:
    """Draw a histogram of a figure under resampling (B,), with the estimate and the bounds of its 95 % interval."""
    figure = charts.figure(title, height=340, showlegend=False, bargap=0.05)
    figure.add_histogram(x=resampled, nbinsx=40, marker={"color": style.ACCENT, "line": style.EDGE})
    lines = ((estimate.low, "dash", "2.5 %"), (estimate.mean, "solid", "estimate"), (estimate.high, "dash", "97.5 %"))
    for value, dash, text in lines:
        line = {"color": style.INK, "dash": dash, "width": 2}
        figure.add_vline(x=value, line=line, annotation_text=text, annotation_position="top")
    figure.add_vline(x=0, line={"color": "#DC2626", "width": 2})
    return figure.update_yaxes(title="resampled sets of pictures")


def iou_scatter(mask_iou: np.ndarray, boundary_iou: np.ndarray, sizes: Sequence[int] = MASK_SIZES) -> go.Figure:
    """Draw boundary IoU against mask IoU, (N, 4) each, with a point for each object at some of the sizes."""
    figure = charts.figure("Two measures of the same masks", height=420, legend=charts.LEGEND_ABOVE)
    for size in sizes:
        k, marker = MASK_SIZES.index(size), style.size_dot(size, 9)
        values = {"x": mask_iou[:, k], "y": boundary_iou[:, k]}
        figure.add_scatter(**values, mode="markers", name=style.SIZE_NAMES[size], marker=marker, opacity=0.85)
    line = {"color": style.INK, "dash": "dot", "width": 1.5}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="equal", hoverinfo="skip", line=line)
    low = float(np.floor(min(mask_iou.min(initial=0.9), boundary_iou.min(initial=0.9)) * 10) / 10)
    figure.update_xaxes(title="mask IoU", range=[low, 1.01])
    return figure.update_yaxes(title="boundary IoU", range=[low, 1.01])


def curves(
    kept: Collected, macs: Sequence[int], dataset: ShapesDataset, options: CurveOptions, samples: int, ap_samples: int
) -> CurveResult:
    """Compute the budget curve of predictions on all pictures of a data set, see :func:`compute_curve`.

    Args:
        samples: resampled sets of pictures for means over instances.
        ap_samples: the same for AP, at most ``samples``.
    """
    bootstrap, precision = PictureBootstrap(dataset.image_ids, samples, 0), None
    if kept.detections is not None:
        ap = ResampledAP(dataset.coco, kept.detections.results, kept.detections.rles, dataset.image_ids)
        precision = PrecisionBootstrap(ap, bootstrap.weights[:ap_samples])
    return compute_curve(kept, macs, dataset, bootstrap, precision, options)


def curves_figure(points: Sequence[CurvePoint], boxes: str, measures: Sequence[str], title: str) -> go.Figure:
    """Draw quality against cost of every policy from the points of a budget curve, one panel per measure.

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
    """Return table rows of the switch's cost and its shares of the oracles' gains, by rising cost."""
    table = []
    columns = [("mask_iou", "oracle"), ("mask_iou", "noise-aware oracle"), ("boundary_iou", "noise-aware oracle")]
    found = [chosen(points, "gt", m, "budget", f"share of {o}") for m, o in columns]
    for own in zip(*found):
        if all(point.value.mean is not None for point in own):
            gmacs = own[0].mean_macs / 1e9
            table.append([f"{gmacs:.4f} GMACs", *(with_interval(point.value, 2) for point in own)])
    return table
