"""Faster R-CNN: region proposals and a box head, both torchvision's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from dynamask.models.backbone import BackboneWithFPN
from dynamask.models.detectors.base import Detector, EncodedImages, PositiveRegions, Target
from dynamask.models.tensor_functions import MAP_SIDES, TensorFunction, region_function
from dynamask.ops.boxes import chunked_box_iou

LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")


class RCNNDetector(Detector):
    """torchvision's Faster R-CNN on our backbone.

    Args:
        transform, backbone: see :class:`Detector`.
        rpn: of :func:`region_proposal_network`.
        roi_heads: of :func:`box_heads`; its mask part is not used.
    """

    def __init__(
        self,
        transform: GeneralizedRCNNTransform,
        backbone: BackboneWithFPN,
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads,
    ) -> None:
        super().__init__(transform, backbone)
        self.rpn = rpn
        self.roi_heads = roi_heads

    def detect(self, encoded: EncodedImages) -> list[dict[str, Tensor]]:
        """See :meth:`Detector.detect`."""
        proposals, _ = self.rpn(encoded.images, encoded.features)
        logits, regression = self._box_outputs(encoded, proposals)
        found = self.roi_heads.postprocess_detections(logits, regression, proposals, encoded.image_sizes)
        return [{"boxes": b, "labels": y, "scores": s} for b, s, y in zip(*found)]

    def classify(self, encoded: EncodedImages, boxes: list[Tensor]) -> Tensor:
        """See :meth:`Detector.classify`."""
        logits, _ = self._box_outputs(encoded, boxes)
        return logits[:, 1:].argmax(dim=1) + 1

    def tensor_functions(self) -> Iterator[TensorFunction]:
        """See :meth:`Detector.tensor_functions`."""
        yield from super().tensor_functions()
        channels, strides = self.backbone.out_channels, (4, 8, 16, 32, 64)
        maps = [torch.zeros(1, channels, *(side // stride for side in MAP_SIDES)) for stride in strides]
        yield TensorFunction("proposals", self.rpn.head, (maps,))
        pool, head = self.roi_heads.box_roi_pool, self.roi_heads.box_head
        yield region_function("boxes", head, (channels, *pool.output_size))

    @property
    def loss_weights(self) -> dict[str, float]:
        """See :meth:`Detector.loss_weights`."""
        return dict.fromkeys(LOSSES, 1.0)

    def losses(self, encoded: EncodedImages, targets: list[Target]) -> tuple[dict[str, Tensor], list[PositiveRegions]]:
        """``loss_objectness``, ``loss_rpn_box_reg``, ``loss_classifier`` and ``loss_box_reg``, as torchvision's."""
        proposals, losses = self.rpn(encoded.images, encoded.features, targets)
        proposals, matched, labels, regression_targets = self.roi_heads.select_training_samples(proposals, targets)
        logits, regression = self._box_outputs(encoded, proposals)
        loss_classifier, loss_box_reg = fastrcnn_loss(logits, regression, labels, regression_targets)
        positives = []
        for boxes, label, match in zip(proposals, labels, matched):
            rows = torch.nonzero(label > 0)[:, 0]
            positives.append(PositiveRegions(boxes[rows].detach(), label[rows], match[rows]))
        return {**losses, "loss_classifier": loss_classifier, "loss_box_reg": loss_box_reg}, positives

    def _box_outputs(self, encoded: EncodedImages, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (R, K) and box deltas (R, 4·K) of (R_i, 4) boxes, float32 under autocast, too."""
        heads = self.roi_heads
        crops = heads.box_roi_pool(encoded.features, boxes, encoded.image_sizes)  # (R, C, 7, 7)
        logits, regression = heads.box_predictor(heads.box_head(crops))
        return logits.float(), regression.float()


class Float32RPNHead(RPNHead):
    """torchvision's RPN head with float32 scores and deltas under autocast, too: proposals take their type."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (B, C, H, W) → objectness (B, A, H, W) and deltas (B, 4A, H, W) of each."""
        scores, deltas = super().forward(x)
        return [values.float() for values in scores], [values.float() for values in deltas]


def anchor_generator(sizes: tuple[int, ...]) -> AnchorGenerator:
    """One anchor side (pixels) per pyramid level, at the aspect ratios 0.5, 1 and 2."""
    return AnchorGenerator(tuple((size,) for size in sizes), ((0.5, 1.0, 2.0),) * len(sizes))


def region_proposal_network(
    channels: int, anchor_sizes: tuple[int, ...], pre_nms: dict[str, int], post_nms: dict[str, int]
) -> RegionProposalNetwork:
    """torchvision's region proposal network with the thresholds of its Mask R-CNN.

    Args:
        channels: of the feature pyramid.
        anchor_sizes: anchor side per level, pixels.
        pre_nms: proposals kept per level before NMS, for "training" and "testing".
        post_nms: proposals kept per picture after NMS, for "training" and "testing".
    """
    anchors = anchor_generator(anchor_sizes)
    network = RegionProposalNetwork(
        anchors,
        Float32RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=pre_nms,
        post_nms_top_n=post_nms,
        nms_thresh=0.7,
    )
    network.box_similarity = chunked_box_iou
    return network


def box_heads(
    channels: int, hidden: int, num_classes: int, samples: int, score_threshold: float, detections_per_img: int
) -> RoIHeads:
    """torchvision's RoI heads for boxes, without masks, with the thresholds of its Mask R-CNN.

    Args:
        channels: of the feature pyramid.
        hidden: width of the two fully connected layers.
        num_classes: with the background.
        samples: RoIs sampled per picture in training, a quarter of them positive.
        score_threshold: detections below it are dropped.
        detections_per_img: detections kept per picture, at most.
    """
    return RoIHeads(
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(channels * 49, hidden),
        box_predictor=FastRCNNPredictor(hidden, num_classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=samples,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=score_threshold,
        nms_thresh=0.5,
        detections_per_img=detections_per_img,
    )
