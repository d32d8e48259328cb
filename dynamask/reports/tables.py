"""The paper's tables as reports: for each, which rows it has, what is compared, and how it is written."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass

from dynamask.models.masks.policies import Policy
from dynamask.reports.comparing import (
    Contrast,
    Line,
    Plan,
    Row,
    difference,
    difference_table,
    measured,
    paper_table,
    provenance_table,
    rows_table,
)
from dynamask.reports.paper import PAPER, PaperTable
from dynamask.reports.rare import rare_plan
from dynamask.reports.size_choices import mean_macs
from dynamask.reports.titles import TITLES
from dynamask.reports.verdicts import budgets_said, pyramids_said, sizes_said
from dynamask.reports.world import Evidence, World, coarsest_first, finest, size_label, world_facts
from dynamask.reports.writer import Block, Figure, Heading, Paragraph, Report
from dynamask.structures import MASK_SIZES
from dynamask.viz.charts import cost_quality, stacked_shares

FULL = f"fixed:{MASK_SIZES[-1]}"
FCN_HEADS = tuple(f"fcn:{size}" for size in MASK_SIZES)
PYRAMIDS = {"panet": "PANet", "bifpn": "BiFPN", "nasfpn": "NAS-FPN"}
SHORT_BUDGET, LONG_BUDGET = 0.64 / 1.40, 1.13 / 1.40
"""What the paper's two bounded models spend, as shares of its full branch."""


@dataclass(frozen=True)
class TableKind:
    """A table.

    Attributes:
        columns: see :func:`dynamask.reports.comparing.rows_table`.
        plan: its rows and comparisons in a world; raises :class:`DynaMaskError` where there is nothing to show.
        text: what it shows.
        compare: what is missing to hold it against the paper's figures.
    """

    columns: tuple[str, ...]
    plan: Callable[[World], Plan]
    text: str
    compare: str


def _table1(world: World) -> Plan:
    ours = world.plain
    heads = [(name, world.branch(name)) for name in FCN_HEADS]
    fcn = [Line(f"FCN head, {n.removeprefix('fcn:')}", e, finest(e), paper=n) for n, e in heads if e is not None]
    own = [Line(f"r-FPN, {Policy.parse(p).size}", ours, p, paper=p) for p in coarsest_first(ours.mask_sizes)]
    steps = [Contrast(f"{b.label} − {a.label.split(', ')[1]}", b, a) for g in (fcn, own) for a, b in zip(g, g[1:])]
    at_size = {line.paper.split(":")[1]: line for line in own}
    steps += [Contrast(f"r-FPN − FCN head, {s}", at_size[s], f) for f in fcn if (s := f.paper.split(":")[1]) in at_size]
    lacking = [name for name, evidence in heads if evidence is None]
    return Plan([*fcn, *own], steps, lacking, verdict=sizes_said, figure=cost_quality)


def _against_fcn(world: World, names: tuple[str, str]) -> Plan:
    ours, fcn = world.plain, world.branch("fcn:28")
    lines = [Line("DynaMask, all at 112", ours, FULL, paper=names[1])]
    if fcn is not None:
        lines.insert(0, Line("Mask R-CNN (FCN head, 28)", fcn, finest(fcn), paper=names[0]))
    contrasts = [Contrast("DynaMask − Mask R-CNN", lines[1], lines[0])] if fcn is not None else []
    return Plan(lines, contrasts, [] if fcn is not None else ["fcn:28"])


def _table2(world: World) -> Plan:
    return _against_fcn(world, ("Mask R-CNN R50 1×", "DynaMask R50 1×"))


def _table3(world: World) -> Plan:
    lines = []
    for evidence in world.evidences:
        lines.append(Line(f"{evidence.label}, all at {max(evidence.mask_sizes)}", evidence, finest(evidence)))
        if evidence.has_switch:
            lines.append(Line(f"{evidence.label}, {size_label('learned')}", evidence))
    return Plan(lines, figure=cost_quality)


def _table4(world: World) -> Plan:
    plan, pointrend = _against_fcn(world, ("Mask R-CNN", "DynaMask")), world.branch("pointrend")
    if pointrend is None:
        plan.lacking.append("pointrend")
        return plan
    line = Line("PointRend", pointrend, finest(pointrend), paper="PointRend")
    plan.contrasts.append(Contrast("DynaMask − PointRend", plan.lines[-1], line))
    plan.lines.insert(-1, line)
    return plan


def _table5(world: World) -> Plan:
    main, full = world.main, Line("all at 112", world.main, FULL)
    lines, contrasts = [full], []
    for evidence in sorted(world.switched, key=_spent, reverse=True):
        own = Line(f"{evidence.label}, {size_label('learned')}", evidence, more={"C_t": _target(evidence)})
        lines.append(own)
        if evidence.macs == main.macs:
            contrasts.append(Contrast(f"{own.label} − all at 112", own, full))
        if evidence is not main and evidence.macs == main.macs and _spent(evidence) <= _spent(main):
            slider = Line(f"{main.label}, held to that cost", main, like=own, more={"C_t": "slider"})
            lines.append(slider)
            contrasts.append(Contrast(f"{main.label} held to its cost − {evidence.label}", slider, own))
    for share in (0.8, 0.6, 0.4, 0.2):
        limit = share * main.macs[-1]
        if main.macs[0] < limit < _spent(main):
            lines.append(Line(f"{main.label}, held to {share:.0%}", main, limit=limit, more={"C_t": "slider"}))
    return Plan(lines, contrasts, verdict=budgets_said, figure=cost_quality)


def _spent(evidence: Evidence) -> float:
    """Mean MACs of the switch's own sizes on the detections."""
    return mean_macs(evidence.choice("learned"), evidence.macs)


def _target(evidence: Evidence) -> str:
    """The budget that a switch was trained for, as its checkpoint has it."""
    target = evidence.checkpoint["budget_target"]
    if target is None:
        return "unknown"
    return "none" if target >= 1 else f"{target:g} of the full MACs"


def _table7(world: World) -> Plan:
    main = world.switched[0] if world.switched else world.plain
    lines = [Line(size_label(p), main, p, paper=p) for p in coarsest_first(main.mask_sizes)]
    steps = [Contrast(f"{b.label} − {a.label.removeprefix('all at ')}", b, a) for a, b in zip(lines, lines[1:])]
    return Plan(lines, steps, figure=cost_quality)


def _table8(world: World) -> Plan:
    main = world.main
    fixed = Line("all at 28", main, "fixed:28", paper="fixed:28")
    size = Line(size_label("size"), main, "size", paper="size")
    short = Line(f"switch held to {SHORT_BUDGET:.0%}", main, limit=SHORT_BUDGET * main.macs[-1],
                 paper="DynaMask (C_t = 0.4)")  # fmt: skip
    own, full = Line(size_label("learned"), main), Line("all at 112", main, FULL, paper="fixed:112")
    contrasts = []
    for rival in (fixed, size):
        contrasts.append(Contrast(f"switch − {rival.label}, equal MACs", Line("", main, like=rival), rival))
    contrasts += [Contrast(f"{short.label} − {rival.label}", short, rival) for rival in (fixed, size)]
    return Plan([fixed, size, short, own, full], contrasts, figure=stacked_shares)


def _table_s1(world: World) -> Plan:
    main, lines = world.main, []
    lines += [Line(size_label("size"), main, "size", paper="size"), Line("all at 112", main, FULL, paper="fixed:112")]
    for name, share in (("DynaMask (19 % ↓)", LONG_BUDGET), ("DynaMask (54 % ↓)", SHORT_BUDGET)):
        if share * main.macs[-1] <= _spent(main):
            label = f"{main.label}, held to {share:.0%}"
            lines.append(Line(label, main, limit=share * main.macs[-1], paper=name))
    lines += [Line(f"{e.label}, {size_label('learned')}", e) for e in sorted(world.switched, key=_spent, reverse=True)]
    return Plan(lines, measures=("segm_ap", "boundary_ap"), figure=stacked_shares)


def _table_s3(world: World) -> Plan:
    ours = Line("r-FPN (DynaMask)", world.plain, finest(world.plain), paper="DynaMask")
    lines, contrasts, lacking = [], [], []
    for name, title in PYRAMIDS.items():
        evidence = world.branch(name)
        if evidence is None:
            lacking.append(name)
            continue
        more = evidence.macs[-1] / world.plain.macs[-1] - 1
        cells = {"MACs against the r-FPN": f"{more:+.1%}"}
        lines.append(Line(title, evidence, finest(evidence), paper=name, more=cells))
        contrasts.append(Contrast(f"r-FPN − {title}", ours, lines[-1]))
    return Plan([*lines, ours], contrasts, lacking, verdict=pyramids_said, figure=cost_quality)


_SCALE = "R50 weights (`dynamask_resnet50_fpn`) trained on COCO train2017 by the default recipe, and its val2017"
_WHOLE = ("macs", "segm_ap", "six", "boundary_ap", "mask_iou", "boundary_iou")
_SHORT = ("macs", "segm_ap", "boundary_ap", "mask_iou", "boundary_iou")

TABLES: dict[str, TableKind] = {
    "table1": TableKind(
        _SHORT, _table1,
        "Each FCN head is a model of its own with one mask size; the r-FPN is one model asked for one size at a time. "
        "The paper's point: larger masks make an FCN head worse and the r-FPN better.",
        f"{_SCALE}, for the r-FPN and each FCN head.",
    ),
    "table2": TableKind(
        _WHOLE, _table2,
        "Mask R-CNN is the same detector with an FCN head at 28; DynaMask gives every instance 112, as the paper's row "
        "does.",
        f"{_SCALE}, for both; the paper's other rows need R101 and longer schedules.",
    ),
    "table3": TableKind(
        _WHOLE, _table3,
        "All weights side by side, at their finest size and with the sizes of their switch.",
        "R101 or X101 weights trained on COCO train2017 for 3×, and the answers of the test-dev2017 server.",
    ),
    "table4": TableKind(
        _WHOLE, _table4,
        "The three mask branches on one detector.",
        "R50 weights of the three branches trained on Cityscapes' fine annotations in COCO format, and its val set.",
    ),
    "table5": TableKind(
        ("macs", "saved", "segm_ap", "boundary_ap", "mask_iou", "boundary_iou"), _table5,
        "The paper trains a model for every budget. Beside such models stands one model whose switch is held to their "
        "cost by a price on MACs, without training. C_t is the budget that a switch was trained for.",
        f"{_SCALE}, with a switch trained for each C_t.",
    ),
    "table7": TableKind(
        _WHOLE, _table7,
        "The same weights with every instance at one size.", f"{_SCALE}.",
    ),
    "table8": TableKind(
        ("macs", "segm_ap", "boundary_ap", "mask_iou", "boundary_iou", "shares"), _table8,
        "Shares are of the detections. In the differences at equal MACs the switch is held to the other row's cost; "
        "the paper compares 0.64 with 0.56 and 0.62 G.",
        f"{_SCALE}.",
    ),
    "tableS1": TableKind(
        ("macs", "saved", "segm_ap", "boundary_ap", "shares"), _table_s1,
        "Which share of the detections gets each size. A switch cannot be held to more than it spends by itself; such "
        "rows are left out.",
        f"{_SCALE}, with a switch trained for each budget.",
    ),
    "tableS2": TableKind(
        ("macs", "segm_ap", "boundary_ap"), rare_plan,
        "APr, APc and APf are the mask AP of the classes whose `frequency` is r, c and f. On LVIS, these and LVIS AP "
        "are its own, by the federated rule; the other columns are COCO's AP, at most 100 detections a picture and "
        "every picture searched for every class.",
        "R50 weights trained on LVIS, and its val set.",
    ),
    "tableS3": TableKind(
        _WHOLE, _table_s3,
        "Other pyramids for the mask branch, as wide as makes them cost what the r-FPN costs, all at 112.",
        f"{_SCALE}, for each pyramid.",
    ),
}  # fmt: skip
"""Every table by the name of its report."""


def make_table(name: str, world: World) -> Report:
    """Measure and write one of ``TABLES``.

    Raises:
        DynaMaskError: no given weights fit, or nothing was detected.
    """
    kind, paper = TABLES[name], PAPER[name]
    plan = kind.plan(world)
    rows = [measured(line, plan.measures, paper) for line in plan.lines]
    differences = [difference(contrast, plan.measures) for contrast in plan.contrasts]
    blocks = _blocks(kind, plan, rows, differences, paper, world)
    used = list(dict.fromkeys(line.evidence for line in plan.lines))
    facts = world_facts(world, used)
    keys = list(dict.fromkeys(key for row in (*rows, *differences) for key in row))
    flat = [{"table": name, **{key: row.get(key) for key in keys}} for row in (*rows, *differences)]
    data = {
        "facts": dict(facts),
        "rows": rows,
        "differences": differences,
        "lacking": plan.lacking,
        "paper": asdict(paper),
        "mask_sizes": list(MASK_SIZES),
        "seed": world.options.seed,
    }
    return Report(name, f"{paper.number.split(' (')[0]}: {TITLES[name].rsplit(' (', 1)[0]}", facts, blocks, flat, data)


def _blocks(
    kind: TableKind, plan: Plan, rows: list[Row], differences: list[Row], paper: PaperTable, world: World
) -> list[Block]:
    """The document of a table."""
    blocks: list[Block] = [Paragraph(kind.text)]
    if plan.figure is not None:
        blocks.append(Figure(plan.figure(rows)))
    columns = [c for c in kind.columns if c in plan.measures or c in _UNJUDGED]
    blocks.append(rows_table(rows, plan.lines, columns, paper))
    if differences:
        blocks += [Paragraph("Paired differences, on the same draws of pictures:")]
        blocks.append(difference_table(differences, plan.measures))
    if plan.verdict is not None:
        blocks += [Paragraph(text) for text in plan.verdict(rows, differences)]
    if plan.lacking:
        blocks.append(Paragraph(_lacking(plan.lacking, world)))
    blocks.append(Paragraph(HOW))
    used = list(dict.fromkeys(line.evidence for line in plan.lines))
    if len({evidence.checkpoint["images_seen"] for evidence in used}) > 1:
        blocks.append(Paragraph(UNEQUAL))
    blocks += [Heading("Checkpoints"), provenance_table(world, used)]
    blocks += [Heading(f"The paper's {paper.number}"), Paragraph(_about(paper, kind)), paper_table(paper)]
    return blocks


_UNJUDGED = ("macs", "saved", "six", "shares")
UNEQUAL = (
    "These weights have not seen the same number of pictures in training (see the checkpoints), so what stands between "
    "them is training, too."
)
HOW = (
    "AP over all classes and areas, scores above 0.05, in 0–1. MACs are multiply–accumulates of the mask branch for "
    "an instance, counted from its layers (1 MAC = 2 FLOPs). Brackets are 95 % bootstrap intervals over pictures, "
    "those of AP centred on it."
)


def _about(paper: PaperTable, kind: TableKind) -> str:
    about = f"{paper.about[0].upper()}{paper.about[1:]}; AP in per cent, G in giga multiply–accumulates, as printed. "
    return f"{about}These are other data and other models. To hold ours against it takes {kind.compare}"


def _lacking(branches: list[str], world: World) -> str:
    """Sentences on rows that no given weights have."""
    start, model = world.evidences[0], world.evidences[0].checkpoint["model"]
    words = ["dynamask", "train", "--data", "DATA", "--model", model, "--mask-branch", branches[0]]
    words += ["--init", start.name, "--freeze", "detector", "--out", f"runs/{branches[0].replace(':', '-')}"]
    others = "" if len(branches) == 1 else "; the others need their own name in its place"
    return (
        f"Rows are missing: no weights with the mask branch {', '.join(branches)} were given. "
        f"`{shlex.join(words)}` trains {branches[0]} on the same detector{others}."
    )
