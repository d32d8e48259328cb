"""What measured differences say, in a sentence: only what their intervals decide is called decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamask.reports.writer import number

Row = dict[str, Any]


def told(row: Row, measure: str = "segm_ap") -> str:
    """Whether a paired difference is "higher", "lower" or "not told apart" by its 95 % interval."""
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    if low is None or high is None:
        return "not told apart"
    return "higher" if low > 0 else "lower" if high < 0 else "not told apart"


def sizes_said(rows: Sequence[Row], differences: Sequence[Row]) -> list[str]:
    """Whether FCN heads stop gaining or lose beyond 28 while the r-FPN goes on (Tab. 1), in mask AP."""
    found: dict[str, list[str]] = {}
    said = []
    for name in ("FCN head", "r-FPN"):
        steps = [d for d in differences if d["row"] in (f"{name}, 56 − 28", f"{name}, 112 − 56")]
        if len(steps) == 2:
            found[name] = [told(step) for step in steps]
            changes = " and ".join(f"{number(d['segm_ap'], 4, True)} ({told(d)})" for d in steps)
            said.append(f"{name}, mask AP from 28 to 56 and from 56 to 112: {changes}.")
    if len(found) == 2:
        first, last = (step == "higher" for step in found["FCN head"])
        goes_on = found["r-FPN"] == ["higher", "higher"]
        stops = not first and not last
        verdict = "shown" if stops and goes_on else "shown in part only" if stops or goes_on else "refuted"
        head = {
            (False, False): "stop gaining or lose beyond 28",
            (True, False): "still gain at 56 and stop gaining or lose beyond it",
            (False, True): "do not gain at 56 and gain at 112",
            (True, True): "go on gaining",
        }[first, last]
        fpn = "goes on gaining" if goes_on else "does not gain at every step"
        said.append(
            f"The paper's contrast, that FCN heads stop gaining or lose beyond 28 and the r-FPN does not, is {verdict} "
            f"on these data: FCN heads {head}, the r-FPN {fpn}."
        )
    return said


def budgets_said(rows: Sequence[Row], differences: Sequence[Row]) -> list[str]:
    """Whether the slider of one model does what training for a budget does (Tab. 5), in mask AP."""
    sliders = [d for d in differences if " held to its cost − " in d["row"]]
    return [
        f"{d['row']}: mask AP {number(d['segm_ap'], 4, True)}, {told(d)}; boundary AP "
        f"{number(d['boundary_ap'], 4, True)}, {told(d, 'boundary_ap')}."
        for d in sliders
    ]


def pyramids_said(rows: Sequence[Row], differences: Sequence[Row]) -> list[str]:
    """Whether the r-FPN is ahead of each other pyramid (Tab. S3)."""
    measures = {"segm_ap": "mask AP", "boundary_ap": "boundary AP", "boundary_iou": "boundary IoU in true boxes"}
    return [f"{d['row']}: " + ", ".join(f"{title} {told(d, m)}" for m, title in measures.items()) + "."
            for d in differences]  # fmt: skip
