"""Predictions drawn on their picture (numpy and OpenCV).

Each mask size has a colour, an outline pattern and its number printed on the instance, so that no reader depends on the
colour alone. The four colours stay apart for colour-blind eyes, and darker means finer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dynamask.structures import MASK_SIZES

SIZE_COLOURS: dict[int, str] = {14: "#FEE90C", 28: "#66C2A5", 56: "#1F5FBF", 112: "#8E0B2B"}
"""Colour (sRGB hex) of each mask size."""

UInt8Array = npt.NDArray[np.uint8]
Rectangle = tuple[int, int, int, int]  # xyxy in whole pixels, ends exclusive

_MOVES = sorted(
    ((across, down) for across in range(-2, 3) for down in range(-4, 5)),
    key=lambda move: 2 * abs(move[0]) + abs(move[1]),
)  # where a plate may go, in plates across and down, nearest first


@dataclass(frozen=True)
class Outline:
    """How the outline of one mask size is drawn; lengths in pixels of a picture whose short side is at most 480 px.

    The line is `width` wide and lies inside the mask. Marks of length `dash` alternate with gaps of length `gap` in
    black or white (gap 0: a full line). `core` puts a thin line of black or white along the middle: a double line.
    """

    width: int
    dash: int = 1
    gap: int = 0
    core: bool = False


SIZE_OUTLINES: dict[int, Outline] = {
    14: Outline(width=3, dash=5, gap=5),
    28: Outline(width=3, dash=13, gap=6),
    56: Outline(width=3),
    112: Outline(width=5, core=True),
}
"""Outline of each mask size: dotted, dashed, full, double."""


def hex_to_rgb(colour: str) -> tuple[int, int, int]:
    """`"#RRGGBB"` as (red, green, blue), each 0-255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def contrast_colour(colour: str) -> tuple[int, int, int]:
    """Black or white (red, green, blue), whichever stands out more from `colour` (`"#RRGGBB"`) by WCAG contrast."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(hex_to_rgb(colour)) / 255]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return (0, 0, 0) if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else (255, 255, 255)


def draw_overlay(
    image: UInt8Array,
    masks: npt.ArrayLike,
    mask_size: npt.ArrayLike,
    boxes: npt.ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    opacity: float = 0.5,
) -> UInt8Array:
    """Draw instances on a picture: fill, outline and printed mask size.

    Instances come with the highest score first, as a prediction holds them, and are drawn from the last to the first:
    the surest lies on top.

    Args:
        image: (H, W, 3) uint8 RGB; left unchanged.
        masks: (R, H, W) bool; R may be 0, and a mask may be empty (then only its box is drawn).
        mask_size: (R,) int, each one of 14, 28, 56, 112.
        boxes: (R, 4) xyxy in pixels of the picture, or None to draw no boxes.
        labels: R names to print before the sizes, or None to print the sizes alone.
        opacity: of the fill, 0 (outline only) to 1.

    Returns:
        A new (H, W, 3) uint8 RGB picture.

    Raises:
        ValueError: shapes or lengths do not fit each other, a size is not one of the four, or opacity is outside 0-1.
    """
    mask_array, sizes, box_array = _checked(image, masks, mask_size, boxes, labels, opacity)
    scale = max(1, round(min(image.shape[:2]) / 480))
    paint = _Paint(image.shape[:2], scale)
    shapes = [shape_of(mask) for mask in mask_array]
    for i in range(len(sizes) - 1, -1, -1):
        paint.add_instance(shapes[i], int(sizes[i]))
    picture = paint.composite(image, opacity)
    if box_array is not None:
        for i in range(len(sizes) - 1, -1, -1):
            draw_box(picture, box_array[i], SIZE_COLOURS[int(sizes[i])], scale)
    _draw_plates(picture, shapes, sizes.tolist(), labels, scale)
    return picture


class RepeatedOverlay:
    """The overlay of one picture, drawn again and again while the sizes of its instances change.

    What an instance looks like at a size is worked out once, the first time that it is drawn so.

    Args:
        image: (H, W, 3) uint8 RGB; kept, not changed.
        mask_at: the mask (H, W) bool of an instance (its index) at a size of ``MASK_SIZES``.
        opacity: of the fill, 0-1.
    """

    def __init__(self, image: UInt8Array, mask_at: Callable[[int, int], npt.ArrayLike], opacity: float = 0.5) -> None:
        self.image, self.mask_at, self.opacity = image, mask_at, opacity
        self.scale = max(1, round(min(image.shape[:2]) / 480))
        self._patches: dict[tuple[int, int], tuple[Shape, UInt8Array] | None] = {}

    def prepare(self, index: int, size: int) -> None:
        """Work out one instance at one size now."""
        if (index, size) not in self._patches:
            shape = shape_of(np.asarray(self.mask_at(index, size), dtype=bool))
            self._patches[index, size] = None if shape is None else (shape, _line_codes(shape, size, self.scale))

    def contains(self, index: int, size: int, x: int, y: int) -> bool:
        """Whether the mask of an instance at a size covers a pixel."""
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
        """What :func:`draw_overlay` draws without boxes; a frame (xyxy in pixels) marks an instance in black and white.

        Args:
            mask_size: (R,) int, each one of 14, 28, 56, 112.
            labels: R names to print before the sizes, or None to print the sizes alone.
        """
        sizes = [int(size) for size in np.asarray(mask_size).reshape(-1)]
        paint = _Paint(self.image.shape[:2], self.scale)
        shapes: list[Shape | None] = []
        for i, size in enumerate(sizes):
            self.prepare(i, size)
            patch = self._patches[i, size]
            shapes.append(None if patch is None else patch[0])
        for i in range(len(sizes) - 1, -1, -1):
            patch = self._patches[i, sizes[i]]
            if patch is not None:
                paint.lay(patch[0], sizes[i], patch[1])
        picture = paint.composite(self.image, self.opacity)
        if frame is not None:
            _draw_frame(picture, np.asarray(frame, dtype=np.float64), self.scale)
        _draw_plates(picture, shapes, sizes, labels, self.scale)
        return picture


def _checked(
    image: UInt8Array,
    masks: npt.ArrayLike,
    mask_size: npt.ArrayLike,
    boxes: npt.ArrayLike | None,
    labels: Sequence[str] | None,
    opacity: float,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.float64] | None]:
    """The arrays in their types, or a ValueError that says what does not fit."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    sizes = np.asarray(mask_size, dtype=np.int64).reshape(-1)
    mask_array = np.asarray(masks, dtype=bool)
    if mask_array.size == 0 and len(sizes) == 0:
        mask_array = mask_array.reshape(0, *image.shape[:2])
    if mask_array.shape != (len(sizes), *image.shape[:2]):
        raise ValueError(f"masks must be {(len(sizes), *image.shape[:2])}, not {mask_array.shape}")
    unknown = sorted(set(sizes.tolist()) - set(MASK_SIZES))
    if unknown:
        raise ValueError(f"mask sizes {unknown} are none of {MASK_SIZES}")
    box_array = None if boxes is None else np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if (box_array is not None and len(box_array) != len(sizes)) or (labels is not None and len(labels) != len(sizes)):
        raise ValueError(f"boxes and labels must be as many as the {len(sizes)} mask sizes")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in 0-1, not {opacity}")
    return mask_array, sizes, box_array


@dataclass(frozen=True)
class Shape:
    """The part of a mask that is not empty: its top left corner in the picture and a crop (h, w).

    `depth` is each pixel's distance to the mask's border in pixels, float32, 0 outside the mask.
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
    """The shape of a mask (H, W), or None where it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    depth = cv2.distanceTransform(np.pad(inside.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    return Shape(int(rows[0]), int(columns[0]), inside, depth)


class _Paint:
    """Two index maps of the picture, what fills a pixel and what line crosses it, turned into colours at the end.

    Fill codes: 0 none, k + 1 for the k-th size. Line codes: 0 none, 2k + 1 the casing and 2k + 2 the line of the k-th.
    """

    def __init__(self, image_size: tuple[int, int], scale: int) -> None:
        self.fill = np.zeros(image_size, dtype=np.uint8)
        self.line = np.zeros(image_size, dtype=np.uint8)
        self.scale = scale

    def add_instance(self, shape: Shape | None, size: int) -> None:
        """Lay one instance over those that are there; its outline lies inside its mask."""
        if shape is not None:
            self.lay(shape, size, _line_codes(shape, size, self.scale))

    def lay(self, shape: Shape, size: int, codes: UInt8Array) -> None:
        """The same with the line codes of its crop, (h, w), worked out before."""
        self.fill[shape.window][shape.inside] = MASK_SIZES.index(size) + 1
        self.line[shape.window][shape.inside] = codes[shape.inside]

    def composite(self, image: UInt8Array, opacity: float) -> UInt8Array:
        """The picture with fills and lines: one table look-up per pixel and channel."""
        colours = np.array([hex_to_rgb(SIZE_COLOURS[size]) for size in MASK_SIZES], dtype=np.float64)
        values = np.arange(256, dtype=np.float64)
        table = np.empty((3, len(MASK_SIZES) + 1, 256), dtype=np.uint8)  # (channel, fill code, value)
        for channel in range(3):
            table[channel, 0] = values
            table[channel, 1:] = np.rint((1 - opacity) * values + opacity * colours[:, channel : channel + 1])
        fill = self.fill.astype(np.intp) << 8
        picture = np.stack([table[c].reshape(-1)[fill | image[..., c]] for c in range(3)], axis=-1)
        lines = [[0, 0, 0]]
        for size in MASK_SIZES:
            lines += [list(contrast_colour(SIZE_COLOURS[size])), list(hex_to_rgb(SIZE_COLOURS[size]))]
        drawn = self.line > 0
        picture[drawn] = np.array(lines, dtype=np.uint8)[self.line[drawn]]
        return picture


def _line_codes(shape: Shape, size: int, scale: int) -> UInt8Array:
    """Line codes of a shape's crop (h, w), as :class:`_Paint` has them; 0 where no line crosses."""
    k, style = MASK_SIZES.index(size), SIZE_OUTLINES[size]
    inside, depth = shape.inside, shape.depth
    codes = np.zeros(inside.shape, dtype=np.uint8)
    width = max(1.0, min(style.width * scale, float(depth.max()) / 2))
    codes[inside & (depth <= width + scale + 0.5)] = 2 * k + 1
    codes[inside & (depth <= width + 0.5) & _marks(inside, style, width, scale)] = 2 * k + 2
    if style.core:
        codes[inside & (np.abs(depth - width / 2 - 0.5) <= scale / 2)] = 2 * k + 1
    return codes


def _marks(inside: npt.NDArray[np.bool_], style: Outline, width: float, scale: int) -> npt.NDArray[np.bool_]:
    """Where the line of a mask crop (h, w) has a mark and no gap, (h, w) bool."""
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


def draw_box(picture: UInt8Array, box: npt.NDArray[np.float64], colour: str, scale: int) -> None:
    """Draw one xyxy box in place, clipped to the picture."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = (int(v) for v in np.rint(np.clip(box, 0, [width - 1, height - 1, width - 1, height - 1])))
    cv2.rectangle(picture, (x0, y0), (x1, y1), hex_to_rgb(colour), scale)


def _draw_frame(picture: UInt8Array, box: npt.NDArray[np.float64], scale: int) -> None:
    """Draw a box of a black line in a white one, in place: seen on any picture."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = (int(v) for v in np.rint(np.clip(box, 0, [width - 1, height - 1, width - 1, height - 1])))
    for colour, thickness in (((255, 255, 255), 5 * scale), ((0, 0, 0), 2 * scale)):
        cv2.rectangle(picture, (x0, y0), (x1, y1), colour, thickness)


def _draw_plates(
    picture: UInt8Array,
    shapes: Sequence[Shape | None],
    sizes: Sequence[int],
    labels: Sequence[str] | None,
    scale: int,
) -> None:
    """Print name and size on every instance that has a shape, in place."""
    taken: list[Rectangle] = []
    for i, shape in enumerate(shapes):
        if shape is not None:
            text = str(sizes[i]) if labels is None else f"{labels[i]} {sizes[i]}"
            draw_plate(picture, text, shape, SIZE_COLOURS[sizes[i]], scale, taken)


def draw_plate(picture: UInt8Array, text: str, shape: Shape, colour: str, scale: int, taken: list[Rectangle]) -> None:
    """Print `text` on a plate at the deepest place of the instance, in place, and add the plate to `taken`.

    A shape smaller than the plate gets it above itself; where another plate is in the way, it moves aside.
    """
    font, font_scale, pad = cv2.FONT_HERSHEY_SIMPLEX, 0.4 * scale, 2 * scale
    (text_width, text_height), baseline = cv2.getTextSize(text, font, font_scale, scale)
    width, height = text_width + 2 * pad, text_height + baseline + 2 * pad
    y, x = np.unravel_index(int(np.argmax(shape.depth)), shape.depth.shape)
    left, top = shape.left + int(x) - width // 2, shape.top + int(y) - height // 2
    if shape.inside.shape[0] < 2 * height or shape.inside.shape[1] < width:
        top = shape.top - height
    room = (max(0, picture.shape[1] - width), max(0, picture.shape[0] - height))
    for across, down in _MOVES:
        x0 = int(np.clip(left + across * width, 0, room[0]))
        y0 = int(np.clip(top + down * height, 0, room[1]))
        plate = (x0, y0, x0 + width, y0 + height)
        if not any(_overlap(plate, other) for other in taken):
            break
    else:
        x0, y0 = int(np.clip(left, 0, room[0])), int(np.clip(top, 0, room[1]))
        plate = (x0, y0, x0 + width, y0 + height)
    taken.append(plate)
    text_colour = contrast_colour(colour)
    cv2.rectangle(picture, plate[:2], (plate[2] - 1, plate[3] - 1), hex_to_rgb(colour), cv2.FILLED)
    cv2.rectangle(picture, plate[:2], (plate[2] - 1, plate[3] - 1), text_colour, scale)
    cv2.putText(picture, text, (x0 + pad, y0 + pad + text_height), font, font_scale, text_colour, scale, cv2.LINE_AA)


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    """Whether two rectangles share area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
