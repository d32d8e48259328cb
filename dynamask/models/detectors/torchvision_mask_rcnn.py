"""torchvision's Mask R-CNN with the backbone and the sizes of a preset: the reference for timings."""

from __future__ import annotations

from pathlib import Path

from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from dynamask.config import ModelConfig
from dynamask.models.build import build_backbone, build_transform
from dynamask.models.detectors.rcnn import anchor_generator


def build_mask_rcnn(config: ModelConfig, backbone_weights: str | Path | None = None) -> MaskRCNN:
    """torchvision's Mask R-CNN with the backbone and the sizes of a configuration, stored as ``model.config``.

    Args:
        config: ``region_channels`` is the width of the mask head. ``mask_rois`` and ``region_margin`` are not used:
            torchvision trains its mask head on every positive RoI, and its masks cover the boxes.
        backbone_weights: None, "timm", or the path of a .safetensors file under timm's names.
    """
    count, width = len(config.class_names), config.region_channels
    model = MaskRCNN(
        build_backbone(config, backbone_weights),
        rpn_anchor_generator=anchor_generator(config.anchor_sizes),
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
    model.transform = build_transform(config)
    model.config = config
    return model
