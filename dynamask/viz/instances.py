"""Instances drawn on a picture in the colours of their classes, for models without a choice of mask sizes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from dynamask.viz.overlay import (
    Rectangle,
    Shape,
    UInt8Array,
    contrast_colour,
    draw_box,
    draw_plate,
    hex_to_rgb,
    shape_of,
)

_GOLDEN = 0.618033988749895
_LINE = 2
"""Width of an outline in pixels of a picture whose short side is at most 480 px."""


def class_colour(label: int) -> str:
    """sRGB hex of a class; neighbours in the list of classes get hues far apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1.0, 0.75, 0.85)
    return f"#{round(red * 255):02X}{round(green * 255):02X}{round(blue * 255):02X}"


def draw_instances(
    image: np.ndarray,
    masks: Tensor,
    boxes: Tensor,
    labels: Tensor,
    names: Sequence[str],
    opacity: float = 0.5,
    colours: Sequence[str] | None = None,
    framed: bool = True,
) -> np.ndarray:
    """Fill every mask, outline and frame it and print its class; the best lies on top and hides what is below.

    Args:
        image: (H, W, 3) uint8 RGB; left unchanged.
        masks: (R, H, W) bool, the best first; R may be 0.
        boxes: (R, 4) xyxy in pixels.
        labels: (R,) int64.
        names: by label.
        opacity: of the fill, 0–1.
        colours: sRGB hex of each instance in place of its class's.
        framed: whether the boxes are drawn.

    Returns:
        A new (H, W, 3) uint8 RGB picture.
    """
    picture, scale = image.copy(), max(1, round(min(image.shape[:2]) / 480))
    shapes = [shape_of(mask) for mask in masks.numpy()]
    chosen = [class_colour(label) for label in labels.tolist()] if colours is None else colours
    drawn = list(zip(shapes, boxes.double().numpy(), chosen))
    for shape, _, colour in reversed(drawn):
        if shape is not None:
            _lay(picture, image, shape, colour, opacity, scale)
    for _, box, colour in reversed(drawn) if framed else ():
        draw_box(picture, box, colour, scale)
    taken: list[Rectangle] = []
    for (shape, _, colour), label in zip(drawn, labels.tolist()):
        if shape is not None:
            draw_plate(picture, names[label], shape, colour, scale, taken)
    return picture


def _lay(picture: UInt8Array, image: UInt8Array, shape: Shape, colour: str, opacity: float, scale: int) -> None:
    """Fill and outline one instance in place: a line of its colour inside its border, black or white along it."""
    window, inside, depth = shape.window, shape.inside, shape.depth
    rgb = np.array(hex_to_rgb(colour), dtype=np.float64)
    filled = np.rint((1 - opacity) * image[window] + opacity * rgb).astype(np.uint8)  # (h, w, 3)
    width = max(1.0, min(_LINE * scale, float(depth.max()) / 2))
    filled[depth <= width + scale + 0.5] = contrast_colour(colour)
    filled[depth <= width + 0.5] = rgb.astype(np.uint8)
    picture[window][inside] = filled[inside]
