"""Mask IoU and boundary IoU of single masks, and how far a box cuts a mask off."""

from collections.abc import Sequence

import cv2
import numpy as np

from dynamask.ops.masks import BOUNDARY_WIDTH_RATIO

BORDER_RATIO = 0.02
"""Width of the border of a box, as a fraction of its side, in which :func:`border_share` counts; at least one pixel."""


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


def border_share(mask: np.ndarray, box: Sequence[float]) -> float:
    """Share of a mask's outline that lies on the border of its box, where the box may have cut the object off.

    The outline are the pixels of the mask with a pixel outside of it above, below, left or right; the image border
    counts as inside, since there the image cuts the object off. Such a pixel lies on the border if its centre is less
    than ``max(1, BORDER_RATIO · side)`` pixels from an edge of the box; edges within a pixel of the image border or
    beyond it are left out. A rectangle that fills its box has the share 1 and a disc about 0.4; the shares of true
    masks in true boxes are the reference.

    Args:
        mask: (H, W) bool, or 0 and 1; the size of the whole image.
        box: xyxy in image pixels, what the mask could cover.

    Returns:
        A share in 0–1; NaN if the mask is empty or fills the image.
    """
    mask = np.asarray(mask).astype(bool, copy=False).view(np.uint8)
    height, width = mask.shape
    left, top, columns, rows = cv2.boundingRect(mask)
    y0, x0 = max(0, top - 1), max(0, left - 1)
    part = np.ascontiguousarray(mask[y0 : top + rows + 1, x0 : left + columns + 1])
    inner = cv2.erode(part, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))  # beyond the image nothing is eroded
    ys, xs = np.nonzero(part - inner)
    if len(ys) == 0:
        return float("nan")
    near = np.zeros(len(ys), dtype=bool)
    for places, low, high, limit in (
        (xs + x0 + 0.5, box[0], box[2], width),
        (ys + y0 + 0.5, box[1], box[3], height),
    ):
        reach = max(1.0, BORDER_RATIO * (high - low))
        if low > 1:
            near |= places - low < reach
        if high < limit - 1:
            near |= high - places < reach
    return float(near.mean())


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
