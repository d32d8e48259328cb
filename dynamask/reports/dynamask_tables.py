"""The tables of the DynaMask paper (Li et al., CVPR 2023): rows of one weights file each, under several policies."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np

from dynamask.evaluation.choices import shares
from dynamask.evaluation.lvis import FREQUENCY_KEYS, evaluate_lvis, is_federated
from dynamask.models.masks.policies import Policy
from dynamask.reports.comparison import Comparison, Evidence
from dynamask.reports.paper import PAPER, PaperTable
from dynamask.reports.render import number, significance
from dynamask.reports.rows import Contrast, Row, RowPlan, TablePlan, row_plan
from dynamask.reports.size_choices import mean_macs
from dynamask.reports.tables import MEASURES, PlanTable, TableStyle, conclusion
from dynamask.structures import MASK_SIZES
from dynamask.viz.charts import cost_quality, stacked_shares

FULL = Policy.fixed(MASK_SIZES[-1])
FCN_HEADS = tuple(f"fcn:{size}" for size in MASK_SIZES)
PYRAMIDS = {"panet": "PANet", "bifpn": "BiFPN", "nasfpn": "NAS-FPN"}
SIZE_BASED = "size-based (Eq. 8)"
SWITCH = "sizes of the switch"
_FULL_GMACS = PAPER["table7"].figure(str(FULL), "G")
SHORT_BUDGET = PAPER["table5"].figure("0.4, 0.4", "G") / _FULL_GMACS
LONG_BUDGET = PAPER["table5"].figure("1.0, 0.4", "G") / _FULL_GMACS
"""Cost of the paper's models for C_t = 0.4 and 1.0, as shares of its full branch."""


def finest(evidence: Evidence) -> Policy:
    """The policy of the finest size that weights can make."""
    return Policy.fixed(max(evidence.mask_sizes))


def _fixed_row(label: str, evidence: Evidence, size: int) -> RowPlan:
    """A row with one size for all, beside the paper's row of that policy."""
    policy = Policy.fixed(size)
    return row_plan(label, evidence, policy, paper=str(policy))


def _spent(evidence: Evidence) -> float:
    """Mean MACs of the switch's own sizes on the detections."""
    evidence.require_detections()
    return mean_macs(evidence.choice(), evidence.macs)


def _steps(rows: list[RowPlan]) -> list[Contrast]:
    """Every row against the one before; their labels end in the mask size."""
    return [Contrast(f"{b.label} − {a.label.split()[-1]}", b, a) for a, b in zip(rows, rows[1:])]


def _cost_quality(rows: list[dict[str, Any]], _differences: object) -> list[Any]:
    return [cost_quality(rows)]


def _stacked_shares(rows: list[dict[str, Any]], _differences: object) -> list[Any]:
    return [stacked_shares(rows)]


def _table1(comparison: Comparison) -> TablePlan:
    ours, heads = comparison.region_fpn, {name: comparison.branch(name) for name in FCN_HEADS}
    fcn = [
        row_plan(f"FCN head, {max(head.mask_sizes)}", head, finest(head), paper=name)
        for name, head in heads.items()
        if head is not None
    ]
    own = {s: _fixed_row(f"r-FPN, {s}", ours, s) for s in ours.mask_sizes}
    contrasts = [*_steps(fcn), *_steps(list(own.values()))]
    for row in fcn:
        size = int(row.paper.removeprefix("fcn:"))
        contrasts += [Contrast(f"r-FPN − FCN head, {size}", own[size], row)] if size in own else []
    missing = [name for name, head in heads.items() if head is None]
    return TablePlan([*fcn, *own.values()], contrasts, missing, conclude=conclude_table1, figures=_cost_quality)


def conclude_table1(differences: list[Row]) -> list[str]:
    """Sentences on the paper's claim that FCN heads stop gaining or lose AP beyond 28 and the r-FPN goes on gaining."""
    signs: dict[str, list[int]] = {}
    sentences = []
    for name in ("FCN head", "r-FPN"):
        steps = [d for d in differences if d.label in (f"{name}, 56 − 28", f"{name}, 112 − 56")]
        if len(steps) == 2:
            figures = [step.figures["segm_ap"] for step in steps]
            signs[name] = [figure.sign for figure in figures]
            changes = " and ".join(f"{number(f.mean, 4, True)} ({significance(f)})" for f in figures)
            sentences.append(f"{name}, mask AP from 28 to 56 and from 56 to 112: {changes}.")
    if len(signs) < 2:
        return sentences
    at_56, at_112 = (sign > 0 for sign in signs["FCN head"])
    heads = {
        (False, False): "stop gaining or lose beyond 28",
        (True, False): "still gain at 56 and stop gaining or lose beyond it",
        (False, True): "do not gain at 56 and gain at 112",
        (True, True): "go on gaining",
    }[at_56, at_112]
    stops, goes_on = not (at_56 or at_112), signs["r-FPN"] == [1, 1]
    outcome = "shown" if stops and goes_on else "shown in part only" if stops or goes_on else "refuted"
    return [
        *sentences,
        "The paper's contrast, that FCN heads stop gaining or lose beyond 28 and the r-FPN does not, is "
        f"{outcome} on these data: FCN heads {heads}, the r-FPN "
        f"{'goes on gaining' if goes_on else 'does not gain at every step'}.",
    ]


def _against_fcn(comparison: Comparison, fcn_row: str, our_row: str) -> TablePlan:
    """Mask R-CNN's FCN head and the r-FPN at its finest size, beside these rows of the paper."""
    fcn, ours = (
        comparison.branch("fcn:28"),
        row_plan("DynaMask, all at 112", comparison.region_fpn, FULL, paper=our_row),
    )
    if fcn is None:
        return TablePlan([ours], missing=["fcn:28"])
    theirs = row_plan("Mask R-CNN (FCN head, 28)", fcn, finest(fcn), paper=fcn_row)
    return TablePlan([theirs, ours], [Contrast("DynaMask − Mask R-CNN", ours, theirs)])


def _table2(comparison: Comparison) -> TablePlan:
    return _against_fcn(comparison, "Mask R-CNN R50 1×", "DynaMask R50 1×")


def _table3(comparison: Comparison) -> TablePlan:
    rows = []
    for evidence in comparison.evidences:
        rows.append(row_plan(f"{evidence.label}, all at {max(evidence.mask_sizes)}", evidence, finest(evidence)))
        if evidence.has_switch:
            rows.append(row_plan(f"{evidence.label}, {SWITCH}", evidence))
    return TablePlan(rows, figures=_cost_quality)


def _table4(comparison: Comparison) -> TablePlan:
    plan, pointrend = _against_fcn(comparison, "Mask R-CNN", "DynaMask"), comparison.branch("pointrend")
    if pointrend is None:
        plan.missing.append("pointrend")
        return plan
    row = row_plan("PointRend", pointrend, finest(pointrend), paper="PointRend")
    plan.contrasts.append(Contrast("DynaMask − PointRend", plan.rows[-1], row))
    plan.rows.insert(-1, row)
    return plan


def _table5(comparison: Comparison) -> TablePlan:
    main, full = comparison.main, row_plan("all at 112", comparison.main, FULL)
    rows, contrasts, sliders = [full], [], []
    for evidence in sorted(comparison.switched, key=_spent, reverse=True):
        target = evidence.checkpoint.budget_target
        trained_for = "unknown" if target is None else "none" if target >= 1 else f"{target:g} of the full MACs"
        own = row_plan(f"{evidence.label}, {SWITCH}", evidence, cells={"C_t": trained_for})
        rows.append(own)
        if evidence.macs == main.macs:
            contrasts.append(Contrast(f"{own.label} − all at 112", own, full))
        if evidence is not main and evidence.macs == main.macs and _spent(evidence) <= _spent(main):
            slider = row_plan(f"{main.label}, held to that cost", main, like=own, cells={"C_t": "slider"})
            rows.append(slider)
            contrasts.append(Contrast(f"{main.label} held to its cost − {evidence.label}", slider, own))
            sliders.append(contrasts[-1].label)
    for share in (0.8, 0.6, 0.4, 0.2):
        limit = share * main.macs[-1]
        if main.macs[0] < limit < _spent(main):
            label = f"{main.label}, held to {share:.0%}"
            rows.append(row_plan(label, main, limit=limit, cells={"C_t": "slider"}))

    def conclude(differences: list[Row]) -> list[str]:
        return [conclusion(row, interval=False) for row in differences if row.label in sliders]

    return TablePlan(rows, contrasts, conclude=conclude, figures=_cost_quality)


def _table7(comparison: Comparison) -> TablePlan:
    main = comparison.switched[0] if comparison.switched else comparison.region_fpn
    rows = [_fixed_row(f"all at {size}", main, size) for size in main.mask_sizes]
    return TablePlan(rows, _steps(rows), figures=_cost_quality)


def _table8(comparison: Comparison) -> TablePlan:
    main = comparison.main
    fixed = _fixed_row("all at 28", main, 28)
    size = row_plan(SIZE_BASED, main, Policy("size"), paper="size")
    limit = SHORT_BUDGET * main.macs[-1]
    short = row_plan(f"switch held to {SHORT_BUDGET:.0%}", main, limit=limit, paper="DynaMask (C_t = 0.4)")
    contrasts = [
        Contrast(f"switch − {rival.label}, equal MACs", row_plan("", main, like=rival), rival)
        for rival in (fixed, size)
    ]
    contrasts += [Contrast(f"{short.label} − {rival.label}", short, rival) for rival in (fixed, size)]
    full = _fixed_row("all at 112", main, 112)
    return TablePlan([fixed, size, short, row_plan(SWITCH, main), full], contrasts, figures=_stacked_shares)


def _table_s1(comparison: Comparison) -> TablePlan:
    main = comparison.main
    rows = [row_plan(SIZE_BASED, main, Policy("size"), paper="size"), _fixed_row("all at 112", main, 112)]
    for name, share in (("DynaMask (19 % ↓)", LONG_BUDGET), ("DynaMask (54 % ↓)", SHORT_BUDGET)):
        limit = share * main.macs[-1]
        if limit <= _spent(main):
            rows.append(row_plan(f"{main.label}, held to {share:.0%}", main, limit=limit, paper=name))
    switched = sorted(comparison.switched, key=_spent, reverse=True)
    rows += [row_plan(f"{evidence.label}, {SWITCH}", evidence) for evidence in switched]
    return TablePlan(rows, measures=("segm_ap", "boundary_ap"), figures=_stacked_shares)


def _table_s2(comparison: Comparison) -> TablePlan:
    plan = _against_fcn(comparison, "Mask R-CNN", "DynaMask")
    for row in plan.rows:
        frequencies = ap_by_frequency(row.evidences[0], row.members[0].policy)
        row.cells.update({name: number(value, 3) for name, value in frequencies.items()})
    if not any(categories_by_frequency(comparison).values()):
        text = "The categories of these data carry no `frequency`, so that APr, APc and APf are empty; LVIS's do."
        plan.conclude = lambda _differences: [text]
    plan.measures = ("segm_ap", "boundary_ap")
    return plan


def categories_by_frequency(comparison: Comparison) -> dict[str, list[int]]:
    """Category ids by "r", "c" and "f"; empty lists where the categories carry no frequency."""
    categories = comparison.dataset.coco["categories"]
    return {key: [c["id"] for c in categories if c.get("frequency") == key] for key in FREQUENCY_KEYS.values()}


def ap_by_frequency(evidence: Evidence, policy: Policy) -> dict[str, float | None]:
    """Mask AP of rare, common and frequent classes, "APr", "APc" and "APf"; None without a true instance of such.

    On LVIS these follow its federated rule, and "LVIS AP" comes before them; elsewhere they are COCO's AP.
    """
    comparison, choice = evidence.comparison, evidence.choice(policy)
    coco = comparison.dataset.coco
    if is_federated(coco):
        figures = evaluate_lvis(coco, evidence.results(choice), ("segm",), comparison.image_ids)["segm"]
        return {"LVIS AP": figures["AP"], **{name: figures[name] for name in FREQUENCY_KEYS}}
    ap = evidence.precision.ap
    matches, categories = ap.match(choice, "segm"), categories_by_frequency(comparison)
    found = {}
    for name, key in FREQUENCY_KEYS.items():
        value = float(ap.average_precision(matches, categories=categories[key])[0])
        found[name] = None if np.isnan(value) else value
    return found


def _table_s3(comparison: Comparison) -> TablePlan:
    region_fpn = comparison.region_fpn
    ours = row_plan("r-FPN (DynaMask)", region_fpn, finest(region_fpn), paper="DynaMask")
    rows, contrasts = [], []
    for name, title in PYRAMIDS.items():
        other = comparison.branch(name)
        if other is not None:
            cells = {"MACs against the r-FPN": f"{other.macs[-1] / region_fpn.macs[-1] - 1:+.1%}"}
            rows.append(row_plan(title, other, finest(other), paper=name, cells=cells))
            contrasts.append(Contrast(f"r-FPN − {title}", ours, rows[-1]))
    missing = [name for name in PYRAMIDS if comparison.branch(name) is None]
    return TablePlan([*rows, ours], contrasts, missing, conclude=_conclude_s3, figures=_cost_quality)


def _conclude_s3(differences: list[Row]) -> list[str]:
    """A sentence on the r-FPN against each other pyramid."""
    measures = ("segm_ap", "boundary_ap", "boundary_iou")
    words = [[f"{MEASURES[m]} {significance(row.figures[m])}" for m in measures] for row in differences]
    return [f"{row.label}: {'; '.join(own)}." for row, own in zip(differences, words)]


def _row_values(plan: RowPlan, comparison: Comparison, paper: PaperTable) -> dict[str, Any]:
    """Columns of a row: provenance, policy, cost, shares of the sizes, the six mask APs and the paper's figures."""
    (member,) = plan.members
    evidence = member.evidence
    evidence.require_detections()
    choice = member.choice()
    return {
        **evidence.provenance(),
        "policy": str(member.policy),
        "limit": member.held_to(),
        "mean_macs": mean_macs(choice, evidence.macs),
        "full_macs": evidence.macs[-1],
        **{f"share_{size}": share for size, share in zip(MASK_SIZES, shares(choice).tolist())},
        **evidence.ap(choice),
        "paper_AP": paper.fraction(plan.paper),
        "paper_GMACs": paper.figure(plan.paper, "G"),
        "paper_setting": paper.setting if plan.paper else None,
    }


def _difference_values(contrast: Contrast, comparison: Comparison) -> dict[str, Any]:
    member = contrast.first.members[0]
    return {**member.evidence.provenance(), "policy": str(member.policy), "limit": member.held_to()}


def _missing(branches: list[str], comparison: Comparison) -> list[str]:
    """A sentence on mask branches without weights, with the command that trains one."""
    if not branches:
        return []
    start = comparison.evidences[0]
    words = ["dynamask", "train", "--data", "DATA", "--model", start.checkpoint.model, "--mask-branch", branches[0]]
    words += ["--init", start.name, "--freeze", "detector", "--out", f"runs/{branches[0].replace(':', '-')}"]
    others = "" if len(branches) == 1 else "; the others need their own name in its place"
    return [
        f"Rows are missing: no weights with the mask branch {', '.join(branches)} were given. "
        f"`{shlex.join(words)}` trains {branches[0]} on the same detector{others}."
    ]


STYLE = TableStyle(
    paper="",
    measures=("segm_ap", "boundary_ap", "mask_iou", "boundary_iou"),
    row_values=_row_values,
    difference_values=_difference_values,
    seeds=False,
    details=lambda _contrast: {},
    missing=_missing,
    differences="Paired differences, on the same resampled sets of pictures:",
    how=(
        "AP over all classes and areas, scores above 0.05, in 0–1. MACs are multiply–accumulates of the mask branch "
        "for an instance, counted from its layers (1 MAC = 2 FLOPs). Brackets are 95 % bootstrap intervals over "
        "pictures, those of AP centred on it."
    ),
    units=lambda _paper: (
        "AP in per cent, G in giga multiply–accumulates, as printed. Its data and models are others than ours."
    ),
    data={"mask_sizes": list(MASK_SIZES)},
)
TABLES: dict[str, PlanTable] = {
    "table1": _table1,
    "table2": _table2,
    "table3": _table3,
    "table4": _table4,
    "table5": _table5,
    "table7": _table7,
    "table8": _table8,
    "tableS1": _table_s1,
    "tableS2": _table_s2,
    "tableS3": _table_s3,
}
"""The tables by the name of their report."""
