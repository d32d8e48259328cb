"""``dynamask analyze``: what each class needs, from annotations alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dynamask.cli.common import DATA_HELP, add_json, check_folder, say, write_json
from dynamask.files import write_text
from dynamask.structures import MASK_SIZES


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "analyze",
        help="the mask size that each class needs, from annotations alone",
        description="Mean mask and boundary IoU that an ideal MxM mask keeps, per class and object size, and the "
        "smallest M that keeps 95 %%. Takes annotations alone: no model, no pictures.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--annotations", type=Path, metavar="JSON", help="COCO annotations")
    source.add_argument("--data", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--split", metavar="NAME", help="part of --data, where it has several (default: train)")
    parser.add_argument(
        "--min-area", type=float, default=0.0, metavar="PX", help="leave out instances of less area, in square pixels"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write analyze.md, analyze.csv and analyze.html here")
    add_json(parser)
    parser.set_defaults(run=_analyze)


def _analyze(arguments: argparse.Namespace) -> None:
    from dynamask.data.coco import drop_degenerate
    from dynamask.evaluation.ideal_masks import ideal_quality, markdown_table, summarise, table_rows
    from dynamask.reports.writer import csv_text
    from dynamask.viz.required_size import required_size_page

    if arguments.out is not None:
        check_folder(arguments.out)
    coco, rles, _ = drop_degenerate(_annotations(arguments.annotations, arguments.data, arguments.split))
    summary = summarise(ideal_quality(coco, rles, arguments.min_area, progress=sys.stderr.isatty()))
    _print_table(summary, arguments.json)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        files = {
            "analyze.md": markdown_table(summary),
            "analyze.csv": csv_text(table_rows(summary)),
            "analyze.html": required_size_page(summary),
        }
        for name, text in files.items():
            write_text(arguments.out / name, text)
        say(f"table and page: {', '.join(str(arguments.out / name) for name in files)}", arguments.json)
    write_json(summary, arguments.json)


def _annotations(path: Path | None, data: str | None, split: str | None) -> dict[str, Any]:
    """The checked COCO dict of a file, a folder or scenes; no picture is looked at."""
    from dynamask.data.cityscapes import CityscapesDataset
    from dynamask.data.coco import read_coco_json
    from dynamask.data.layouts import find_source
    from dynamask.data.sources import names_scenes, open_data

    if data is not None and names_scenes(data):
        return open_data(data).coco
    if path is None:
        source = find_source(str(data), split)
        if source.kind == "cityscapes":
            return CityscapesDataset(source.annotations, str(source.split)).coco
        path = source.annotations
    return read_coco_json(path)


def _print_table(summary: dict[str, Any], target: str | None) -> None:
    """Boundary IoU of the ideal masks, as lines for people."""
    from dynamask.evaluation.ideal_masks import by_loss, need_text
    from dynamask.viz.required_size import headline

    say(headline(summary), target)
    columns = "".join(f"{size:>7}" for size in MASK_SIZES)
    say(f"  {'boundary IoU at':<24}{'instances':>9}{columns}   needs (boundary)  needs (mask)", target)
    rows = [("all", summary["all"])]
    rows += [(f"  {name}", entry) for name, entry in summary["all"]["by_area"].items()]
    rows += [(name, summary["classes"][name]) for name in by_loss(summary)]
    for name, entry in rows:
        means = "".join("      –" if v is None else f"{v:7.3f}" for v in entry["boundary_iou"].values())
        needs = f"{need_text(entry, 'boundary_iou'):>19}{need_text(entry, 'mask_iou'):>14}"
        say(f"  {name[:24]:<24}{entry['instances']:>9}{means}{needs}", target)
