"""Rows of the tables: which weights and sizes each row is of, how rows are compared, and what is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dynamask.evaluation.bootstrap import interval_of, interval_over_trainings
from dynamask.evaluation.choices import Draws, at_equal_cost
from dynamask.models.masks.policies import LEARNED, Policy
from dynamask.reports.comparison import Evidence
from dynamask.reports.render import Block
from dynamask.reports.size_choices import mean_macs
from dynamask.structures import IOU_MEASURES, Interval


@dataclass(frozen=True)
class Member:
    """Weights with a way to choose the mask sizes; one-stage models have only one size.

    Attributes:
        evidence: the weights.
        policy: chooses the sizes from each picture alone.
        limit: mean MACs over the data set that the switch is held to, instead of a policy.
        like: another member whose mean MACs the switch is held to, on detections as in true boxes.
        reward: reward MACs where the switch by itself spends less than the limit.
    """

    evidence: Evidence
    policy: Policy = LEARNED
    limit: float | None = None
    like: Member | None = None
    reward: bool = False

    def held_to(self, true_boxes: bool = False) -> float | None:
        """The mean MACs that the switch is held to, on the detections or in true boxes."""
        return self.limit if self.like is None else mean_macs(self.like.choice(true_boxes), self.like.evidence.macs)

    def choice(self, true_boxes: bool = False) -> np.ndarray:
        """(N,) size indices of the detections, or of the instances in true boxes."""
        return self.evidence.choice(self.policy, self.held_to(true_boxes), true_boxes, self.reward)

    def draws(self, measure: str) -> np.ndarray:
        """Draws (1 + B,) of a measure, see :meth:`Evidence.draws`."""
        return self.evidence.draws(measure, self.choice(measure in IOU_MEASURES))

    def draws_with_macs(self, measure: str) -> Draws:
        """:meth:`draws` together with the mean MACs of the instances."""
        choice = self.choice(measure in IOU_MEASURES)
        return Draws(self.evidence.draws(measure, choice), self.evidence.macs_draws(measure, choice))

    def ap(self) -> dict[str, float | None]:
        """Mask AP, AP50, AP75, APS, APM and APL."""
        return self.evidence.ap(self.choice())

    def picture_macs(self) -> dict[str, float]:
        """Mean MACs of a picture: "backbone" with the FPN, "head" (of two-stage models RPN and box head), "masks",
        their sum "total", and, not in it, "suppress" (matrix NMS)."""
        pictures = self.evidence.collected.picture_macs
        means = {key: sum(p[key] for p in pictures) / len(pictures) for key in (pictures or [{}])[0]}
        if self.evidence.one_stage:
            masks = means["decode"]
        else:
            choice = self.choice()
            spent = mean_macs(choice, self.evidence.macs) * len(choice) / len(pictures) if len(choice) else 0.0
            runs_switch = self.held_to() is not None or self.policy.size is None
            masks = spent + means["projections"] + (means["switch"] if runs_switch else 0.0)
        parts = {"backbone": means["backbone"], "head": means["head"], "masks": masks}
        return {**parts, "total": sum(parts.values()), "suppress": means.get("suppress", 0.0)}


@dataclass(frozen=True)
class RowPlan:
    """A row before it is measured.

    Attributes:
        label: its first cell.
        members: seeds of one model; in tables of the DynaMask paper a single one; none where no weights were given.
        paper: name of the paper's row beside it; empty if there is none.
        cells: further cells, by the header of their column.
        data: further values for JSON and CSV.
    """

    label: str
    members: tuple[Member, ...] = ()
    paper: str = ""
    cells: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def evidences(self) -> list[Evidence]:
        """The weights of the members."""
        return [member.evidence for member in self.members]

    def draws(self, measure: str) -> list[np.ndarray]:
        """Draws (1 + B,) of a measure for each member."""
        return [member.draws(measure) for member in self.members]


def row_plan(
    label: str,
    evidence: Evidence,
    policy: Policy = LEARNED,
    limit: float | None = None,
    like: RowPlan | None = None,
    paper: str = "",
    cells: dict[str, str] | None = None,
) -> RowPlan:
    """A row of one weights file; arguments as in :class:`Member`, ``like`` being another such row."""
    member = Member(evidence, policy, limit, None if like is None else like.members[0])
    return RowPlan(label, (member,), paper, cells or {})


@dataclass(frozen=True)
class Contrast:
    """A paired difference, first minus second.

    Members are paired if they are the same weights, or models trained with one seed on the same data. If none pair, the
    means of both sides are compared.
    """

    label: str
    first: RowPlan
    second: RowPlan

    @property
    def evidences(self) -> list[Evidence]:
        """The weights of both sides."""
        return [*self.first.evidences, *self.second.evidences]

    @property
    def pairs(self) -> list[tuple[Member, Member]]:
        """Members that are paired."""
        found = []
        for first in self.first.members:
            fitting = [second for second in self.second.members if _paired(first.evidence, second.evidence)]
            found += [(first, second) for second in fitting[:1]]
        return found

    def draws(self, measure: str) -> list[np.ndarray]:
        """Draws (1 + B,) of the difference in a measure for each pair; a single one if the means are compared."""
        pairs = self.pairs
        if not pairs and len(self.first.members) == len(self.second.members) == 1:
            pairs = [(self.first.members[0], self.second.members[0])]
        if not pairs:
            return [np.mean(self.first.draws(measure), axis=0) - np.mean(self.second.draws(measure), axis=0)]
        return [_difference(first, second, measure) for first, second in pairs]


def _paired(one: Evidence, other: Evidence) -> bool:
    """Return True for the same weights, and for weights trained with one seed on the same data."""
    first, second = one.checkpoint, other.checkpoint
    same_training = (first.seed, first.trained_on) == (second.seed, second.trained_on)
    return first.sha256 == second.sha256 or (first.seed is not None and same_training)


def _difference(first: Member, second: Member, measure: str) -> np.ndarray:
    """Draws of first − second. If a side is held to a budget, the difference in cost is the same in all draws."""
    budgeted = [m for m in (first, second) if not m.reward and m.held_to(measure in IOU_MEASURES) is not None]
    if not budgeted:
        return first.draws(measure) - second.draws(measure)
    curve = budgeted[0].evidence.curve(measure)
    return at_equal_cost(first.draws_with_macs(measure), second.draws_with_macs(measure), curve)


@dataclass
class TablePlan:
    """The rows of a table before they are measured.

    Attributes:
        rows: rows from top to bottom.
        contrasts: differences between rows.
        missing: rows without weights: their mask branches in tables of the DynaMask paper, sentences in those of SODAR.
        measures: measures of rows and differences; None for those of the table's style.
        conclude: sentences from the measured differences.
        figures: charts of the measured rows and differences, given as dicts.
        blocks: further blocks of the document.
    """

    rows: list[RowPlan]
    contrasts: list[Contrast] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    measures: tuple[str, ...] | None = None
    conclude: Callable[[list[Row]], list[str]] | None = None
    figures: Callable[[list[dict[str, Any]], list[dict[str, Any]]], list[go.Figure]] | None = None
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """A measured row, or a measured difference between two rows.

    Attributes:
        label: its first cell.
        against: label of the second row of a difference; empty for rows.
        values: provenance, costs and other columns.
        figures: intervals by measure.
        ranges: least and largest value over seeds by measure; empty where seeds do not matter.
        details: values for the JSON alone.
        over_seeds: mean over seeds with its interval over trainings, by measure; empty where seeds do not matter.
    """

    label: str
    against: str
    values: dict[str, Any]
    figures: dict[str, Interval]
    ranges: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    over_seeds: dict[str, Interval] = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """The row of the CSV; a measure has columns for its mean (under its name), its bounds, its range over seeds and
        the bounds over seeds."""
        row: dict[str, Any] = {"row": self.label, "against": self.against, **self.values}
        for measure, value in self.figures.items():
            row |= {measure: value.mean, f"{measure}_low": value.low, f"{measure}_high": value.high}
            if measure in self.ranges:
                row[f"{measure}_least"], row[f"{measure}_most"] = self.ranges[measure]
            if measure in self.over_seeds:
                seeds = self.over_seeds[measure]
                row |= {f"{measure}_seeds_low": seeds.low, f"{measure}_seeds_high": seeds.high}
        return row

    def to_dict(self) -> dict[str, Any]:
        """The row of the JSON."""
        return {**self.columns(), **self.details}


def measure_row(
    item: RowPlan | Contrast,
    measures: Sequence[str],
    values: dict[str, Any],
    ranges: bool = False,
    details: dict[str, Any] | None = None,
) -> Row:
    """Measure a row or a difference.

    Args:
        measures: see :meth:`Evidence.draws`; in true boxes a measure is undefined if the pictures hold no instance.
        values: further columns.
        ranges: add the range of each measure over seeds, and the interval over trainings.
        details: further values of the JSON.
    """
    figures, spread, trainings = {}, {}, {}
    for name in measures:
        true_boxes = name in IOU_MEASURES
        known = not true_boxes or all(evidence.collected.true_boxes.results for evidence in item.evidences)
        draws = item.draws(name) if known else []
        figures[name] = interval_of(np.mean(draws, axis=0), centre=not true_boxes) if draws else Interval()
        finite = [float(values[0]) for values in draws if np.isfinite(values[0])]
        spread[name] = (min(finite, default=None), max(finite, default=None))
        trainings[name] = interval_over_trainings(finite)
    against = item.second.label if isinstance(item, Contrast) else ""
    if not ranges:
        spread, trainings = {}, {}
    return Row(item.label, against, values, figures, spread, details or {}, trainings)
