"""Fill the tables of docs/speed.md with the figures that ``benchmarks/speed.py`` and ``benchmarks/page.py`` wrote.

    python tools/speed_page.py --before before.json --now speed.json --app app.json

``--before`` is optional: the same benchmark on an earlier version of the library. Blocks of the page whose figures are
not given are left as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dynamask.cli.common import run_command
from dynamask.evaluation.efficiency import machine_line
from dynamask.structures import DynaMaskError
from tools.decision_tables import percent, table
from tools.page_blocks import fill_blocks

Figures = dict[str, Any]
GOALS = {
    "picture_ratio_learned": ("picture to masks, learned sizes", 1.1, 0.6),
    "picture_ratio_112": ("picture to masks, all at 112", 1.4, 0.8),
    "branch_ratio_paper_widths": ("mask branch, 100 regions, the paper's widths", 1.0, 1.0),
    "branch_ratio_small": ("mask branch, 100 regions, small preset", 1.8, 1.5),
    "train_step_ratio": ("training step of the small preset", None, None),
    "train_memory_ratio": ("peak memory of that step", None, None),
}
"""Title of each headline ratio, and its goal in PyTorch and in OpenVINO."""
STEP_GOALS = {"train_step_ratio": 0.75, "train_memory_ratio": 0.7}
"""Goals of ratios as shares of their values before."""
START_GOAL_S, PHOTOGRAPH_GOAL_MS = 6, 1000
MISSING = "–"
NAMES = {"mask_rcnn": "Mask R-CNN (torchvision)"}
"""Names of cases in the tables."""


def ratio(value: float | None) -> str:
    """A ratio with two decimals."""
    return MISSING if value is None else f"{value:.2f}"


def goal(value: float | None) -> str:
    """A goal that is an upper limit."""
    return MISSING if value is None else f"≤ {value:g}"


def headline_table(before: Figures, now: Figures) -> str:
    """The headline ratios before and now."""
    rows = []
    for key, (title, torch_goal, openvino_goal) in GOALS.items():
        cells = [ratio(before.get(key)), ratio(now.get(key)), goal(torch_goal)]
        rows.append([title, *cells, ratio(now.get(f"{key}_openvino")), goal(openvino_goal)])
    for key, limit in STEP_GOALS.items():
        old, new = before.get(key), now.get(key)
        share = None if not old or new is None else new / old
        rows.append([f"{GOALS[key][0]}, now as a share of before", "1.00", ratio(share), goal(limit), MISSING, MISSING])
    return table(["", "before", "now", "goal", "now, OpenVINO", "goal"], rows)


def case_table(before: Figures, now: Figures, part: str) -> str:
    """The cases of one part on every back end: time and ratio to the reference, before and now."""
    parts = {part: "", f"{part}, openvino": ", openvino"}
    columns = [
        {row["case"] + parts[row["part"]]: row for row in figures.get("rows", ()) if row["part"] in parts}
        for figures in (before, now)
    ]
    rows = []
    for case in dict.fromkeys([*columns[1], *columns[0]]):
        cells = []
        for found in columns:
            row = found.get(case)
            cells += [MISSING, MISSING] if row is None else [f"{row['median_ms']:.0f}", ratio(row["ratio"])]
        rows.append([NAMES.get(case, case), *cells])
    return table(["", "before, ms", "ratio", "now, ms", "ratio"], rows)


def stage_table(before: Figures, now: Figures, model: str) -> str:
    """Milliseconds of each stage of a model, by case."""
    columns: dict[str, dict[int, Figures]] = {}
    for prefix, figures in (("before, ", before), ("", now)):
        for row in figures.get("stages", ()):
            if row["model"] == model:
                columns.setdefault(prefix + row["case"], {})[row["stage"]] = row
    stages = dict.fromkeys(stage for found in columns.values() for stage in found)
    rows = []
    for stage in stages:
        regions = next(found[stage]["regions"] for found in columns.values() if stage in found)
        cells = [f"{found[stage]['median_ms']:.0f}" if stage in found else MISSING for found in columns.values()]
        rows.append([f"to {stage}", str(regions), *cells])
    totals = [f"{sum(row['median_ms'] for row in found.values()):.0f}" for found in columns.values()]
    return table(["stage", "regions", *(f"{name}, ms" for name in columns)], [*rows, ["all", "", *totals]])


def memory_table(before: Figures, now: Figures) -> str:
    """Peak memory of a training step."""
    columns = [{row["case"]: row for row in figures.get("memory", ())} for figures in (before, now)]
    rows = []
    for case in dict.fromkeys([*columns[1], *columns[0]]):
        found = [column.get(case) for column in columns]
        rows.append(
            [NAMES.get(case, case), *(MISSING if row is None else f"{row['peak_bytes'] / 2**20:.0f}" for row in found)]
        )
    return table(["", "before, MiB", "now, MiB"], rows)


def profile_table(before: Figures, now: Figures, model: str) -> str:
    """Operators of the mask branch that take most of its time, as shares of the time."""
    columns = [
        {row["operator"]: row["share"] for row in figures.get("profile", ()) if row["model"] == model}
        for figures in (before, now)
    ]
    names = dict.fromkeys([*columns[1], *columns[0]])
    return table(
        ["operator", "before", "now"],
        [[f"`{name}`", *(percent(found.get(name)) for found in columns)] for name in names],
    )


def app_table(app: Figures) -> str:
    """Start of the app, and a photograph's first masks."""
    rows = []
    if "start_s" in app:
        rows.append(["start to the first analysed picture, s", f"{app['start_s']:.1f}", goal(START_GOAL_S)])
        rows.append(["of it until the server answers, s", f"{app['server_s']:.1f}", MISSING])
        rows.append(["the same with an empty cache, s", f"{app['first_start_s']:.1f}", MISSING])
    if "photograph" in app:
        milliseconds = app["photograph"]["median_ms"]
        rows.append(["a photograph to its masks, ms (median)", f"{milliseconds:.0f}", goal(PHOTOGRAPH_GOAL_MS)])
    return table(["", "measured", "goal"], rows)


def machine_text(before: Figures, now: Figures) -> str:
    """Machine and settings of the runs."""
    lines = []
    for name, figures in (("Before", before), ("Now", now)):
        if figures:
            settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in figures["settings"].items())
            lines.append(f"{name}: {machine_line(figures['machine'])}; {settings}.")
    return "\n\n".join(lines)


def blocks_of(before: Figures, now: Figures, app: Figures) -> dict[str, str]:
    """The content of every block whose figures were given."""
    blocks: dict[str, str] = {}
    if now:
        blocks |= {"machine": machine_text(before, now), "headlines": headline_table(before, now)}
        parts = {"pictures": "predict", "training": "training step"}
        measured = {row["part"] for row in now["rows"]}
        blocks |= {block: case_table(before, now, part) for block, part in parts.items() if part in measured}
        for number, model in enumerate(dict.fromkeys(row["model"] for row in now["stages"])):
            name = ("paper", "small")[number]
            blocks[f"branch-{name}"] = case_table(before, now, f"regions {model}")
            blocks[f"stages-{name}"] = stage_table(before, now, model)
            if now["profile"]:
                blocks[f"profile-{name}"] = profile_table(before, now, model)
        if now["memory"]:
            blocks["memory"] = memory_table(before, now)
    if app:
        blocks["app"] = app_table(app)
    return blocks


def read(path: Path | None) -> Figures:
    """The JSON of a benchmark; empty without a path."""
    if path is None:
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DynaMaskError(
            f"{path} cannot be read ({error}); give a file that a benchmark wrote with --json"
        ) from error


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(prog="speed_page", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--now", type=Path, metavar="JSON", help="of benchmarks/speed.py")
    parser.add_argument("--before", type=Path, metavar="JSON", help="of benchmarks/speed.py on an earlier version")
    parser.add_argument("--app", type=Path, metavar="JSON", help="of benchmarks/page.py --parts start photograph")
    parser.add_argument("--doc", type=Path, default=Path("docs/speed.md"), help="the page (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the page; returns the exit code."""
    arguments = build_parser().parse_args(argv)

    def command() -> None:
        fill_blocks(
            arguments.doc, blocks_of(*(read(path) for path in (arguments.before, arguments.now, arguments.app)))
        )

    return run_command("speed_page", command)


if __name__ == "__main__":
    sys.exit(main())
