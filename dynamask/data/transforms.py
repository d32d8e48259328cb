"""Training-time augmentation on picture and target together, built from torchvision's v2 transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

GREY = 114
"""Fill of the border that zooming out adds, as an 8-bit grey value."""


class TrainingTransforms:
    """Flip, colour jitter, zoom-out and crop, drawn from torch's global generator (the loader seeds it per sample)."""

    def __init__(
        self,
        flip: float = 0.5,
        photometric: bool = True,
        zoom_out: float = 0.0,
        crop: float = 0.0,
        crop_side: float = 0.6,
        min_visible: float = 0.25,
    ) -> None:
        """Choose what is drawn.

        Args:
            flip: probability of a horizontal flip.
            photometric: jitter brightness, contrast and saturation, each by up to a quarter.
            zoom_out: probability of placing the picture on a grey canvas of 1 to 2 times its sides.
            crop: probability of cutting out a window.
            crop_side: smallest side of the window, as a share of the picture's, 0-1.
            min_visible: objects that keep less than this share of their mask in the window are dropped, 0-1.
        """
        self.jitter = v2.ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25) if photometric else None
        fill = {tv_tensors.Image: GREY, tv_tensors.Mask: 0}
        steps = [v2.RandomZoomOut(fill=fill, side_range=(1.0, 2.0), p=zoom_out)] if zoom_out > 0 else []
        self.geometry = v2.Compose([*steps, v2.RandomHorizontalFlip(p=flip)])
        self.crop, self.crop_side, self.min_visible = crop, crop_side, min_visible

    def __call__(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Transform (3, H, W) uint8 and its target (see `CocoDataset`); the given tensors stay as they are."""
        if self.jitter is not None:
            image = self.jitter(image)
        if self.crop > 0 and torch.rand(()) < self.crop:
            image, target = self._cut_window(image, target)
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[-2:])
        image, boxes, masks = self.geometry(tv_tensors.Image(image), boxes, tv_tensors.Mask(target["masks"]))
        moved = {"boxes": boxes.as_subclass(Tensor), "masks": masks.as_subclass(Tensor).contiguous()}
        return image.as_subclass(Tensor).contiguous(), {**target, **moved}

    def _cut_window(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Cut a random window; objects keep what is visible, and their boxes shrink to it."""
        height, width = image.shape[-2:]
        share_y, share_x, at_y, at_x = torch.rand(4).tolist()
        rows = max(1, round(height * (self.crop_side + (1 - self.crop_side) * share_y)))
        columns = max(1, round(width * (self.crop_side + (1 - self.crop_side) * share_x)))
        top, left = int(at_y * (height - rows + 1)), int(at_x * (width - columns + 1))
        masks = target["masks"][:, top : top + rows, left : left + columns]
        before = target["masks"].flatten(1).sum(1)  # (N,)
        after = masks.flatten(1).sum(1)  # (N,)
        keep = (after > 0) & (after >= self.min_visible * before)
        masks = masks[keep]
        boxes = target["boxes"][keep] - torch.tensor([left, top, left, top])
        boxes = _shrink_to_masks(boxes, masks, whole=after[keep] == before[keep])
        area = target["area"][keep] * (after[keep] / before[keep])
        kept = {key: target[key][keep] for key in ("labels", "iscrowd")}
        return (
            image[:, top : top + rows, left : left + columns],
            {**target, **kept, "boxes": boxes, "masks": masks, "area": area},
        )


def _shrink_to_masks(boxes: Tensor, masks: Tensor, whole: Tensor) -> Tensor:
    """Boxes (N, 4) clipped to the (N, H, W) masks' frame; those of cut objects become tight around what is left."""
    height, width = masks.shape[-2:]
    boxes = boxes.clone()
    boxes[:, 0::2].clamp_(0, width)
    boxes[:, 1::2].clamp_(0, height)
    for index in torch.nonzero(~whole).flatten().tolist():
        rows = torch.nonzero(masks[index].any(1)).flatten()
        columns = torch.nonzero(masks[index].any(0)).flatten()
        boxes[index] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).to(boxes)
    return boxes
