"""torchvision's whole Mask R-CNN with the backbone and the sizes of a preset: the model to time ours against."""

from __future__ import annotations

from pathlib import Path

from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from dynamask.config import ModelConfig
from dynamask.models.backbone import BackboneWithFPN
from dynamask.models.transform import TwoSizeTransform


def build_mask_rcnn(config: ModelConfig, backbone_weights: str | Path | None = None) -> MaskRCNN:
    """torchvision's Mask R-CNN on the backbone, and with the sizes, of a configuration of ours.

    Args:
        config: the mask head is as wide as ``region_channels``; ``mask_rois`` is not used, torchvision trains its mask
            head on every positive RoI.
        backbone_weights: None, "timm", or the path of a .safetensors file under timm's names.

    Returns:
        The model; ``model.config`` is the configuration.
    """
    backbone = BackboneWithFPN(config.backbone, config.fpn_channels, backbone_weights, config.frozen_stride)
    count, width = len(config.class_names), config.region_channels
    anchors = AnchorGenerator(tuple((s,) for s in config.anchor_sizes), ((0.5, 1.0, 2.0),) * len(config.anchor_sizes))
    model = MaskRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=config.rpn_pre_nms_train,
        rpn_pre_nms_top_n_test=config.rpn_pre_nms_test,
        rpn_post_nms_top_n_train=config.rpn_post_nms_train,
        rpn_post_nms_top_n_test=config.rpn_post_nms_test,
        box_head=TwoMLPHead(config.fpn_channels * 49, config.box_head_channels),
        box_predictor=FastRCNNPredictor(config.box_head_channels, count),
        box_score_thresh=config.score_threshold,
        box_detections_per_img=config.detections_per_img,
        box_batch_size_per_image=config.box_samples,
        mask_head=MaskRCNNHeads(config.fpn_channels, (width,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(width, width, count),
    )
    model.transform = TwoSizeTransform(
        (*config.min_sizes, config.test_min_size), config.max_size, list(config.image_mean), list(config.image_std)
    )
    model.config = config
    return model
