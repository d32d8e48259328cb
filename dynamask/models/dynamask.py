"""The two-stage model: a detector, and a mask branch with a mask size per instance (Fig. 2)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes

from dynamask.config import ModelConfig
from dynamask.models.detectors.base import Detector, EncodedImages, boxes_to_rois
from dynamask.models.hub import PretrainedModel
from dynamask.models.masks.branch import MaskBranch
from dynamask.models.masks.heads.base import RegionState
from dynamask.models.tensor_functions import TensorFunction
from dynamask.ops.masks import enlarge_boxes, paste_mask_window, paste_window
from dynamask.structures import MASK_SIZES


class DynaMask(PretrainedModel):
    """A detector, and a mask branch that chooses a mask size for each instance.

    Args:
        detector: finds objects.
        mask_branch: predicts their masks.
        config: stored with the weights; the model itself does not read it.
    """

    def __init__(self, detector: Detector, mask_branch: MaskBranch, config: ModelConfig) -> None:
        super().__init__()
        self.detector = detector
        self.mask_branch = mask_branch
        self.config = config

    @property
    def backbone(self) -> nn.Module:
        """The detector's backbone with its feature pyramid."""
        return self.detector.backbone

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation, as torchvision's detectors.

        Args:
            images: (3, H, W) float in [0, 1] each.
            targets: per image ``boxes`` (G, 4) xyxy, ``labels`` (G,) ≥ 1, ``masks`` (G, H, W); not changed.

        Returns:
            Training: named scalar losses, unweighted. Evaluation: see :meth:`predict`.
        """
        if not self.training:
            return self.predict(images)
        if targets is None:
            raise ValueError("training needs targets")
        encoded, targets = self.detector.encode(images, targets)
        losses, positives = self.detector.losses(encoded, targets)
        mask_losses = self.mask_branch.training_losses(encoded.features, positives, targets, encoded.image_sizes)
        return {**losses, **mask_losses}

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each training loss (Eq. 7)."""
        return {**self.detector.loss_weights, **self.mask_branch.loss_config.weights}

    @torch.no_grad()
    def predict(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections with the mask sizes that the switch chooses.

        Returns:
            Per image ``boxes`` (R, 4) xyxy in its pixels, ``labels``, ``scores`` (R,), ``masks`` (R, 1, H, W)
            probabilities, ``mask_size`` (R,) in mask pixels, ``switch_logits`` (R, 4).
        """
        encoded, _ = self.detector.encode(images)
        detections = self.detector.detect(encoded)
        rois = boxes_to_rois([d["boxes"] for d in detections])
        state, size_index, mask_logits = self.mask_branch(
            encoded.features, rois, torch.cat([d["labels"] for d in detections])
        )
        for i, (found, network, size) in enumerate(zip(detections, encoded.image_sizes, encoded.original_sizes)):
            rows = torch.nonzero(rois[:, 0] == i)[:, 0]
            found["boxes"] = resize_boxes(found["boxes"], network, size)
            found["mask_size"] = size_index.new_tensor(MASK_SIZES)[size_index[rows]]
            found["switch_logits"] = state.switch_logits[rows]
            covered = enlarge_boxes(found["boxes"], self.mask_branch.region_margin)
            found["masks"] = _paste_probs([mask_logits[row].sigmoid() for row in rows], covered, size)
        return detections

    def regions(self, encoded: EncodedImages, boxes: list[Tensor], labels: list[Tensor]) -> RegionState:
        """Start the mask branch on boxes (R_i, 4) of each image, in network-input pixels; labels (R_i,) ≥ 1.

        The branch enlarges the boxes by its margin.
        """
        return self.mask_branch.begin(encoded.features, boxes_to_rois(boxes), torch.cat(labels))

    def tensor_functions(self) -> Iterator[TensorFunction]:
        """The functions that a back end of inference can replace."""
        yield from self.detector.tensor_functions()
        yield from self.mask_branch.tensor_functions()

    @torch.no_grad()
    def probe(self, image: Tensor) -> dict[str, Tensor]:
        """Pyramid, and outputs of all parts for two fixed boxes; see :meth:`PretrainedModel.probe`."""
        encoded, _ = self.detector.encode([image])
        height, width = encoded.image_sizes[0]
        boxes = image.new_tensor([[0.1, 0.1, 0.6, 0.7], [0.5, 0.4, 0.9, 0.9]])
        boxes = boxes * boxes.new_tensor([width, height, width, height])
        rows = torch.arange(len(boxes), device=image.device)
        state = self.regions(encoded, [boxes], [torch.ones_like(rows)])
        outputs = {
            "pyramid": torch.cat([map_.flatten() for map_ in encoded.features.values()]),
            "detector": self._detector_outputs(encoded, boxes),
        }
        if self.mask_branch.switch is not None:
            outputs["switch"] = state.switch_logits
        for size in self.mask_branch.mask_sizes:
            outputs[f"masks of {size}"] = self.mask_branch.head.mask_logits(state, MASK_SIZES.index(size), rows)
        return outputs

    def _detector_outputs(self, encoded: EncodedImages, boxes: Tensor) -> Tensor:
        """Outputs of all layers behind the backbone that the detector needs to classify boxes, as one row."""
        found, backbone = [], set(self.backbone.modules())
        layers = [m for m in self.detector.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m not in backbone]
        hooks = [layer.register_forward_hook(lambda _, __, output: found.append(output.flatten())) for layer in layers]
        try:
            self.detector.classify(encoded, [boxes])
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(found)

    def card_paragraphs(self) -> tuple[str, str]:
        """See :meth:`PretrainedModel.card_paragraphs`."""
        costs = self.mask_branch.costs
        macs = " / ".join(f"{value / 1e9:.4f}" for value in costs.macs_per_instance)
        return (
            f"DynaMask instance segmentation, model `{self.config.name}`: a mask of {', '.join(map(str, MASK_SIZES))} "
            "pixels a side for every instance, as its own switch chooses.",
            f"GMACs of one instance at each size (1 MAC = 2 FLOPs): {macs}; the switch {costs.switch_macs / 1e9:.4f}.",
        )


def _paste_probs(probs: list[Tensor], boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(R, 1, H, W) probabilities, zero outside the boxes."""
    out = boxes.new_zeros((len(probs), 1, *size))
    for row, (values, box) in enumerate(zip(probs, boxes.tolist())):
        top, bottom, left, right = window = paste_window(box, size)
        if bottom > top and right > left:
            out[row, 0, top:bottom, left:right] = paste_mask_window(values, box, window)
    return out
