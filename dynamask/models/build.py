"""The one place that assembles models: names → configurations → built modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from dynamask.config import LossConfig, ModelConfig
from dynamask.models.backbone import BackboneWithFPN
from dynamask.models.detectors.rcnn import RCNNDetector, box_heads, region_proposal_network
from dynamask.models.dynamask import DynaMask
from dynamask.models.masks.branch import MaskBranch
from dynamask.models.masks.heads.base import MaskHead
from dynamask.models.masks.heads.fcn import FCNHead
from dynamask.models.masks.heads.pointrend import PointRendHead
from dynamask.models.masks.heads.pyramids import (
    RegionBiFPN,
    RegionNASFPN,
    RegionPANet,
    RegionPyramid,
    matching_channels,
)
from dynamask.models.masks.region_fpn import RegionFPN
from dynamask.models.masks.switch import MaskSwitchModule
from dynamask.models.solo import factory as one_stage
from dynamask.models.solo.config import FAMILY, SoloConfig
from dynamask.models.solo.model import SoloNet
from dynamask.models.transform import TwoSizeTransform
from dynamask.structures import MASK_SIZES, DynaMaskError

_PAPER = ModelConfig()
_SMALL = ModelConfig(
    fpn_channels=64,
    region_channels=64,
    offset_groups=(1, 1, 1),
    switch_channels=16,
    switch_hidden=128,
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

PRESETS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        _PAPER,
        dataclasses.replace(_PAPER, name="dynamask_resnet101_fpn", backbone="resnet101"),
        dataclasses.replace(_PAPER, name="dynamask_resnext101_fpn", backbone="resnext101_32x4d"),
        dataclasses.replace(
            _SMALL,
            name="dynamask_mobilenetv2_fpn_small",
            backbone="mobilenetv2_100",
            image_mean=(0.5, 0.5, 0.5),
            image_std=(0.5, 0.5, 0.5),
        ),
        dataclasses.replace(_SMALL, name="dynamask_resnet18_fpn_small", backbone="resnet18"),
    )
}


def list_models(family: str | None = None) -> list[str]:
    """Names that :func:`create_model` knows.

    Args:
        family: "two-stage" (DynaMask), "one-stage" (SOLO, SOLOv2, SODAR), or None for both in this order; another
            raises :class:`DynaMaskError`.
    """
    families = {"two-stage": list(PRESETS), "one-stage": list(one_stage.PRESETS)}
    if family is None:
        return [name for names in families.values() for name in names]
    if family not in families:
        raise DynaMaskError(f"family {family!r} is unknown; choose one of {', '.join(families)}")
    return families[family]


def preset(name: str, **overrides: object) -> ModelConfig | SoloConfig:
    """The configuration of a named model; an unknown name raises :class:`DynaMaskError`."""
    known = {**PRESETS, **one_stage.PRESETS}
    if name not in known:
        raise DynaMaskError(f"model {name!r} is unknown; choose one of {', '.join(known)}")
    return dataclasses.replace(known[name], **overrides)


def config_from_dict(values: dict[str, object]) -> ModelConfig | SoloConfig:
    """The configuration that a weights file stores; unknown keys raise :class:`DynaMaskError`."""
    return (SoloConfig if values.get("family") == FAMILY else ModelConfig).from_dict(values)


def create_model(
    name: str,
    num_classes: int = 81,
    backbone_weights: str | Path | None = None,
    loss_config: LossConfig | None = None,
    **overrides: object,
) -> DynaMask | SoloNet:
    """Build a named model with random weights; nothing is downloaded unless ``backbone_weights="timm"``.

    Args:
        name: one of :func:`list_models`.
        num_classes: classes with the background, as torchvision counts (COCO 81); unused when ``class_names`` is given.
        backbone_weights: None, "timm", or the path of a .safetensors file under timm's names.
        loss_config: losses of the mask branch.
        overrides: fields of :class:`dynamask.config.ModelConfig`, or of
            :class:`dynamask.models.solo.config.SoloConfig`.
    """
    if num_classes < 2:
        raise DynaMaskError(f"num_classes is {num_classes}; it counts the background, so give at least 2")
    if "class_names" not in overrides:
        overrides["class_names"] = ("__background__", *(f"class_{i}" for i in range(1, num_classes)))
    return build_model(preset(name, **overrides), backbone_weights, loss_config)


def build_model(
    config: ModelConfig | SoloConfig,
    backbone_weights: str | Path | None = None,
    loss_config: LossConfig | None = None,
) -> DynaMask | SoloNet:
    """Assemble a model from its configuration."""
    if isinstance(config, SoloConfig):
        return one_stage.build_solo(config, backbone_weights)
    backbone = BackboneWithFPN(config.backbone, config.fpn_channels, backbone_weights, config.frozen_stride)
    mask_branch = build_mask_branch(config, loss_config)
    return DynaMask(_build_detector(config, backbone), mask_branch, config)


def build_transform(config: ModelConfig | SoloConfig) -> TwoSizeTransform:
    """Resizing and normalisation of a model's input."""
    sizes = (*config.min_sizes, config.test_min_size)
    return TwoSizeTransform(sizes, config.max_size, list(config.image_mean), list(config.image_std))


def _build_detector(config: ModelConfig, backbone: BackboneWithFPN) -> RCNNDetector:
    heads = box_heads(
        config.fpn_channels,
        config.box_head_channels,
        len(config.class_names),
        config.box_samples,
        config.score_threshold,
        config.detections_per_img,
    )
    rpn = region_proposal_network(
        config.fpn_channels,
        config.anchor_sizes,
        pre_nms={"training": config.rpn_pre_nms_train, "testing": config.rpn_pre_nms_test},
        post_nms={"training": config.rpn_post_nms_train, "testing": config.rpn_post_nms_test},
    )
    return RCNNDetector(build_transform(config), backbone, rpn, heads)


def build_mask_branch(config: ModelConfig, loss_config: LossConfig | None = None) -> MaskBranch:
    """The mask branch that a configuration names, with a switch where it is the r-FPN."""
    head = _MASK_HEADS[config.mask_branch](config)
    switch = None
    if config.mask_branch == "region_fpn":
        switch = MaskSwitchModule(config.region_channels, config.switch_channels, config.switch_hidden)
    return MaskBranch(head, switch, loss_config, config.mask_rois)


def _mask_classes(config: ModelConfig) -> int:
    """Foreground classes of the mask head."""
    return 1 if config.class_agnostic else len(config.class_names) - 1


def _region_fpn(config: ModelConfig) -> RegionFPN:
    sizes = (config.fpn_channels, config.region_channels, _mask_classes(config))
    return RegionFPN(*sizes, config.offset_groups, config.class_agnostic_last)


def _fcn(config: ModelConfig) -> FCNHead:
    size = int(config.mask_branch.removeprefix("fcn:"))
    return FCNHead(config.fpn_channels, config.region_channels, _mask_classes(config), size)


def _point_rend(config: ModelConfig) -> PointRendHead:
    return PointRendHead(config.fpn_channels, config.region_channels, _mask_classes(config))


def _pyramid(kind: type[RegionPyramid]) -> Callable[[ModelConfig], RegionPyramid]:
    """A builder of a pyramid that costs what the r-FPN of the same configuration costs."""

    def build(config: ModelConfig) -> RegionPyramid:
        classes = _mask_classes(config)
        with torch.device("meta"):
            target = _region_fpn(config).macs_per_instance()[-1]
        width = matching_channels(lambda channels: kind(config.fpn_channels, channels, classes), target)
        return kind(config.fpn_channels, width, classes)

    return build


_MASK_HEADS: dict[str, Callable[[ModelConfig], MaskHead]] = {
    "region_fpn": _region_fpn,
    **{f"fcn:{size}": _fcn for size in MASK_SIZES},
    "pointrend": _point_rend,
    "panet": _pyramid(RegionPANet),
    "bifpn": _pyramid(RegionBiFPN),
    "nasfpn": _pyramid(RegionNASFPN),
}
