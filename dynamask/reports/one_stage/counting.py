"""Table VII of SODAR: parameters and operations, counted from built models; no weights and no pictures are needed."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import Any

import torch

from dynamask.models.build import build_solo
from dynamask.models.solo.costs import network_macs, trainable_parameters
from dynamask.presets import model_config
from dynamask.reports.comparing import paper_table
from dynamask.reports.one_stage.paper import PAPER
from dynamask.reports.writer import Heading, Paragraph, Report, Table, number

NAME = "sodar-table7"
WIDTH, HEIGHT, CLASSES = 1280, 800, 80
SHARE, ROUNDING = 0.01, 0.05e6
"""What counts as coming out: operations within this share of the paper's, parameters within its last digit."""
LABELS = {
    "solo": "SOLO",
    "sodar": "SOLO + aggregation",
    "sodar_cls": "SOLO + aggregation, +cls",
    "sodar_mask": "SOLO + aggregation, −mask",
    "sodar_cls_deformable": "SOLO + aggregation, +cls, deformable",
    "sodar_mask_deformable": "SOLO + aggregation, −mask, deformable",
}
_STEPS = {
    "sodar": "solo",
    "sodar_cls": "sodar",
    "sodar_mask": "sodar",
    "sodar_cls_deformable": "sodar_cls",
    "sodar_mask_deformable": "sodar_mask",
}
"""The row that each row's operations are held against."""


def counted(row: str) -> dict[str, int]:
    """Trainable parameters and operations of a row by the rule of the table."""
    moving = row.endswith("_deformable")
    config = model_config(f"{row.removesuffix('_deformable')}_resnet101_fpn")
    if moving:
        config = dataclasses.replace(config, aggregation=dataclasses.replace(config.aggregation, deformable=True))
    names = ("__background__", *(f"class {i}" for i in range(1, CLASSES + 1)))
    with torch.device("meta"):
        model = build_solo(dataclasses.replace(config, class_names=names))
    operations = network_macs(model, HEIGHT, WIDTH, rule="table7")
    return {"parameters": trainable_parameters(model), "operations": sum(operations.values())}


def make_counts(command: str) -> Report:
    """Every row counted, beside the paper's, and which figures come out.

    Args:
        command: that makes the report again.
    """
    paper, own = PAPER[NAME], {row: counted(row) for row in LABELS}
    rows = [_row(row, own, dict(paper.rows)) for row in LABELS]
    facts = [
        ("counted", f"{WIDTH}×{HEIGHT} pixels, {CLASSES} classes, ResNet-101"),
        ("comes out", f"operations within {SHARE:.0%} of the paper's, parameters within its last digit (0.05 M)"),
        ("command", command),
    ]
    blocks = [
        Paragraph(RULE),
        _parameters_table(rows),
        Paragraph("Operations as differences to the row above which each stands in the paper, and as totals:"),
        _operations_table(rows),
        *(Paragraph(text) for text in _said(rows)),
        Heading(f"The paper's {paper.number}"),
        Paragraph("As printed; the paper does not say what it counted with, nor on which size of picture."),
        paper_table(dataclasses.replace(paper, rows=tuple((LABELS[row], values) for row, values in paper.rows))),
    ]
    data = {"facts": dict(facts), "rows": rows, "paper": asdict(paper), "share": SHARE, "rounding": ROUNDING}
    flat = [{"table": NAME, **row} for row in rows]
    return Report(NAME, "Tab. VII: parameters and operations, counted", facts, blocks, flat, data)


RULE = (
    "The rule that fits best: multiply–accumulates, not doubled, and besides one operation for every output that has a "
    "bias, two an element for BatchNorm, four for GroupNorm, one for ReLU; trainable parameters alone. Functional "
    "convolutions are not counted, and so the aggregation network itself is not: each mask costs 936 MACs a pixel more "
    "(945 values of θ). θ is predicted by a 1×1 convolution, and the context is the sum of the levels; both are "
    "inferred from the figures that come out. Nothing here was trained."
)


def _row(row: str, own: dict[str, dict[str, int]], printed: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Figures of a row, the paper's, and whether they agree."""
    giga, mega = printed[row]
    values: dict[str, Any] = {"row": LABELS[row], "parameters": own[row]["parameters"], "paper_parameters": mega * 1e6}
    values["parameters_come_out"] = abs(own[row]["parameters"] - mega * 1e6) <= ROUNDING
    values |= {"operations": own[row]["operations"], "paper_operations": giga * 1e9}
    values["operations_come_out"] = abs(own[row]["operations"] / (giga * 1e9) - 1) <= SHARE
    base = _STEPS.get(row)
    step = None if base is None else own[row]["operations"] - own[base]["operations"]
    theirs = None if base is None else (giga - printed[base][0]) * 1e9
    values |= {"against": LABELS[base] if base else "", "step": step, "paper_step": theirs}
    values["step_comes_out"] = None if base is None else abs(step / theirs - 1) <= SHARE
    return values


def _parameters_table(rows: list[dict[str, Any]]) -> Table:
    body = [
        [
            row["row"],
            f"{row['parameters'] / 1e6:.3f}",
            f"{row['paper_parameters'] / 1e6:.1f}",
            f"{(row['parameters'] - row['paper_parameters']) / 1e6:+.3f}",
            verdict(row["parameters_come_out"]),
        ]
        for row in rows
    ]
    return Table(["", "M parameters, counted", "paper", "difference", ""], body)


def _operations_table(rows: list[dict[str, Any]]) -> Table:
    body = []
    for row in rows:
        step, theirs = row["step"], row["paper_step"]
        cells = [row["row"], row["against"] or "–"]
        cells += [number(None if step is None else step / 1e9, 2, True)]
        cells += [number(None if theirs is None else theirs / 1e9, 1, True), verdict(row["step_comes_out"])]
        cells += [f"{row['operations'] / 1e9:.2f}", f"{row['paper_operations'] / 1e9:.1f}"]
        body.append([*cells, verdict(row["operations_come_out"])])
    return Table(["", "against", "G more, counted", "paper", "", "G in total, counted", "paper", ""], body)


def verdict(agrees: bool | None) -> str:
    """Whether a figure comes out, in words."""
    return "–" if agrees is None else "comes out" if agrees else "does not come out"


def _said(rows: list[dict[str, Any]]) -> list[str]:
    """What agrees and what does not."""
    fixed = [row for row in rows if "deformable" not in row["row"]]
    moving = [row for row in rows if "deformable" in row["row"]]
    steps = [row for row in fixed if row["step"] is not None]
    first = rows[0]
    gap = (first["operations"] - first["paper_operations"]) / 1e9
    return [
        f"Without moving neighbours {sum(r['parameters_come_out'] for r in fixed)} of {len(fixed)} parameter counts "
        f"and {sum(r['step_comes_out'] for r in steps)} of {len(steps)} differences in operations come out, and "
        f"{sum(r['operations_come_out'] for r in rows)} of {len(rows)} totals: plain SOLO is {gap:+.2f} G off the "
        "paper's figure, and no rule or size that was tried explains it.",
        f"With moving neighbours {sum(r['parameters_come_out'] for r in moving)} of {len(moving)} parameter counts and "
        f"{sum(r['step_comes_out'] for r in moving)} of {len(moving)} differences come out: two channels a neighbour "
        "cost next to nothing, so the paper must have added more than it says.",
    ]
