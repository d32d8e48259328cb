"""Augmentation of pictures together with their targets, built from torchvision's v2 transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from dynamask.ops.mask_windows import MaskWindows

GREY = 114
"""Fill value of added borders, 8-bit grey."""
OBJECT_FIELDS = ("boxes", "labels", "masks", "area", "iscrowd", "mask_only")
"""Fields of a target with one entry per object."""


class TrainingTransforms:
    """Flip, colour jitter, scale jitter, zoom-out and crop.

    All draws come from torch's global generator, which the loader seeds per sample; disabled transforms draw nothing.
    """

    def __init__(
        self,
        flip: float = 0.5,
        photometric: bool = True,
        zoom_out: float = 0.0,
        crop: float = 0.0,
        crop_side: float = 0.6,
        min_visible: float = 0.25,
        scale_jitter: tuple[float, float] = (1.0, 1.0),
        jitter_size: int = 0,
        hue: float = 0.0,
    ) -> None:
        """Choose the transforms.

        Args:
            flip: probability of a horizontal flip.
            photometric: jitter brightness, contrast and saturation, each by up to a quarter.
            zoom_out: probability of placing the picture on a grey canvas of 1 to 2 times its sides.
            crop: probability of cutting out a window.
            crop_side: smallest side of the window, as a share of the picture's, 0-1.
            min_visible: objects that keep less than this share of their mask in a window are dropped, 0-1.
            scale_jitter: range of the factor for a picture that just fits into the frame (`v2.ScaleJitter`); what is
                larger than the frame is cut at a random place, what is smaller is padded with grey on the right and
                below. (1, 1) without a `jitter_size` leaves pictures as they are.
            jitter_size: side of the frame, square, in pixels; 0 takes each picture's own size.
            hue: with `photometric`, the largest shift of the hue, as a share of the colour circle, 0-0.5.
        """
        self.jitter = v2.ColorJitter(0.25, 0.25, 0.25, hue) if photometric else None
        steps = [v2.RandomZoomOut(fill=GREY, side_range=(1.0, 2.0), p=zoom_out)] if zoom_out > 0 else []
        self.geometry = v2.Compose([*steps, v2.RandomHorizontalFlip(p=flip)])
        self.crop, self.crop_side, self.min_visible = crop, crop_side, min_visible
        self.scale_jitter, self.jitter_size = tuple(scale_jitter), jitter_size

    def __call__(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Transform a (3, H, W) uint8 picture and its target (see `InstanceDataset`); the arguments are not changed.

        Masks come back in the form in which they are given, a tensor or windows.
        """
        given = target["masks"]
        target = {**target, "masks": MaskWindows.of(given)}
        if self.jitter is not None:
            image = self.jitter(image)
        if self.crop > 0 and torch.rand(()) < self.crop:
            image, target = self._cut_window(image, target)
        if self.scale_jitter != (1.0, 1.0) or self.jitter_size:
            image, target = self._jitter_scale(image, target)
        image, target = self._move(image, target)
        return image, {**target, "masks": target["masks"].like(given)}

    def _move(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Zoom out and flip; the masks are moved as two boxes are, the first pixel and the whole frame."""
        height, width = image.shape[-2:]
        probes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, width, height]])
        boxes = torch.cat([target["boxes"], probes])
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        image, boxes = self.geometry(tv_tensors.Image(image), boxes)
        *_, first, frame = boxes.as_subclass(Tensor).round().to(torch.int64)
        left, top = frame[:2].tolist()
        masks = target["masks"].flipped() if first[0] != left else target["masks"]
        masks = masks.placed(top, left, image.shape[-2:])
        return image.as_subclass(Tensor).contiguous(), {
            **target,
            "boxes": boxes.as_subclass(Tensor)[:-2],
            "masks": masks,
        }

    def _jitter_scale(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Scale the picture, then crop or pad it to the frame.

        The crop is made before scaling: the same result with less work.
        """
        height, width = image.shape[-2:]
        frame = (self.jitter_size, self.jitter_size) if self.jitter_size else (height, width)
        share, at_y, at_x = torch.rand(3).tolist()
        low, high = self.scale_jitter
        scale = min(frame[0] / height, frame[1] / width) * (low + (high - low) * share)
        rows, columns = (max(1, min(side, round(f / scale))) for side, f in zip((height, width), frame))
        top, left = int(at_y * (height - rows + 1)), int(at_x * (width - columns + 1))
        image, target = _window(image, target, top, left, rows, columns, self.min_visible)
        size = [max(1, min(f, round(side * scale))) for side, f in zip((rows, columns), frame)]
        image, target = _resized(image, target, size)
        right, below = frame[1] - size[1], frame[0] - size[0]
        masks = target["masks"].placed(0, 0, frame)
        return nn.functional.pad(image, (0, right, 0, below), value=GREY), {**target, "masks": masks}

    def _cut_window(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Crop a random window; masks and boxes shrink to the visible part."""
        height, width = image.shape[-2:]
        share_y, share_x, at_y, at_x = torch.rand(4).tolist()
        rows = max(1, round(height * (self.crop_side + (1 - self.crop_side) * share_y)))
        columns = max(1, round(width * (self.crop_side + (1 - self.crop_side) * share_x)))
        top, left = int(at_y * (height - rows + 1)), int(at_x * (width - columns + 1))
        return _window(image, target, top, left, rows, columns, self.min_visible)


def _window(
    image: Tensor, target: dict[str, Any], top: int, left: int, rows: int, columns: int, min_visible: float
) -> tuple[Tensor, dict[str, Any]]:
    """Crop a window; masks shrink to the visible part, and objects with too small a visible fraction are dropped."""
    window = (slice(top, top + rows), slice(left, left + columns))
    boxes = target["boxes"] - torch.tensor([left, top, left, top])
    cut = {**target, "masks": target["masks"].cropped(*window), "boxes": boxes}
    return image[:, *window], keep_visible(cut, target["masks"].counts(), min_visible)


def keep_visible(target: dict[str, Any], before: Tensor, min_visible: float) -> dict[str, Any]:
    """Drop objects with too small a visible fraction; the boxes of other cut objects become tight.

    Args:
        target: with cut masks as windows, and boxes that are not cut yet.
        before: (N,) pixels of the masks before they were cut.
        min_visible: fraction of the pixels that must remain, 0–1; at least one pixel always must.
    """
    after = target["masks"].counts()
    keep = is_visible(before, after, min_visible)
    kept, before, after = kept_objects(target, keep), before[keep], after[keep]
    boxes = shrink_to_masks(kept["boxes"], kept["masks"], whole=after == before)
    return {**kept, "boxes": boxes, "area": kept["area"] * (after / before)}


def is_visible(before: Tensor, after: Tensor, min_visible: float) -> Tensor:
    """(N,) bool: objects that keep at least one pixel and a fraction ``min_visible`` of them; pixel counts (N,)."""
    return (after > 0) & (after >= min_visible * before)


def kept_objects(target: dict[str, Any], keep: Tensor) -> dict[str, Any]:
    """The target of the objects in ``keep`` (N,) bool; fields may be missing, and nothing is copied if all are kept."""
    if keep.all():
        return dict(target)
    fields = [key for key in OBJECT_FIELDS if key in target]
    return {**target, **{key: target[key][keep] for key in fields}}


def mask_only(target: dict[str, Any]) -> Tensor:
    """(N,) bool: the objects of a target that train the masks but not the detector; all False without the field."""
    return target.get("mask_only", torch.zeros(len(target["labels"]), dtype=torch.bool))


def _resized(image: Tensor, target: dict[str, Any], size: list[int]) -> tuple[Tensor, dict[str, Any]]:
    """Resize picture (bilinear, antialiased), masks (nearest pixel centre) and boxes to [height, width]."""
    old = image.shape[-2:]
    if list(old) == size:
        return image, target
    factors = torch.tensor([size[1] / old[1], size[0] / old[0]])
    masks = target["masks"].resized(size)
    moved = {**target, "masks": masks, "boxes": target["boxes"] * factors.repeat(2)}
    moved["area"] = target["area"] * factors.prod()
    vanished = masks.counts() == 0
    image = functional.resize(image, size, antialias=True)
    return image, kept_objects(moved, ~vanished)


def shrink_to_masks(boxes: Tensor, masks: MaskWindows, whole: Tensor) -> Tensor:
    """Boxes (N, 4) clipped to the frame of the N masks; those of cut objects become tight."""
    height, width = masks.frame
    boxes = boxes.clone()
    boxes[:, 0::2].clamp_(0, width)
    boxes[:, 1::2].clamp_(0, height)
    boxes[~whole] = masks[~whole].tight_boxes().to(boxes)
    return boxes
