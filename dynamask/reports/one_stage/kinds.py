"""What a one-stage configuration is, in the paper's words, and the command that trains it."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Any

from dynamask.config import AggregationConfig, SoloConfig
from dynamask.presets import default_training, list_models, model_config

PLAIN = {"solo": "SOLO", "solov2": "SOLOv2"}
AGGREGATED = {"solo": "SODAR", "solov2": "SODAR*"}
"""SODAR* is the paper's name of SODAR on SOLOv2."""
_WORDS = {
    "weights": "{} θ",
    "neighbours": "neighbours {}",
    "context": "context {}",
    "context_channels": "{} context channels",
    "context_fusion": "context by {}",
    "layers": "{} layers",
    "kernel": "kernel {0}×{0}",
    "hidden": "{} hidden channels",
    "theta_kernel": "θ by {0}×{0}",
    "border": "border {}",
    "interpolation": "positions {}",
}
_INFERENCE = ("voting", "voting_iou")
_WIDTHS = ("tower_channels",)
"""Of an aggregation, as every preset has its own; no choice of design."""


def interpolation(config: SoloConfig) -> str:
    """Mask interpolation: "" for none, "+cls", "−mask", or "+c−m" for both.

    A finer classification grid is finer on the fine levels alone; a coarser mask grid is coarser on all of them, by one
    share but for rounding.
    """
    if not config.mask_grids:
        return ""
    pairs = list(zip(config.mask_grids, config.grids))
    if config.mask_grids[-1] >= config.grids[-1]:
        return "+cls" if any(own < grid for own, grid in pairs) else ""
    one_share = max((own - 0.5) / grid for own, grid in pairs) <= min((own + 0.5) / grid for own, grid in pairs)
    return "−mask" if one_share else "+c−m"


def name_of(config: SoloConfig) -> str:
    """A configuration in words: "SOLOv2", "SODAR*, −mask", "SODAR*, neighbours row", …"""
    aggregation = config.aggregation
    if aggregation is None:
        return PLAIN[config.kind]
    words = [AGGREGATED[config.kind]]
    if interpolation(config):
        words.append(interpolation(config))
    if aggregation.deformable:
        words.append("deformable")
    corners = "−m" in interpolation(config) and aggregation.neighbours == "corners"  # one of its two presets' ways
    usual = AggregationConfig(neighbours="corners" if corners else "4")
    for field, text in _WORDS.items():
        value = getattr(aggregation, field)
        if value != getattr(usual, field):
            words.append(text.format(value))
    if aggregation.direct_weight:
        words.append("two-stage loss")
    return ", ".join(words)


def trained_like(config: SoloConfig) -> dict[str, Any]:
    """A configuration as JSON values, without its name and what only inference reads."""
    values = config.to_dict()
    return {key: value for key, value in values.items() if key not in ("name", *_INFERENCE)}


def same_base(one: SoloConfig, other: SoloConfig, grids: bool = True) -> bool:
    """Whether two models differ in the aggregation alone, and, with ``grids`` false, in the grids besides."""
    left_out = {"aggregation", "mask_grids"} | (set() if grids else {"grids"})
    return all(trained_like(one)[key] == value for key, value in trained_like(other).items() if key not in left_out)


def differences(one: SoloConfig, other: SoloConfig) -> list[str]:
    """Fields that differ between models of one name, with the first one's values: "backbone resnet50"."""
    own, theirs = ({**v, **{f"aggregation {k}": w for k, w in (v["aggregation"] or {}).items()}}
                   for v in map(trained_like, (one, other)))  # fmt: skip
    return [f"{key} {value}" for key, value in own.items() if key != "aggregation" and theirs.get(key) != value]


def same_design(one: AggregationConfig | None, other: AggregationConfig | None) -> bool:
    """Whether two aggregations are one but for widths and the weight of a two-stage loss that both have."""
    if one is None or other is None:
        return one is other
    own, theirs = dataclasses.asdict(one), dataclasses.asdict(other)
    for values in (own, theirs):
        values["direct_weight"] = bool(values["direct_weight"])
    return all(theirs[key] == value for key, value in own.items() if key not in _WIDTHS)


def plain_preset(config: SoloConfig) -> SoloConfig:
    """The plain preset of a configuration's kind and backbone, the small one where there is none."""
    wanted = (config.kind, config.backbone, None)
    known = [model_config(name) for name in list_models(SoloConfig.FAMILY)]
    fitting = [p for p in known if (p.kind, p.backbone, p.aggregation) == wanted]
    return fitting[0] if fitting else model_config("solov2_mobilenetv2_fpn_small")


def preset_for(config: SoloConfig, variant: str = "") -> str:
    """The name of the preset of a variant ("", "cls", "mask" or "deformable") of SODAR like a configuration."""
    base = plain_preset(config).name
    family, suffix = base.split("_", 1)
    prefix = "sodar_v2" if family == "solov2" else "sodar"
    return "_".join(part for part in (prefix, variant, suffix) if part)


def train_command(model: str, like: tuple[SoloConfig, dict[str, Any]] | None, changed: dict[str, Any], out: str) -> str:
    """The command that trains a preset, its aggregation changed, like given weights were trained.

    Args:
        model: name of a preset.
        like: configuration and the ``training`` of a weights file; None for the preset's own recipe.
        changed: further flags under their names in Python ("agg_layers", "grids") and their values.
        out: what the folder is called after.
    """
    words = ["dynamask", "train"]
    training = like[1] if like else {}
    words += ["--data", str(training.get("data") or "DATA"), "--model", model]
    for field, value in changed.items():
        words += _flag(field, value)
    usual = dataclasses.asdict(default_training(model)[0])
    for field, value in training.get("train", {}).items():
        if field in usual and _listed(value) != _listed(usual[field]) and field not in ("stop_at", "workers"):
            words += _flag(field, value)
    if like:
        preset = model_config(model)
        for field in ("min_sizes", "test_min_size", "max_size"):
            if getattr(like[0], field) != getattr(preset, field):
                words += _flag(field, getattr(like[0], field))
    folder = "-".join(re.findall(r"[a-z0-9]+", out.lower()))
    return shlex.join([*words, "--out", f"runs/{folder}"])


def _flag(field: str, value: Any) -> list[str]:
    name = field.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
