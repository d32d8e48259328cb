"""``report classes``: the mask sizes that each class gets (Fig. 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynamask.data.sources import Data
from dynamask.engine.evaluate import Instances
from dynamask.evaluation.choices import shares
from dynamask.models.masks import policies
from dynamask.reports.collect import annotations_of
from dynamask.reports.comparison import Comparison
from dynamask.reports.paper import FIGURES
from dynamask.reports.render import Block, Figure, Heading, Paragraph, Report, Table, number
from dynamask.reports.size_choices import at_budget, mean_macs
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.charts import class_distribution


def class_rows(
    names: Sequence[str], choice: np.ndarray, boundary_iou: np.ndarray, min_instances: int = 1
) -> list[dict[str, Any]]:
    """Mask sizes and boundary IoU of every class, the one with the finest masks first.

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
        means = quality.mean(axis=0).tolist() if len(quality) else [None] * len(MASK_SIZES)
        rows.append(
            {
                "class": name,
                "instances": int(own.sum()),
                "few": bool(own.sum() < min_instances),
                "mean_size": float(sides[choice[own]].mean()),
                **{f"share_{size}": share for size, share in zip(MASK_SIZES, shares(choice[own]).tolist())},
                **{f"boundary_iou_{size}": mean for size, mean in zip(MASK_SIZES, means)},
            }
        )
    return sorted(rows, key=lambda row: (-row["mean_size"], row["class"]))


def class_names_of(instances: Instances, dataset: Data) -> list[str | None]:
    """The class of every instance.

    In data as class-agnostic weights see them, where all classes are merged into one, it is the class of the true
    instance: None for a detection that matches none.
    """
    by_id = dict(zip(dataset.category_ids, dataset.class_names[1:]))
    merged = any("class_name" in annotation for annotation in dataset.coco["annotations"])
    if not merged:
        return [by_id[result["category_id"]] for result in instances.results]
    return [None if a is None else a["class_name"] for a in annotations_of(instances, dataset)]


def make_classes(
    comparison: Comparison,
    boxes: str = "gt",
    budget: float | None = None,
    min_instances: int = 5,
    score: float | None = None,
    name: str = "classes",
) -> Report:
    """The mask sizes by class of the first weights with a switch.

    Args:
        boxes: "gt" for the instances in true boxes, "detected" for detections.
        budget: mean GMACs per instance over the data set; by default the switch chooses freely.
        min_instances: classes with fewer are left out of the figure and listed apart.
        score: score from which detections were collected, for the text.
        name: name of the report.

    Raises:
        DynaMaskError: there is no instance of a known class, or no class has enough.
    """
    evidence = comparison.main
    macs, detected = evidence.macs, boxes == "detected"
    instances = evidence.detections if detected else evidence.collected.true_boxes
    named = class_names_of(instances, comparison.dataset)
    kept = [i for i, class_name in enumerate(named) if class_name is not None]
    if not kept:
        raise DynaMaskError("the pictures hold no instance of the weights' classes; give other data")
    choice = evidence.choice(true_boxes=not detected)
    if budget is not None:
        choice = at_budget(instances.preferences(), macs, policies.budget_in_macs(budget, macs))
    names, choice = [str(named[i]) for i in kept], choice[kept]
    rows = class_rows(names, choice, instances.quality("boundary_iou")[kept], min_instances)
    if all(row["few"] for row in rows):
        raise DynaMaskError(f"no class has {min_instances} instances; give more data or a smaller --min-instances")
    counts, cost = {"pictures": len(comparison.indices), "instances": len(names)}, mean_macs(choice, macs)
    chosen_by = "the switch" if budget is None else f"the switch under a budget of {budget} mean GMACs"
    where = f"detections with score ≥ {score}" if detected else "true boxes"
    facts = comparison.facts(evidence, **counts, boxes=where, sizes_chosen_by=chosen_by)
    text = (
        "Share of the mask sizes among the instances of each class, the class with the finest masks first; "
        f"{cost / 1e9:.4f} mean GMACs per instance ({cost / macs[-1]:.0%} of the full branch's). {FIGURES['figure8']}"
    )
    blocks: list[Block] = [Paragraph(text)]
    if len(kept) < len(named):
        left_out = len(named) - len(kept)
        text = f"Detections that match no true instance have no class and are left out: {left_out:,}."
        blocks.append(Paragraph(text))
    blocks += _class_blocks(names, choice, rows, min_instances)
    data = {
        "facts": dict(facts),
        "checkpoint": evidence.checkpoint.to_dict(),
        **counts,
        "boxes": boxes,
        "budget": budget,
        "mean_macs_per_instance": cost,
        "classes": rows,
    }
    return Report(name, f"Mask sizes by class, {evidence.label}", facts, blocks, rows, data)


def _class_blocks(
    names: Sequence[str], choice: np.ndarray, rows: Sequence[dict[str, Any]], min_instances: int
) -> list[Block]:
    """Stacked bars and a table of the classes with enough instances, and a table of the others."""
    counts = {row["class"]: row["instances"] for row in rows if not row["few"]}
    shown = [i for i, name in enumerate(names) if name in counts]
    titles = [f"{names[i]} ({counts[names[i]]:,})" for i in shown]
    few = [row for row in rows if row["few"]]
    note = "BIoU S: mean boundary IoU over the instances with a true mask, if all of them had size S."
    blocks: list[Block] = [
        Figure(class_distribution(titles, np.array(MASK_SIZES)[choice[shown]])),
        Heading("By class"),
        Paragraph(note),
        _table([row for row in rows if not row["few"]]),
    ]
    return blocks + ([Heading(f"Classes with fewer than {min_instances} instances"), _table(few)] if few else [])


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    header = ["class", "instances", "mean size", *map(str, MASK_SIZES), *(f"BIoU {size}" for size in MASK_SIZES)]
    body = []
    for row in rows:
        split = [f"{row[f'share_{size}']:.0%}" for size in MASK_SIZES]
        quality = [number(row[f"boundary_iou_{size}"], 3) for size in MASK_SIZES]
        body.append([row["class"], f"{row['instances']:,}", f"{row['mean_size']:.1f}", *split, *quality])
    return Table(header, body)
