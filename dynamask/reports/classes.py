"""``report classes``: which mask sizes each class gets (Fig. 8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynamask.data.sources import Data
from dynamask.engine.evaluate import Instances
from dynamask.evaluation.choices import shares
from dynamask.models.masks import policies
from dynamask.reports.collecting import Collected, annotations_of
from dynamask.reports.facts import Source, fact_lines
from dynamask.reports.paper import FIGURES
from dynamask.reports.size_choices import at_budget, mean_macs
from dynamask.reports.writer import Block, Figure, Heading, Paragraph, Report, Table, number
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.charts import class_distribution


def class_rows(
    names: Sequence[str], choice: np.ndarray, boundary_iou: np.ndarray, min_instances: int = 1
) -> list[dict[str, Any]]:
    """Figures of every class, the one with the finest masks first.

    Args:
        names: class of each of N instances.
        choice: (N,) size indices.
        boundary_iou: (N, 4) at every size, NaN where there is no true mask.
        min_instances: classes with fewer are marked ``few``.

    Returns:
        Per class ``class``, ``instances``, ``few``, ``mean_size`` in mask pixels, ``share_S`` and ``boundary_iou_S``
        (mean over the instances with a true mask, None without one) for every size S.
    """
    sides, labels = np.array(MASK_SIZES), np.array(names)
    rows = []
    for name in sorted(set(names)):
        own = labels == name
        quality = boundary_iou[own]
        quality = quality[~np.isnan(quality).any(axis=1)]
        rows.append(
            {
                "class": name,
                "instances": int(own.sum()),
                "few": bool(own.sum() < min_instances),
                "mean_size": float(sides[choice[own]].mean()),
                **{f"share_{s}": share for s, share in zip(MASK_SIZES, shares(choice[own]).tolist())},
                **{
                    f"boundary_iou_{s}": float(quality[:, k].mean()) if len(quality) else None
                    for k, s in enumerate(MASK_SIZES)
                },
            }
        )
    return sorted(rows, key=lambda row: (-row["mean_size"], row["class"]))


def class_names_of(found: Instances, dataset: Data) -> list[str | None]:
    """The class of every instance.

    In data that class-agnostic weights see, where all classes are one, it is that of the true instance: None for a
    detection that matches none.
    """
    by_id = dict(zip(dataset.category_ids, dataset.class_names[1:]))
    merged = any("class_name" in annotation for annotation in dataset.coco["annotations"])
    if not merged:
        return [by_id[result["category_id"]] for result in found.results]
    return [None if a is None else a["class_name"] for a in annotations_of(found, dataset)]


def make_report(
    kept: Collected,
    macs: Sequence[int],
    dataset: Data,
    pictures: int,
    source: Source,
    checkpoint: dict[str, Any],
    budget: float | None = None,
    min_instances: int = 5,
    score: float | None = None,
) -> Report:
    """Shares of the sizes by class as a report.

    Args:
        kept: with detections, these are reported, else the instances in true boxes.
        budget: mean GMACs per instance over the data set; the switch's own choice by default.
        min_instances: classes with fewer are left out of the figure and listed apart.
        score: from which detections were kept, for the text.

    Raises:
        DynaMaskError: there is no instance of a known class, or no class has enough.
    """
    detected = kept.found is not None
    found = kept.found if kept.found is not None else kept.given
    named = class_names_of(found, dataset)
    there = [i for i, name in enumerate(named) if name is not None]
    if not there:
        raise DynaMaskError("the pictures hold no instance of the weights' classes; give other data")
    choice = np.array(found.choice, dtype=np.int64)
    if budget is not None:
        choice = at_budget(found.logits(), macs, policies.budget_in_macs(budget, tuple(macs)))
    names, choice = [str(named[i]) for i in there], choice[there]
    rows = class_rows(names, choice, found.quality("boundary_iou")[there], min_instances)
    enough = {row["class"] for row in rows if not row["few"]}
    if not enough:
        raise DynaMaskError(f"no class has {min_instances} instances; give more data or a smaller --min-instances")
    counts = {"pictures": pictures, "instances": len(names)}
    where = f"detections with score ≥ {score}" if detected else "true boxes"
    chosen_by = "the switch" if budget is None else f"the switch under a budget of {budget} mean GMACs"
    facts = fact_lines(source, checkpoint, **counts, boxes=where, sizes_chosen_by=chosen_by)
    cost = mean_macs(choice, macs)
    blocks: list[Block] = [
        Paragraph(
            f"Share of the mask sizes among the instances of each class, the class with the finest masks first; "
            f"{cost / 1e9:.4f} mean GMACs per instance ({cost / macs[-1]:.0%} of the full branch's). "
            f"{FIGURES['figure8']}"
        ),
        *_left_out(len(named) - len(there)),
        Figure(_figure(names, choice, enough)),
        Heading("By class"),
        Paragraph("BIoU S: mean boundary IoU over the instances with a true mask, were all of them given size S."),
        _table([row for row in rows if not row["few"]]),
    ]
    few = [row for row in rows if row["few"]]
    if few:
        blocks += [Heading(f"Classes with fewer than {min_instances} instances"), _table(few)]
    data = {"facts": dict(facts), "checkpoint": checkpoint, **counts, "boxes": "detected" if detected else "gt",
            "budget": budget, "mean_macs_per_instance": cost, "classes": rows}  # fmt: skip
    return Report("classes", f"Mask sizes by class, {Path(source.weights).stem}", facts, blocks, rows, data)


def _left_out(count: int) -> list[Block]:
    if count == 0:
        return []
    return [Paragraph(f"Detections that match no true instance and have no class are left out: {count:,}.")]


def _figure(names: Sequence[str], choice: np.ndarray, enough: set[str]) -> Any:
    """Stacked bars of the classes with enough instances."""
    counts = Counter(names)
    kept = [i for i, name in enumerate(names) if name in enough]
    return class_distribution([f"{names[i]} ({counts[names[i]]:,})" for i in kept], np.array(MASK_SIZES)[choice[kept]])


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    header = ["class", "instances", "mean size", *(f"{size}" for size in MASK_SIZES)]
    header += [f"BIoU {size}" for size in MASK_SIZES]
    body = [
        [
            row["class"],
            f"{row['instances']:,}",
            f"{row['mean_size']:.1f}",
            *(f"{row[f'share_{size}']:.0%}" for size in MASK_SIZES),
            *(number(row[f"boundary_iou_{size}"], 3) for size in MASK_SIZES),
        ]
        for row in rows
    ]
    return Table(header, body)
