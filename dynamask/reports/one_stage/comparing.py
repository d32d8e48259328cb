"""Rows and paired differences of the one-stage tables: means over seeds, with intervals over pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dynamask.evaluation.bootstrap import interval_of
from dynamask.models.solo.costs import trainable_parameters
from dynamask.reports.one_stage.paper import star
from dynamask.reports.one_stage.world import MEASURES, Evidence, Group, Member, OneStageWorld
from dynamask.reports.paper import PaperTable
from dynamask.reports.writer import Block, Table, number, with_interval
from dynamask.structures import Interval

Row = dict[str, Any]
TITLES = {
    "segm_ap": "mask AP",
    **{f"segm_ap{iou}": f"AP{iou}" for iou in (50, 60, 70, 75, 80, 90)},
    "boundary_ap": "boundary AP",
}
AREAS = ("APS", "APM", "APL")


@dataclass(frozen=True)
class Line:
    """A row before it is measured.

    Attributes:
        label: its first cell.
        members: seeds of one model; none where no weights were given.
        paper: name of the paper's row beside it; empty where there is none.
        more: further cells, by the header of their column.
        data: further values for JSON and CSV.
    """

    label: str
    members: tuple[Member, ...] = ()
    paper: str = ""
    more: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def evidences(self) -> list[Evidence]:
        """The weights behind it."""
        return [member.evidence for member in self.members]

    def draws(self, measure: str) -> np.ndarray:
        """(1 + B,) mean over the seeds, see :meth:`Evidence.drawn`."""
        return np.mean([member.draws(measure) for member in self.members], axis=0)


@dataclass(frozen=True)
class Contrast:
    """A difference, first minus second: of the same weights, else paired by seed where seeds saw the same data."""

    label: str
    first: Line
    second: Line

    @property
    def pairs(self) -> list[tuple[Member, Member]]:
        """Members that belong together; empty where none do."""
        found = []
        for first in self.first.members:
            fitting = [second for second in self.second.members if _belong(first.evidence, second.evidence)]
            found += [(first, second) for second in fitting[:1]]
        return found

    def draws(self, measure: str) -> np.ndarray:
        """(1 + B,) mean of the paired differences, or the difference of the means where nothing pairs."""
        if not self.pairs:
            return self.first.draws(measure) - self.second.draws(measure)
        return np.mean([a.draws(measure) - b.draws(measure) for a, b in self.pairs], axis=0)


def _belong(one: Evidence, other: Evidence) -> bool:
    """Whether they are the same weights, or models trained with one seed on the same data."""
    same_seed = one.seed is not None and (one.seed, one.trained_on) == (other.seed, other.trained_on)
    return one.checkpoint["sha256"] == other.checkpoint["sha256"] or same_seed


@dataclass
class Plan:
    """What a table holds.

    Attributes:
        lines: its rows.
        contrasts: differences between rows.
        lacking: sentences on rows that no given weights have.
        verdict: sentences from the differences' rows.
        figures: of the rows and the differences' rows, for the page.
        blocks: further blocks after the rows.
    """

    lines: list[Line]
    contrasts: list[Contrast] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    verdict: Callable[[list[Row]], list[str]] | None = None
    figures: Callable[[list[Row], list[Row]], list[go.Figure]] | None = None
    blocks: list[Block] = field(default_factory=list)


def line_of(group: Group, paper: str = "", **more: str) -> Line:
    """The row of a model."""
    return Line(group.label, group.members, paper, dict(more))


def provenance(evidences: Sequence[Evidence], world: OneStageWorld) -> Row:
    """What says where a row's figures come from; columns of several weights are joined by commas."""
    facts = [e.checkpoint for e in evidences]
    seen = sorted({f["images_seen"] for f in facts}, key=str)
    return {
        "weights": ", ".join(e.label for e in evidences),
        "model": facts[0]["model"] if facts else None,
        "checkpoint": ", ".join(f["sha256"][:8] for f in facts),
        "images_seen": seen[0] if len(seen) == 1 else ", ".join(map(str, seen)) or None,
        "training_seeds": ", ".join("unknown" if e.seed is None else str(e.seed) for e in evidences),
        "seeds": len(evidences),
        "data": world.source.data,
        "split": world.source.split,
        "pictures": len(world.indices),
    }


def measured(line: Line, world: OneStageWorld, paper: PaperTable) -> Row:
    """One row: provenance, every measure as a mean over seeds with interval and range, areas, cost, the paper's."""
    row: Row = {"row": line.label, "against": "", **provenance(line.evidences, world)}
    for measure in MEASURES:
        row |= columns(measure, [m.draws(measure) for m in line.members])
    six = [member.six() for member in line.members]
    for area in AREAS:
        values = [s[area] for s in six if s[area] is not None]
        row[area] = float(np.mean(values)) if values else None
    row |= _costs(line.members)
    row |= {"paper_AP": star(paper, line.paper, "AP"), "paper_AP*": star(paper, line.paper, "AP*")}
    row["paper_row"] = line.paper or None
    return row | line.data


def _costs(members: Sequence[Member]) -> Row:
    """Parameters, and mean MACs of a picture by part; None without weights."""
    parts = [member.macs() for member in members]
    names = ("backbone", "head", "masks", "total", "suppress")
    costs: Row = {f"{n}_macs": float(np.mean([p[n] for p in parts])) if parts else None for n in names}
    first = members[0].evidence if members else None
    costs["parameters"] = trainable_parameters(first.predictor.model) if first and first.one_stage else None
    return costs


def columns(measure: str, draws: Sequence[np.ndarray]) -> Row:
    """A measure of several seeds, each (1 + B,): mean with its interval, least and most."""
    if not draws:
        values = Interval()
    else:
        values = interval_of(np.mean(draws, axis=0), centre=True)
    single = [float(d[0]) for d in draws if np.isfinite(d[0])]
    return {
        measure: values.mean,
        f"{measure}_low": values.low,
        f"{measure}_high": values.high,
        f"{measure}_least": min(single, default=None),
        f"{measure}_most": max(single, default=None),
    }


def difference(contrast: Contrast, world: OneStageWorld) -> Row:
    """A difference in the columns of a row; ``seeds`` counts the pairs, 0 where the means were compared."""
    pairs = contrast.pairs
    used = list(dict.fromkeys(m.evidence for pair in pairs for m in pair)) or [
        *contrast.first.evidences,
        *contrast.second.evidences,
    ]
    row: Row = {"row": contrast.label, "against": contrast.second.label, **provenance(used, world), "seeds": len(pairs)}
    for measure in MEASURES:
        values = columns(measure, [contrast.draws(measure)])
        if pairs:
            single = [float(a.draws(measure)[0] - b.draws(measure)[0]) for a, b in pairs]
            values |= {f"{measure}_least": min(single), f"{measure}_most": max(single)}
        row |= values
    segm = contrast.draws("segm")
    row["by_iou"] = [interval_of(values, centre=True).to_dict() for values in segm]
    rises = {80: segm[6] - segm[0], 90: segm[8] - segm[0]}
    row["rise"] = {str(iou): interval_of(values, centre=True).to_dict() for iou, values in rises.items()}
    return row


def interval(row: Row, measure: str) -> Interval:
    """A measure of a row with its bounds."""
    return Interval(row[measure], row[f"{measure}_low"], row[f"{measure}_high"])


def spread(row: Row, measure: str = "segm_ap", digits: int = 3, signed: bool = False) -> str:
    """The range over seeds as text, a dash for one or none."""
    if row["seeds"] < 2 or row[f"{measure}_least"] is None:
        return "–"
    return f"{number(row[f'{measure}_least'], digits, signed)} to {number(row[f'{measure}_most'], digits, signed)}"


def rows_table(rows: Sequence[Row], lines: Sequence[Line], paper: PaperTable, wanted: Sequence[str]) -> Table:
    """Measured rows as a table.

    Args:
        wanted: of "ious" (AP at single thresholds), "areas", "boundary", "macs" and "parameters".
    """
    extra = list(dict.fromkeys(name for line in lines for name in line.more))
    header = ["", *extra, "mask AP", "range over seeds", "seeds"]
    header += [TITLES[f"segm_ap{i}"] for i in (50, 60, 70, 75, 80, 90)] if "ious" in wanted else []
    header += [*AREAS] if "areas" in wanted else []
    header += ["boundary AP"] if "boundary" in wanted else []
    header += ["M parameters"] if "parameters" in wanted else []
    header += ["GMACs: backbone, FPN", "head", "masks", "a picture"] if "macs" in wanted else []
    beside = any(line.paper for line in lines)
    starred = beside and "AP*" in paper.columns
    header += [f"paper's AP ({paper.beside})"] if beside else []
    header += ["paper's AP*"] if starred else []
    body = []
    for line, row in zip(lines, rows):
        cells = [line.label, *(line.more.get(name, "–") for name in extra)]
        cells += [with_interval(interval(row, "segm_ap"), 3), spread(row), str(row["seeds"])]
        cells += [number(row[f"segm_ap{i}"], 3) for i in (50, 60, 70, 75, 80, 90)] if "ious" in wanted else []
        cells += [number(row[area], 3) for area in AREAS] if "areas" in wanted else []
        cells += [with_interval(interval(row, "boundary_ap"), 3)] if "boundary" in wanted else []
        cells += [_scaled(row["parameters"], 1e6, 3)] if "parameters" in wanted else []
        parts = ("backbone_macs", "head_macs", "masks_macs", "total_macs")
        cells += [_scaled(row[part], 1e9, 3) for part in parts] if "macs" in wanted else []
        cells += [number(row["paper_AP"], 3)] if beside else []
        cells += [number(row["paper_AP*"], 3)] if starred else []
        body.append(cells)
    return Table(header, body)


def _scaled(value: float | None, unit: float, digits: int) -> str:
    return "–" if value is None else f"{value / unit:.{digits}f}"


def difference_table(rows: Sequence[Row]) -> Table:
    """Differences as a table."""
    body = []
    for row in rows:
        cells = [row["row"], str(row["seeds"]) if row["seeds"] else "means compared"]
        cells += [with_interval(interval(row, m), 4, signed=True) for m in MEASURES]
        body.append([*cells, spread(row, digits=4, signed=True)])
    header = ["first − second", "pairs of seeds", *(TITLES[m] for m in MEASURES), "mask AP, range over pairs"]
    return Table(header, body)


def provenance_table(world: OneStageWorld, used: Sequence[Evidence]) -> Table:
    """The checkpoints behind the rows."""
    names = {e.checkpoint["sha256"]: g.label for g in world.groups for e in g.evidences}
    body = []
    for evidence in {e.checkpoint["sha256"]: e for e in used}.values():
        facts = evidence.checkpoint
        seen = "unknown" if facts["images_seen"] is None else f"{facts['images_seen']:,}"
        seed = "unknown" if evidence.seed is None else str(evidence.seed)
        name = names.get(facts["sha256"], "DynaMask")
        body.append([facts["sha256"][:8], evidence.label, name, facts["model"], seen, seed, evidence.trained_on])
    header = ["checkpoint", "weights", "is", "model", "images seen", "training seed", "trained on"]
    return Table(header, body)
