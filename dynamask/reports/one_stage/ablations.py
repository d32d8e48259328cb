"""Table VI of SODAR: every design choice, found among the given weights by their configuration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch

from dynamask.config import SoloConfig
from dynamask.models.build import build_solo
from dynamask.models.solo.costs import decoding_macs, trainable_parameters
from dynamask.presets import model_config
from dynamask.reports.one_stage.comparing import Contrast, Line, Plan, Row
from dynamask.reports.one_stage.kinds import (
    interpolation,
    plain_preset,
    preset_for,
    same_base,
    same_design,
    train_command,
)
from dynamask.reports.one_stage.plans import reference
from dynamask.reports.one_stage.world import Group, OneStageWorld
from dynamask.reports.verdicts import told
from dynamask.reports.writer import Paragraph, Table, number
from dynamask.viz.charts import ablation_bars


@dataclass(frozen=True)
class Ablation:
    """A row.

    Attributes:
        name: the paper's.
        changed: fields of the aggregation that differ from SODAR's own; None is the model without aggregation.
    """

    name: str
    changed: dict[str, Any] | None


ABLATIONS = (
    Ablation("Baseline", None),
    Ablation("agg-D", {}),
    Ablation("agg-S", {"weights": "static"}),
    Ablation("no-neighbor", {"neighbours": "none"}),
    Ablation("N-2-col", {"neighbours": "column"}),
    Ablation("N-2-row", {"neighbours": "row"}),
    Ablation("N-4", {}),
    Ablation("N-8", {"neighbours": "8"}),
    Ablation("multi-level-context-w", {}),
    Ablation("multi-level-context-w/o", {"context": "without"}),
    Ablation("multi-level-context-only", {"context": "only"}),
    Ablation("conv-layer-1", {"layers": 1}),
    Ablation("conv-layer-2", {"layers": 2}),
    Ablation("conv-layer-3", {}),
    Ablation("conv-layer-4", {"layers": 4}),
    Ablation("conv-kernel-1x1", {"kernel": 1}),
    Ablation("conv-kernel-3x3", {}),
    Ablation("two-stage-loss", {"direct_weight": 1.0}),
)
"""The rows from top to bottom; SODAR's own stands in each of its sections, as in the paper."""


def ablated(base: SoloConfig, row: Ablation) -> SoloConfig:
    """The configuration of a row on a base, without mask interpolation."""
    usual = model_config(preset_for(base)).aggregation
    aggregation = None if row.changed is None else dataclasses.replace(usual, **row.changed)
    grids = base.mask_grids if interpolation(base) == "+cls" else base.grids
    return dataclasses.replace(base, aggregation=aggregation, mask_grids=(), grids=grids)


def _matches(group: Group, config: SoloConfig) -> bool:
    """Whether a model is that of a row; the two-stage loss may have any weight."""
    if interpolation(group.config) or not same_base(group.config, config):
        return False
    return same_design(group.config.aggregation, config.aggregation)


def counted(config: SoloConfig) -> dict[str, int]:
    """Length of θ, MACs that decode a pixel of a mask, and trainable parameters, counted from a built model."""
    with torch.device("meta"):
        model = build_solo(config)
    channels = config.tower_channels if config.kind == "solo" else config.kernel_channels
    return {
        "theta": 0 if config.aggregation is None else config.aggregation.parameters,
        "macs_per_pixel": decoding_macs(1, 1, channels, config.aggregation),
        "counted_parameters": trainable_parameters(model),
    }


def ablation_plan(world: OneStageWorld) -> Plan:
    """Tab. VI; rows that no given weights have are counted, and their command is named."""
    like = reference(world)
    lines, commands, known = [], [], {}
    for row in ABLATIONS:
        config = ablated(like.config, row)
        found = [group for group in world.groups if _matches(group, config)]
        if config.aggregation not in known:
            known[config.aggregation] = counted(config)
        values = known[config.aggregation]
        more = {
            "θ": str(values["theta"] or "–"),
            "MACs a pixel": f"{values['macs_per_pixel']:,}",
            "M parameters": f"{values['counted_parameters'] / 1e6:.3f}",
        }
        members = found[0].members if found else ()
        command = None if found else _command(like, row)
        lines.append(Line(row.name, members, row.name, more, {**values, "command": command}))
        if command is not None:
            commands.append([row.name, f"`{command}`"])
    contrasts = _contrasts(lines)
    blocks = [
        Paragraph("No weights were given of these rows. Each command trains one like the given weights; add the --init "
                  "that they started from:"),
        Table(["row", "command"], commands),
    ] if commands else []  # fmt: skip
    return Plan(lines, contrasts, [], _said, _figures, blocks)


def _command(like: Group, row: Ablation) -> str:
    model = plain_preset(like.config).name if row.changed is None else preset_for(like.config)
    changed = {f"agg_{field}": value for field, value in (row.changed or {}).items()}
    return train_command(model, (like.config, like.evidences[0].training), changed, row.name)


def _contrasts(lines: list[Line]) -> list[Contrast]:
    """SODAR's own row against the baseline, and every other row against SODAR's own."""
    by_name = {line.label: line for line in lines if line.members}
    own = by_name.get("agg-D")
    if own is None:
        return []
    first = [Contrast("agg-D − Baseline", own, by_name["Baseline"])] if "Baseline" in by_name else []
    others = [line for line in by_name.values() if line.label != "Baseline" and line.members is not own.members]
    return first + [Contrast(f"{line.label} − agg-D", line, own) for line in others
                    if line.evidences != own.evidences]  # fmt: skip


def _said(differences: list[Row]) -> list[str]:
    return [f"{row['row']}: mask AP {number(row['segm_ap'], 4, True)}, {told(row)}." for row in differences]


def _figures(rows: list[Row], _: list[Row]) -> list[go.Figure]:
    return [ablation_bars(rows)]
