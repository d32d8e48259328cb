"""Quality against MACs of boundary refinement, beside the dense mask sizes, as a part of the budget curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynamask.config import parse_refine
from dynamask.evaluation.bootstrap import interval_of
from dynamask.models.masks.policies import LEARNED, Policy
from dynamask.reports.comparison import Comparison, Evidence
from dynamask.reports.render import Block, Figure, Heading, Paragraph, Table, with_interval
from dynamask.structures import IOU_MEASURES, MASK_SIZES, Interval
from dynamask.viz.charts import Series, curve_chart
from dynamask.viz.style import POLICY_STYLES, series_style

AP_MEASURES = ("segm_ap", "boundary_ap")
POLICIES = (*map(Policy.fixed, MASK_SIZES), LEARNED)
_REFINED = (f"fixed:{MASK_SIZES[2]}", f"fixed:{MASK_SIZES[3]}", "learned")
"""Policies whose points of all settings are joined to a line."""
_COARSEST = f"fixed:{MASK_SIZES[0]}"
_COST = "mean GMACs per instance"


@dataclass(frozen=True)
class RefinementPoint:
    """One estimate of a setting of boundary refinement.

    Attributes:
        refine: the setting, "dense" or shares of the cells at 28, 56 and 112 as in "1,0.4,0.2".
        boxes: "gt" (true boxes) or "detected".
        measure: "mask_iou" or "boundary_iou" in true boxes, "segm_ap" or "boundary_ap" on detections.
        policy: "fixed:S" or "learned".
        mean_macs: mean MACs of an instance.
        value: the estimate.
        minus_dense: its paired difference to dense stages with the same sizes.
    """

    refine: str
    boxes: str
    measure: str
    policy: str
    mean_macs: float
    value: Interval
    minus_dense: Interval

    def to_dict(self) -> dict[str, Any]:
        """The point as plain JSON values."""
        return asdict(self)


def refined_evidences(main: Evidence, settings: Sequence[str]) -> dict[str, Evidence]:
    """The weights with dense stages and with each setting of boundary refinement, by the name of the setting.

    Args:
        main: the weights; their own setting is added if it is another one.
        settings: as "1,0.4,0.2".

    Raises:
        DynaMaskError: a setting is not three shares.
    """
    own = main.predictor.model.config.refine
    names = {"dense": None, **{setting: parse_refine(setting) for setting in settings}}
    if own is not None and own not in names.values():
        names[",".join(f"{share:g}" for share in own)] = own
    return {name: main if refine == own else main.with_refine(refine) for name, refine in names.items()}


def refinement_points(evidences: dict[str, Evidence], detections: bool) -> list[RefinementPoint]:
    """The points of all settings under every policy of ``POLICIES``, the coarsest size of the dense stages alone.

    Args:
        evidences: of :func:`refined_evidences`.
        detections: also evaluate the detections.
    """
    points = []
    for true_boxes, measures in ((True, IOU_MEASURES), (False, AP_MEASURES)):
        if not true_boxes and not detections:
            continue
        choices = {str(policy): evidences["dense"].choice(policy, true_boxes=true_boxes) for policy in POLICIES}
        for measure in measures:
            for policy, choice in choices.items():
                dense = evidences["dense"].draws(measure, choice)
                for name, evidence in evidences.items():
                    if name != "dense" and policy == _COARSEST:
                        continue  # 14×14 is the same in all settings
                    own = dense if name == "dense" else evidence.draws(measure, choice)
                    value, difference = (interval_of(draws, centre=not true_boxes) for draws in (own, own - dense))
                    cost = float(np.mean(np.array(evidence.macs, dtype=np.float64)[choice]))
                    where = "gt" if true_boxes else "detected"
                    points.append(RefinementPoint(name, where, measure, policy, cost, value, difference))
    return points


def compute_refinement(comparison: Comparison, settings: Sequence[str], detections: bool) -> list[RefinementPoint]:
    """The points of the main weights of a comparison with every setting; empty without a setting."""
    return refinement_points(refined_evidences(comparison.main, settings), detections) if settings else []


def refinement_blocks(points: Sequence[RefinementPoint], titles: dict[str, str]) -> list[Block]:
    """The section of the report.

    Args:
        points: of :func:`compute_refinement`; without points the section is left out.
        titles: titles of the measures.
    """
    if not points:
        return []
    blocks: list[Block] = [
        Heading("Refining along the outline"),
        Paragraph(
            "The same weights with the stages to 28, 56 and 112 computed on a share of the cells alone, those nearest "
            "to the outline at the coarser size. Each line joins one policy over the settings, from the cheapest to "
            "dense stages; differences to dense stages with the same sizes are paired, with bootstrap 95 % intervals."
        ),
    ]
    for boxes in dict.fromkeys(point.boxes for point in points):
        own = [point for point in points if point.boxes == boxes]
        measures = list(dict.fromkeys(point.measure for point in own))
        panels = {titles[m]: refinement_series([p for p in own if p.measure == m]) for m in measures}
        title = "In true boxes" if boxes == "gt" else "On detections"
        blocks += [Figure(curve_chart(panels, title, _COST, height=500)), _table(own, measures, titles)]
    return blocks


def refinement_series(points: Sequence[RefinementPoint]) -> list[Series]:
    """The dense sizes as one line, and the settings of each refined policy as one line; points of one measure."""
    dense = [point for point in points if point.refine == "dense" and point.policy != "learned"]
    lines = [_series("dense, by size", dense, [point.policy for point in dense])]
    for number, policy in enumerate(_REFINED, start=1):
        own = sorted((p for p in points if p.policy == policy), key=lambda point: point.mean_macs)
        line = _series(f"refined, {_name(policy)}", own, [f"cells {point.refine}" for point in own], number)
        lines.append(line)
    return lines


def _series(name: str, points: Sequence[RefinementPoint], labels: list[str], number: int = 0) -> Series:
    style = POLICY_STYLES["learned"] if name.endswith("learned sizes") else series_style(number)
    values = [point.value for point in points]
    return Series(
        name,
        [point.mean_macs / 1e9 for point in points],
        [value.mean for value in values],
        [value.low for value in values],
        [value.high for value in values],
        style,
        labels,
        interval="hover",
    )


def _name(policy: str) -> str:
    return "learned sizes" if policy == "learned" else f"all at {policy.removeprefix('fixed:')}"


def _table(points: Sequence[RefinementPoint], measures: Sequence[str], titles: dict[str, str]) -> Table:
    """Settings at 112, at 56 and with the learned sizes."""
    body = []
    for policy in reversed(_REFINED):
        by_setting: dict[str, list[RefinementPoint]] = {}
        for point in points:
            if point.policy == policy:
                by_setting.setdefault(point.refine, []).append(point)
        full = by_setting["dense"][0].mean_macs
        for setting, own in by_setting.items():
            cost = own[0].mean_macs
            cells = [with_interval(point.value) for point in own]
            gaps = ["–" if setting == "dense" else with_interval(point.minus_dense, signed=True) for point in own]
            body.append([_name(policy), setting, f"{cost / 1e9:.4f}", f"{cost / full:.0%}", *cells, *gaps])
    names = [titles[measure] for measure in measures]
    header = ["policy", "cells at 28, 56, 112", "mean GMACs", "of dense", *names, *(f"{n} minus dense" for n in names)]
    return Table(header, body)
