"""Instances drawn on a picture in the colours of their classes, for models without a choice of mask sizes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from dynamask.viz.overlay import contrast_colour

_GOLDEN = 0.618033988749895


def class_colour(label: int) -> tuple[int, int, int]:
    """RGB 0–255 of a class; neighbours in the list of classes get hues far apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1.0, 0.75, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_instances(
    image: np.ndarray,
    masks: Tensor,
    boxes: Tensor,
    labels: Tensor,
    names: Sequence[str],
    opacity: float = 0.5,
    colours: Sequence[tuple[int, int, int]] | None = None,
    framed: bool = True,
) -> np.ndarray:
    """Fill every mask, frame it and print its class.

    Args:
        image: (H, W, 3) uint8 RGB; left unchanged.
        masks: (R, H, W) bool, the best first; R may be 0.
        boxes: (R, 4) xyxy in pixels.
        labels: (R,) int64.
        names: by label.
        opacity: of the fill, 0–1.
        colours: RGB 0–255 of each instance instead of its class's.
        framed: whether the boxes are drawn; the classes stand at their corners all the same.

    Returns:
        A new (H, W, 3) uint8 RGB picture.
    """
    if len(masks) == 0:
        return image.copy()
    picture = torch.from_numpy(image.copy()).permute(2, 0, 1)  # (3, H, W)
    colours = [class_colour(label) for label in labels.tolist()] if colours is None else list(colours)
    for mask, colour in zip(masks.flip(0), colours[::-1]):  # the best on top
        picture = draw_segmentation_masks(picture, mask, alpha=opacity, colors=[colour])
    texts = [names[label] for label in labels.tolist()]
    inks = [contrast_colour("#{:02x}{:02x}{:02x}".format(*colour)) for colour in colours]
    picture = draw_bounding_boxes(
        picture, boxes, texts, colours, width=2 if framed else 0, label_colors=inks, fill_labels=True
    )
    return picture.permute(1, 2, 0).contiguous().numpy()
