"""The one place that assembles one-stage models: names → configurations → built modules."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from dynamask.models.backbone import BackboneWithFPN
from dynamask.models.solo.aggregation import NeighbourAggregation
from dynamask.models.solo.config import AggregationConfig, SoloConfig
from dynamask.models.solo.heads import SoloHead, SoloV2Head
from dynamask.models.solo.model import SoloNet
from dynamask.models.transform import TwoSizeTransform

_SOLO = SoloConfig()
_SOLOV2 = SoloConfig(name="solov2_resnet50_fpn", kind="solov2", tower_channels=512, tower_depth=4)
_SMALL = SoloConfig(
    name="solov2_mobilenetv2_fpn_small",
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
_FINER = (50, 40, 24, 16, 12)


def _variants(base: SoloConfig, prefix: str) -> list[SoloConfig]:
    """The plain model, and SODAR on it: as is, with a finer classification grid, with a coarser mask grid, moving.

    SOLOv2's towers are 512 wide; the one of the aggregation beside them has the 256 of SODAR's own. The paper's coarser
    grid is half the plain one and has four corners around a cell. The small model's plain grids are those halves
    already: three quarters of them are its coarser ones, with the nearest cell and its neighbours.
    """
    suffix = base.name.split("_", 1)[1]
    agg = AggregationConfig(tower_channels=256 if base.tower_channels > 256 else 0)
    paper = base.grids == _SOLO.grids
    coarser = dataclasses.replace(agg, neighbours="corners") if paper else agg
    moving = dataclasses.replace(agg, deformable=True)
    replace = dataclasses.replace
    coarse = tuple(g // 2 if paper else math.ceil(g * 3 / 4) for g in base.grids)
    finer = _FINER if paper else (base.grids[0] * 5 // 4, base.grids[1] * 10 // 9, *base.grids[2:])
    return [
        base,
        replace(base, name=f"{prefix}_{suffix}", aggregation=agg),
        replace(base, name=f"{prefix}_cls_{suffix}", aggregation=agg, grids=finer, mask_grids=base.grids),
        replace(base, name=f"{prefix}_mask_{suffix}", aggregation=coarser, mask_grids=coarse),
        replace(base, name=f"{prefix}_deformable_{suffix}", aggregation=moving, grids=finer, mask_grids=base.grids),
    ]


def _named(base: SoloConfig, backbone: str) -> SoloConfig:
    kind = base.name.split("_")[0]
    return dataclasses.replace(base, name=f"{kind}_{backbone}_fpn", backbone=backbone)


PRESETS: dict[str, SoloConfig] = {
    config.name: config
    for backbone in ("resnet50", "resnet101")
    for config in (*_variants(_named(_SOLO, backbone), "sodar"), *_variants(_named(_SOLOV2, backbone), "sodar_v2"))
} | {config.name: config for config in _variants(_SMALL, "sodar_v2")}
"""By name. SODAR's own names: ``sodar_…`` on SOLO, ``sodar_v2_…`` on SOLOv2, ``…_cls_…`` with a finer classification
grid, ``…_mask_…`` with a coarser mask grid, ``…_deformable_…`` with moving neighbours on the former."""


def build_solo(config: SoloConfig, backbone_weights: str | Path | None = None) -> SoloNet:
    """Assemble a model from its configuration."""
    backbone = BackboneWithFPN(config.backbone, config.fpn_channels, backbone_weights, config.frozen_stride)
    transform = TwoSizeTransform(
        (*config.min_sizes, config.test_min_size), config.max_size, list(config.image_mean), list(config.image_std)
    )
    arguments = (
        config.fpn_channels,
        config.tower_channels,
        config.tower_depth,
        config.groups,
        len(config.class_names) - 1,
        config.grids,
        config.representation_grids,
    )
    if config.kind == "solo":
        head = SoloHead(*arguments, aggregation=config.aggregation)
    else:
        widths = (config.mask_feature_channels, config.kernel_channels)
        head = SoloV2Head(*arguments, *widths, aggregation=config.aggregation)
    aggregation = None if config.aggregation is None else NeighbourAggregation(config.aggregation)
    return SoloNet(transform, backbone, head, aggregation, config)
