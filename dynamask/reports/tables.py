"""The tables of both papers as reports: what a table is, and how it is measured and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dynamask.reports.catalogue import REPORTS
from dynamask.reports.comparison import Comparison, Evidence
from dynamask.reports.paper import AP_COLUMNS, PAPER, PaperTable, row_name
from dynamask.reports.render import (
    Block,
    Figure,
    Heading,
    Paragraph,
    Report,
    Table,
    number,
    scaled,
    significance,
    with_interval,
)
from dynamask.reports.rows import Contrast, Row, RowPlan, TablePlan, measure_row
from dynamask.structures import MASK_SIZES, Interval

MEASURES = {
    "segm_ap": "mask AP",
    **{f"segm_ap{iou}": f"AP{iou}" for iou in (50, 60, 70, 75, 80, 90)},
    "boundary_ap": "boundary AP",
    "mask_iou": "mask IoU, true boxes",
    "boundary_iou": "boundary IoU, true boxes",
}
"""Titles of the measures."""


@dataclass(frozen=True)
class TableStyle:
    """The common properties of the tables of one paper.

    Attributes:
        paper: name of the paper after "Tab. N"; empty for DynaMask's own.
        measures: keys of ``MEASURES``, for rows and differences.
        row_values: columns of a row beside its measures.
        difference_values: columns of a difference beside its measures.
        seeds: True if rows are means over seeds, so that the range over them is shown.
        details: further values of a difference for the JSON.
        missing: sentences on rows without weights.
        differences: the sentence above the differences.
        how: the paragraph on how the figures were measured.
        units: the sentence on the paper's own figures.
        kinds: names of models for the table of checkpoints by SHA-256; the default is the mask branch.
        data: further values of the JSON.
    """

    paper: str
    measures: tuple[str, ...]
    row_values: Callable[[RowPlan, Comparison, PaperTable], dict[str, Any]]
    difference_values: Callable[[Contrast, Comparison], dict[str, Any]]
    seeds: bool
    details: Callable[[Contrast], dict[str, Any]]
    missing: Callable[[list[str], Comparison], list[str]]
    differences: str
    how: str
    units: Callable[[PaperTable], str]
    kinds: Callable[[Comparison], dict[str, str]] = lambda _comparison: {}
    data: dict[str, Any] = field(default_factory=dict)


PlanTable = Callable[[Comparison], TablePlan]
"""Plans the rows and differences of a table; raises :class:`DynaMaskError` where no weights fit."""


def make_table(name: str, style: TableStyle, plan_table: PlanTable, comparison: Comparison) -> Report:
    """Measure a table and lay it out.

    Args:
        name: name of the report.
        style: style of the tables of its paper.
        plan_table: plans its rows.

    Raises:
        DynaMaskError: no given weights fit, or nothing was detected.
    """
    paper, plan = PAPER[name], plan_table(comparison)
    measures = plan.measures or style.measures
    rows = [measure_row(row, measures, style.row_values(row, comparison, paper), style.seeds) for row in plan.rows]
    differences = [
        measure_row(
            contrast, measures, style.difference_values(contrast, comparison), style.seeds, style.details(contrast)
        )
        for contrast in plan.contrasts
    ]
    used = list({(e.name, e.checkpoint.sha256): e for row in plan.rows for e in row.evidences}.values())
    facts = comparison.facts(used)
    data = {
        "facts": dict(facts),
        "rows": [row.to_dict() for row in rows],
        "differences": [row.to_dict() for row in differences],
        "lacking": plan.missing,
        "paper": asdict(paper),
        **style.data,
        "seed": comparison.options.seed,
    }
    columns = [row.columns() for row in (*rows, *differences)]
    keys = list(dict.fromkeys(key for row in columns for key in row))
    title = REPORTS[name].title.rsplit(" (", 1)[0]
    return Report(
        name,
        f"{paper.number.split(' (')[0]}{style.paper and f' of {style.paper}'}: {title}",
        facts,
        _blocks(name, style, plan, rows, differences, comparison, used),
        [{"table": name, **{key: row.get(key) for key in keys}} for row in columns],
        data,
    )


def _blocks(
    name: str,
    style: TableStyle,
    plan: TablePlan,
    rows: Sequence[Row],
    differences: list[Row],
    comparison: Comparison,
    used: Sequence[Evidence],
) -> list[Block]:
    """The document of a table."""
    entry, paper, measures = REPORTS[name], PAPER[name], plan.measures or style.measures
    blocks: list[Block] = [Paragraph(entry.text)]
    if plan.figures is not None:
        figures = plan.figures([row.to_dict() for row in rows], [row.to_dict() for row in differences])
        blocks += [Figure(figure) for figure in figures]
    columns = [column for column in entry.columns if column in measures or column in _COLUMNS]
    beside = [name for name, printed in _PAPER_COLUMNS.items() if printed in paper.columns]
    columns += [name for name in beside if name in rows[0].values and any(row.paper for row in plan.rows)]
    columns += [] if style.seeds else ["checkpoint"]
    blocks.append(rows_table(rows, plan.rows, columns, paper))
    if differences:
        blocks += [Paragraph(style.differences), difference_table(differences, measures)]
    conclusions = plan.conclude(differences) if plan.conclude is not None else []
    blocks += [Paragraph(text) for text in (*conclusions, *style.missing(plan.missing, comparison))]
    blocks += [*plan.blocks, Paragraph(style.how)]
    if any(evidence.checkpoint.baseline for evidence in used):
        blocks.append(Paragraph(ONE_SHORT_TRAINING))
    if len({evidence.checkpoint.images_seen for evidence in used}) > 1:
        blocks.append(Paragraph(UNEQUAL_TRAINING))
    about = (
        f"{paper.about[0].upper()}{paper.about[1:]}; {style.units(paper)} To compare ours with it takes {entry.needs}"
    )
    blocks += [Heading("Checkpoints"), checkpoint_table(used, style.kinds(comparison))]
    return [*blocks, Heading(f"The paper's {paper.number}"), Paragraph(about), paper_table(paper)]


ONE_SHORT_TRAINING = (
    "The bundled baselines, the r-FPN among them, were each trained once and for a short time (see images seen), as "
    "mask branches on one frozen detector, which had been trained together with an r-FPN. That favours the r-FPN. The "
    "intervals are over pictures alone and leave out the variation between trainings, so these rows do not show how "
    "the mask branches compare when each is trained to the end with a detector of its own."
)
UNEQUAL_TRAINING = (
    "These weights have not seen the same number of pictures in training (see the checkpoints), so differences between "
    "them are due to the training as well."
)


def rows_table(rows: Sequence[Row], plans: Sequence[RowPlan], columns: Sequence[str], paper: PaperTable) -> Table:
    """Measured rows as a table.

    Args:
        columns: keys of ``MEASURES`` and ``_COLUMNS``.
        paper: the paper's table, for the head of the column with its AP.
    """
    extra = list(dict.fromkeys(name for plan in plans for name in plan.cells))
    header, body = ["", *extra], [[plan.label, *(plan.cells.get(name, "–") for name in extra)] for plan in plans]
    for column in columns:
        if column in MEASURES:
            header.append(MEASURES[column])
        else:
            header += [name.format(beside=paper.beside) for name in _COLUMNS[column][0]]
        for cells, row in zip(body, rows):
            if column in MEASURES:
                cells.append(with_interval(row.figures[column], 3))
            else:
                cells += _COLUMNS[column][1](row)
    return Table(header, body)


_IOUS = tuple(measure for measure in MEASURES if measure[-2:].isdigit())
_AREAS = ("APS", "APM", "APL")
_PICTURE_MACS = ("backbone_macs", "head_macs", "masks_macs", "total_macs")
_COLUMNS: dict[str, tuple[list[str], Callable[[Row], list[str]]]] = {
    "macs": (["GMACs"], lambda row: [scaled(row.values["mean_macs"], 1e9, 4)]),
    "saved": (["saved"], lambda row: [f"{1 - row.values['mean_macs'] / row.values['full_macs']:.0%}"]),
    "other ap": (list(AP_COLUMNS[1:]), lambda row: [number(row.values[name], 3) for name in AP_COLUMNS[1:]]),
    "areas": (list(_AREAS), lambda row: [number(row.values[name], 3) for name in _AREAS]),
    "ious": ([MEASURES[m] for m in _IOUS], lambda row: [number(row.figures[m].mean, 3) for m in _IOUS]),
    "shares": ([f"at {s}" for s in MASK_SIZES], lambda row: [f"{row.values[f'share_{s}']:.0%}" for s in MASK_SIZES]),
    "range": (["range over seeds", "seeds"], lambda row: [seed_range(row), str(row.values["seeds"])]),
    "parameters": (["M parameters"], lambda row: [scaled(row.values["parameters"], 1e6)]),
    "picture macs": (
        ["GMACs: backbone, FPN", "head", "masks", "a picture"],
        lambda row: [scaled(row.values[part], 1e9) for part in _PICTURE_MACS],
    ),
    "paper_AP": (["paper's AP ({beside})"], lambda row: [number(row.values["paper_AP"], 3)]),
    "paper_AP*": (["paper's AP*"], lambda row: [number(row.values["paper_AP*"], 3)]),
    "paper_GMACs": (["paper's GMACs"], lambda row: [_as_printed(row.values["paper_GMACs"])]),
    "checkpoint": (["checkpoint"], lambda row: [row.values["checkpoint"]]),
}
"""Columns beside the measures: their headers, and their cells for a row."""
_PAPER_COLUMNS = {"paper_AP": "AP", "paper_AP*": "AP*", "paper_GMACs": "G"}
"""The paper's own columns that are shown beside ours."""


def _as_printed(figure: object) -> str:
    return "–" if figure is None else f"{figure:g}" if isinstance(figure, float) else str(figure)


def seed_range(row: Row, measure: str = "segm_ap", digits: int = 3, signed: bool = False) -> str:
    """The range of a measure over seeds as text, a dash for less than two."""
    least, most = row.ranges[measure]
    return (
        "–"
        if row.values["seeds"] < 2 or least is None
        else f"{number(least, digits, signed)} to {number(most, digits, signed)}"
    )


def difference_table(rows: Sequence[Row], measures: Sequence[str]) -> Table:
    """Measured differences as a table; those over seeds with the number of pairs and the range over them."""
    header, seeds = ["first − second", *(MEASURES[m] for m in measures)], bool(rows[0].ranges)
    body = [[row.label, *(with_interval(row.figures[m], 4, signed=True) for m in measures)] for row in rows]
    if seeds:
        spread = ["mask AP, range over pairs", "mask AP, interval over pairs"]
        header = [header[0], "pairs of seeds", *header[1:], *spread]
        for cells, row in zip(body, rows):
            cells.insert(1, str(row.values["seeds"]) if row.values["seeds"] else "means compared")
            over = row.over_seeds["segm_ap"]
            cells += [
                seed_range(row, digits=4, signed=True),
                "–" if over.low is None else with_interval(over, 4, signed=True),
            ]
    return Table(header, body)


def paper_table(paper: PaperTable) -> Table:
    """The paper's own table, as printed."""
    body = [[row_name(name), *("–" if v is None else f"{v}" for v in values)] for name, values in paper.rows]
    return Table([paper.setting, *paper.columns], body)


def checkpoint_table(used: Sequence[Evidence], kinds: dict[str, str] | None = None) -> Table:
    """The checkpoints behind the rows; ``kinds`` as in :class:`TableStyle`."""
    body = []
    for evidence in used:
        checkpoint = evidence.checkpoint
        seen = "unknown" if checkpoint.images_seen is None else f"{checkpoint.images_seen:,}"
        seed = "unknown" if checkpoint.seed is None else str(checkpoint.seed)
        kind = (kinds or {}).get(checkpoint.sha256) or str(evidence.mask_branch)
        body.append([checkpoint.sha256[:8], evidence.label, kind, checkpoint.model, seen, seed, checkpoint.trained_on])
    return Table(["checkpoint", "weights", "kind", "model", "images seen", "training seed", "trained on"], body)


def between_trainings(row: Row, measure: str) -> str:
    """What a difference is worth over trainings, to follow its significance over pictures; empty for one training."""
    over = row.over_seeds.get(measure, Interval())
    if over.low is None:
        return ""
    bounds = f"[{number(over.low, 4, True)}, {number(over.high, 4, True)}]"
    return f" over these pictures; over trainings {bounds}, {significance(over)}"


def conclusion(row: Row, measures: Sequence[str] = ("segm_ap", "boundary_ap"), interval: bool = True) -> str:
    """A difference in words, for example "A − B: mask AP +0.0100 [+0.0050, +0.0150], higher."."""
    parts = []
    for measure in measures:
        value = row.figures[measure]
        figure = with_interval(value, 4, True) if interval else number(value.mean, 4, True)
        parts.append(f"{MEASURES[measure]} {figure}, {significance(value)}{between_trainings(row, measure)}")
    return f"{row.label}: {'; '.join(parts)}."
