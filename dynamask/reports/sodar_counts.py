"""Table VII of the SODAR paper: parameters and operations, counted from built models without weights or pictures."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import Any

import torch

from dynamask.models.build import build_solo
from dynamask.models.solo.costs import network_macs, trainable_parameters
from dynamask.presets import model_config
from dynamask.reports.paper import PAPER
from dynamask.reports.render import Heading, Paragraph, Report, Table, number, scaled
from dynamask.reports.tables import paper_table

NAME = "sodar-table7"
WIDTH, HEIGHT, CLASSES = 1280, 800, 80
SHARE, ROUNDING = 0.01, 0.05e6
"""Operations agree if they are within this share of the paper's, parameters if they are within its last digit."""
LABELS = {
    "solo": "SOLO",
    "sodar": "SOLO + aggregation",
    "sodar_cls": "SOLO + aggregation, +cls",
    "sodar_mask": "SOLO + aggregation, −mask",
    "sodar_cls_deformable": "SOLO + aggregation, +cls, deformable",
    "sodar_mask_deformable": "SOLO + aggregation, −mask, deformable",
}
_BASES = {
    "sodar": "solo",
    "sodar_cls": "sodar",
    "sodar_mask": "sodar",
    "sodar_cls_deformable": "sodar_cls",
    "sodar_mask_deformable": "sodar_mask",
}
"""The row that the operations of a row are compared with."""
RULE = (
    "The counting rule that fits best: multiply–accumulates, not doubled, plus one operation for every output that has "
    "a bias, two per element for BatchNorm, four for GroupNorm, one for ReLU; only trainable parameters. Functional "
    "convolutions are not counted, and so the aggregation network itself is not: each mask costs 936 MACs a pixel more "
    "(945 values of θ). θ is predicted by a 1×1 convolution, and the context is the sum of the levels; both are "
    "inferred from the figures that agree. Nothing here was trained."
)


def counts_of(row: str) -> dict[str, int]:
    """Trainable parameters and operations of a row by the rule of the table."""
    config = model_config(f"{row.removesuffix('_deformable')}_resnet101_fpn")
    if row.endswith("_deformable"):
        config = dataclasses.replace(config, aggregation=dataclasses.replace(config.aggregation, deformable=True))
    names = ("__background__", *(f"class {i}" for i in range(1, CLASSES + 1)))
    with torch.device("meta"):
        model = build_solo(dataclasses.replace(config, class_names=names))
    operations = network_macs(model, HEIGHT, WIDTH, rule="table7")
    return {"parameters": trainable_parameters(model), "operations": sum(operations.values())}


def make_counts(command: str) -> Report:
    """Count every row, and compare it with the paper's.

    Args:
        command: the command that makes the report.
    """
    paper, counts = PAPER[NAME], {row: counts_of(row) for row in LABELS}
    rows = [_row(row, counts, dict(paper.rows)) for row in LABELS]
    facts = [
        ("counted", f"{WIDTH}×{HEIGHT} pixels, {CLASSES} classes, ResNet-101"),
        ("comes out", f"operations within {SHARE:.0%} of the paper's, parameters within its last digit (0.05 M)"),
        ("command", command),
    ]
    blocks = [
        Paragraph(RULE),
        _parameters_table(rows),
        Paragraph("Operations as differences to the row that each is compared with, and as totals:"),
        _operations_table(rows),
        *map(Paragraph, _conclude(rows)),
        Heading(f"The paper's {paper.number}"),
        Paragraph("As printed; the paper does not say what it counted with, nor on which size of picture."),
        paper_table(dataclasses.replace(paper, rows=tuple((LABELS[row], values) for row, values in paper.rows))),
    ]
    data = {"facts": dict(facts), "rows": rows, "paper": asdict(paper), "share": SHARE, "rounding": ROUNDING}
    flat = [{"table": NAME, **row} for row in rows]
    return Report(NAME, "Tab. VII: parameters and operations, counted", facts, blocks, flat, data)


def _row(row: str, counts: dict[str, dict[str, int]], printed: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Counts of a row, the paper's, and whether they agree."""
    giga, mega = printed[row]
    parameters, operations = counts[row]["parameters"], counts[row]["operations"]
    values = {
        "row": LABELS[row],
        "parameters": parameters,
        "paper_parameters": mega * 1e6,
        "parameters_come_out": abs(parameters - mega * 1e6) <= ROUNDING,
        "operations": operations,
        "paper_operations": giga * 1e9,
        "operations_come_out": abs(operations / (giga * 1e9) - 1) <= SHARE,
    }
    base = _BASES.get(row)
    if base is None:
        return values | {"against": "", "step": None, "paper_step": None, "step_comes_out": None}
    step, theirs = operations - counts[base]["operations"], (giga - printed[base][0]) * 1e9
    agrees = abs(step / theirs - 1) <= SHARE
    return values | {"against": LABELS[base], "step": step, "paper_step": theirs, "step_comes_out": agrees}


def _parameters_table(rows: list[dict[str, Any]]) -> Table:
    body = []
    for row in rows:
        ours, theirs = row["parameters"] / 1e6, row["paper_parameters"] / 1e6
        agrees = _agreement(row["parameters_come_out"])
        body.append([row["row"], f"{ours:.3f}", f"{theirs:.1f}", f"{ours - theirs:+.3f}", agrees])
    return Table(["", "M parameters, counted", "paper", "difference", ""], body)


def _operations_table(rows: list[dict[str, Any]]) -> Table:
    body = []
    for row in rows:
        step, theirs = (None if row[key] is None else row[key] / 1e9 for key in ("step", "paper_step"))
        body.append(
            [
                row["row"],
                row["against"] or "–",
                number(step, 2, True),
                number(theirs, 1, True),
                _agreement(row["step_comes_out"]),
                scaled(row["operations"], 1e9, 2),
                scaled(row["paper_operations"], 1e9, 1),
                _agreement(row["operations_come_out"]),
            ]
        )
    return Table(["", "against", "G more, counted", "paper", "", "G in total, counted", "paper", ""], body)


def _agreement(agrees: bool | None) -> str:
    return "–" if agrees is None else "agrees" if agrees else "does not agree"


def _conclude(rows: list[dict[str, Any]]) -> list[str]:
    """Count the figures that agree, without and with moving neighbours."""
    fixed = [row for row in rows if "deformable" not in row["row"]]
    moving = [row for row in rows if "deformable" in row["row"]]
    steps = [row for row in fixed if row["step"] is not None]
    gap = (rows[0]["operations"] - rows[0]["paper_operations"]) / 1e9
    return [
        f"Without moving neighbours {sum(r['parameters_come_out'] for r in fixed)} of {len(fixed)} parameter counts "
        f"and {sum(r['step_comes_out'] for r in steps)} of {len(steps)} differences in operations agree, and "
        f"{sum(r['operations_come_out'] for r in rows)} of {len(rows)} totals: plain SOLO is {gap:+.2f} G off the "
        "paper's figure, which no rule or size that was tried explains.",
        f"With moving neighbours {sum(r['parameters_come_out'] for r in moving)} of {len(moving)} parameter counts and "
        f"{sum(r['step_comes_out'] for r in moving)} of {len(moving)} differences agree: two channels per neighbour "
        "cost next to nothing, so the paper must have added more than it describes.",
    ]
