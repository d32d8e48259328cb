"""``report figure5``: how the losses differ between the mask sizes, and how well they rank them (Fig. 5)."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynamask.evaluation.bootstrap import interval_of
from dynamask.evaluation.ranking import SizeRanking
from dynamask.reports.comparing import provenance, provenance_table
from dynamask.reports.paper import FIGURES
from dynamask.reports.signals import SIGNALS
from dynamask.reports.world import Evidence, World, world_facts
from dynamask.reports.writer import Block, Figure, Heading, Paragraph, Report, Table, jsonable, number, with_interval
from dynamask.structures import MASK_SIZES, DynaMaskError, Interval
from dynamask.viz.charts import size_violins

FINER = "finer is better, always"
_SHOWN = 2000  # instances in the figure, at most
_RANKS = {"pairs": "pairs in order", "spearman": "Spearman's ρ of the sizes", "gain": "ρ of the gain, 112 over 14"}


def rankings(evidence: Evidence) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, Interval]]]:
    """How each signal ranks the sizes by true boundary IoU, and paired differences to the edge loss.

    Returns:
        Per signal (and for the rule that finer is better) ``pairs``, ``spearman`` and ``gain``; per other signal
        ``pairs`` and ``spearman`` of the edge loss minus it.
    """
    kept, world = evidence.kept, evidence.world
    ranking = SizeRanking(kept.given.quality("boundary_iou"), world.bootstrap, evidence.true_rows)
    values = {name: -kept.signals[name] for name in SIGNALS}
    values[FINER] = np.tile(np.arange(len(MASK_SIZES), dtype=np.float64), (len(evidence.true_rows), 1))
    found = {name: ranking.row(signal) for name, signal in values.items()}
    edge = values["edge_loss"]
    return found, {name: ranking.difference(edge, signal) for name, signal in values.items() if name != "edge_loss"}


def make_figure5(world: World) -> Report:
    """The report.

    Raises:
        DynaMaskError: no weights with a switch, or no instance.
    """
    evidence = world.main
    rows_of, signals = evidence.true_rows, evidence.kept.signals
    if not signals:
        raise DynaMaskError(f"{evidence.label} has no edge predictor; give weights with the mask branch region_fpn")
    levels = {
        name: [interval_of(world.bootstrap.draws(signals[name][:, k], rows_of)) for k in range(len(MASK_SIZES))]
        for name in SIGNALS
    }
    found, against = rankings(evidence)
    facts = world_facts(world, [evidence])
    rows = [*_level_rows(levels), *_rank_rows(found, against)]
    rows = [{**provenance(evidence), **row} for row in rows]
    data = {
        "facts": dict(facts),
        "levels": jsonable(levels),
        "rankings": jsonable(found),
        "edge_loss_minus": jsonable(against),
        "instances": len(rows_of),
        "seed": world.options.seed,
    }
    blocks = _blocks(evidence, levels, found, against)
    return Report("figure5", "Fig. 5: edge loss and mask loss by mask size", facts, blocks, rows, data)


def _level_rows(levels: dict[str, list[Interval]]) -> list[dict[str, Any]]:
    return [
        {"signal": name, "figure": "mean", "size": size, **value.to_dict()}
        for name, values in levels.items()
        for size, value in zip(MASK_SIZES, values)
    ]


def _rank_rows(found: dict[str, dict[str, Interval]], against: dict[str, dict[str, Interval]]) -> list[dict[str, Any]]:
    rows = [
        {"signal": name, "figure": figure, "size": None, **value.to_dict()}
        for name, values in found.items()
        for figure, value in values.items()
    ]
    rows += [
        {"signal": f"edge_loss − {name}", "figure": figure, "size": None, **value.to_dict()}
        for name, values in against.items()
        for figure, value in values.items()
    ]
    return rows


def _blocks(
    evidence: Evidence,
    levels: dict[str, list[Interval]],
    found: dict[str, dict[str, Interval]],
    against: dict[str, dict[str, Interval]],
) -> list[Block]:
    signals = evidence.kept.signals
    step = max(1, -(-len(evidence.true_rows) // _SHOWN))
    shown = {SIGNALS[name]: signals[name][::step] for name in SIGNALS}
    names = {**SIGNALS, FINER: FINER}
    header = ["mean of", *(f"at {size}" for size in MASK_SIZES), "largest over smallest"]
    body = []
    for name, values in levels.items():
        means = [value.mean or 0.0 for value in values]
        ratio = number(max(means) / min(means), 2) if min(means) > 0 else "–"
        body.append([names[name], *(with_interval(value, 3) for value in values), ratio])
    ranks = [[names[name], *(with_interval(values[f], 3) for f in _RANKS)] for name, values in found.items()]
    gaps = [[names[name], *(with_interval(v[f], 3, signed=True) for f in v)] for name, v in against.items()]
    return [
        Paragraph(f"{FIGURES['figure5']} The losses below are of every true instance, in its true box."),
        Figure(size_violins(shown)),
        Table(header, body),
        Heading("Ranking the sizes by true boundary IoU"),
        Paragraph(
            "Of every instance's six pairs of sizes, the share that a loss puts in the order of their boundary IoU "
            "(chance is 0.5, a tie counts one half); the mean over instances of Spearman's ρ between the four losses "
            "and the four qualities; and, across instances, ρ between what the loss and what boundary IoU say 112 "
            "gains over 14. Knowing nothing of the instance, one can say that finer is better: a loss that ranks no "
            "better than that tells a switch nothing about the order."
        ),
        Table(["signal", *_RANKS.values()], ranks),
        Paragraph("Edge loss minus the others, paired:"),
        Table(["edge loss minus", *list(_RANKS.values())[:2]], gaps),
        *map(Paragraph, said(found, against)),
        Heading("Checkpoint"),
        provenance_table(evidence.world, [evidence]),
    ]


def said(found: dict[str, dict[str, Interval]], against: dict[str, dict[str, Interval]]) -> list[str]:
    """The paper's premise in the light of these figures, in two sentences."""
    gap = against["mask_loss"]["pairs"]
    edge, mask = (number(found[name]["pairs"].mean, 3) for name in ("edge_loss", "mask_loss"))
    if gap.low is None or gap.high is None:
        return []
    better = "better than" if gap.sign > 0 else "worse than" if gap.sign < 0 else "not told apart from"
    first = (
        f"The edge loss ranks the sizes {better} the mask loss here: it puts {edge} of the pairs in order, the mask "
        f"loss {mask}."
    )
    own, common = found["edge_loss"]["pairs"].mean, found["edge_loss_112"]["pairs"].mean
    if own is None or common is None:
        return [first]
    second = (
        "Each size's loss is a mean over its own grid, and a coarse grid has denser edges, in the truth as well; with "
        f"all sizes brought to one grid the edge loss puts {number(common, 3)} in order."
    )
    return [first, second]
