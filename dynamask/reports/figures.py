"""Figures 5 and 7 of the DynaMask paper on given weights and data."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from dynamask.data.sources import Data
from dynamask.evaluation.bootstrap import interval_of
from dynamask.evaluation.ranking import SizeRanking
from dynamask.reports.comparison import Comparison, Evidence
from dynamask.reports.paper import FIGURES
from dynamask.reports.render import (
    Block,
    Figure,
    Heading,
    Paragraph,
    Picture,
    Report,
    Table,
    jsonable,
    number,
    with_interval,
)
from dynamask.reports.size_losses import SIZE_LOSSES
from dynamask.reports.tables import checkpoint_table
from dynamask.structures import MASK_SIZES, DynaMaskError, Interval
from dynamask.viz.charts import size_violins
from dynamask.viz.overlay import draw_overlay

FINER = "finer is better, always"
"""The signal that does not look at the instance."""
LEGEND = {
    14: ("tiny", "yellow", "yellow, dotted"),
    28: ("small", "green", "teal, dashed"),
    56: ("medium", "blue", "blue, full"),
    112: ("large", "red", "crimson, double"),
}
"""Name and colour of each mask size in the paper, and its outline here."""
_MOST_SHOWN = 2000  # instances in the violins
_RANK_TITLES = {
    "pairs": "pairs in order",
    "spearman": "Spearman's ρ of the sizes",
    "gain": "ρ of the gain, 112 over 14",
}
_SIGNAL_TITLES = {**SIZE_LOSSES, FINER: FINER}
Rankings = dict[str, dict[str, Interval]]
"""Intervals by signal, then by key of ``_RANK_TITLES``."""


def rank_sizes(evidence: Evidence) -> tuple[Rankings, Rankings]:
    """Measure how well each loss ranks the mask sizes by true boundary IoU.

    Returns:
        "pairs", "spearman" and "gain" of each loss and of ``FINER``, see :class:`SizeRanking`; and, for every other
        signal, "pairs" and "spearman" of the edge loss minus it.
    """
    collected, rows = evidence.collected, evidence.true_box_rows
    ranking = SizeRanking(collected.true_boxes.quality("boundary_iou"), evidence.comparison.bootstrap, rows)
    signals = {name: -collected.size_losses[name] for name in SIZE_LOSSES}  # a lower loss ranks higher
    signals[FINER] = np.tile(np.arange(len(MASK_SIZES), dtype=np.float64), (len(rows), 1))
    own = {name: ranking.figures(signal) for name, signal in signals.items()}
    edge = signals.pop("edge_loss")
    return own, {name: ranking.difference(edge, signal) for name, signal in signals.items()}


def make_figure5(comparison: Comparison) -> Report:
    """Figure 5: the losses by mask size, and how they rank the sizes.

    Raises:
        DynaMaskError: no weights with a switch, or no instance.
    """
    evidence = comparison.main
    rows, losses = evidence.true_box_rows, evidence.collected.size_losses
    if not losses:
        raise DynaMaskError(f"{evidence.label} has no edge predictor; give weights with the mask branch region_fpn")
    means = {
        name: [interval_of(comparison.bootstrap.draws(column, rows)) for column in values.T]
        for name, values in losses.items()
    }
    rankings, differences = rank_sizes(evidence)
    facts = comparison.facts(evidence)
    flat = [(name, "mean", size, v) for name, own in means.items() for size, v in zip(MASK_SIZES, own)]
    flat += [(name, rank, None, v) for name, own in rankings.items() for rank, v in own.items()]
    flat += [(f"edge_loss − {name}", rank, None, v) for name, own in differences.items() for rank, v in own.items()]
    keys = ("signal", "figure", "size")
    data = {
        "facts": dict(facts),
        "levels": jsonable(means),
        "rankings": jsonable(rankings),
        "edge_loss_minus": jsonable(differences),
        "instances": len(rows),
        "seed": comparison.options.seed,
    }
    return Report(
        "figure5",
        "Fig. 5: edge loss and mask loss by mask size",
        facts,
        _figure5_blocks(evidence, means, rankings, differences),
        [{**evidence.provenance(), **dict(zip(keys, row)), **value.to_dict()} for *row, value in flat],
        data,
    )


def _figure5_blocks(
    evidence: Evidence, means: dict[str, list[Interval]], rankings: Rankings, differences: Rankings
) -> list[Block]:
    losses = evidence.collected.size_losses
    step = max(1, -(-len(evidence.true_box_rows) // _MOST_SHOWN))
    body = []
    for name, values in means.items():
        figures = [value.mean or 0.0 for value in values]
        ratio = number(max(figures) / min(figures), 2) if min(figures) > 0 else "–"
        body.append([SIZE_LOSSES[name], *(with_interval(value, 3) for value in values), ratio])
    ranks = [[_SIGNAL_TITLES[name], *(with_interval(v, 3) for v in own.values())] for name, own in rankings.items()]
    gaps = [
        [_SIGNAL_TITLES[name], *(with_interval(v, 3, signed=True) for v in own.values())]
        for name, own in differences.items()
    ]
    return [
        Paragraph(f"{FIGURES['figure5']} The losses below are of every true instance, in its true box."),
        Figure(size_violins({title: losses[name][::step] for name, title in SIZE_LOSSES.items()})),
        Table(["mean of", *(f"at {size}" for size in MASK_SIZES), "largest over smallest"], body),
        Heading("Ranking the sizes by true boundary IoU"),
        Paragraph(
            "Of every instance's six pairs of sizes, the share that a loss puts in the order of their boundary IoU "
            "(chance is 0.5, a tie counts one half); the mean over instances of Spearman's ρ between the four losses "
            "and the four qualities; and, across instances, ρ between the gains of 112 over 14 in the loss and in "
            "boundary IoU. Without looking at the instance, one can say that finer is better: a loss that ranks no "
            "better than that gives a switch no information about the order."
        ),
        Table(["signal", *_RANK_TITLES.values()], ranks),
        Paragraph("Edge loss minus the others, paired:"),
        Table(["edge loss minus", *list(_RANK_TITLES.values())[:2]], gaps),
        *map(Paragraph, conclude_figure5(rankings, differences)),
        Heading("Checkpoint"),
        checkpoint_table([evidence]),
    ]


def conclude_figure5(rankings: Rankings, differences: Rankings) -> list[str]:
    """Sentences on the paper's assumption that the edge loss ranks the sizes better than the mask loss."""
    gap = differences["mask_loss"]["pairs"]
    if gap.low is None:
        return []
    edge, mask, finer = (number(rankings[name]["pairs"].mean, 3) for name in ("edge_loss", "mask_loss", FINER))
    better = {1: "better than", -1: "worse than", 0: "not significantly better or worse than"}[gap.sign]
    base = {1: "better than", -1: "worse than", 0: "no better or worse than"}[differences[FINER]["pairs"].sign]
    sentences = [
        f"Within an instance, the edge loss ranks the sizes {better} the mask loss here: it puts {edge} of the pairs "
        f"in order, the mask loss {mask}. That is {base} the base rate: always to say that finer is better puts "
        f"{finer} in order without any loss."
    ]
    gains = [rankings[name]["gain"] for name in ("edge_loss", "mask_loss")]
    if None not in (gains[0].mean, gains[1].mean):
        sentences.append(
            "A switch has to know which instances gain most. Across instances, ρ of the gain is "
            f"{with_interval(gains[0], 3)} for the edge loss and {with_interval(gains[1], 3)} for the mask loss."
        )
    common = rankings["edge_loss_112"]["pairs"].mean
    if common is not None:
        sentences.append(
            "The loss of each size is a mean over its own grid, and on a coarse grid a larger share of the pixels are "
            f"edges, in the truth as well; with all sizes resampled to one grid the edge loss puts {number(common, 3)} "
            "in order."
        )
    return sentences


def spread_pictures(dataset: Data, indices: list[int], count: int) -> list[int]:
    """Indices of ``count`` pictures spread evenly over those with at least one true instance.

    Raises:
        DynaMaskError: a count below 1, or no picture with an instance.
    """
    if count < 1:
        raise DynaMaskError(f"--pictures is {count}; give a whole number of at least 1")
    with_instance = {a["image_id"] for a in dataset.coco["annotations"] if not a.get("iscrowd")}
    held = [i for i in indices if dataset.image_ids[i] in with_instance]
    if not held:
        raise DynaMaskError("no picture holds an instance; give other data")
    places = np.linspace(0, len(held) - 1, min(count, len(held))).round().astype(int)
    return [held[i] for i in places]


def make_figure7(
    comparison: Comparison, count: int = 6, budget: float | None = None, score: float | None = None
) -> Report:
    """Figure 7: pictures with the masks in the colours of their sizes.

    Args:
        count: number of pictures.
        budget: mean GMACs per instance, met in every picture; by default the switch chooses freely.
        score: detections below it are not drawn; by default the score from which the weights show detections.

    Raises:
        DynaMaskError: no weights with a switch, or no picture with an instance.
    """
    evidence = comparison.main
    score = evidence.predictor.default_score if score is None else score
    pictures: list[Block] = []
    rows: list[dict[str, Any]] = []
    for index in spread_pictures(comparison.dataset, comparison.indices, count):
        prediction = evidence.predictor(comparison.dataset[index][0], budget=budget, score=score)
        names = [prediction.class_names[label] for label in prediction.labels.tolist()]
        drawn = draw_overlay(prediction.picture, prediction.masks.numpy(), prediction.mask_size.numpy(), labels=names)
        jpeg = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
        image_id = comparison.dataset.image_ids[index]
        found = list(zip(names, prediction.scores.tolist(), prediction.mask_size.tolist()))
        caption = ", ".join(f"{name} {size}" for name, _, size in found) or "nothing found"
        pictures.append(Picture(jpeg, f"picture {image_id}: {caption}"))
        keys = ("image_id", "class", "score", "mask_size")
        rows += [{**evidence.provenance(), **dict(zip(keys, (image_id, *instance)))} for instance in found]
    chosen_by = "the switch" if budget is None else f"the switch under {budget} mean GMACs a picture"
    facts = comparison.facts(evidence, sizes_chosen_by=chosen_by, drawn=f"detections with score ≥ {score}")
    legend = [[f"{size}×{size}", here, f"{colour} ({name})"] for size, (name, colour, here) in LEGEND.items()]
    blocks = [
        Paragraph(FIGURES["figure7"]),
        Table(["mask size", "here", "in the paper"], legend),
        Heading("Pictures"),
        *pictures,
        Heading("Checkpoint"),
        checkpoint_table([evidence]),
    ]
    title = f"Fig. 7: mask sizes chosen by {evidence.label}"
    return Report("figure7", title, facts, blocks, rows, {"facts": dict(facts), "instances": rows})
