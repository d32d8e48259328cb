"""``dynamask data``: counts of a data set and everything that is wrong with it, and subsets of annotation files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dynamask.cli.common import (
    DATA_HELP,
    MOST,
    add_json,
    check_folder,
    input_file,
    number_in,
    print_line,
    write_json,
)
from dynamask.structures import DynaMaskError

SHOWN = 20
"""Default number of findings of one kind that are printed; the JSON holds all."""


def add(commands: Any) -> None:
    """Add the command and its subcommands to the subparsers."""
    parser = commands.add_parser("data", help="inspect a data set", description="Inspect a data set.")
    parts = parser.add_subparsers(dest="part", required=True, metavar="part")
    check = parts.add_parser(
        "check",
        help="count what a data set holds and find everything that is wrong with it",
        description="Count what a data set (COCO, LVIS or Cityscapes) holds and list everything that is wrong with it; "
        "the other commands stop at the first error. They refuse data with errors and accept warnings. The exit code "
        "is 0 if nothing was found, 1 if something was found, and 2 if nothing in the data set can be used.",
    )
    source = check.add_mutually_exclusive_group(required=True)
    source.add_argument("--annotations", type=input_file, metavar="JSON", help="COCO annotations, or their folder")
    source.add_argument("--data", metavar="DATA", help=DATA_HELP)
    check.add_argument("--split", metavar="NAME", help="split of --data, where it has several (default: train)")
    check.add_argument("--images", type=Path, metavar="DIR", help="picture folder, to decode every picture as well")
    shown = f"print at most N findings of a kind (default: {SHOWN}); --json holds them all"
    check.add_argument("--most", type=number_in(0, MOST), default=SHOWN, metavar="N", help=shown)
    check.add_argument("--out", type=Path, metavar="DIR", help="write a page with pictures of the findings here")
    add_json(check)
    check.set_defaults(run=_check)
    subset = parts.add_parser(
        "subset",
        help="write the annotations of some of the pictures to a new file",
        description="Write the COCO annotations of some of the pictures to a new file; nothing else changes.",
    )
    subset.add_argument("--annotations", type=input_file, required=True, metavar="JSON", help="COCO annotations")
    subset.add_argument(
        "--holdout", type=number_in(2, MOST), metavar="M", help="the pictures that `train --holdout M` holds out"
    )
    subset.add_argument(
        "--where", metavar="FIELD=TEXT", help="pictures whose field contains the text, such as coco_url=val2017"
    )
    subset.add_argument("--out", type=Path, required=True, metavar="JSON", help="the new file")
    subset.set_defaults(run=_subset)


def _check(arguments: argparse.Namespace) -> int:
    from dynamask.data.check import examine
    from dynamask.data.cityscapes import check_labels
    from dynamask.data.sources import find_annotations, find_source, is_shapes, open_data

    if arguments.out is not None:
        check_folder(arguments.out)
    annotations, images, findings = arguments.annotations, arguments.images, []
    if arguments.data is not None:
        if images is not None:
            raise DynaMaskError("--data has its own pictures; leave out --images")
        if is_shapes(arguments.data):
            annotations = open_data(arguments.data).coco
        else:
            found = find_source(arguments.data, arguments.split)
            annotations, images = found.annotations, found.images
            if len(found.splits) > 1:
                print_line(f"split {found.split} of {', '.join(found.splits)}", arguments.json)
            if found.kind == "cityscapes":
                annotations, findings = check_labels(found.annotations, str(found.split), sys.stderr.isatty())
    elif arguments.split is not None:
        raise DynaMaskError(f"--split {arguments.split} chooses a split of --data; leave it out with --annotations")
    elif annotations.is_dir():
        annotations = find_annotations(annotations)
    report, coco, files = examine(annotations, images, sys.stderr.isatty(), findings)
    _print_holdings(report, arguments.json)
    _print_findings(report, arguments.most, arguments.json)
    if arguments.out is not None:
        from dynamask.viz.data_page import write_page

        page = write_page(arguments.out, report, coco, files, str(arguments.data or arguments.annotations))
        print_line(f"page: {page}", arguments.json)
    write_json(report, arguments.json)
    if not report["usable"]:
        source, count = arguments.data or arguments.annotations, len(report["findings"])
        raise DynaMaskError(f"nothing in {source} can be used ({count} findings); correct what is listed")
    return 1 if report["findings"] else 0


def _subset(arguments: argparse.Namespace) -> None:
    from dynamask.data.coco_format import load_coco, read_coco
    from dynamask.data.coco_repair import repaired
    from dynamask.data.instances import is_held_out

    field, equals, text = (arguments.where or "").partition("=")
    if arguments.where is not None and not (field and equals and text):
        raise DynaMaskError(f"--where {arguments.where} is not a condition; write FIELD=TEXT")
    if arguments.holdout is not None and arguments.holdout < 2:
        raise DynaMaskError(f"--holdout is {arguments.holdout}; give a whole number of at least 2")
    read_coco(arguments.annotations, need_files=False)  # refuses what the other commands refuse
    coco, _ = repaired(load_coco(arguments.annotations), lambda finding: None)  # read_coco has warned
    images = [
        image
        for image in coco["images"]
        if (arguments.holdout is None or is_held_out(image["id"], arguments.holdout))
        and (not field or text in str(image.get(field, "")))
    ]
    if not images:
        raise DynaMaskError(f"no picture of {arguments.annotations} meets the conditions; change --holdout or --where")
    chosen = {image["id"] for image in images}
    annotations = [each for each in coco["annotations"] if each.get("image_id") in chosen]
    try:
        write_json({**coco, "images": images, "annotations": annotations}, str(arguments.out))
    except DynaMaskError:
        raise
    except (ValueError, RecursionError):  # in fields that are copied without being read
        problem = "holds NaN or Infinity, which JSON does not have, or very deeply nested lists"
        raise DynaMaskError(f"{arguments.annotations} {problem}; remove these fields") from None
    print(f"{arguments.out}: {len(images)} of {len(coco['images'])} pictures, {len(annotations)} annotations")


def _print_holdings(report: dict[str, Any], target: str | None) -> None:
    """Print counts and sizes."""
    pictures = "" if report["pictures_read"] is None else f" ({report['pictures_read']} pictures decoded)"
    print_line(f"{report['images']} images{pictures}, {report['images_without_object']} without an object", target)
    print_line(
        f"{report['instances']} instances and {report['crowds']} crowd regions in {report['annotations']} annotations",
        target,
    )
    for title, values in (
        ("image width", report["image_sizes"]["width"]),
        ("image height", report["image_sizes"]["height"]),
        ("box width", report["box_sizes"]["width"]),
        ("box height", report["box_sizes"]["height"]),
        ("box side (root of area)", report["box_sizes"]["side"]),
    ):
        if values:
            low, first, median, third, high = (f"{value:.0f}" for value in values)
            print_line(f"  {title:<28} median {median} px, middle half {first}–{third}, range {low}–{high}", target)
    sizes = ", ".join(f"{count} {name}" for name, count in report["object_sizes"].items())
    print_line(f"  objects: {sizes} (areas below 32², below 96² and from 96² pixels)", target)
    classes = sorted(report["classes"].items(), key=lambda item: (-item[1], item[0]))
    print_line(f"{report['categories']} classes: " + ", ".join(f"{name} {count}" for name, count in classes), target)


def _print_findings(report: dict[str, Any], most: int, target: str | None) -> None:
    """Print the findings by kind, the errors first."""
    if not report["findings"]:
        print_line("nothing is broken", target)
        return
    print_line(f"{report['errors']} errors (refused by the other commands), {report['warnings']} warnings", target)
    kinds = dict.fromkeys((f["severity"], f["kind"]) for f in sorted(report["findings"], key=lambda f: f["severity"]))
    for severity, kind in kinds:
        found = [finding for finding in report["findings"] if finding["kind"] == kind]
        print_line(f"{severity}: {kind} ({len(found)}): {found[0]['cure']}", target)
        if found[0]["assumed"]:
            print_line(f"  assumed: {found[0]['assumed']}", target)
        for finding in found[: max(most, 0)]:
            print_line(f"  {finding['where']} {finding['problem']}", target)
        if len(found) > max(most, 0):
            print_line(f"  … and {len(found) - max(most, 0)} more; --json holds them all", target)
