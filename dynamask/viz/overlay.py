"""Instances drawn on their picture with NumPy and OpenCV: filled, outlined and labelled.

Models that choose a mask size per instance are drawn by size (:func:`draw_overlay`), others by class
(:func:`draw_instances`). Each mask size has a colour, an outline pattern and its number printed on the instance, so
that no information is carried by colour alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from dynamask.structures import MASK_SIZES
from dynamask.viz.style import SIZE_COLOURS, SIZE_OUTLINES, Outline, class_colour, contrast_colour, hex_to_rgb

if TYPE_CHECKING:
    from dynamask.predict import Prediction

UInt8Array = npt.NDArray[np.uint8]
Rectangle = tuple[int, int, int, int]  # xyxy in whole pixels, ends exclusive

_CLASS_OUTLINE = Outline(width=2)
_LABEL_OFFSETS = sorted(
    ((across, down) for across in range(-2, 3) for down in range(-4, 5)),
    key=lambda offset: 2 * abs(offset[0]) + abs(offset[1]),
)
"""Positions tried for a label, in label widths and heights from the preferred one, nearest first."""


def encode_jpeg(picture: UInt8Array, quality: int = 88) -> bytes:
    """Encode an (H, W, 3) uint8 RGB picture as JPEG."""
    return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def draw_prediction(prediction: Prediction, named: bool = False) -> UInt8Array:
    """Draw a prediction of any model family on its image: by mask size, or by class where masks have no size.

    Args:
        named: print the class names before the mask sizes.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    picture, names = prediction.picture, prediction.class_names
    if prediction.mask_size is None:
        return draw_instances(picture, prediction.masks, prediction.boxes, prediction.labels, names)
    labels = [names[label] for label in prediction.labels.tolist()] if named else None
    return draw_overlay(picture, prediction.masks, prediction.mask_size, prediction.boxes, labels)


def draw_overlay(
    image: UInt8Array,
    masks: npt.ArrayLike,
    mask_size: npt.ArrayLike,
    boxes: npt.ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    opacity: float = 0.5,
) -> UInt8Array:
    """Draw instances in the colours and outlines of their mask sizes, with the size printed on each.

    Instances are sorted by falling score, as in a prediction, and drawn in reverse order, so that the best is on top.

    Args:
        image: (H, W, 3) uint8 RGB; left unchanged.
        masks: (R, H, W) bool; R may be 0, and of an empty mask only the box is drawn.
        mask_size: (R,) int, each one of 14, 28, 56, 112.
        boxes: (R, 4) xyxy in pixels of the picture, or None to draw no boxes.
        labels: R names to print before the sizes, or None to print the sizes alone.
        opacity: of the fill, 0 (outline only) to 1.

    Returns:
        A new (H, W, 3) uint8 RGB picture.

    Raises:
        ValueError: shapes or lengths do not match, a size is not one of the four, or opacity is outside 0–1.
    """
    mask_array, sizes, box_array = _checked(image, masks, mask_size, boxes, labels, opacity)
    looks = [(SIZE_COLOURS[size], SIZE_OUTLINES[size]) for size in sizes]
    return _draw(image, mask_array, looks, _size_texts(sizes, labels), box_array, opacity)


def draw_instances(
    image: UInt8Array,
    masks: Tensor,
    boxes: Tensor,
    labels: Tensor,
    names: Sequence[str],
    opacity: float = 0.5,
    colours: Sequence[str] | None = None,
    framed: bool = True,
) -> UInt8Array:
    """Draw instances in the colours of their classes, with the class name printed on each, the best on top.

    Args:
        image: (H, W, 3) uint8 RGB; left unchanged.
        masks: (R, H, W) bool, sorted by falling score; R may be 0.
        boxes: (R, 4) xyxy in pixels.
        labels: (R,) int64.
        names: by label.
        opacity: of the fill, 0–1.
        colours: sRGB hex of each instance, instead of the colour of its class.
        framed: draw the boxes.

    Returns:
        A new (H, W, 3) uint8 RGB picture.
    """
    rows = labels.tolist()
    looks = [(colour, _CLASS_OUTLINE) for colour in colours or [class_colour(label) for label in rows]]
    box_array = boxes.double().numpy() if framed else None
    return _draw(image, masks.numpy(), looks, [names[label] for label in rows], box_array, opacity)


def _draw(
    image: UInt8Array,
    masks: npt.NDArray[np.bool_],
    looks: Sequence[tuple[str, Outline]],
    texts: Sequence[str],
    boxes: npt.NDArray[np.float64] | None,
    opacity: float,
) -> UInt8Array:
    """Draw masks (R, H, W) in R colours and outlines, with R texts and optionally boxes (R, 4)."""
    scale = _scale(image)
    colours = [colour for colour, _ in looks]
    palette = list(dict.fromkeys(colours))
    layers = _Layers(image.shape[:2], palette)
    shapes = [shape_of(mask) for mask in masks]
    for shape, (colour, outline) in reversed(list(zip(shapes, looks, strict=True))):
        if shape is not None:
            index = palette.index(colour)
            layers.add(shape, index, _line_codes(shape, index, outline, scale))
    picture = layers.composite(image, opacity)
    if boxes is not None:
        for box, colour in reversed(list(zip(boxes, colours, strict=True))):
            _draw_box(picture, box, hex_to_rgb(colour), scale)
    _draw_labels(picture, shapes, texts, colours, scale)
    return picture


class CachedOverlay:
    """Overlay of one picture that is drawn repeatedly while the mask sizes of its instances change.

    The appearance of an instance at a size is computed once, when it is first needed.

    Args:
        image: (H, W, 3) uint8 RGB; kept, not changed.
        mask_at: returns the mask (H, W) bool of an instance (its index) at a size of ``MASK_SIZES``.
        opacity: of the fill, 0–1.
    """

    def __init__(self, image: UInt8Array, mask_at: Callable[[int, int], npt.ArrayLike], opacity: float = 0.5) -> None:
        self.image, self.mask_at, self.opacity = image, mask_at, opacity
        self.scale = _scale(image)
        self._patches: dict[tuple[int, int], tuple[Shape, npt.NDArray[np.uint]] | None] = {}

    def prepare(self, index: int, size: int) -> None:
        """Compute the appearance of one instance at one size."""
        if (index, size) not in self._patches:
            shape = shape_of(np.asarray(self.mask_at(index, size), dtype=bool))
            if shape is None:
                self._patches[index, size] = None
            else:
                codes = _line_codes(shape, MASK_SIZES.index(size), SIZE_OUTLINES[size], self.scale)
                self._patches[index, size] = (shape, codes)

    def contains(self, index: int, size: int, x: int, y: int) -> bool:
        """Whether the mask of an instance at a size covers the pixel (x, y)."""
        self.prepare(index, size)
        patch = self._patches[index, size]
        if patch is None:
            return False
        row, column = y - patch[0].top, x - patch[0].left
        height, width = patch[0].inside.shape
        return 0 <= row < height and 0 <= column < width and bool(patch[0].inside[row, column])

    def draw(
        self, mask_size: npt.ArrayLike, labels: Sequence[str] | None = None, frame: Sequence[float] | None = None
    ) -> UInt8Array:
        """Draw the picture of :func:`draw_overlay` without boxes.

        Args:
            mask_size: (R,) int, each one of 14, 28, 56, 112.
            labels: R names to print before the sizes, or None to print the sizes alone.
            frame: box (xyxy in pixels) to mark in black and white, or None.
        """
        sizes = [int(size) for size in np.asarray(mask_size).reshape(-1)]
        layers = _Layers(self.image.shape[:2], [SIZE_COLOURS[size] for size in MASK_SIZES])
        for i, size in enumerate(sizes):
            self.prepare(i, size)
        patches = [self._patches[i, size] for i, size in enumerate(sizes)]
        for patch, size in reversed(list(zip(patches, sizes, strict=True))):
            if patch is not None:
                layers.add(patch[0], MASK_SIZES.index(size), patch[1])
        picture = layers.composite(self.image, self.opacity)
        if frame is not None:
            box = np.asarray(frame, dtype=np.float64)
            _draw_box(picture, box, (255, 255, 255), 5 * self.scale)
            _draw_box(picture, box, (0, 0, 0), 2 * self.scale)
        shapes = [None if patch is None else patch[0] for patch in patches]
        _draw_labels(picture, shapes, _size_texts(sizes, labels), [SIZE_COLOURS[s] for s in sizes], self.scale)
        return picture


def _checked(
    image: UInt8Array,
    masks: npt.ArrayLike,
    mask_size: npt.ArrayLike,
    boxes: npt.ArrayLike | None,
    labels: Sequence[str] | None,
    opacity: float,
) -> tuple[npt.NDArray[np.bool_], list[int], npt.NDArray[np.float64] | None]:
    """Masks, sizes and boxes in their types; raises ValueError for what does not match."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    sizes = [int(size) for size in np.asarray(mask_size, dtype=np.int64).reshape(-1)]
    mask_array = np.asarray(masks, dtype=bool)
    if mask_array.size == 0 and not sizes:
        mask_array = mask_array.reshape(0, *image.shape[:2])
    if mask_array.shape != (len(sizes), *image.shape[:2]):
        raise ValueError(f"masks must be {(len(sizes), *image.shape[:2])}, not {mask_array.shape}")
    unknown = sorted(set(sizes) - set(MASK_SIZES))
    if unknown:
        raise ValueError(f"mask sizes {unknown} are none of {MASK_SIZES}")
    box_array = None if boxes is None else np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if (box_array is not None and len(box_array) != len(sizes)) or (labels is not None and len(labels) != len(sizes)):
        raise ValueError(f"boxes and labels must be as many as the {len(sizes)} mask sizes")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in 0-1, not {opacity}")
    return mask_array, sizes, box_array


def _scale(image: UInt8Array) -> int:
    """Factor of all line widths: 1 for a picture whose short side is at most 719 px."""
    return max(1, round(min(image.shape[:2]) / 480))


def _size_texts(sizes: Sequence[int], labels: Sequence[str] | None) -> list[str]:
    """Texts to print on instances: the size, after the label if there is one."""
    return [str(size) if labels is None else f"{labels[i]} {size}" for i, size in enumerate(sizes)]


@dataclass(frozen=True)
class Shape:
    """Non-empty part of a mask: its top left corner in the picture and a crop (h, w).

    Attributes:
        top, left: position of the crop in pixels.
        inside: (h, w) bool, the crop of the mask.
        depth: (h, w) float32, distance of each pixel to the mask's border in pixels, 0 outside the mask.
    """

    top: int
    left: int
    inside: npt.NDArray[np.bool_]
    depth: npt.NDArray[np.float32]

    @property
    def window(self) -> tuple[slice, slice]:
        """Index of the crop in an (H, W) array."""
        height, width = self.inside.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def shape_of(mask: npt.NDArray[np.bool_]) -> Shape | None:
    """Return the shape of a mask (H, W), or None if it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    depth = cv2.distanceTransform(np.pad(inside.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    return Shape(int(rows[0]), int(columns[0]), inside, depth)


class _Layers:
    """Two index maps of the picture, the fill and the line at each pixel, turned into colours at the end.

    Fill codes: 0 none, k + 1 the k-th colour. Line codes: 0 none, 2k + 1 the casing and 2k + 2 the line in the k-th
    colour.

    Args:
        image_size: (H, W).
        palette: colours, sRGB hex.
    """

    def __init__(self, image_size: tuple[int, int], palette: Sequence[str]) -> None:
        codes = np.uint8 if len(palette) < 127 else np.uint16
        self.palette = palette
        self.fill = np.zeros(image_size, dtype=codes)
        self.line = np.zeros(image_size, dtype=codes)

    def add(self, shape: Shape, colour: int, codes: npt.NDArray[np.uint]) -> None:
        """Add one instance over the others; `codes` are the line codes (h, w) of its crop."""
        self.fill[shape.window][shape.inside] = colour + 1
        self.line[shape.window][shape.inside] = codes[shape.inside]

    def composite(self, image: UInt8Array, opacity: float) -> UInt8Array:
        """Return the picture with fills and lines, by one table look-up per pixel and channel."""
        colours = np.array([hex_to_rgb(colour) for colour in self.palette], dtype=np.float64).reshape(-1, 3)
        values = np.arange(256, dtype=np.float64)
        table = np.empty((3, len(colours) + 1, 256), dtype=np.uint8)  # (channel, fill code, value)
        for channel in range(3):
            table[channel, 0] = values
            table[channel, 1:] = np.rint((1 - opacity) * values + opacity * colours[:, channel : channel + 1])
        fill = self.fill.astype(np.intp) << 8
        picture = np.stack([table[c].reshape(-1)[fill | image[..., c]] for c in range(3)], axis=-1)
        lines = [(0, 0, 0)]
        for colour in self.palette:
            lines += [contrast_colour(colour), hex_to_rgb(colour)]
        drawn = self.line > 0
        picture[drawn] = np.array(lines, dtype=np.uint8)[self.line[drawn]]
        return picture


def _line_codes(shape: Shape, colour: int, style: Outline, scale: int) -> npt.NDArray[np.uint]:
    """Line codes of a shape's crop (h, w), as in :class:`_Layers`; 0 where there is no line."""
    inside, depth = shape.inside, shape.depth
    codes = np.zeros(inside.shape, dtype=np.uint8 if colour < 126 else np.uint16)
    width = max(1.0, min(style.width * scale, float(depth.max()) / 2))
    codes[inside & (depth <= width + scale + 0.5)] = 2 * colour + 1
    codes[inside & (depth <= width + 0.5) & _marks(inside, style, width, scale)] = 2 * colour + 2
    if style.core:
        codes[inside & (np.abs(depth - width / 2 - 0.5) <= scale / 2)] = 2 * colour + 1
    return codes


def _marks(inside: npt.NDArray[np.bool_], style: Outline, width: float, scale: int) -> npt.NDArray[np.bool_]:
    """Where the line of a mask crop (h, w) has a mark rather than a gap, (h, w) bool."""
    if style.gap == 0:
        return inside
    marks = np.zeros((inside.shape[0] + 2, inside.shape[1] + 2), dtype=np.uint8)
    contours, _ = cv2.findContours(np.pad(inside.astype(np.uint8), 1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    reach = round(width)
    length = max(1, style.dash * scale - 2 * (reach - 1))
    for contour in contours:
        points = contour.reshape(-1, 2)  # (P, 2) x, y; neighbours touch
        points = points[np.arange(len(points)) % ((style.dash + style.gap) * scale) < length]
        marks[points[:, 1], points[:, 0]] = 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach - 1, 2 * reach - 1))
    return cv2.dilate(marks, kernel)[1:-1, 1:-1] > 0


def _draw_box(picture: UInt8Array, box: npt.NDArray[np.float64], colour: tuple[int, int, int], thickness: int) -> None:
    """Draw one xyxy box in place, clipped to the picture."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = (int(v) for v in np.rint(np.clip(box, 0, [width - 1, height - 1, width - 1, height - 1])))
    cv2.rectangle(picture, (x0, y0), (x1, y1), colour, thickness)


def _draw_labels(
    picture: UInt8Array, shapes: Sequence[Shape | None], texts: Sequence[str], colours: Sequence[str], scale: int
) -> None:
    """Print the texts on the instances that have a shape, in place."""
    taken: list[Rectangle] = []
    for shape, text, colour in zip(shapes, texts, colours, strict=True):
        if shape is not None:
            taken.append(_draw_label(picture, text, shape, colour, scale, taken))


def _draw_label(
    picture: UInt8Array, text: str, shape: Shape, colour: str, scale: int, taken: list[Rectangle]
) -> Rectangle:
    """Print a text on a plate at the deepest point of a shape, in place, and return the rectangle of the plate.

    If the shape is smaller than the plate, the plate is placed above it. The plate avoids the rectangles in `taken`
    where it can.
    """
    font, font_scale, pad = cv2.FONT_HERSHEY_SIMPLEX, 0.4 * scale, 2 * scale
    (text_width, text_height), baseline = cv2.getTextSize(text, font, font_scale, scale)
    width, height = text_width + 2 * pad, text_height + baseline + 2 * pad
    y, x = np.unravel_index(int(np.argmax(shape.depth)), shape.depth.shape)
    left, top = shape.left + int(x) - width // 2, shape.top + int(y) - height // 2
    if shape.inside.shape[0] < 2 * height or shape.inside.shape[1] < width:
        top = shape.top - height
    room = (max(0, picture.shape[1] - width), max(0, picture.shape[0] - height))

    def plate_at(across: int, down: int) -> Rectangle:
        x0 = min(max(left + across * width, 0), room[0])
        y0 = min(max(top + down * height, 0), room[1])
        return x0, y0, x0 + width, y0 + height

    plates = (plate_at(*offset) for offset in _LABEL_OFFSETS)
    free = (plate for plate in plates if not any(_overlap(plate, other) for other in taken))
    plate = next(free, plate_at(0, 0))
    text_colour, bottom_left = contrast_colour(colour), (plate[0] + pad, plate[1] + pad + text_height)
    cv2.rectangle(picture, plate[:2], (plate[2] - 1, plate[3] - 1), hex_to_rgb(colour), cv2.FILLED)
    cv2.rectangle(picture, plate[:2], (plate[2] - 1, plate[3] - 1), text_colour, scale)
    cv2.putText(picture, text, bottom_left, font, font_scale, text_colour, scale, cv2.LINE_AA)
    return plate


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    """Whether two rectangles share area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
