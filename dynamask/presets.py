"""Presets: named model configurations of all families, each with the schedule and losses it is trained with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from dynamask.config import AggregationConfig, ModelConfig, SoloConfig
from dynamask.structures import DynaMaskError
from dynamask.training_config import LossConfig, TrainConfig


@dataclass(frozen=True)
class Preset:
    """A model and its default training.

    Attributes:
        config: of the model, without the classes of a data set.
        schedule: by default the paper's COCO 1× schedule.
        losses: by default the paper's; only two-stage models use them.
    """

    config: ModelConfig | SoloConfig
    schedule: TrainConfig = TrainConfig()
    losses: LossConfig = LossConfig()


SMALL_SCHEDULE = TrainConfig(
    batch_size=4,
    iterations=3000,
    warm_start=0.25,
    optimizer="adamw",
    lr=6e-4,
    backbone_lr_factor=0.25,
    weight_decay=0.02,
    warmup=150,
    schedule="cosine",
    clip_norm=10.0,
    ema_decay=0.998,
    jitter=True,
    workers=0,
)
"""Schedule of the small presets, which train on two CPU cores."""
SMALL_LOSSES = LossConfig(
    mask_weight=2.0,
    switch_signal="boundary",
    overlap_share=0.9,
    boundary_weight=6.0,
    switch_selection="expected",
    entropy_on="instances",
    budget_target=0.35,
)
"""Losses of the small presets, chosen on scenes of known difficulty (`docs/decisions.md`)."""

_DYNAMASK = ModelConfig(quality_channels=32)
_DYNAMASK_SMALL = ModelConfig(
    fpn_channels=64,
    region_channels=64,
    offset_groups=(1, 1, 1),
    switch_channels=16,
    switch_hidden=128,
    quality_channels=8,
    box_head_channels=256,
    min_sizes=(256, 288, 320, 352),
    test_min_size=320,
    max_size=640,
    anchor_sizes=(16, 32, 64, 128, 256),
    rpn_pre_nms_train=500,
    rpn_pre_nms_test=300,
    rpn_post_nms_train=200,
    rpn_post_nms_test=200,
    box_samples=64,
    mask_rois=5,
)
_DYNAMASK_NANODET = ModelConfig(
    detector="nanodet_plus",
    fpn_channels=64,
    frozen_stride=0,
    region_channels=96,
    offset_groups=(1, 1, 1),
    switch_channels=16,
    switch_hidden=128,
    quality_channels=8,
    class_agnostic=True,
    corner_cells=True,
    stage_strides=(8, 4, 4),
    refine=(1.0, 0.5, 0.3),
    region_margin=0.1,
    min_sizes=(416,),
    test_min_size=416,
    max_size=416,
    display_score=0.4,
    mask_nms=0.7,
    mask_rois=8,
)
_SOLO = SoloConfig()
_SOLOV2 = SoloConfig(kind="solov2", tower_channels=512, tower_depth=4)
_SOLOV2_SMALL = SoloConfig(
    kind="solov2",
    backbone="mobilenetv2_100",
    fpn_channels=64,
    tower_channels=64,
    tower_depth=2,
    mask_feature_channels=32,
    kernel_channels=64,
    groups=8,
    grids=(20, 18, 12, 8, 6),
    scale_ranges=((1, 48), (24, 96), (48, 192), (96, 384), (192, 1024)),
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    min_sizes=(256, 288, 320, 352),
    test_min_size=320,
    max_size=640,
)
_CONDINST = SoloConfig(kind="condinst", tower_depth=4, score_threshold=0.2, candidates=1000)
_CONDINST_SMALL = dataclasses.replace(
    _CONDINST,
    backbone="mobilenetv2_100",
    fpn_channels=64,
    tower_channels=64,
    tower_depth=2,
    mask_feature_channels=32,
    groups=8,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    min_sizes=(256, 288, 320, 352),
    test_min_size=320,
    max_size=640,
)
_PAPER_GRIDS = {"finer": (50, 40, 24, 16, 12), "coarser": (20, 18, 12, 8, 6), "neighbours": "corners"}
"""SODAR's grids: the finer classification grid, the coarser mask grid, and the neighbours on the latter."""
_SMALL_GRIDS = {"finer": (25, 20, 12, 8, 6), "coarser": (15, 14, 9, 6, 5), "neighbours": "4"}
"""The same of the small model, whose plain grids are half the paper's already."""


def _solo_and_sodar(
    plain: SoloConfig,
    sodar: str,
    suffix: str,
    finer: tuple[int, ...],
    coarser: tuple[int, ...],
    neighbours: str,
) -> list[SoloConfig]:
    """A plain model and SODAR on it.

    Args:
        plain: SOLO or SOLOv2.
        sodar: prefix of the names, "sodar" on SOLO and "sodar_v2" on SOLOv2.
        suffix: backbone and size, the end of the names.
        finer: classification grids of "cls" and "deformable", whose mask grids are the plain ones.
        coarser: mask grids of "mask", on the plain classification grids.
        neighbours: of "mask".

    Returns:
        The plain model; SODAR on the plain grids; "cls"; "mask"; "deformable", with learned offsets of neighbours.
    """
    # SODAR's tower is 256 wide, those of SOLOv2 512
    aggregation = AggregationConfig(tower_channels=256 if plain.tower_channels > 256 else 0)
    on_coarser = dataclasses.replace(aggregation, neighbours=neighbours)
    moving = dataclasses.replace(aggregation, deformable=True)
    replace = dataclasses.replace
    return [
        replace(plain, name=f"{plain.kind}_{suffix}"),
        replace(plain, name=f"{sodar}_{suffix}", aggregation=aggregation),
        replace(plain, name=f"{sodar}_cls_{suffix}", aggregation=aggregation, grids=finer, mask_grids=plain.grids),
        replace(plain, name=f"{sodar}_mask_{suffix}", aggregation=on_coarser, mask_grids=coarser),
        replace(plain, name=f"{sodar}_deformable_{suffix}", aggregation=moving, grids=finer, mask_grids=plain.grids),
    ]


def _condinst_and_sodar(plain: SoloConfig, suffix: str) -> list[SoloConfig]:
    """CondInst, and SODAR's aggregation on it; it has no grids, so there are no further variants."""
    names = f"condinst_{suffix}", f"sodar_condinst_{suffix}"
    return [
        dataclasses.replace(plain, name=names[0]),
        dataclasses.replace(plain, name=names[1], aggregation=AggregationConfig()),
    ]


_FULL: list[ModelConfig | SoloConfig] = [
    _DYNAMASK,
    dataclasses.replace(_DYNAMASK, name="dynamask_resnet101_fpn", backbone="resnet101"),
    dataclasses.replace(_DYNAMASK, name="dynamask_resnext101_fpn", backbone="resnext101_32x4d"),
]
for _backbone in ("resnet50", "resnet101"):
    for _plain, _sodar in ((_SOLO, "sodar"), (_SOLOV2, "sodar_v2")):
        _on_backbone = dataclasses.replace(_plain, backbone=_backbone)
        _FULL += _solo_and_sodar(_on_backbone, _sodar, f"{_backbone}_fpn", **_PAPER_GRIDS)
for _backbone in ("resnet50", "resnet101"):
    _FULL += _condinst_and_sodar(dataclasses.replace(_CONDINST, backbone=_backbone), f"{_backbone}_fpn")
_SMALL: list[ModelConfig | SoloConfig] = [
    dataclasses.replace(
        _DYNAMASK_SMALL,
        name="dynamask_mobilenetv2_fpn_small",
        backbone="mobilenetv2_100",
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    ),
    dataclasses.replace(_DYNAMASK_SMALL, name="dynamask_resnet18_fpn_small", backbone="resnet18"),
    dataclasses.replace(_DYNAMASK_NANODET, name="dynamask_nanodet_plus_m", backbone="shufflenet_v2_x1_0"),
    dataclasses.replace(_DYNAMASK_NANODET, name="dynamask_nanodet_plus_m_1.5x", backbone="shufflenet_v2_x1_5"),
    *_solo_and_sodar(_SOLOV2_SMALL, "sodar_v2", "mobilenetv2_fpn_small", **_SMALL_GRIDS),
    *_condinst_and_sodar(_CONDINST_SMALL, "mobilenetv2_fpn_small"),
]
PRESETS: dict[str, Preset] = {
    **{config.name: Preset(config) for config in _FULL},
    **{config.name: Preset(config, SMALL_SCHEDULE, SMALL_LOSSES) for config in _SMALL},
}
"""All presets by name."""


def list_models(family: str | None = None) -> list[str]:
    """Names of the presets.

    Args:
        family: "two-stage" (DynaMask), "one-stage" (SOLO, SOLOv2, CondInst, SODAR), or None for both in this order;
            another raises :class:`DynaMaskError`.
    """
    families = {ModelConfig.FAMILY: [], SoloConfig.FAMILY: []}
    for name, found in PRESETS.items():
        families[found.config.FAMILY].append(name)
    if family is None:
        return [name for names in families.values() for name in names]
    if family not in families:
        raise DynaMaskError(f"family {family!r} is unknown; choose one of {', '.join(families)}")
    return families[family]


def preset(name: str) -> Preset:
    """The preset of a name; an unknown one raises :class:`DynaMaskError`."""
    if name not in PRESETS:
        raise DynaMaskError(f"model {name!r} is unknown; choose one of {', '.join(list_models())}")
    return PRESETS[name]


def default_training(name: str) -> tuple[TrainConfig, LossConfig]:
    """Schedule and losses that a preset is trained with by default."""
    found = preset(name)
    return found.schedule, found.losses


def model_config(name: str, **overrides: object) -> ModelConfig | SoloConfig:
    """The configuration of a preset with some fields replaced; another mask branch has no stages to refine."""
    if overrides.get("mask_branch", "region_fpn") != "region_fpn":
        overrides.setdefault("refine", None)
    return dataclasses.replace(preset(name).config, **overrides)
