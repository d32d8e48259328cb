"""Mask IoU and boundary IoU of single masks."""

from collections.abc import Sequence

import cv2
import numpy as np

from dynamask.ops.masks import BOUNDARY_WIDTH_RATIO


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks.

    Args:
        a: (H, W) bool, or 0 and 1.
        b: (H, W), likewise.

    Returns:
        IoU in 0–1; 0 if both masks are empty, as in COCO.

    Raises:
        ValueError: if the shapes differ.
    """
    a, b, _ = _cropped_pair(a, b)
    return _iou(a, b)


def boundary_iou(a: np.ndarray, b: np.ndarray, width_ratio: float = BOUNDARY_WIDTH_RATIO) -> float:
    """Boundary IoU of two masks (Cheng et al., CVPR 2021): the IoU of their inner rims.

    The rim of a mask is what an erosion by ``boundary_width`` pixels (square structuring element) takes away. Outside
    the image there is no object, so a mask that the image border cuts off has a rim along that border.

    Args:
        a: (H, W) bool, or 0 and 1; the size of the whole image, because the width derives from it.
        b: (H, W), likewise.
        width_ratio: width of the rim as a fraction of the image diagonal.

    Returns:
        IoU in 0–1; 0 if both masks are empty.

    Raises:
        ValueError: if the shapes differ.
    """
    a, b, image_size = _cropped_pair(a, b)
    width = boundary_width(image_size, width_ratio)
    return _iou(rim(a, width), rim(b, width))


def boundary_width(image_size: tuple[int, int], width_ratio: float = BOUNDARY_WIDTH_RATIO) -> int:
    """Width in pixels, at least 1, of the rim that boundary IoU compares in an image of (height, width)."""
    return max(1, int(round(width_ratio * float(np.hypot(*image_size)))))


def quality_by_size(
    gt_masks: np.ndarray, pasted_masks_by_size: Sequence[np.ndarray], width_ratio: float = BOUNDARY_WIDTH_RATIO
) -> tuple[np.ndarray, np.ndarray]:
    """Mask IoU and boundary IoU of every instance of one image at every mask size.

    Args:
        gt_masks: (N, H, W) bool, the true masks.
        pasted_masks_by_size: K arrays (N, H, W) bool, the same instances predicted at each size.
        width_ratio: width of the boundary as a fraction of the image diagonal.

    Returns:
        Mask IoU (N, K) and boundary IoU (N, K), float64 in 0–1.

    Raises:
        ValueError: if the shapes differ.
    """
    gt_masks = np.asarray(gt_masks)
    by_size = [np.asarray(masks) for masks in pasted_masks_by_size]
    if any(masks.shape != gt_masks.shape for masks in by_size):
        raise ValueError(f"masks of shapes {[m.shape for m in by_size]} cannot be compared to {gt_masks.shape}")
    mask_ious = np.zeros((len(gt_masks), len(by_size)))
    boundary_ious = np.zeros_like(mask_ious)
    for i, truth in enumerate(gt_masks):
        for k, masks in enumerate(by_size):
            a, b, image_size = _cropped_pair(truth, masks[i])
            width = boundary_width(image_size, width_ratio)
            mask_ious[i, k] = _iou(a, b)
            boundary_ious[i, k] = _iou(rim(a, width), rim(b, width))
    return mask_ious, boundary_ious


def _cropped_pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Both masks as uint8 0 or 1, cropped to the box around their union, and the size of the image."""
    a, b = np.asarray(a).astype(bool, copy=False), np.asarray(b).astype(bool, copy=False)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"masks of shapes {a.shape} and {b.shape} cannot be compared")
    left, top, width, height = cv2.boundingRect((a | b).view(np.uint8))
    crop = slice(top, top + height), slice(left, left + width)
    return *(np.ascontiguousarray(mask[crop]).view(np.uint8) for mask in (a, b)), a.shape


def rim(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels that erosion by a square of ``2 width + 1`` removes from a mask; both (H, W) uint8, 0 or 1."""
    if mask.size == 0:
        return mask
    kernel = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
    return mask - cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two uint8 0/1 arrays of one shape, 0 if both are empty."""
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 0.0
