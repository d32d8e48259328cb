"""Table VI of the SODAR paper: one design choice per row, found among the given weights by configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from dynamask.config import SoloConfig
from dynamask.models.build import build_solo
from dynamask.models.solo.costs import decoding_macs, representation_macs, trainable_parameters
from dynamask.presets import model_config
from dynamask.reports.comparison import Comparison
from dynamask.reports.render import Paragraph, Table
from dynamask.reports.rows import Contrast, RowPlan, TablePlan
from dynamask.reports.sodar_models import (
    Group,
    groups_of,
    interpolation,
    plain_preset,
    preset_for,
    reference_group,
    same_base,
    same_design,
    train_command,
)
from dynamask.reports.tables import conclusion
from dynamask.viz.charts import ablation_bars

ABLATIONS: dict[str, dict[str, Any] | None] = {
    "Baseline": None,
    "agg-D": {},
    "agg-S": {"weights": "static"},
    "no-neighbor": {"neighbours": "none"},
    "N-2-col": {"neighbours": "column"},
    "N-2-row": {"neighbours": "row"},
    "N-4": {},
    "N-8": {"neighbours": "8"},
    "multi-level-context-w": {},
    "multi-level-context-w/o": {"context": "without"},
    "multi-level-context-only": {"context": "only"},
    "conv-layer-1": {"layers": 1},
    "conv-layer-2": {"layers": 2},
    "conv-layer-3": {},
    "conv-layer-4": {"layers": 4},
    "conv-kernel-1x1": {"kernel": 1},
    "conv-kernel-3x3": {},
    "two-stage-loss": {"direct_weight": 1.0},
}
"""The fields of the aggregation that differ from SODAR's own, by row of the paper; None removes the aggregation.
SODAR's own is repeated in each section of the table."""


def ablated_config(base: SoloConfig, changed: dict[str, Any] | None) -> SoloConfig:
    """The configuration of a row of ``ABLATIONS`` on a base, without mask interpolation."""
    own = model_config(preset_for(base)).aggregation
    aggregation = None if changed is None else dataclasses.replace(own, **changed)
    grids = base.mask_grids if interpolation(base) == "+cls" else base.grids
    return dataclasses.replace(base, aggregation=aggregation, mask_grids=(), grids=grids)


def plan_ablations(comparison: Comparison) -> TablePlan:
    """The table; rows without weights are counted from built models, and their training command is shown."""
    groups = groups_of(comparison)
    like = reference_group(groups)
    rows, commands, counts = {}, [], {}
    for name, changed in ABLATIONS.items():
        config = ablated_config(like.config, changed)
        if config.aggregation not in counts:
            counts[config.aggregation] = _counts(config)
        values = counts[config.aggregation]
        cells = {
            "θ": str(values["theta"] or "–"),
            "MACs a pixel": f"{values['macs_per_pixel']:,}",
            "M parameters": f"{values['counted_parameters'] / 1e6:.3f}",
        }
        members = next((group.members for group in groups if _matches(group.config, config)), ())
        command = None if members else _command(like, name)
        rows[name] = RowPlan(name, members, name, cells, {**values, "command": command})
        if command is not None:
            commands.append([name, f"`{command}`"])
    blocks = []
    if commands:
        text = (
            "No weights were given for these rows. Each command trains some like the given weights; add the --init "
            "that they started from:"
        )
        blocks = [Paragraph(text), Table(["row", "command"], commands)]
    return TablePlan(
        list(rows.values()),
        _contrasts(rows),
        conclude=lambda differences: [conclusion(row, ("segm_ap",), interval=False) for row in differences],
        figures=lambda measured, _differences: [ablation_bars(measured)],
        blocks=blocks,
    )


def _matches(given: SoloConfig, config: SoloConfig) -> bool:
    """Return True if given weights are those of a row; the two-stage loss may have any weight."""
    return not interpolation(given) and same_base(given, config) and same_design(given.aggregation, config.aggregation)


def _counts(config: SoloConfig) -> dict[str, int]:
    """Length of θ, MACs that decode a pixel of a mask, and trainable parameters, counted from a built model."""
    with torch.device("meta"):
        model = build_solo(config)
    return {
        "theta": 0 if config.aggregation is None else config.aggregation.parameters,
        "macs_per_pixel": decoding_macs(1, 1, representation_macs(config), config.aggregation),
        "counted_parameters": trainable_parameters(model),
    }


def _command(like: Group, name: str) -> str:
    """The command that trains a row like given weights."""
    changed = ABLATIONS[name]
    if changed is None:
        return train_command(plain_preset(like.config).name, like, {}, name)
    flags = {f"agg_{field}": value for field, value in changed.items()}
    return train_command(preset_for(like.config), like, flags, name)


def _contrasts(rows: dict[str, RowPlan]) -> list[Contrast]:
    """SODAR's own row against the baseline, and every other row against SODAR's own."""
    given = {name: row for name, row in rows.items() if row.members}
    own = given.get("agg-D")
    if own is None:
        return []
    contrasts = [Contrast("agg-D − Baseline", own, given["Baseline"])] if "Baseline" in given else []
    for name, row in given.items():
        if name != "Baseline" and row.evidences != own.evidences:
            contrasts.append(Contrast(f"{name} − agg-D", row, own))
    return contrasts
