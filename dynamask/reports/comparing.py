"""Rows and paired differences of a table: what is planned, measured and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dynamask.evaluation.bootstrap import interval_of
from dynamask.evaluation.choices import at_equal_cost, shares
from dynamask.reports.collecting import MEASURES
from dynamask.reports.paper import AP_COLUMNS, PaperTable, fraction, row_name
from dynamask.reports.size_choices import mean_macs
from dynamask.reports.world import Evidence, World
from dynamask.reports.writer import Table, number, with_interval
from dynamask.structures import MASK_SIZES, Interval

Row = dict[str, Any]
JUDGED = ("segm_ap", "boundary_ap", *MEASURES)
TITLES = {
    "segm_ap": "mask AP",
    "boundary_ap": "boundary AP",
    "mask_iou": "mask IoU, true boxes",
    "boundary_iou": "boundary IoU, true boxes",
}
_NOTHING = Interval()


@dataclass(frozen=True)
class Line:
    """A row before it is measured.

    Attributes:
        label: its first cell.
        evidence: weights.
        policy: "learned", "size" or "fixed:S".
        limit: mean MACs over the data set that the switch is held to, in place of a policy.
        like: a row whose mean MACs it is held to instead, on detections as in true boxes.
        paper: name of the paper's row beside it; empty where there is none.
        more: further cells, by the header of their column.
    """

    label: str
    evidence: Evidence
    policy: str = "learned"
    limit: float | None = None
    like: Line | None = None
    paper: str = ""
    more: dict[str, str] = field(default_factory=dict)

    def held_to(self, given: bool = False) -> float | None:
        """The mean MACs that its switch is held to, on the detections or in true boxes."""
        if self.like is None:
            return self.limit
        other = self.like
        return mean_macs(other.evidence.choice(other.policy, other.held_to(given), given), other.evidence.macs)

    def draws(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """Quality and mean MACs (1 + B,), see :meth:`Evidence.draws`."""
        return self.evidence.draws(measure, self.policy, self.held_to(measure in MEASURES))


@dataclass(frozen=True)
class Contrast:
    """A paired difference, first minus second."""

    label: str
    first: Line
    second: Line


@dataclass
class Plan:
    """What a table holds.

    Attributes:
        lines: its rows.
        contrasts: paired differences between rows.
        lacking: mask branches that no given weights have.
        measures: of ``JUDGED``, what the rows and differences are judged by.
        verdict: sentences from measured rows and differences.
        figure: a picture of the rows, for the page.
    """

    lines: list[Line]
    contrasts: list[Contrast] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    measures: tuple[str, ...] = JUDGED
    verdict: Callable[[list[Row], list[Row]], list[str]] | None = None
    figure: Callable[[list[Row]], go.Figure] | None = None


def provenance(evidence: Evidence) -> Row:
    """What says where a row's figures come from."""
    world, checkpoint = evidence.world, evidence.checkpoint
    return {
        "weights": evidence.label,
        "mask_branch": evidence.mask_branch,
        "model": checkpoint["model"],
        "checkpoint": checkpoint["sha256"][:8],
        "images_seen": checkpoint["images_seen"],
        "training_seed": checkpoint["seed"],
        "data": world.source.data,
        "split": world.source.split,
        "pictures": len(world.indices),
    }


def measured(line: Line, measures: Sequence[str], paper: PaperTable | None) -> Row:
    """One row: provenance, cost, shares, the six mask APs, and every measure with its interval."""
    evidence = line.evidence
    choice = evidence.choice(line.policy, line.held_to())
    row: Row = {"row": line.label, "against": "", **provenance(evidence), "policy": line.policy}
    row["limit"] = line.held_to()
    row["mean_macs"], row["full_macs"] = mean_macs(choice, evidence.macs), evidence.macs[-1]
    row |= {f"share_{size}": share for size, share in zip(MASK_SIZES, shares(choice).tolist())}
    row |= evidence.average_precision(choice)
    for measure in measures:
        row |= _columns(measure, _judged(line, measure))
    row |= {"paper_AP": None, "paper_GMACs": None, "paper_setting": None}
    if paper is not None and line.paper:
        row |= {
            "paper_AP": fraction(paper, line.paper),
            "paper_GMACs": paper.figure(line.paper, "G"),
            "paper_setting": paper.setting,
        }
    return row


def _judged(line: Line, measure: str) -> Interval:
    if measure in MEASURES and not line.evidence.kept.given.results:
        return _NOTHING
    return interval_of(line.draws(measure)[0], measure not in MEASURES)


def _columns(measure: str, values: Interval) -> Row:
    return {measure: values.mean, f"{measure}_low": values.low, f"{measure}_high": values.high}


def difference(contrast: Contrast, measures: Sequence[str]) -> Row:
    """A paired difference by measure, in the columns of a row; the others are empty.

    Where one side is held to a budget, both keep their difference in cost in every draw.
    """
    first, second = contrast.first, contrast.second
    row: Row = {"row": contrast.label, "against": second.label, **provenance(first.evidence)}
    row |= {"policy": first.policy, "limit": first.held_to()}
    for measure in measures:
        if measure in MEASURES and not (first.evidence.kept.given.results and second.evidence.kept.given.results):
            row |= _columns(measure, _NOTHING)
            continue
        row |= _columns(measure, interval_of(_gap(first, second, measure), measure not in MEASURES))
    return row


def _gap(first: Line, second: Line, measure: str) -> np.ndarray:
    """(1 + B,) first − second."""
    sides = (first, second)
    own, others = (s.draws(measure) for s in sides)
    budgeted = [s.evidence for s in sides if s.held_to() is not None]
    if not budgeted:
        return own.quality - others.quality
    return at_equal_cost(own, others, budgeted[0].curve(measure))


def interval(row: Row, measure: str) -> Interval:
    """A measure of a row with its bounds."""
    return Interval(row[measure], row[f"{measure}_low"], row[f"{measure}_high"])


def rows_table(rows: Sequence[Row], lines: Sequence[Line], columns: Sequence[str], paper: PaperTable | None) -> Table:
    """Measured rows as a table.

    Args:
        columns: of "macs", "saved", "six", "shares" and the measures.
        paper: whose figures stand beside the rows that name one of its rows.
    """
    extra = list(dict.fromkeys(name for line in lines for name in line.more))
    beside = paper is not None and any(line.paper for line in lines)
    header, body = ["", *extra], [[line.label, *(line.more.get(name, "–") for name in extra)] for line in lines]
    for column in columns:
        header += _HEADERS.get(column) or [TITLES[column]]
        for cells, row in zip(body, rows):
            cells += _cells(row, column)
    if beside and paper is not None:
        header.append(f"paper's AP ({paper.beside})")
        if "G" in paper.columns:
            header.append("paper's GMACs")
        for cells, row in zip(body, rows):
            cells.append(number(row["paper_AP"], 3))
            if "G" in paper.columns:
                cells.append("–" if row["paper_GMACs"] is None else f"{row['paper_GMACs']:g}")
    for cells, row in zip(body, rows):
        cells.append(row["checkpoint"])
    return Table([*header, "checkpoint"], body)


_HEADERS = {
    "macs": ["GMACs"],
    "saved": ["saved"],
    "six": list(AP_COLUMNS[1:]),
    "shares": [f"at {size}" for size in MASK_SIZES],
}


def _cells(row: Row, column: str) -> list[str]:
    if column == "macs":
        return [f"{row['mean_macs'] / 1e9:.4f}"]
    if column == "saved":
        return [f"{1 - row['mean_macs'] / row['full_macs']:.0%}"]
    if column == "six":
        return [number(row[key], 3) for key in AP_COLUMNS[1:]]
    if column == "shares":
        return [f"{row[f'share_{size}']:.0%}" for size in MASK_SIZES]
    return [with_interval(interval(row, column), 3)]


def difference_table(rows: Sequence[Row], measures: Sequence[str]) -> Table:
    """Paired differences as a table."""
    body = [[row["row"], *(with_interval(interval(row, m), 4, signed=True) for m in measures)] for row in rows]
    return Table(["first − second", *(TITLES[m] for m in measures)], body)


def paper_table(paper: PaperTable) -> Table:
    """The paper's own table, as printed."""
    body = [[row_name(name), *("–" if v is None else f"{v}" for v in values)] for name, values in paper.rows]
    return Table([paper.setting, *paper.columns], body)


def provenance_table(world: World, used: Sequence[Evidence]) -> Table:
    """The checkpoints behind the rows."""
    body = []
    for evidence in used:
        row = provenance(evidence)
        seen, seed = row["images_seen"], row["training_seed"]
        counts = ["unknown" if seen is None else f"{seen:,}", "unknown" if seed is None else str(seed)]
        body.append([row["checkpoint"], row["weights"], row["model"], row["mask_branch"], *counts, row["data"]])
    header = ["checkpoint", "weights", "model", "mask branch", "images seen", "training seed", "judged on"]
    return Table(header, body)
