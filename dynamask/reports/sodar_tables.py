"""Tables II–VI and VIII of the SODAR paper: rows of several seeds of one-stage models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dynamask.config import AggregationConfig
from dynamask.evaluation.bootstrap import interval_of
from dynamask.models.solo.costs import decoded_values, trainable_parameters
from dynamask.reports.comparison import AP_AT_IOU, Comparison, Evidence
from dynamask.reports.options import VOTING_IOUS
from dynamask.reports.paper import STAR_IOUS, PaperTable, gains_by_iou
from dynamask.reports.render import number, significance, with_interval
from dynamask.reports.rows import Contrast, Member, Row, RowPlan, TablePlan
from dynamask.reports.sodar_ablations import plan_ablations
from dynamask.reports.sodar_against_dynamask import plan_all_models
from dynamask.reports.sodar_models import (
    Group,
    groups_of,
    interpolation,
    missing_variant,
    paper_row,
    plain_preset,
    reference_group,
    same_base,
    same_design,
    sodar_as_published,
    train_command,
    trained_config,
)
from dynamask.reports.tables import PlanTable, TableStyle, between_trainings, conclusion
from dynamask.structures import DynaMaskError, Interval
from dynamask.viz import charts

VOTING_SCHEMES = ("average", "score", "iou")
_SIGNS = {"+cls": "cls", "−mask": "mask"}
"""Variants of the presets by their signs in the paper."""


def plan_voting(comparison: Comparison, ious: Sequence[float] = VOTING_IOUS) -> TablePlan:
    """Table II: mask voting on plain weights, every scheme at every overlap from which a candidate votes.

    Raises:
        DynaMaskError: an overlap is out of range, or no plain weights were given.
    """
    if not ious or not all(0 < iou <= 1 for iou in ious):
        raise DynaMaskError(f"voting overlaps {', '.join(map(str, ious))} are out of range; give IoUs in 0–1")
    groups = [group for group in groups_of(comparison) if group.config.aggregation is None]
    if not groups:
        raise DynaMaskError("mask voting is for plain SOLO and SOLOv2, and none were given; give such weights")
    rows, contrasts = [], []
    for group in groups:
        base = RowPlan(f"{group.label}, no voting", group.members)
        rows.append(base)
        for scheme in VOTING_SCHEMES:
            for iou in ious:
                voting = tuple(Member(evidence.with_voting(scheme, iou)) for evidence in group.evidences)
                label = f"{group.label}, {scheme}" + (f" from IoU {iou:g}" if len(ious) > 1 else "")
                rows.append(RowPlan(label, voting, data={"voting": scheme, "voting_iou": iou}))
                contrasts.append(Contrast(f"{label} − no voting", rows[-1], base))
    return TablePlan(rows, contrasts, conclude=partial(_conclude_voting, searched=len(ious) > 1))


def _conclude_voting(differences: list[Row], searched: bool) -> list[str]:
    """A sentence on the change by the best scheme."""
    known = [row for row in differences if row.figures["segm_ap"].mean is not None]
    if not known:
        return []
    best = max(known, key=lambda row: row.figures["segm_ap"].mean or 0.0)
    change = best.figures["segm_ap"]
    note = " The overlap was chosen on the same pictures, which favours it." if searched else ""
    return [
        "The paper gains 0.2 points of AP by averaging and at most 0.3 with weights. Here the best scheme, "
        f"{best.label}, changes mask AP by {with_interval(change, 4, True)}: {significance(change)}.{note}"
    ]


def plan_aggregation(comparison: Comparison) -> TablePlan:
    """Table III: SOLO and SOLOv2 without and with the aggregation."""
    groups = groups_of(comparison)
    plain, sodar = [g for g in groups if g.config.aggregation is None], sodar_as_published(groups)
    if not plain and not sodar:
        raise DynaMaskError("neither plain weights nor SODAR as it is were given; give both, of one backbone")
    rows = {group.label: RowPlan(group.label, group.members, paper_row(group)) for group in (*plain, *sodar)}
    contrasts, missing = [], []
    for base in plain:
        own = [group for group in sodar if same_base(group.config, base.config)]
        contrasts += [Contrast(f"{g.label} − {base.label}", rows[g.label], rows[base.label]) for g in own]
        if not own:
            missing.append(missing_variant(reference_group(groups), f"SODAR on {base.label}", ""))
    for group in sodar:
        if not any(same_base(group.config, base.config) for base in plain):
            command = train_command(plain_preset(group.config).name, group, {}, "plain")
            missing.append(f"No plain weights were given to compare {group.label} with; `{command}` trains them.")
    ordered = sorted((*plain, *sodar), key=lambda g: (g.config.kind, g.config.aggregation is not None))
    return TablePlan(
        [rows[group.label] for group in ordered],
        contrasts,
        missing,
        conclude=conclude_aggregation,
        figures=_gains_figure,
    )


def _gains_figure(_rows: list[dict[str, Any]], differences: list[dict[str, Any]]) -> list[go.Figure]:
    if not differences:
        return []
    pairs = (("SODAR*-R50", "SOLOv2-R50"), ("SODAR-R50", "SOLO-R50"))
    printed = [(f"paper, COCO: {a} − {b}, AP*", STAR_IOUS, gains_by_iou(a, b)) for a, b in pairs]
    return [charts.gains_by_iou(differences, printed)]


def conclude_aggregation(differences: list[Row]) -> list[str]:
    """Sentences on the paper's claim that gains grow with the IoU threshold, one per difference."""
    sentences = []
    for row in differences:
        rises = {iou: Interval(**rise) for iou, rise in row.details["rise"].items()}
        means = [rise.mean for rise in rises.values()]
        if any(mean is None for mean in means):
            continue
        if all(rise.sign > 0 for rise in rises.values()):
            verdict = "The pattern holds on these data"
        elif any(rise.sign < 0 for rise in rises.values()):
            verdict = "The pattern does not hold on these data"
        elif min(means) <= 0:
            verdict = "The figures do not show the pattern, but the differences are not significant"
        else:
            verdict = "The figures show the pattern, but the differences are not significant"
        steps = " and ".join(f"{with_interval(rise, 4, True)} at 0.{iou}" for iou, rise in rises.items())
        by_iou = ", ".join(f"{number(row.figures[f'segm_ap{i}'].mean, 4, True)} at 0.{i}" for i in (50, 70, 80, 90))
        gain = row.figures["segm_ap"]
        trainings = between_trainings(row, "segm_ap")
        sentences.append(
            f"{row.label}: mask AP {with_interval(gain, 4, True)}, {significance(gain)}{trainings}; by threshold "
            f"{by_iou}. The paper's point is that gains are larger at high thresholds. {verdict}: the gain at a high "
            f"threshold minus that at 0.50 is {steps}."
        )
    return sentences


def plan_interpolation(comparison: Comparison) -> TablePlan:
    """Table IV: SODAR as published, with a finer classification grid, and with a coarser mask grid."""
    designs = (
        None,
        AggregationConfig(),
        AggregationConfig(neighbours="corners"),
        AggregationConfig(interpolation="between"),
    )
    groups = [
        group
        for group in groups_of(comparison)
        if any(same_design(group.config.aggregation, design) for design in designs)
    ]
    sodar = [group for group in groups if group.config.aggregation]
    if not sodar:
        raise DynaMaskError("no weights of SODAR were given; give some, as is, with +cls or with −mask")
    rows = {group.label: _interpolation_row(group, comparison) for group in groups}
    contrasts = []
    for group in sodar:
        if interpolation(group.config):
            bases = [g for g in sodar_as_published(groups) if same_base(g.config, group.config, grids=False)]
            contrasts += [Contrast(f"{group.label} − {b.label}", rows[group.label], rows[b.label]) for b in bases[:1]]
    given, like = {interpolation(group.config) for group in sodar}, reference_group(groups_of(comparison))
    missing = [missing_variant(like, f"SODAR {sign}", _SIGNS[sign]) for sign in _SIGNS if sign not in given]
    missing += [] if "" in given else [missing_variant(like, "SODAR as is", "")]
    figures = _against_macs("Mask interpolation")
    return TablePlan(list(rows.values()), contrasts, missing, conclude=_conclude, figures=figures)


def _interpolation_row(group: Group, comparison: Comparison) -> RowPlan:
    """A row with the number of mask values that decoding holds in memory for the first picture."""
    image, _ = comparison.dataset[comparison.indices[0]]
    batch, _ = group.evidences[0].predictor.model.transform([image.float() / 255.0])
    height, width = batch.tensors.shape[-2:]
    values = decoded_values(group.config, int(height), int(width))
    kind = interpolation(group.config) or ("as is" if group.config.aggregation else "–")
    titles = {"dense": "M values, all cells", "held": "M values, held here"}
    cells = {"mask-itp": kind, **{title: f"{values[key] / 1e6:.3f}" for key, title in titles.items()}}
    data = {"mask_itp": kind, **{f"decoded_values_{key}": value for key, value in values.items()}}
    return RowPlan(group.label, group.members, paper_row(group, "R101"), cells, data)


def plan_deformable(comparison: Comparison) -> TablePlan:
    """Table V: neighbours that move by learned offsets, against neighbours that do not."""
    groups = [group for group in groups_of(comparison) if group.config.aggregation is not None]
    if not groups:
        raise DynaMaskError("no weights of SODAR were given; give some with deformable neighbours and some without")
    moving = [group for group in groups if group.config.aggregation.deformable]
    pairs = [
        (own, base)
        for own in moving
        for base in groups
        if not base.config.aggregation.deformable and _at_rest(own) == _at_rest(base)
    ]
    shown = [group for group in groups if group in moving or any(group is base for _, base in pairs)]
    rows = {}
    for group in shown or sodar_as_published(groups) or groups[:1]:
        cells = {
            "mask-itp": interpolation(group.config) or "–",
            "moving": "yes" if group.config.aggregation.deformable else "–",
        }
        rows[group.label] = RowPlan(group.label, group.members, paper_row(group, "R101"), cells)
    contrasts = [Contrast(f"{own.label} − {b.label}", rows[own.label], rows[b.label]) for own, b in pairs]
    like = reference_group(groups_of(comparison))
    missing = [] if moving else [missing_variant(like, "deformable neighbours", "deformable")]
    for group in moving:
        if not any(own is group for own, _ in pairs):
            variant = _SIGNS.get(interpolation(group.config), "")
            missing.append(missing_variant(like, f"{group.label} without deformable neighbours", variant))
    figures = _against_macs("Deformable neighbours")
    return TablePlan(list(rows.values()), contrasts, missing, conclude=_conclude, figures=figures)


def _at_rest(group: Group) -> dict[str, Any]:
    """The configuration of a model with SODAR's aggregation, apart from whether its neighbours move."""
    values = trained_config(group.config)
    return {**values, "aggregation": {**values["aggregation"], "deformable": False}}


def _conclude(differences: list[Row]) -> list[str]:
    return [conclusion(row) for row in differences]


def _against_macs(title: str) -> Callable[[list[dict[str, Any]], list[dict[str, Any]]], list[go.Figure]]:
    def figures(rows: list[dict[str, Any]], _differences: list[dict[str, Any]]) -> list[go.Figure]:
        shown = [{**row, "group": row["row"]} for row in rows]
        return [charts.ap_against_macs(shown, f"{title}: mask AP against MACs")]

    return figures


def _provenance(evidences: Sequence[Evidence], comparison: Comparison) -> dict[str, Any]:
    """Columns that say where the figures of a row come from; those of several weights are joined by commas."""
    checkpoints = [evidence.checkpoint for evidence in evidences]
    seen = sorted({checkpoint.images_seen for checkpoint in checkpoints}, key=str)
    return {
        "weights": ", ".join(evidence.label for evidence in evidences),
        "model": checkpoints[0].model if checkpoints else None,
        "checkpoint": ", ".join(checkpoint.sha256[:8] for checkpoint in checkpoints),
        "images_seen": seen[0] if len(seen) == 1 else ", ".join(map(str, seen)) or None,
        "training_seeds": ", ".join("unknown" if c.seed is None else str(c.seed) for c in checkpoints),
        "seeds": len(evidences),
        "data": comparison.source.data,
        "split": comparison.source.split,
        "pictures": len(comparison.indices),
    }


def _row_values(plan: RowPlan, comparison: Comparison, paper: PaperTable) -> dict[str, Any]:
    """Columns of a row: provenance, AP by area, MACs of a picture, parameters and the paper's figures."""
    values = _provenance(plan.evidences, comparison)
    known = [member.ap() for member in plan.members]
    for area in ("APS", "APM", "APL"):
        own = [ap[area] for ap in known if ap[area] is not None]
        values[area] = float(np.mean(own)) if own else None
    parts = [member.picture_macs() for member in plan.members]
    for name in ("backbone", "head", "masks", "total", "suppress"):
        values[f"{name}_macs"] = float(np.mean([part[name] for part in parts])) if parts else None
    first = plan.evidences[0] if plan.members else None
    counted = first is not None and first.one_stage
    values["parameters"] = trainable_parameters(first.predictor.model) if counted else None
    paper_values = {"paper_AP": paper.fraction(plan.paper), "paper_AP*": paper.fraction(plan.paper, "AP*")}
    return values | paper_values | {"paper_row": plan.paper or None} | plan.data


def _difference_values(contrast: Contrast, comparison: Comparison) -> dict[str, Any]:
    """Provenance of a difference; ``seeds`` is the number of pairs, 0 where the means are compared."""
    pairs = contrast.pairs
    used = list(dict.fromkeys(member.evidence for pair in pairs for member in pair)) or contrast.evidences
    return {**_provenance(used, comparison), "seeds": len(pairs)}


def _details(contrast: Contrast) -> dict[str, Any]:
    """The difference at every IoU threshold, and how much larger it is at 0.80 and 0.90 than at 0.50."""
    by_iou = np.mean(contrast.draws("segm_by_iou"), axis=0)
    rises = {"80": by_iou[6] - by_iou[0], "90": by_iou[8] - by_iou[0]}
    return {
        "by_iou": [interval_of(draws, centre=True).to_dict() for draws in by_iou],
        "rise": {iou: interval_of(draws, centre=True).to_dict() for iou, draws in rises.items()},
    }


def _kinds(comparison: Comparison) -> dict[str, str]:
    return {e.checkpoint.sha256: group.label for group in groups_of(comparison) for e in group.evidences}


def _units(paper: PaperTable) -> str:
    star = (
        "AP* is of models trained on COCO and evaluated on LVIS' finer masks; scenes of shapes have one kind of mask, "
        "which is exact, so AP50 … AP90 here correspond to AP*50 … AP*90. "
    )
    other = "Shapes are not COCO: these are other data and other models."
    return f"AP in per cent, as printed. {star if 'AP*' in paper.columns else ''}{other}"


_MEASURES = ("segm_ap", *AP_AT_IOU, "boundary_ap")
STYLE = TableStyle(
    paper="SODAR",
    measures=_MEASURES,
    row_values=_row_values,
    difference_values=_difference_values,
    seeds=True,
    details=_details,
    missing=lambda sentences, _comparison: sentences,
    differences="Differences, paired by seed where both models have it, on the same resampled sets of pictures:",
    how=(
        "AP over all classes and areas, scores above 0.05, in 0–1; AP50 … AP90 at one IoU threshold, on the same "
        "masks. A row is the mean over the seeds of one model, and its range is that of single seeds. Brackets are "
        "95 % bootstrap intervals over pictures, centred on AP; they do not include the variation between seeds. MACs "
        "are multiply–accumulates (1 MAC = 2 FLOPs) of a mean picture."
    ),
    units=_units,
    kinds=_kinds,
)
TABLES: dict[str, PlanTable] = {
    "sodar-table2": plan_voting,
    "sodar-table3": plan_aggregation,
    "sodar-table4": plan_interpolation,
    "sodar-table5": plan_deformable,
    "sodar-table6": plan_ablations,
    "sodar-table8": plan_all_models,
}
"""The tables that need weights, by the name of their report."""
