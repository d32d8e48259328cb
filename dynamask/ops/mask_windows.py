"""Masks of many objects in one picture, each kept as the window around its pixels.

A tensor of N masks of a picture takes N × H × W bytes; 1,500 objects in 12 megapixels take 18 GB. Windows take the area
of the objects' boxes, a bit for each pixel if they are large.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynamask.ops.rle import Rle, decode_window

PACKED_FROM = 4096
"""Windows of at least so many pixels are kept as bits."""
DENSE_PIXELS = 2**24
"""Pixels of masks that are made a tensor at a time."""
CLEARANCE = 2
"""Empty pixels around a window that is cropped: bilinear sampling reaches no further."""


@dataclass(frozen=True)
class Window:
    """A part of a mask outside of which it is empty.

    Attributes:
        top, left: row and column of its first pixel.
        shape: (rows, columns), (0, 0) for an empty mask.
        data: (rows, columns) uint8 of 0 and 1, or its bits in one line.
    """

    top: int
    left: int
    shape: tuple[int, int]
    data: np.ndarray

    @classmethod
    def of(cls, top: int, left: int, pixels: np.ndarray) -> Window:
        """The window of (h, w) uint8 pixels of 0 and 1 at a place."""
        if pixels.size == 0:
            return EMPTY
        packed = pixels.size >= PACKED_FROM
        return cls(top, left, pixels.shape, np.packbits(pixels) if packed else np.ascontiguousarray(pixels))

    @property
    def pixels(self) -> np.ndarray:
        """(rows, columns) uint8 of 0 and 1."""
        if self.data.ndim == 2:
            return self.data
        return np.unpackbits(self.data, count=self.shape[0] * self.shape[1]).reshape(self.shape)

    @property
    def rows(self) -> slice:
        """Rows of the frame that it covers."""
        return slice(self.top, self.top + self.shape[0])

    @property
    def columns(self) -> slice:
        """Columns of the frame that it covers."""
        return slice(self.left, self.left + self.shape[1])


EMPTY = Window(0, 0, (0, 0), np.zeros((0, 0), dtype=np.uint8))


class MaskWindows:
    """N binary masks of one frame of (height, width) pixels. Objects are immutable: every method makes new masks."""

    def __init__(self, windows: Iterable[Window], frame: Sequence[int]) -> None:
        """Take windows that lie inside the frame (height, width)."""
        self.windows, self.frame = list(windows), (int(frame[0]), int(frame[1]))

    @classmethod
    def from_rles(cls, rles: Sequence[Rle], frame: Sequence[int]) -> MaskWindows:
        """Decode compressed run-length masks of the size of the frame."""
        return cls((Window.of(*decode_window(rle)) for rle in rles), frame)

    @classmethod
    def of(cls, masks: Tensor | MaskWindows) -> MaskWindows:
        """The masks of a (N, H, W) uint8 tensor of 0 and 1 on the CPU; windows come back as they are."""
        if isinstance(masks, MaskWindows):
            return masks
        return cls((_tight(mask) for mask in masks.numpy()), masks.shape[1:])

    def like(self, example: Tensor | MaskWindows) -> Tensor | MaskWindows:
        """The masks in the form of an example: a (N, H, W) uint8 tensor, or windows."""
        return self if isinstance(example, MaskWindows) else self.dense()

    def __len__(self) -> int:
        """Number of masks."""
        return len(self.windows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W) of the masks as a tensor."""
        return len(self), *self.frame

    def __getitem__(self, index: int | Sequence[int] | Tensor) -> Tensor | MaskWindows:
        """One mask as an (H, W) uint8 tensor, or the masks at some indices or where a (N,) bool tensor is true."""
        if isinstance(index, int):
            return MaskWindows([self.windows[index]], self.frame).dense()[0]
        if isinstance(index, Tensor):
            index = torch.nonzero(index)[:, 0].tolist() if index.dtype == torch.bool else index.tolist()
        return MaskWindows([self.windows[i] for i in index], self.frame)

    def dense(self) -> Tensor:
        """(N, H, W) uint8 of 0 and 1."""
        masks = np.zeros(self.shape, dtype=np.uint8)
        for mask, window in zip(masks, self.windows):
            mask[window.rows, window.columns] = window.pixels
        return torch.from_numpy(masks)

    def batches(self) -> Iterator[MaskWindows]:
        """The masks in parts of so few that each takes at most ``DENSE_PIXELS`` pixels as a tensor."""
        step = max(1, DENSE_PIXELS // max(1, self.frame[0] * self.frame[1]))
        for start in range(0, len(self), step):
            yield MaskWindows(self.windows[start : start + step], self.frame)

    def counts(self) -> Tensor:
        """(N,) int64: number of pixels of each mask."""
        return torch.tensor([int(np.count_nonzero(window.pixels)) for window in self.windows], dtype=torch.int64)

    def tight_boxes(self) -> Tensor:
        """(N, 4) float32 xyxy around the pixels of each mask; zeros for an empty one."""
        boxes = []
        for window in self.windows:
            spans = _spans(window.pixels)
            if spans is None:
                boxes.append([0, 0, 0, 0])
            else:
                (top, bottom), (left, right) = spans
                boxes.append([window.left + left, window.top + top, window.left + right, window.top + bottom])
        return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)

    def union(self) -> np.ndarray:
        """(H, W) uint8: 1 where any mask is."""
        cover = np.zeros(self.frame, dtype=np.uint8)
        for window in self.windows:
            cover[window.rows, window.columns] |= window.pixels
        return cover

    def cropped(self, rows: slice, columns: slice) -> MaskWindows:
        """The masks in a part of the frame, given by slices with a start and a stop inside it."""
        frame = (rows.stop - rows.start, columns.stop - columns.start)
        found = []
        for window in self.windows:
            top, bottom = max(window.top, rows.start), min(window.rows.stop, rows.stop)
            left, right = max(window.left, columns.start), min(window.columns.stop, columns.stop)
            if top >= bottom or left >= right:
                found.append(EMPTY)
                continue
            inside = window.pixels[top - window.top : bottom - window.top, left - window.left : right - window.left]
            found.append(Window.of(top - rows.start, left - columns.start, inside))
        return MaskWindows(found, frame)

    def placed(self, top: int, left: int, frame: Sequence[int]) -> MaskWindows:
        """The masks in a larger frame, theirs at a place in it."""
        return MaskWindows((Window(w.top + top, w.left + left, w.shape, w.data) for w in self.windows), frame)

    def flipped(self) -> MaskWindows:
        """The masks flipped left to right."""
        width = self.frame[1]
        return MaskWindows(
            (Window.of(w.top, width - w.columns.stop, w.pixels[:, ::-1]) for w in self.windows), self.frame
        )

    def resized(self, size: Sequence[int]) -> MaskWindows:
        """The masks at another (height, width), as by ``F.interpolate(…, mode="nearest-exact")``."""
        rows, columns = (_nearest_exact(old, new) for old, new in zip(self.frame, size))
        found = []
        for window in self.windows:
            top, bottom = np.searchsorted(rows, [window.top, window.rows.stop])
            left, right = np.searchsorted(columns, [window.left, window.columns.stop])
            pixels = window.pixels[rows[top:bottom] - window.top][:, columns[left:right] - window.left]
            found.append(Window.of(int(top), int(left), pixels))
        return MaskWindows(found, size)

    def without(self, cover: np.ndarray, rows: slice, columns: slice) -> MaskWindows:
        """The masks without the pixels of a cover (h, w) uint8 of 0 and 1 that lies at a part of the frame."""
        found = []
        for window in self.windows:
            top, bottom = max(window.top, rows.start), min(window.rows.stop, rows.stop)
            left, right = max(window.left, columns.start), min(window.columns.stop, columns.stop)
            if top < bottom and left < right:
                pixels = window.pixels.copy()
                hidden = cover[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start]
                pixels[top - window.top : bottom - window.top, left - window.left : right - window.left] &= 1 - hidden
                window = Window.of(window.top, window.left, pixels)
            found.append(window)
        return MaskWindows(found, self.frame)

    def joined(self, other: MaskWindows) -> MaskWindows:
        """These masks, then others of the same frame."""
        return MaskWindows([*self.windows, *other.windows], self.frame)

    def sources(self, rows: Sequence[int], device: torch.device) -> list[tuple[Tensor, int, int]]:
        """For cropping: the windows of some masks as (h, w) uint8 on a device, each with its top and left.

        They have ``CLEARANCE`` empty pixels on every side that lies inside the frame. All are moved in one copy.
        """
        parts, places = [], []
        for row in rows:
            window = self.windows[row]
            top, left = max(0, window.top - CLEARANCE), max(0, window.left - CLEARANCE)
            bottom = min(self.frame[0], window.rows.stop + CLEARANCE)
            right = min(self.frame[1], window.columns.stop + CLEARANCE)
            pixels = np.zeros((bottom - top, right - left), dtype=np.uint8)
            inside = (slice(window.top - top, window.rows.stop - top), slice(window.left - left, None))
            pixels[inside][:, : window.shape[1]] = window.pixels
            parts.append(torch.from_numpy(pixels))
            places.append((top, left))
        flat = torch.cat([part.flatten() for part in parts]).to(device)
        split = flat.split([part.numel() for part in parts])
        return [(piece.view(part.shape), *place) for piece, part, place in zip(split, parts, places)]


def _spans(pixels: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """First and one past the last row and column of the pixels that are 1; None without one."""
    across = np.flatnonzero(pixels.any(axis=0))
    if not len(across):
        return None
    down = np.flatnonzero(pixels[:, across[0] : across[-1] + 1].any(axis=1))
    return (int(down[0]), int(down[-1]) + 1), (int(across[0]), int(across[-1]) + 1)


def _tight(mask: np.ndarray) -> Window:
    """The window around the pixels of an (H, W) uint8 mask."""
    spans = _spans(mask)
    if spans is None:
        return EMPTY
    (top, bottom), (left, right) = spans
    return Window.of(top, left, mask[top:bottom, left:right])


def _nearest_exact(old: int, new: int) -> np.ndarray:
    """(new,) int64, ascending: the source of each new pixel among ``old`` pixels, whose centre is nearest to its."""
    return np.minimum(np.floor((np.arange(new) + 0.5) * (old / new)), old - 1).astype(np.int64)
