"""Table VIII of the SODAR paper: all given weights, and SODAR against DynaMask at equal MACs of a whole picture."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dynamask.models.masks.policies import Policy
from dynamask.reports.comparison import Comparison, Evidence
from dynamask.reports.render import Paragraph, Table, scaled, significance, with_interval
from dynamask.reports.rows import Contrast, Member, Row, RowPlan, TablePlan, row_plan
from dynamask.reports.size_choices import mean_macs
from dynamask.reports.sodar_models import PLAIN, groups_of, name_of
from dynamask.structures import DynaMaskError
from dynamask.viz.charts import ap_against_macs

NOT_BUILT = (
    ("TensorMask, TensorMask+agg", "not implemented"),
    (
        "MR-CNN, MaskLab+, YOLACT, PolarMask, MEInst, BlendMask, CenterMask",
        "not implemented (Mask R-CNN's FCN head is one of the baselines of `dynamask report table2`)",
    ),
)
"""The paper's rows that no weights can be given for, and why."""
BUDGETS = (0.8, 0.6, 0.4)
"""Mean MACs of a mask that a switch is held to, as shares of the full branch."""
COSTS = (
    "MACs are means over the pictures and count convolutions and matrix products of the network as it runs. For "
    "DynaMask: backbone and FPN, RPN and box head on the proposals of each picture, the mask branch on each detection "
    "with its projections, and the switch where it chooses. For one-stage models: backbone and FPN, head, and the "
    "decoding of every cell above the score threshold; the cells that are kept are decoded again if the candidates' "
    "masks are too many to hold. Not in the total: the mask IoUs of matrix NMS, at most as many as their column says. "
    "At equal MACs the switch's one price on MACs is set so that a mean picture costs as much; above what the switch "
    "spends by itself the price is a reward. Both models see pictures at the size of their own configuration."
)
_EQUAL, _DEARER, _CHEAPER = "equal", "dearer", "cheaper"


def plan_all_models(comparison: Comparison) -> TablePlan:
    """All given weights by the MACs of a whole picture, and one-stage models against DynaMask at equal MACs."""
    if not comparison.evidences:
        raise DynaMaskError("no weights were given; give one-stage weights, and DynaMask's to compare them with")
    paper_rows = {"SODAR, +cls, deformable": "SODAR", "SODAR*, +cls, deformable": "SODAR*"}
    one_stage = []
    for group in groups_of(comparison, tuple(PLAIN)):
        name = name_of(group.config)
        one_stage.append(_with_costs(RowPlan(group.label, group.members, paper_rows.get(name, name))))
    rows = [*one_stage, *(_with_costs(row) for e in comparison.two_stage for row in _two_stage_rows(e))]
    rivals = [evidence for evidence in comparison.two_stage if evidence.predictor.has_switch][:1]
    contrasts = []
    for row in one_stage:
        for rival in rivals:
            equal = row_at_equal_macs(row, rival)
            contrasts.append(Contrast(f"{row.label} − {equal.label}", row, equal))
            rows += [_with_costs(equal)] if equal.data["cost"] == _EQUAL else []
    missing = ["No weights of DynaMask were given, so there is no row at equal MACs; add `shapes` to --weights."]
    return TablePlan(
        rows,
        contrasts,
        [] if rivals else missing,
        conclude=lambda differences: [_conclude(row, c) for row, c in zip(differences, contrasts)],
        figures=_figures,
        blocks=[
            Paragraph(COSTS),
            Paragraph("Rows of the paper's table that are not here:"),
            Table(["", "why"], [list(row) for row in NOT_BUILT]),
        ],
    )


def _two_stage_rows(evidence: Evidence) -> list[RowPlan]:
    """Every fixed size, the switch's own sizes, and the switch held to budgets."""
    label, macs = f"DynaMask {evidence.label}", evidence.macs
    rows = [row_plan(f"{label}, all at {size}", evidence, Policy.fixed(size)) for size in evidence.mask_sizes]
    if not evidence.predictor.has_switch:
        return rows
    rows.append(row_plan(f"{label}, sizes of the switch", evidence))
    for share in BUDGETS:
        if macs[0] < share * macs[-1] < _spent(evidence):
            rows.append(row_plan(f"{label}, switch held to {share:.0%}", evidence, limit=share * macs[-1]))
    return rows


def _spent(evidence: Evidence) -> float:
    """Mean MACs of a mask that the switch spends by itself; 0 without a detection."""
    return mean_macs(evidence.choice(), evidence.macs) if evidence.detections.results else 0.0


def row_at_equal_macs(row: RowPlan, rival: Evidence) -> RowPlan:
    """DynaMask at the MACs of a picture of a one-stage row, or at its nearest size if it cannot spend as much."""
    total = float(np.mean([member.picture_macs()["total"] for member in row.members]))
    detections = len(rival.detections.results) / max(len(rival.collected.picture_macs), 1)
    shared = Member(rival).picture_macs()["total"] - _spent(rival) * detections
    limit = (total - shared) / max(detections, 1e-9)
    label = f"DynaMask {rival.label}"
    if rival.macs[0] < limit < rival.macs[-1]:
        member, cost = Member(rival, limit=limit, reward=True), _EQUAL
        label = f"{label}, at the MACs of {row.label}"
    else:
        size, cost = (rival.mask_sizes[0], _DEARER) if limit <= rival.macs[0] else (rival.mask_sizes[-1], _CHEAPER)
        member = Member(rival, Policy.fixed(size))
        label = f"{label}, all at {size}"
    return RowPlan(label, (member,), data={"held_to": row.label, "cost": cost})


def _with_costs(row: RowPlan) -> RowPlan:
    """A row with its group in the figure, and the MACs of matrix NMS."""
    group, member = row.label, row.members[0]
    if not member.evidence.one_stage:
        fixed = member.limit is None and member.policy.size is not None
        group = f"{group.partition(',')[0]}, {'one size for all' if fixed else 'the switch at several budgets'}"
    suppress = float(np.mean([member.picture_macs()["suppress"] for member in row.members]))
    cells = {**row.cells, "matrix NMS, at most": scaled(suppress or None, 1e9)}
    return dataclasses.replace(row, cells=cells, data={**row.data, "group": group})


def _conclude(row: Row, contrast: Contrast) -> str:
    """A difference in words, with the MACs of both sides."""
    first, second = (
        float(np.mean([member.picture_macs()["total"] for member in side.members])) / 1e9
        for side in (contrast.first, contrast.second)
    )
    how = {
        _EQUAL: "at equal MACs of a picture",
        _DEARER: "though DynaMask cannot spend so little: its cheapest is dearer",
        _CHEAPER: "though DynaMask cannot spend so much: its dearest is cheaper",
    }[contrast.second.data["cost"]]
    gains = " and ".join(
        f"{title} {with_interval(row.figures[measure], 4, True)} ({significance(row.figures[measure])})"
        for measure, title in (("segm_ap", "mask AP"), ("boundary_ap", "boundary AP"))
    )
    return f"{row.label}, {how} ({first:.3f} G against {second:.3f} G): {gains}."


def _figures(rows: list[dict[str, Any]], _differences: list[dict[str, Any]]) -> list[go.Figure]:
    shown = [row for row in rows if row.get("cost") in (None, _EQUAL)]
    return [ap_against_macs(shown, "Mask AP against the MACs of a whole picture")]
