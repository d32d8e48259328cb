"""Mask geometry: cropping masks to boxes, pasting them into images, edges and boundaries.

Convention: boxes are xyxy in continuous pixels, so the centre of image pixel (row 0, column 0) lies at (0.5, 0.5).
An M×M mask divides its box into M×M equal cells, and a mask value belongs to the centre of its cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from dynamask.ops.mask_windows import MaskWindows

BOUNDARY_WIDTH_RATIO = 0.02
"""Width of the boundary region of the boundary IoU, as a fraction of the image diagonal."""


def enlarge_boxes(boxes: Tensor, margin: float) -> Tensor:
    """Enlarge boxes around their centres; they may then reach beyond the image.

    Args:
        boxes: (…, 4) xyxy, or rois (…, 5) whose first column is kept.
        margin: share of the width and of the height that is added on every side, ≥ 0.

    Returns:
        A tensor of the same shape; ``boxes`` itself if the margin is 0.
    """
    if margin == 0:
        return boxes
    low, high = boxes[..., -4:-2], boxes[..., -2:]
    added = (high - low) * margin
    return torch.cat([boxes[..., :-4], low - added, high + added], dim=-1)


def crop_masks(masks: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Area-sample each full-image mask inside its box (aligned, at least one sample per image pixel).

    Args:
        masks: (N, H, W), any dtype, values 0 or 1 (or in [0, 1]).
        boxes: (N, 4) xyxy in image pixels, one per mask.
        size: side M of the crop in mask pixels.

    Returns:
        (N, M, M) float32 in [0, 1]: the share of each cell that the mask covers.
    """
    return crop_mask_pyramid(masks, boxes.float(), (size,))[0]


def crop_mask_pyramid(
    masks: Tensor | MaskWindows, boxes: Tensor, sizes: Sequence[int], mask_index: Tensor | None = None
) -> list[Tensor]:
    """Area-sample masks at several sizes, see :func:`crop_masks`.

    Args:
        masks: (G, H, W) full-image masks, values 0 or 1, or windows of them, of which only those that are cropped are
            moved to the device of the boxes.
        boxes: (N, 4) xyxy in image pixels.
        sizes: sides; the largest must be a multiple of each.
        mask_index: (N,) int64, the mask of each box; by default mask i for box i.

    Returns:
        One (N, M, M) float tensor in [0, 1] per size. Only the largest crop is sampled; the others are its means.
    """
    finest = max(sizes)
    if mask_index is None:
        mask_index = torch.arange(len(boxes), device=boxes.device)
    if len(boxes) == 0:
        return [boxes.new_zeros((0, size, size)) for size in sizes]
    if isinstance(masks, MaskWindows):
        fine = _crop_windows(masks, boxes, finest, mask_index.tolist())
    else:
        rois = torch.cat([mask_index[:, None].to(boxes.dtype), boxes], dim=1)  # (N, 5)
        fine = _area_samples(masks[:, None].to(boxes.dtype), rois, finest)
    return [(fine if size == finest else F.avg_pool2d(fine, finest // size))[:, 0] for size in sizes]


def _area_samples(masks: Tensor, rois: Tensor | list[Tensor], size: int) -> Tensor:
    """(N, 1, S, S) of masks (G, 1, H, W) in RoIs (N, 5), or in a list of G times (…, 4)."""
    return roi_align(masks, rois, size, 1.0, sampling_ratio=0, aligned=True)


def _crop_windows(masks: MaskWindows, boxes: Tensor, size: int, index: list[int]) -> Tensor:
    """(N, 1, S, S) of boxes (N, 4), box i in mask index[i]."""
    rows: dict[int, list[int]] = {}
    for row, mask in enumerate(index):
        rows.setdefault(mask, []).append(row)
    fine = boxes.new_zeros((len(boxes), 1, size, size))
    for (pixels, top, left), own in zip(masks.sources(list(rows), boxes.device), rows.values()):
        if pixels.numel():
            places = boxes[own] - boxes.new_tensor([left, top, left, top])
            fine[own] = _area_samples(pixels[None, None].to(boxes.dtype), [places], size)
    return fine


def _pixel_span(low: float, high: float, limit: int) -> tuple[int, int]:
    """Half-open range of the pixels whose centres lie in [low, high), clipped to [0, limit)."""
    return max(0, math.ceil(low - 0.5)), min(limit, math.ceil(high - 0.5))


def paste_window(box: Sequence[float], image_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Rows and columns (top, bottom, left, right; half-open) of the pixels whose centres lie in the box."""
    top, bottom = _pixel_span(float(box[1]), float(box[3]), image_size[0])
    left, right = _pixel_span(float(box[0]), float(box[2]), image_size[1])
    return top, max(top, bottom), left, max(left, right)


def paste_mask_window(mask_probs: Tensor, box: Sequence[float], window: tuple[int, int, int, int]) -> Tensor:
    """Bilinear values (h, w) of an (S, S) mask at the pixel centres of a window inside its box.

    Cells outside the mask are 0 (align_corners=False), so that a covered border cell ends exactly at the box, with
    rounded corners. On 48-px polygons this preserves more of a 14×14 mask than repeating the border cells.
    """
    top, bottom, left, right = window
    x0, y0, x1, y1 = (float(v) for v in box)
    device = mask_probs.device
    ys = (torch.arange(top, bottom, device=device) + 0.5 - y0) / max(y1 - y0, 1e-6) * 2 - 1
    xs = (torch.arange(left, right, device=device) + 0.5 - x0) / max(x1 - x0, 1e-6) * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(xs[None, :], ys[:, None]), dim=-1)  # (h, w, 2)
    values = F.grid_sample(
        mask_probs.float()[None, None], grid[None].float(), mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return values[0, 0]


def paste_mask(
    mask_probs: Tensor, box: Sequence[float] | Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Paste one (S, S) probability mask into the image: (H, W) bool, True where the value is ≥ threshold."""
    pasted = torch.zeros(image_size, dtype=torch.bool, device=mask_probs.device)
    edges = box.tolist() if isinstance(box, Tensor) else list(box)
    window = paste_window(edges, image_size)
    top, bottom, left, right = window
    if bottom > top and right > left:
        pasted[top:bottom, left:right] = paste_mask_window(mask_probs, edges, window) >= threshold
    return pasted


def paste_masks(
    mask_probs: Sequence[Tensor] | Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Paste R masks of any sizes into the image.

    Args:
        mask_probs: R tensors (S_i, S_i), or one (R, S, S), in [0, 1].
        boxes: (R, 4) xyxy in image pixels.
        image_size: (H, W) in pixels.
        threshold: a pixel is part of the mask if its value is ≥ threshold.

    Returns:
        (R, H, W) bool.
    """
    if len(boxes) == 0:
        return torch.zeros((0, *image_size), dtype=torch.bool, device=boxes.device)
    return torch.stack(
        [paste_mask(probs, box, image_size, threshold) for probs, box in zip(mask_probs, boxes.tolist())]
    )


def mask_edges(masks: Tensor) -> Tensor:
    """Edge map of binary masks (Eq. 4): the Laplacian of the mask, thresholded to {0, 1}.

    Args:
        masks: (N, S, S) with values 0 or 1.

    Returns:
        (N, S, S) float, 1 on foreground and background pixels that touch the other side (4-neighbours). The border of
        the crop is not an edge, because values are continued outside.
    """
    if len(masks) == 0:
        return masks.float()
    kernel = masks.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float32)
    padded = F.pad(masks[:, None].float(), (1, 1, 1, 1), mode="replicate")
    return (F.conv2d(padded, kernel[None, None]).abs() > 0.5).float()[:, 0]


def _erode(masks: Tensor, reach: tuple[int, int]) -> Tensor:
    """Erode (K, S, S) 0/1 masks by a rectangle of (2·rows + 1) × (2·columns + 1); outside the border is background."""
    rows, columns = reach
    hollow = F.pad((1.0 - masks)[:, None], (columns, columns, rows, rows), value=1.0)
    hollow = F.max_pool2d(hollow, (1, 2 * columns + 1), stride=1)
    return 1.0 - F.max_pool2d(hollow, (2 * rows + 1, 1), stride=1)[:, 0]


def grid_boundary_iou(masks: Tensor, truth: Tensor, boxes: Tensor, width: Tensor) -> Tensor:
    """Boundary IoU on the grid of crops; it approximates that of the pasted masks without pasting them.

    Args:
        masks: (N, K, S, S) 0/1, K candidates for each of N instances.
        truth: (N, S, S) 0/1.
        boxes: (N, 4) xyxy of the crops, in pixels.
        width: (N,) width of the boundary in the same pixels.

    Returns:
        (N, K) in [0, 1]; 1 where both boundaries are empty.
    """
    out = masks.new_ones(masks.shape[:2])
    size = masks.shape[-1]
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp_min(1e-3)
    reach = torch.round(width[:, None] * size / sides).clamp(1, size).to(torch.int64)  # (N, 2) columns, rows
    for i, (columns, rows) in enumerate(reach.tolist()):
        stack = torch.cat([truth[i][None], masks[i]])  # (K + 1, S, S)
        rim = (stack - _erode(stack, (rows, columns))).flatten(1)
        both, either = (rim[1:] * rim[:1]).sum(1), torch.maximum(rim[1:], rim[:1]).sum(1)
        out[i] = torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both))
    return out


def resize_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (N, H, W) uint8 masks to (height, width), equal to ``F.interpolate(…, mode="nearest")``.

    On the CPU only the rows and columns of an object are written.
    """
    height, width = size
    if masks.device.type != "cpu" or len(masks) == 0:
        return F.interpolate(masks[:, None], size=(height, width))[:, 0] if len(masks) else masks.new_zeros(0, *size)
    rows, columns = _nearest(masks.shape[1], height), _nearest(masks.shape[2], width)
    resized = np.zeros((len(masks), height, width), dtype=np.uint8)
    for old, new in zip(masks.numpy(), resized, strict=True):
        across = np.flatnonzero(np.bitwise_or.reduce(old, axis=0))
        if not len(across):
            continue
        down = np.flatnonzero(old[:, across[0] : across[-1] + 1].any(axis=1))
        y0, y1 = np.searchsorted(rows, down[0]), np.searchsorted(rows, down[-1], side="right")
        x0, x1 = np.searchsorted(columns, across[0]), np.searchsorted(columns, across[-1], side="right")
        new[y0:y1, x0:x1] = old[rows[y0:y1]].take(columns[x0:x1], axis=1)
    return torch.from_numpy(resized)


def _nearest(old: int, new: int) -> np.ndarray:
    """(new,) int64, ascending: the source of each new pixel among ``old`` pixels, in the arithmetic of PyTorch."""
    scale = np.float32(old) / np.float32(new)
    return np.minimum(np.floor(np.arange(new, dtype=np.float32) * scale), old - 1).astype(np.int64)
