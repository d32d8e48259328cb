"""SODAR's tables as reports: for each, which rows it has, what is compared, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from dynamask.reports.comparing import paper_table
from dynamask.reports.one_stage import plans
from dynamask.reports.one_stage.ablations import ablation_plan
from dynamask.reports.one_stage.against import everything_plan
from dynamask.reports.one_stage.comparing import (
    Plan,
    Row,
    difference,
    difference_table,
    measured,
    provenance_table,
    rows_table,
)
from dynamask.reports.one_stage.paper import PAPER
from dynamask.reports.one_stage.world import Evidence, OneStageWorld
from dynamask.reports.options import VOTING_IOUS
from dynamask.reports.tables import UNEQUAL
from dynamask.reports.titles import TITLES
from dynamask.reports.world import world_facts
from dynamask.reports.writer import Block, Figure, Heading, Paragraph, Report
from dynamask.structures import DynaMaskError


@dataclass(frozen=True)
class TableKind:
    """A table.

    Attributes:
        wanted: columns, see :func:`dynamask.reports.one_stage.comparing.rows_table`.
        plan: its rows and comparisons in a world; raises :class:`DynaMaskError` where there is nothing to show.
        text: what it shows.
        compare: what is missing to hold it against the paper's figures.
    """

    wanted: tuple[str, ...]
    plan: Callable[[OneStageWorld], Plan]
    text: str
    compare: str


_SCALE = "trained on COCO train2017 by the paper's schedule, and its val2017 with LVIS' masks besides"
_QUALITY = ("ious", "areas", "boundary")
TABLES: dict[str, TableKind] = {
    "sodar-table2": TableKind(
        _QUALITY,
        lambda world: plans.voting_plan(world, VOTING_IOUS),
        "Every mask is replaced by a weighted mean of the candidates that overlap it: all alike, weighted by their "
        "scores, or by their overlap. Inference alone changes; the weights are the same.",
        f"SOLO-R50 weights {_SCALE}.",
    ),
    "sodar-table3": TableKind(
        (*_QUALITY, "parameters", "macs"), plans.aggregation_plan,
        "The same model with and without the aggregation of neighbouring mask representations.",
        f"R50 and R101 weights {_SCALE}.",
    ),
    "sodar-table4": TableKind(
        (*_QUALITY, "parameters", "macs"),
        plans.interpolation_plan,
        "A finer classification grid on the same mask grid (+cls), or a coarser mask grid under the same "
        "classification grid (−mask). Values are counted, not measured: those of the mask maps of all cells, which "
        "the paper's code keeps, and those that are decoded at once here; `benchmarks/decoding.py memory` measures.",
        f"R101 weights {_SCALE}.",
    ),
    "sodar-table5": TableKind(
        (*_QUALITY, "parameters", "macs"), plans.deformable_plan,
        "SODAR whose neighbours may move by learned offsets, against the same with neighbours at rest.",
        f"R101 weights {_SCALE}.",
    ),
    "sodar-table6": TableKind(
        ("ious", "areas", "boundary"), ablation_plan,
        "One design choice a row. θ is the number of weights that the aggregation of one mask has; MACs a pixel are "
        "those that decode a mask, its representations included; parameters are counted from the built model.",
        f"SOLO-R101 weights {_SCALE}, for each row.",
    ),
    "sodar-table8": TableKind(
        ("areas", "boundary", "macs"),
        everything_plan,
        "All given weights side by side, and each one-stage model against DynaMask at the same MACs of a whole "
        "picture.",
        "R101 weights trained on COCO for 72 epochs, and the answers of the test-dev server.",
    ),
}  # fmt: skip
"""Every table that needs weights, by the name of its report."""


def make_table(name: str, world: OneStageWorld, voting_ious: Sequence[float] = VOTING_IOUS) -> Report:
    """Measure and write one of ``TABLES``.

    Args:
        voting_ious: of Table II alone, the overlaps from which candidates vote.

    Raises:
        DynaMaskError: no given weights fit, or an overlap is out of range.
    """
    kind, paper = TABLES[name], PAPER[name]
    if not voting_ious or not all(0 < iou <= 1 for iou in voting_ious):
        raise DynaMaskError(f"voting overlaps {', '.join(map(str, voting_ious))} are out of range; give IoUs in 0–1")
    plan = plans.voting_plan(world, voting_ious) if name == "sodar-table2" else kind.plan(world)
    rows = [measured(line, world, paper) for line in plan.lines]
    differences = [difference(contrast, world) for contrast in plan.contrasts]
    used = list(dict.fromkeys(evidence for line in plan.lines for evidence in line.evidences))
    blocks = _blocks(name, plan, rows, differences, world, used)
    named = list({e.checkpoint["sha256"]: e for e in used}.values())
    facts = world_facts(world, named)
    keys = [k for k in dict.fromkeys(k for row in (*rows, *differences) for k in row) if k not in ("by_iou", "rise")]
    flat = [{"table": name, **{key: row.get(key) for key in keys}} for row in (*rows, *differences)]
    data = {
        "facts": dict(facts),
        "rows": rows,
        "differences": differences,
        "lacking": plan.lacking,
        "paper": asdict(paper),
        "seed": world.options.seed,
    }
    return Report(name, f"{paper.number} of SODAR: {TITLES[name].rsplit(' (', 1)[0]}", facts, blocks, flat, data)


def _blocks(
    name: str, plan: Plan, rows: list[Row], differences: list[Row], world: OneStageWorld, used: Sequence[Evidence]
) -> list[Block]:
    """The document of a table."""
    kind, paper = TABLES[name], PAPER[name]
    blocks: list[Block] = [Paragraph(kind.text)]
    if plan.figures is not None:
        blocks += [Figure(figure) for figure in plan.figures(rows, differences)]
    blocks.append(rows_table(rows, plan.lines, paper, kind.wanted))
    if differences:
        blocks.append(Paragraph(PAIRED))
        blocks.append(difference_table(differences))
    if plan.verdict is not None:
        blocks += [Paragraph(text) for text in plan.verdict(differences)]
    blocks += [Paragraph(text) for text in plan.lacking]
    blocks += plan.blocks
    blocks.append(Paragraph(HOW))
    if len({evidence.checkpoint["images_seen"] for evidence in used}) > 1:
        blocks.append(Paragraph(UNEQUAL))
    blocks += [Heading("Checkpoints"), provenance_table(world, used)]
    blocks += [Heading(f"The paper's {paper.number}"), Paragraph(_about(name)), paper_table(paper)]
    return blocks


PAIRED = "Differences, every seed against its own where seeds pair, on the same draws of pictures:"
HOW = (
    "AP over all classes and areas, scores above 0.05, in 0–1; AP50 … AP90 at one IoU threshold, on the same masks. "
    "A row is the mean over the seeds of one model, and its range is that of single seeds. Brackets are 95 % bootstrap "
    "intervals over pictures, centred on AP; they do not hold the spread of seeds. MACs are multiply–accumulates "
    "(1 MAC = 2 FLOPs) of a mean picture."
)


def _about(name: str) -> str:
    paper, kind = PAPER[name], TABLES[name]
    about = f"{paper.about[0].upper()}{paper.about[1:]}; AP in per cent, as printed. "
    star = STARRED if "AP*" in paper.columns else ""
    return f"{about}{star}{OTHER_DATA} To hold ours against it takes {kind.compare}"


STARRED = (
    "AP* is of models trained on COCO and judged on LVIS' finer masks; scenes of shapes have one kind of mask, which "
    "is exact, so AP50 … AP90 here stand beside AP*50 … AP*90. "
)
OTHER_DATA = "Shapes are not COCO: these are other data and other models."
