"""``dynamask data check``: what a data set holds and what is broken in it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dynamask.cli.common import DATA_HELP, add_json, say, write_json
from dynamask.structures import DynaMaskError

SHOWN = 20
"""Findings of one kind that are printed; the JSON holds all."""


def add(commands: Any) -> None:
    """Add the command and its subcommands to the subparsers."""
    parser = commands.add_parser("data", help="look at a data set", description="Look at a data set.")
    parts = parser.add_subparsers(dest="part", required=True, metavar="part")
    check = parts.add_parser(
        "check",
        help="what a data set holds and what is broken in it",
        description="What a data set (COCO, LVIS or Cityscapes) holds and what is broken in it: everything, where the "
        "other commands stop at the first mistake. An error is what they refuse, a warning what they accept. The exit "
        "code is 0 as long as anything in it can be used.",
    )
    source = check.add_mutually_exclusive_group(required=True)
    source.add_argument("--annotations", type=Path, metavar="JSON", help="COCO annotations")
    source.add_argument("--data", metavar="DATA", help=DATA_HELP)
    check.add_argument("--split", metavar="NAME", help="part of --data, where it has several (default: train)")
    check.add_argument("--images", type=Path, metavar="DIR", help="picture folder: decode every picture as well")
    check.add_argument(
        "--most", type=int, default=SHOWN, metavar="N",
        help=f"print at most N findings of a kind (default: {SHOWN}); --json holds them all",
    )  # fmt: skip
    add_json(check)
    check.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> None:
    from dynamask.data.check import check_data
    from dynamask.data.check_cityscapes import check_cityscapes
    from dynamask.data.layouts import find_source
    from dynamask.data.sources import names_scenes, open_data

    annotations, images, findings = arguments.annotations, arguments.images, []
    if arguments.data is not None:
        if images is not None:
            raise DynaMaskError("--data brings its own pictures; leave --images away")
        if names_scenes(arguments.data):
            annotations = open_data(arguments.data).coco
        else:
            found = find_source(arguments.data, arguments.split)
            annotations, images, findings = found.annotations, found.images, []
            if len(found.splits) > 1:
                say(f"split {found.split} of {', '.join(found.splits)}", arguments.json)
            if found.kind == "cityscapes":
                annotations, findings = check_cityscapes(found.annotations, str(found.split), sys.stderr.isatty())
    elif arguments.split is not None:
        raise DynaMaskError(f"--split {arguments.split} chooses a part of --data; leave it away beside --annotations")
    report = check_data(annotations, images, sys.stderr.isatty(), findings)
    _print_holdings(report, arguments.json)
    _print_findings(report, arguments.most, arguments.json)
    write_json(report, arguments.json)
    if not report["usable"]:
        source, count = arguments.data or arguments.annotations, len(report["findings"])
        raise DynaMaskError(f"nothing in {source} can be used ({count} findings); mend what is listed")


def _print_holdings(report: dict[str, Any], target: str | None) -> None:
    """What the data set holds, as lines for people."""
    pictures = "" if report["pictures_read"] is None else f" ({report['pictures_read']} pictures read well)"
    say(f"{report['images']} images{pictures}, {report['images_without_object']} without an object", target)
    say(
        f"{report['instances']} instances and {report['crowds']} crowd regions in {report['annotations']} annotations",
        target,
    )
    for title, values in (
        ("image width", report["image_sizes"]["width"]),
        ("image height", report["image_sizes"]["height"]),
        ("box width", report["box_sizes"]["width"]),
        ("box height", report["box_sizes"]["height"]),
        ("box side (root of its area)", report["box_sizes"]["side"]),
    ):
        if values:
            low, first, median, third, high = (f"{value:.0f}" for value in values)
            say(f"  {title:<28} {median} px in the middle, half in {first}–{third}, all in {low}–{high}", target)
    sizes = ", ".join(f"{count} {name}" for name, count in report["object_sizes"].items())
    say(f"  objects: {sizes} (below 32², below 96², above; pixels)", target)
    classes = sorted(report["classes"].items(), key=lambda item: (-item[1], item[0]))
    say(f"{report['categories']} classes: " + ", ".join(f"{name} {count}" for name, count in classes), target)


def _print_findings(report: dict[str, Any], most: int, target: str | None) -> None:
    """The findings by kind, the errors first."""
    if not report["findings"]:
        say("nothing is broken", target)
        return
    say(f"{report['errors']} errors (refused by the other commands), {report['warnings']} warnings", target)
    kinds = dict.fromkeys((f["severity"], f["kind"]) for f in sorted(report["findings"], key=lambda f: f["severity"]))
    for severity, kind in kinds:
        found = [finding for finding in report["findings"] if finding["kind"] == kind]
        say(f"{severity}: {kind} ({len(found)})", target)
        for finding in found[: max(most, 0)]:
            say(f"  {finding['where']} {finding['problem']}", target)
        if len(found) > max(most, 0):
            say(f"  … and {len(found) - max(most, 0)} more; --json holds them all", target)
