"""``dynamask analyze``: the mask size that each class needs, from annotations alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dynamask.cli.common import DATA_HELP, add_json, check_folder, input_file, number_in, print_line, write_json
from dynamask.files import write_text
from dynamask.structures import MASK_SIZES

MIN_INSTANCES = 10
"""Instances that a class must have to be named in the headline."""


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "analyze",
        help="the mask size that each class needs, from annotations alone",
        description="Mean mask and boundary IoU of the ideal MxM mask with the true mask, per class and object size, "
        "and the smallest M whose mean is at least 0.95. Needs annotations only: no model, no pictures.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--annotations", type=input_file, metavar="JSON", help="COCO annotations")
    source.add_argument("--data", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--split", metavar="NAME", help="split of --data, where it has several (default: train)")
    parser.add_argument(
        "--min-area",
        type=number_in(0.0, 1e12),
        default=0.0,
        metavar="PX",
        help="leave out instances of less area, in square pixels",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write analyze.md, analyze.csv and analyze.html here")
    add_json(parser)
    parser.set_defaults(run=_analyze)


def _analyze(arguments: argparse.Namespace) -> None:
    from dynamask.data.coco_format import read_coco
    from dynamask.evaluation.ideal_masks import ideal_quality, summarise
    from dynamask.reports.render import csv_text

    if arguments.out is not None:
        check_folder(arguments.out)
    content = read_coco(_annotations(arguments))
    content.require_objects(arguments.data or arguments.annotations)
    summary = summarise(ideal_quality(content.coco, content.rles, arguments.min_area, progress=sys.stderr.isatty()))
    _print_table(summary, arguments.json)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        files = {
            "analyze.md": markdown_table(summary),
            "analyze.csv": csv_text(csv_rows(summary)),
            "analyze.html": html_page(summary),
        }
        for name, text in files.items():
            write_text(arguments.out / name, text)
        print_line(f"table and page: {', '.join(str(arguments.out / name) for name in files)}", arguments.json)
    write_json(summary, arguments.json)


def _annotations(arguments: argparse.Namespace) -> Path | dict[str, Any]:
    """The annotation file, or the COCO dict of scenes or of Cityscapes; no picture is read."""
    from dynamask.data.cityscapes import CityscapesDataset
    from dynamask.data.sources import find_annotations, find_source, is_shapes, open_data

    if arguments.data is None:
        return find_annotations(arguments.annotations) if arguments.annotations.is_dir() else arguments.annotations
    if is_shapes(arguments.data):
        return open_data(arguments.data).coco
    source = find_source(arguments.data, arguments.split)
    if source.kind == "cityscapes":
        return CityscapesDataset(source.annotations, str(source.split)).coco
    return source.annotations


def _groups(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name and entry of all instances, of the object sizes, and of the classes, those that lose most first."""
    from dynamask.evaluation.ideal_masks import by_loss

    sizes = [(f"{name} objects", entry) for name, entry in summary["all"]["by_area"].items()]
    return [("all", summary["all"]), *sizes, *((name, summary["classes"][name]) for name in by_loss(summary))]


def _print_table(summary: dict[str, Any], target: str | None) -> None:
    """Print the boundary IoU of the ideal masks as a table."""
    print_line(headline(summary), target)
    columns = "".join(f"{size:>7}" for size in MASK_SIZES)
    print_line(f"  {'boundary IoU at':<24}{'instances':>9}{columns}   needs (boundary)  needs (mask)", target)
    for name, entry in _groups(summary):
        means = "".join(f"{number_text(mean):>7}" for mean in entry["boundary_iou"].values())
        needs = f"{need_text(entry, 'boundary_iou'):>19}{need_text(entry, 'mask_iou'):>14}"
        print_line(f"  {name[:24]:<24}{entry['instances']:>9}{means}{needs}", target)


def markdown_table(summary: dict[str, Any]) -> str:
    """A summary as Markdown: how to read it, then all instances, the object sizes, and the classes by their loss."""
    from dynamask.evaluation.ideal_masks import METRICS
    from dynamask.ops.masks import BOUNDARY_WIDTH_RATIO
    from dynamask.reports.render import Paragraph, Table, blocks_markdown

    columns = [f"{title} {size}" for title in ("mask", "boundary") for size in MASK_SIZES]
    header = ["group", "instances", *columns, "needs (mask)", "needs (boundary)"]
    rows = [
        [name, str(entry["instances"])]
        + [number_text(entry[metric][str(size)]) for metric in METRICS for size in MASK_SIZES]
        + [need_text(entry, metric) for metric in METRICS]
        for name, entry in _groups(summary)
    ]
    note = (
        "Mean IoU of the ideal M×M mask with the true mask: of the whole masks (mask) and of their boundaries "
        f"(boundary, {BOUNDARY_WIDTH_RATIO} of the image diagonal wide). “Needs” is the smallest M whose mean is at "
        f"least {summary['kept']}; “> {MASK_SIZES[-1]}” means that none is. Classes are sorted by the boundary IoU at "
        f"{MASK_SIZES[0]}. Small objects have less than 32² pixels, large ones 96² or more."
    )
    return f"# Mask size that each class needs\n\n{blocks_markdown([Paragraph(note), Table(header, rows)])}\n"


def headline(summary: dict[str, Any]) -> str:
    """One sentence on the classes for which an ideal 14×14 mask is worst and best.

    Classes with fewer than ``MIN_INSTANCES`` instances are ignored unless fewer than two classes are left without them.
    """
    from dynamask.evaluation.ideal_masks import by_loss

    classes: dict[str, Any] = summary["classes"]
    if not classes:
        return "The annotations contain no instance."
    order = by_loss(summary)
    frequent = [name for name in order if classes[name]["instances"] >= MIN_INSTANCES]
    order = frequent if len(frequent) > 1 else order
    worst, best = (f"{name} ({classes[name]['boundary_iou']['14']:.0%})" for name in (order[0], order[-1]))
    count = f"{summary['all']['instances']:,} instances of {len(classes)} class{'es' if len(classes) > 1 else ''}"
    if len(order) == 1:
        return f"{count}: an ideal 14×14 mask has a boundary IoU of {worst}."
    return f"{count}: the boundary IoU of an ideal 14×14 mask is lowest for {worst} and highest for {best}."


def html_page(summary: dict[str, Any]) -> str:
    """A summary as an interactive HTML page that needs no network."""
    from dynamask.reports.render import Figure, Paragraph, Report, page
    from dynamask.viz.required_size import required_size_by_area, required_size_by_class

    note = (
        "No model is involved: the true mask of each instance is resampled to 14×14, 28×28, 56×56 and 112×112 cells of "
        "its box and pasted back, so a dot shows the best that a mask of this size can reach, averaged over the "
        f"instances. The dashed line marks {summary['kept']:.0%}; the large dot is the smallest size that reaches it, "
        "which is also printed at the right. A long grey bar marks a class whose outlines a coarse mask cannot "
        "represent. Small objects have less than 32² pixels, large ones 96² or more; the buttons select an object size."
    )
    figures = [Figure(required_size_by_area(summary)), Figure(required_size_by_class(summary))]
    blocks = [Paragraph(headline(summary)), Paragraph(note), *figures]
    return page(Report("analyze", "Mask size that each class needs", [], blocks, [], {}))


def number_text(value: float | None) -> str:
    """An IoU with three decimals, a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def need_text(entry: dict[str, Any], metric: str) -> str:
    """The needed size of an entry by a metric: "28", "> 112", or "–" where there is no instance."""
    from dynamask.evaluation.ideal_masks import NEEDS

    if not entry["instances"]:
        return "–"
    return f"> {MASK_SIZES[-1]}" if entry[NEEDS[metric]] is None else str(entry[NEEDS[metric]])


def csv_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A summary as flat rows: ``class`` ("" for all), ``object_size`` (all, small, …), counts, means, needed sizes.

    Groups without an instance are left out, except the row of all instances.
    """
    from dynamask.evaluation.ideal_masks import METRICS, NEEDS, by_loss

    rows = []
    for name, entry in [("", summary["all"]), *((name, summary["classes"][name]) for name in by_loss(summary))]:
        for object_size, part in [("all", entry), *entry["by_area"].items()]:
            if not part["instances"] and (name or object_size != "all"):
                continue
            row: dict[str, Any] = {"class": name, "object_size": object_size, "instances": part["instances"]}
            row |= {f"{metric}_{size}": part[metric][str(size)] for metric in METRICS for size in MASK_SIZES}
            rows.append(row | {key: part[key] for key in NEEDS.values()})
    return rows
