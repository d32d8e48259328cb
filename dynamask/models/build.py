"""Assembles models of all families: a preset or a configuration → built modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from dynamask.config import ModelConfig, SoloConfig
from dynamask.models.backbone import BackboneWithFPN
from dynamask.models.detectors.base import Detector
from dynamask.models.detectors.gfl_head import GFLHead
from dynamask.models.detectors.nanodet import NECK_CHANNELS, NanoDetBackbone, NanoDetDetector, StretchTransform
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
from dynamask.models.masks.quality_head import QualityHead
from dynamask.models.masks.region_fpn import RegionFPN
from dynamask.models.masks.switch import MaskSwitchModule
from dynamask.models.solo.aggregation import NeighbourAggregation
from dynamask.models.solo.condinst import CondInst
from dynamask.models.solo.heads import SoloHead, SoloV2Head
from dynamask.models.solo.model import SoloNet
from dynamask.models.transform import TwoSizeTransform
from dynamask.models.weights import register_builder
from dynamask.presets import model_config
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.training_config import LossConfig


def create_model(
    name: str,
    num_classes: int = 81,
    backbone_weights: str | Path | None = None,
    loss_config: LossConfig | None = None,
    **overrides: object,
) -> DynaMask | SoloNet:
    """Build a named model with random weights; nothing is downloaded unless ``backbone_weights="timm"``.

    Args:
        name: one of :func:`dynamask.presets.list_models`.
        num_classes: classes with the background, as torchvision counts (COCO 81); unused when ``class_names`` is given.
        backbone_weights: None, "timm", or the path of a .safetensors file under timm's names.
        loss_config: losses of the mask branch.
        overrides: fields of the preset's :class:`dynamask.config.ModelConfig` or :class:`dynamask.config.SoloConfig`.
    """
    if num_classes < 2:
        raise DynaMaskError(f"num_classes is {num_classes}; it counts the background, so give at least 2")
    if "class_names" not in overrides:
        overrides["class_names"] = ("__background__", *(f"class_{i}" for i in range(1, num_classes)))
    return build_model(model_config(name, **overrides), backbone_weights, loss_config)


@register_builder
def build_model(
    config: ModelConfig | SoloConfig,
    backbone_weights: str | Path | None = None,
    loss_config: LossConfig | None = None,
) -> DynaMask | SoloNet:
    """Assemble a model from its configuration."""
    if isinstance(config, SoloConfig):
        return build_solo(config, backbone_weights)
    detector = _DETECTORS[config.detector](config, backbone_weights)
    return DynaMask(detector, build_mask_branch(config, loss_config), config)


def build_backbone(config: ModelConfig | SoloConfig, weights: str | Path | None = None) -> BackboneWithFPN:
    """Backbone and FPN; ``weights`` as in :class:`BackboneWithFPN`."""
    return BackboneWithFPN(config.backbone, config.fpn_channels, weights, config.frozen_stride)


def build_transform(config: ModelConfig | SoloConfig) -> TwoSizeTransform:
    """Resizing and normalisation of a model's input."""
    sizes = (*config.min_sizes, config.test_min_size)
    return TwoSizeTransform(sizes, config.max_size, list(config.image_mean), list(config.image_std))


def _faster_rcnn(config: ModelConfig, backbone_weights: str | Path | None) -> RCNNDetector:
    backbone = build_backbone(config, backbone_weights)
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


def _nanodet_plus(config: ModelConfig, backbone_weights: str | Path | None) -> NanoDetDetector:
    if config.backbone not in NECK_CHANNELS:
        raise DynaMaskError(
            f"NanoDet-Plus has no backbone {config.backbone!r}; choose one of {', '.join(NECK_CHANNELS)}"
        )
    if backbone_weights is not None:
        raise DynaMaskError("NanoDet-Plus takes no --backbone-weights; give weights of the whole detector with --init")
    norm = config.detector_norm == "batch"
    options = (norm, config.pyramid_top_down, config.corner_cells)
    backbone = NanoDetBackbone(config.backbone, config.fpn_channels, *options)
    head = GFLHead(backbone.neck_channels, len(config.class_names) - 1, norm)
    sides = (*config.min_sizes, config.test_min_size)
    transform = StretchTransform(sides, list(config.image_mean), list(config.image_std))
    return NanoDetDetector(transform, backbone, head, config.score_threshold, config.detections_per_img)


_DETECTORS: dict[str, Callable[[ModelConfig, str | Path | None], Detector]] = {
    "faster_rcnn": _faster_rcnn,
    "nanodet_plus": _nanodet_plus,
}


def build_mask_branch(config: ModelConfig, loss_config: LossConfig | None = None) -> MaskBranch:
    """The mask branch that a configuration names, with a switch and possibly a quality head where it is the r-FPN."""
    head = _MASK_HEADS[config.mask_branch](config)
    head.corner_cells = config.corner_cells
    switch = quality = None
    if config.mask_branch == "region_fpn":
        switch = MaskSwitchModule(config.region_channels, config.switch_channels, config.switch_hidden)
        quality = build_quality_head(config) if config.quality_channels else None
    return MaskBranch(head, switch, loss_config, config.mask_rois, config.region_margin, quality)


def build_quality_head(config: ModelConfig) -> QualityHead:
    """The quality head of a configuration; a class-agnostic one does not see the class."""
    classes = 0 if config.class_agnostic else len(config.class_names) - 1
    return QualityHead(config.region_channels, config.quality_channels, config.quality_hidden, classes)


def _mask_classes(config: ModelConfig) -> int:
    """Foreground classes of the mask head."""
    return 1 if config.class_agnostic else len(config.class_names) - 1


def _region_fpn(config: ModelConfig) -> RegionFPN:
    sizes = (config.fpn_channels, config.region_channels, _mask_classes(config))
    return RegionFPN(*sizes, config.offset_groups, config.class_agnostic_last, config.stage_strides, config.refine)


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
        head = kind(config.fpn_channels, width, classes)
        head.map_strides = config.stage_strides
        return head

    return build


_MASK_HEADS: dict[str, Callable[[ModelConfig], MaskHead]] = {
    "region_fpn": _region_fpn,
    **{f"fcn:{size}": _fcn for size in MASK_SIZES},
    "pointrend": _point_rend,
    "panet": _pyramid(RegionPANet),
    "bifpn": _pyramid(RegionBiFPN),
    "nasfpn": _pyramid(RegionNASFPN),
}


def build_solo(config: SoloConfig, backbone_weights: str | Path | None = None) -> SoloNet:
    """Assemble a one-stage model from its configuration."""
    backbone = build_backbone(config, backbone_weights)
    if config.kind == "condinst":
        return CondInst(build_transform(config), backbone, config)
    arguments = {
        "in_channels": config.fpn_channels,
        "channels": config.tower_channels,
        "depth": config.tower_depth,
        "groups": config.groups,
        "num_classes": len(config.class_names) - 1,
        "grids": config.grids,
        "mask_grids": config.representation_grids,
        "aggregation": config.aggregation,
    }
    if config.kind == "solo":
        head = SoloHead(**arguments)
    else:
        head = SoloV2Head(
            **arguments, feature_channels=config.mask_feature_channels, kernel_channels=config.kernel_channels
        )
    aggregation = None if config.aggregation is None else NeighbourAggregation(config.aggregation)
    return SoloNet(build_transform(config), backbone, head, aggregation, config)
