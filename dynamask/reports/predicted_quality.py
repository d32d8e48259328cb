"""``report quality``: predicted against measured quality of masks, and detections rescored by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynamask.evaluation.bootstrap import PrecisionBootstrap, interval_of
from dynamask.evaluation.calibration import Reliability, calibration_error, reliability
from dynamask.evaluation.choices import spearman, within_spearman
from dynamask.evaluation.resampled_ap import ResampledAP
from dynamask.reports.comparison import Comparison, Evidence
from dynamask.reports.render import Block, Figure, Heading, Paragraph, Report, Table, number, with_interval
from dynamask.structures import IOU_MEASURES, MASK_SIZES, DynaMaskError, Interval
from dynamask.viz.charts import Series, curve_chart
from dynamask.viz.style import INK, POLICY_STYLES, LineStyle

TITLES = {"mask_iou": "mask IoU", "boundary_iou": "boundary IoU"}
_FIGURES = {
    "calibration_error": "expected calibration error",
    "spearman": "Spearman",
    "spearman_within": "Spearman within classes",
}


@dataclass(frozen=True)
class Agreement:
    """Predicted against measured quality of all instances in true boxes at one size.

    Attributes:
        measure: "mask_iou" or "boundary_iou".
        size: side of the masks in mask pixels.
        predicted, measured: means, 0–1.
        calibration_error: expected calibration error with its interval.
        spearman: rank correlation with its interval.
        spearman_within: the same within classes.
        bins: the bins of predicted quality.
    """

    measure: str
    size: int
    predicted: float
    measured: float
    calibration_error: Interval
    spearman: Interval
    spearman_within: Interval
    bins: Sequence[Reliability]


def agreements(evidence: Evidence) -> list[Agreement]:
    """The agreement of the two measures at every size, with intervals over resampled pictures."""
    found, rows, bootstrap = evidence.collected.true_boxes, evidence.true_box_rows, evidence.comparison.bootstrap
    labels = np.array([result["category_id"] for result in found.results])
    every = found.predicted_quality().double().numpy()
    points = []
    for m, measure in enumerate(IOU_MEASURES):
        known = found.quality(measure)
        for k, size in enumerate(MASK_SIZES):
            predicted, measured = every[:, k, m], known[:, k]
            statistics = (
                lambda kept, p=predicted, q=measured: calibration_error(p[kept], q[kept]),
                lambda kept, p=predicted, q=measured: spearman(p[kept], q[kept]),
                lambda kept, p=predicted, q=measured: within_spearman(p[kept], q[kept], labels[kept]),
            )
            intervals = [bootstrap.statistic(statistic, rows) for statistic in statistics]
            means = (float(predicted.mean()), float(measured.mean()))
            points.append(Agreement(measure, size, *means, *intervals, reliability(predicted, measured)))
    return points


def rescoring(evidence: Evidence, measures: Sequence[str] = ("segm", "boundary")) -> dict[str, dict[str, Any]]:
    """AP of the detections with their scores, and with scores multiplied by the predicted mask IoU.

    Returns:
        By measure, ``given`` and ``rescored`` AP and ``difference``, paired intervals.
    """
    comparison, found = evidence.comparison, evidence.detections
    choice = evidence.choice()
    predicted = found.predicted_quality().double().numpy()[np.arange(len(choice)), choice, 0]
    results = [{**r, "score": r["score"] * float(q)} for r, q in zip(found.results, predicted, strict=True)]
    ap = ResampledAP(comparison.dataset.coco, results, found.rles, comparison.image_ids)
    rescored = PrecisionBootstrap(ap, comparison.bootstrap.weights[: comparison.options.ap_samples])
    rows = {}
    for measure in measures:
        old, new = evidence.precision.draws(choice, measure), rescored.draws(choice, measure)
        parts = {"given": old, "rescored": new, "difference": new - old}
        rows[measure] = {name: interval_of(draws, centre=True) for name, draws in parts.items()}
    return rows


def make_quality(comparison: Comparison) -> Report:
    """The report on the first weights with a switch, which must have a quality head.

    Raises:
        DynaMaskError: they have none.
    """
    evidence = comparison.main
    if not evidence.predictor.has_quality:
        raise DynaMaskError(f"{evidence.label} has no quality head; give weights with one, such as shapes or things")
    points = agreements(evidence)
    scores = rescoring(evidence) if evidence.detections.results else {}
    rows = [{k: v for k, v in _flat(point).items() if k != "bins"} for point in points]
    blocks: list[Block] = [
        Paragraph(
            "The quality head predicts mask IoU and boundary IoU of every size before any mask is computed. Instances "
            "are in their true boxes; intervals resample pictures (95 %)."
        ),
        Figure(_chart(points)),
        Heading("Agreement by size"),
        _agreement_table(points),
        Heading("Reliability"),
        Paragraph("Means of all sizes together, in bins of a tenth of the predicted quality."),
        _reliability_table(evidence),
    ]
    if scores:
        blocks += [
            Heading("Rescoring"),
            Paragraph(
                "AP of the learned sizes, with the detector's scores and with these times the predicted mask IoU."
            ),
            _rescoring_table(scores),
        ]
    data = {
        "agreement": [asdict(point) for point in points],
        "rescoring": {m: {k: asdict(v) for k, v in row.items()} for m, row in scores.items()},
    }
    title = f"Predicted and measured quality: {evidence.label}"
    return Report("quality", title, comparison.facts(evidence), blocks, rows, data)


def _flat(point: Agreement) -> dict[str, Any]:
    """A row of the CSV: intervals become three columns each."""
    row: dict[str, Any] = {}
    for key, value in vars(point).items():
        if isinstance(value, Interval):
            row |= {key: value.mean, f"{key}_low": value.low, f"{key}_high": value.high}
        else:
            row[key] = value
    return row


def _chart(points: Sequence[Agreement]) -> Any:
    """Reliability diagram, a panel for each measure and a line for each size."""
    panels = {}
    for measure, title in TITLES.items():
        lines = [Series("perfect", [0.0, 1.0], [0.0, 1.0], style=LineStyle(INK, "dot"), mode="lines")]
        for point in points:
            if point.measure == measure:
                x, y = [row.predicted for row in point.bins], [row.measured for row in point.bins]
                labels = [f"{row.count} instances" for row in point.bins]
                lines.append(
                    Series(
                        f"{point.size}×{point.size}", x, y, style=POLICY_STYLES[f"fixed:{point.size}"], labels=labels
                    )
                )
        panels[title] = lines
    return curve_chart(panels, "Reliability of the predicted quality", "predicted", "measured", height=480)


def _agreement_table(points: Sequence[Agreement]) -> Table:
    body = []
    for point in points:
        intervals = [with_interval(getattr(point, name), 3) for name in _FIGURES]
        means = [number(point.predicted, 3), number(point.measured, 3)]
        body.append([f"{TITLES[point.measure]} at {point.size}", *means, *intervals])
    return Table(["", "predicted", "measured", *_FIGURES.values()], body)


def _reliability_table(evidence: Evidence) -> Table:
    found = evidence.collected.true_boxes
    every = found.predicted_quality().double().numpy()
    body = []
    for m, (measure, title) in enumerate(TITLES.items()):
        for row in reliability(every[:, :, m].ravel(), found.quality(measure).ravel()):
            body.append([title, f"{row.count:,}", number(row.predicted, 3), number(row.measured, 3)])
    return Table(["", "masks", "mean predicted", "mean measured"], body)


def _rescoring_table(scores: dict[str, dict[str, Interval]]) -> Table:
    names = {"segm": "mask AP", "boundary": "boundary AP"}
    body = []
    for measure, row in scores.items():
        cells = [
            with_interval(row["given"]),
            with_interval(row["rescored"]),
            with_interval(row["difference"], signed=True),
        ]
        body.append([names[measure], *cells])
    return Table(["", "detector's scores", "rescored", "difference"], body)
