"""The results of ``decisions.py`` as lines and Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

HALF = "0.5"
"""Budget at which choices are correlated with complexity, as a fraction of the full cost."""


def mean_of(runs: Sequence[dict[str, Any]], *path: str) -> float | None:
    """Mean over seeds of the value at a path of keys; None if one is undefined."""
    values = []
    for run in runs:
        value: Any = run
        for key in path:
            value = None if value is None else value[key]
        values.append(value)
    return None if any(value is None for value in values) else float(np.mean(values))


def spread_of(runs: Sequence[dict[str, Any]], *path: str) -> float:
    """Half the range over seeds."""
    values = [mean_of([run], *path) for run in runs]
    return (max(values) - min(values)) / 2 if None not in values else float("nan")


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return "–" if value is None else f"{100 * value:.{digits}f} %".replace("-", "−")


def plain(value: float | None) -> str:
    """A correlation or a share."""
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def points(value: float | None) -> str:
    """A difference in IoU, in hundredths."""
    return "–" if value is None else f"{100 * value:+.2f}".replace("-", "−")


def with_interval(values: dict[str, float | None], show: Callable[[float | None], str]) -> str:
    """A value with its 95 % interval."""
    return f"{show(values['mean'])} [{show(values['low'])}, {show(values['high'])}]"


def switch_cells(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Cells of a row of the switch table: means over the seeds."""
    sizes = " / ".join(f"{100 * s:.0f}" for s in np.mean([run["learned"]["size_shares"] for run in runs], axis=0))
    gain = {key: mean_of(runs, "learned", "boundary_iou", "gain", key) for key in ("mean", "low", "high")}
    sweep = spread_of(runs, "sweep", "boundary_iou", "gain")
    return [
        sizes,
        percent(mean_of(runs, "learned", "macs_fraction")),
        f"{mean_of(runs, 'learned', 'boundary_iou', 'mean'):.4f}",
        f"{mean_of(runs, 'learned', 'mask_iou', 'mean'):.4f}",
        with_interval(gain, points),
        percent(mean_of(runs, "learned", "boundary_iou", "share_of_oracle")),
        f"{points(mean_of(runs, 'sweep', 'boundary_iou', 'gain'))} ± {100 * sweep:.2f}",
        percent(mean_of(runs, "sweep", "boundary_iou", "share_of_oracle")),
        percent(mean_of(runs, "sweep", "boundary_iou", "share_of_noise_aware")),
        points(mean_of(runs, "sweep", "mask_iou", "gain")),
        percent(mean_of(runs, "sweep", "mask_iou", "share_of_noise_aware")),
        plain(mean_of(runs, "budgets", HALF, "spearman_complexity")),
        plain(mean_of(runs, "budgets", HALF, "spearman_side")),
    ]


SWITCH_HEADINGS = (
    "sizes %",
    "MACs",
    "B-IoU",
    "M-IoU",
    "gain",
    "oracle",
    "slider: B-IoU",
    "oracle",
    "aware",
    "slider: M-IoU",
    "aware",
    "ρ complexity",
    "ρ size",
)


def line(name: str, row: dict[str, Any]) -> str:
    """A setting as one line for the terminal."""
    return f"{name}: " + ", ".join(f"{h} {c}" for h, c in zip(SWITCH_HEADINGS, switch_cells(row["runs"])))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its first column left-aligned."""
    marks = [":--", *["--:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, marks, *rows))


def switch_table(result: dict[str, Any]) -> str:
    """Table with a row for each setting of the switch."""
    rows = [[name, *switch_cells(row["runs"])] for name, row in result["rows"].items()]
    return table(["", *SWITCH_HEADINGS], rows)


def rank_table(result: dict[str, Any]) -> str:
    """Rank correlations with the true gain, the largest first."""
    rows = sorted(result["rows"].items(), key=lambda row: -abs(row[1]["mean"] or 0.0))
    return table(["", "Spearman's ρ"], [[name, with_interval(values, plain)] for name, values in rows])


def branches_table(result: dict[str, Any]) -> str:
    """Quality of branches at every size, differences from the first, and gains of their own switches."""
    sizes, slider = result["rows"]["sizes"], result["rows"]["slider"]
    names = list(slider["mask_iou"])
    rows = []
    for measure, cells in sizes.items():
        for size, cell in cells.items():
            gaps = [with_interval(cell["minus_first"][name], points) for name in names[1:]]
            rows.append([f"{measure} at {size}", *(f"{cell['mean'][name]:.4f}" for name in names), *gaps])
    for measure, gains in slider.items():
        gap = [points(gains[name] - gains[names[0]]) for name in names[1:]]
        rows.append([f"{measure}, gain of its switch", *(points(gains[name]) for name in names), *gap])
    return table(["", *names, *(f"{name} − {names[0]}, hundredths" for name in names[1:])], rows)


def reduction_table(result: dict[str, Any]) -> str:
    """Sizes and MACs of every signal, reduction and C_t, with a column for each λ2; means over the seeds."""
    cells: dict[str, dict[str, str]] = {}
    for name, row in result["rows"].items():
        setting, _, weight = name.rpartition(", ")
        sizes = np.mean([run["learned"]["size_shares"] for run in row["runs"]], axis=0)
        spent = percent(mean_of(row["runs"], "learned", "macs_fraction"))
        cells.setdefault(setting, {})[weight] = " / ".join(f"{100 * s:.0f}" for s in sizes) + f", {spent}"
    weights = list(next(iter(cells.values())))
    return table(["", *weights], [[setting, *(own[w] for w in weights)] for setting, own in cells.items()])


def rivals_table(result: dict[str, Any]) -> str:
    """Every predictor at every budget: its gain over the blind mixture and what the first one gains over it."""
    rows = []
    for fraction, predictors in result["rows"]["budgets"].items():
        for name, figures in predictors.items():
            cells = [percent(figures["macs_fraction"])]
            for measure in ("mask_iou", "boundary_iou"):
                cells += [f"{figures[measure]['mean']:.4f}", with_interval(figures[f"{measure}_difference"], points)]
                cells.append(with_interval(figures[f"{measure}_share_of_aware"], plain))
            rows.append([f"{percent(float(fraction))}, {name}", *cells])
    first = next(iter(result["rows"]["correlation"]))
    of_measure = [f"{first} minus it", "share of aware over mix"]
    budgets = table(["budget", "MACs", "M-IoU", *of_measure, "B-IoU", *of_measure], rows)
    known = result["rows"]["correlation"].items()
    found = [[name, *(with_interval(rho[kind], plain) for kind in ("pooled", "within"))] for name, rho in known]
    return f"{budgets}\n\n{table(['predicted gain with measured gain, ρ', 'pooled', 'within classes'], found)}"


def markdown(result: dict[str, Any]) -> str:
    """The table of a result of any kind."""
    if result.get("table") == "reduction":
        return reduction_table(result)
    kinds = {"switch": switch_table, "rank": rank_table, "branches": branches_table, "rivals": rivals_table}
    return kinds[result["kind"]](result)
