"""The two-stage model: backbone → FPN → proposals → boxes → regions → masks (Fig. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from dynamask.config import ModelConfig
from dynamask.models.backbone import BackboneWithFPN
from dynamask.models.masks.branch import DynaMaskRoIHeads
from dynamask.models.masks.heads.base import RegionState
from dynamask.models.masks.policies import learned
from dynamask.ops.masks import paste_mask_window, paste_window
from dynamask.structures import MASK_SIZES

if TYPE_CHECKING:
    from dynamask.models.hub import ModelCard


@dataclass
class EncodedImages:
    """Pictures as the network sees them.

    Attributes:
        images: padded batch with the size of each picture inside it.
        features: {"0": P2, …, "pool": P6}.
        original_sizes: (H, W) of each picture as given.
    """

    images: ImageList
    features: dict[str, Tensor]
    original_sizes: list[tuple[int, int]]


class DynaMaskRCNN(nn.Module):
    """Mask R-CNN's detector with a mask resolution per instance.

    Args:
        transform: torchvision's resizing and normalisation.
        backbone, rpn, roi_heads: built modules.
        config: kept for the checkpoint; never read below the assembling code.
    """

    def __init__(
        self,
        transform: GeneralizedRCNNTransform,
        backbone: BackboneWithFPN,
        rpn: RegionProposalNetwork,
        roi_heads: DynaMaskRoIHeads,
        config: ModelConfig,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.config = config

    @property
    def mask_branch(self) -> nn.Module:
        """The mask branch, see :class:`dynamask.models.masks.branch.MaskBranch`."""
        return self.roi_heads.mask_branch

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation, as torchvision's detectors.

        Args:
            images: (3, H, W) float in [0, 1] each.
            targets: per image ``boxes`` (G, 4) xyxy ``labels`` (G,) ≥ 1, ``masks`` (G, H, W); not changed.

        Returns:
            Training: named scalar losses, unweighted. Evaluation: per image ``boxes`` (R, 4), ``labels``, ``scores``,
            ``masks`` (R, 1, H, W) probabilities, ``mask_size`` (R,) in mask pixels, ``switch_logits`` (R, 4).
        """
        if not self.training:
            return self.predict(images)
        if targets is None:
            raise ValueError("training needs targets")
        encoded, targets = self.encode(images, targets)
        proposals, proposal_losses = self.rpn(encoded.images, encoded.features, targets)
        _, head_losses = self.roi_heads(encoded.features, proposals, encoded.images.image_sizes, targets)
        return {**proposal_losses, **head_losses}

    def encode(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[EncodedImages, list[dict[str, Tensor]] | None]:
        """Resize, normalise, pad and run backbone and FPN; boxes are resized, masks stay in the picture's pixels.

        The maps are float32 under autocast, too: anchors and boxes take the maps' type, and need it.
        """
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        plain = None if targets is None else [{"boxes": t["boxes"], "labels": t["labels"]} for t in targets]
        batch, resized = self.transform(images, plain)
        if targets is not None:
            for target, given, size, network in zip(resized, targets, sizes, batch.image_sizes):
                target["masks"] = given["masks"]
                target["mask_scale"] = target["boxes"].new_tensor([size[1] / network[1], size[0] / network[0]] * 2)
        features = {level: map_.float() for level, map_ in self.backbone(batch.tensors).items()}
        return EncodedImages(batch, features, sizes), resized

    def detect(self, encoded: EncodedImages) -> list[dict[str, Tensor]]:
        """Boxes (R, 4) xyxy in network-input pixels, labels and scores of each image."""
        proposals, _ = self.rpn(encoded.images, encoded.features)
        return self.roi_heads.detect(encoded.features, proposals, encoded.images.image_sizes)

    def regions(self, encoded: EncodedImages, boxes: list[Tensor], labels: list[Tensor]) -> RegionState:
        """Begin the mask branch on boxes (R_i, 4) of each image, in network-input pixels; labels (R_i,) ≥ 1."""
        index = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
        rois = torch.cat([index, torch.cat(boxes)], dim=1)  # (R, 5)
        return self.mask_branch.begin(encoded.features, rois, torch.cat(labels))

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, device: str | torch.device = "cpu", local_files_only: bool = False
    ) -> DynaMaskRCNN:
        """A model in evaluation mode from a saved folder, a .safetensors file, a bundled name or the hub.

        Args:
            name_or_folder: what lies on the disk wins; otherwise "owner/name" or "owner/name@revision", with or without
                "hf://", is a model on the Hugging Face hub, downloaded unless the cache has it.
            local_files_only: never use the network.

        Raises:
            DynaMaskError: there is no such thing, or it is no model of ours.
        """
        from dynamask.models import hub, weights_file  # they know this class

        name = str(name_or_folder)
        remote = "/" in name and not Path(name).exists() and Path(name).suffix != ".safetensors"
        prefix = hub.SCHEME if remote and not name.startswith(hub.SCHEME) else ""
        path = hub.find_weights(prefix + name, local_files_only)
        hub.check_folder_config(path)
        return weights_file.load_model(path, device)

    def save_pretrained(self, folder: str | Path, card: ModelCard | None = None) -> Path:
        """Write config.json, model.safetensors and README.md, the model card, into a folder; returns it."""
        from dynamask.models import hub

        return hub.save_folder(self, folder, card)

    def push_to_hub(
        self, repo: str, card: ModelCard | None = None, private: bool = False, token: str | None = None
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to "owner/name" on the Hugging Face hub; returns its address."""
        from dynamask.models import hub

        return hub.push(self, repo, card, private, token)

    @torch.no_grad()
    def predict(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections with the learned sizes; see :meth:`forward`."""
        encoded, _ = self.encode(images)
        detections = self.detect(encoded)
        state = self.regions(encoded, [d["boxes"] for d in detections], [d["labels"] for d in detections])
        choice = learned(state.switch_logits)
        counts = [len(d["boxes"]) for d in detections]
        probs = iter(self.mask_branch.masks(state, choice))
        for i, (detection, size, network) in enumerate(
            zip(detections, encoded.original_sizes, encoded.images.image_sizes)
        ):
            rows = state.rois[:, 0] == i
            detection["boxes"] = resize_boxes(detection["boxes"], network, size)
            detection["mask_size"] = choice.new_tensor(MASK_SIZES)[choice[rows]]
            detection["switch_logits"] = state.switch_logits[rows]
            detection["masks"] = _paste_probs([next(probs) for _ in range(counts[i])], detection["boxes"], size)
        return detections


def _paste_probs(probs: list[Tensor], boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(R, 1, H, W) probabilities, zero outside the boxes."""
    out = boxes.new_zeros((len(probs), 1, *size))
    for row, (values, box) in enumerate(zip(probs, boxes.tolist())):
        top, bottom, left, right = window = paste_window(box, size)
        if bottom > top and right > left:
            out[row, 0, top:bottom, left:right] = paste_mask_window(values, box, window)
    return out
