"""One-stage models in the terms of the SODAR paper: names, groups of seeds, and the commands that train them."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dynamask.config import AggregationConfig, SoloConfig
from dynamask.presets import default_training, list_models, model_config
from dynamask.reports.comparison import Comparison, Evidence
from dynamask.reports.rows import Member
from dynamask.structures import DynaMaskError

PLAIN = {"solo": "SOLO", "solov2": "SOLOv2", "condinst": "CondInst"}
AGGREGATED = {"solo": "SODAR", "solov2": "SODAR*", "condinst": "CondInst+agg"}
"""SODAR* is the paper's name for SODAR on SOLOv2."""
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
"""Fields of an aggregation that are widths, different in every preset, and no choices of design."""


@dataclass(frozen=True)
class Group:
    """Seeds of one model: weights with the same configuration and length of training.

    Attributes:
        config: configuration of the first weights.
        evidences: the weights, sorted by seed.
        label: the model's name, different from those of the other groups.
    """

    config: SoloConfig
    evidences: tuple[Evidence, ...]
    label: str

    @property
    def members(self) -> tuple[Member, ...]:
        """The weights as members of a row."""
        return tuple(map(Member, self.evidences))

    @property
    def training(self) -> dict[str, Any]:
        """Record of the training of the first weights."""
        return self.evidences[0].checkpoint.training


def groups_of(comparison: Comparison, kinds: Sequence[str] = ("solo", "solov2")) -> list[Group]:
    """The one-stage models of a comparison in the order of their first weights.

    Args:
        kinds: of the models; by default those with grids, which most tables of the paper are about.
    """
    by_model: dict[str, list[Evidence]] = {}
    for evidence in comparison.evidences:
        if evidence.one_stage and config_of(evidence).kind in kinds:
            key = repr((trained_config(config_of(evidence)), evidence.checkpoint.images_seen))
            by_model.setdefault(key, []).append(evidence)
    models = [
        sorted(own, key=lambda e: (e.checkpoint.seed is None, e.checkpoint.seed or 0)) for own in by_model.values()
    ]
    firsts = [own[0] for own in models]
    return [Group(config_of(own[0]), tuple(own), _label(own[0], firsts)) for own in models]


def config_of(evidence: Evidence) -> SoloConfig:
    """Configuration of one-stage weights."""
    return evidence.predictor.model.config


def _label(own: Evidence, others: Sequence[Evidence]) -> str:
    """The name of a model, with what distinguishes it from others of the same name."""
    config, seen = config_of(own), own.checkpoint.images_seen
    words = [name_of(config)]
    for other in others:
        if other is own or name_of(config_of(other)) != words[0]:
            continue
        words += differences(config, config_of(other))
        if seen != other.checkpoint.images_seen:
            words.append(f"{seen or 'unknown'} images seen")
    return ", ".join(dict.fromkeys(words))


def name_of(config: SoloConfig) -> str:
    """Name of a configuration: "SOLOv2", "SODAR*, −mask", "SODAR*, neighbours row", …"""
    aggregation = config.aggregation
    if aggregation is None:
        return PLAIN[config.kind]
    words = [AGGREGATED[config.kind]]
    if interpolation(config):
        words.append(interpolation(config))
    if aggregation.deformable:
        words.append("deformable")
    corners = "−m" in interpolation(config) and aggregation.neighbours == "corners"  # as in one of the two presets
    usual = AggregationConfig(neighbours="corners" if corners else "4")
    for field, text in _WORDS.items():
        value = getattr(aggregation, field)
        if value != getattr(usual, field):
            words.append(text.format(value))
    if aggregation.direct_weight:
        words.append("two-stage loss")
    return ", ".join(words)


def paper_row(group: Group, backbone: str = "") -> str:
    """Name of a model in the form of the paper's rows, "SODAR*-R50, +cls", whether or not the paper has such a row.

    Args:
        backbone: "R50" or "R101"; by default the model's own.
    """
    own = backbone or ("R101" if group.config.backbone == "resnet101" else "R50")
    name, comma, rest = name_of(group.config).partition(",")
    return f"{name}-{own}{comma}{rest}"


def interpolation(config: SoloConfig) -> str:
    """Mask interpolation of a model: "" for none, "+cls", "−mask", or "+c−m" for both.

    A finer classification grid is finer on the fine levels only; a coarser mask grid is coarser on all levels by the
    same factor, up to rounding.
    """
    if not config.mask_grids:
        return ""
    pairs = list(zip(config.mask_grids, config.grids))
    if config.mask_grids[-1] >= config.grids[-1]:
        return "+cls" if any(own < grid for own, grid in pairs) else ""
    one_factor = max((own - 0.5) / grid for own, grid in pairs) <= min((own + 0.5) / grid for own, grid in pairs)
    return "−mask" if one_factor else "+c−m"


def trained_config(config: SoloConfig) -> dict[str, Any]:
    """A configuration as JSON values, without its name and the fields that only inference reads."""
    values = config.to_dict()
    return {key: value for key, value in values.items() if key not in ("name", *_INFERENCE)}


def differences(one: SoloConfig, other: SoloConfig) -> list[str]:
    """Fields that differ between two models, with the values of the first: "backbone resnet50"."""
    own, theirs = _flat(one), _flat(other)
    return [f"{key} {value}" for key, value in own.items() if theirs.get(key) != value]


def _flat(config: SoloConfig) -> dict[str, Any]:
    """The fields of a configuration and, as "aggregation FIELD", of its aggregation."""
    values = trained_config(config)
    aggregation = values.pop("aggregation") or {}
    return values | {f"aggregation {field}": value for field, value in aggregation.items()}


def same_base(one: SoloConfig, other: SoloConfig, grids: bool = True) -> bool:
    """Return True if two models are equal apart from the aggregation and, unless ``grids``, the grids."""
    ignored = {"aggregation", "mask_grids"} | (set() if grids else {"grids"})
    return all(trained_config(one)[key] == value for key, value in trained_config(other).items() if key not in ignored)


def same_design(one: AggregationConfig | None, other: AggregationConfig | None) -> bool:
    """Return True if aggregations are equal apart from widths and the weight of a two-stage loss that both have."""
    if one is None or other is None:
        return one is other
    own, theirs = dataclasses.asdict(one), dataclasses.asdict(other)
    for values in (own, theirs):
        values["direct_weight"] = bool(values["direct_weight"])
    return all(theirs[key] == value for key, value in own.items() if key not in _WIDTHS)


def sodar_as_published(groups: Sequence[Group]) -> list[Group]:
    """Models with SODAR's own aggregation, without mask interpolation and moving neighbours."""
    own = AggregationConfig()
    return [g for g in groups if same_design(g.config.aggregation, own) and not interpolation(g.config)]


def reference_group(groups: Sequence[Group]) -> Group:
    """The model that missing rows are trained like: SODAR as published, else any SODAR, else any.

    Raises:
        DynaMaskError: there are no one-stage weights.
    """
    if not groups:
        raise DynaMaskError("no one-stage weights were given; give weights of SOLO, SOLOv2 or SODAR")
    return [*sodar_as_published(groups), *(g for g in groups if g.config.aggregation), *groups][0]


def plain_preset(config: SoloConfig) -> SoloConfig:
    """The preset without aggregation of a configuration's kind and backbone; the small one if there is none."""
    wanted = (config.kind, config.backbone, None)
    presets = [model_config(name) for name in list_models(SoloConfig.FAMILY)]
    fitting = [p for p in presets if (p.kind, p.backbone, p.aggregation) == wanted]
    return fitting[0] if fitting else model_config("solov2_mobilenetv2_fpn_small")


def preset_for(config: SoloConfig, variant: str = "") -> str:
    """Name of the SODAR preset with a configuration's kind and backbone, in a variant "cls", "mask" or "deformable"."""
    family, suffix = plain_preset(config).name.split("_", 1)
    prefix = "sodar_v2" if family == "solov2" else "sodar"
    return "_".join(part for part in (prefix, variant, suffix) if part)


def train_command(model: str, like: Group, changed: dict[str, Any], out: str) -> str:
    """The command that trains a preset the way given weights were trained.

    Args:
        model: name of a preset.
        like: the given weights.
        changed: further flags, by their names in Python ("agg_layers", "grids"), with their values.
        out: text that the output folder is named after.
    """
    data = like.training.get("data") or "DATA"
    words = ["dynamask", "train"]
    for each in [data] if isinstance(data, str) else data:
        words += ["--data", each]
    words += ["--model", model]
    for field, value in changed.items():
        words += _flag(field, value)
    usual = dataclasses.asdict(default_training(model)[0])
    for field, value in like.training.get("train", {}).items():
        if field in usual and _listed(value) != _listed(usual[field]) and field not in ("stop_at", "workers"):
            words += _flag(field, value)
    preset = model_config(model)
    for field in ("min_sizes", "test_min_size", "max_size"):
        if getattr(like.config, field) != getattr(preset, field):
            words += _flag(field, getattr(like.config, field))
    folder = "-".join(re.findall(r"[a-z0-9]+", out.lower()))
    return shlex.join([*words, "--out", f"runs/{folder}"])


def _flag(field: str, value: Any) -> list[str]:
    name = field.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def missing_variant(like: Group, what: str, variant: str) -> str:
    """A sentence on SODAR weights that were not given, with the command that trains them like given ones."""
    command = train_command(preset_for(like.config, variant), like, {}, what)
    return f"No weights of {what} were given; `{command}` trains them, from the same --init as the others."
