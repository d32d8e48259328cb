"""Masks as run lengths, pasted only where their boxes are, in bands, so that large pictures need little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from app.limits import LIMITS
from app.work import LARGE_PIXELS, PICTURES, check_request
from dynamask.ops.masks import paste_mask_window, paste_window
from dynamask.ops.rle import Rle, encode_columns
from dynamask.structures import DynaMaskError

BAND = 1_000_000
"""Pixels that are pasted at a time."""


def box_pixels(boxes: Sequence[Sequence[float]], image_size: tuple[int, int]) -> int:
    """Pixels of all boxes xyxy together, in a picture of (H, W)."""
    windows = (paste_window(box, image_size) for box in boxes)
    return sum((bottom - top) * (right - left) for top, bottom, left, right in windows)


def check_mask_pixels(pixels: int) -> None:
    """Raise :class:`DynaMaskError` if the masks of a request have more pixels in all than the limit."""
    if pixels > LIMITS.mask_megapixels * 1_000_000:
        raise DynaMaskError(
            f"the masks of this request have {pixels // 1_000_000} million pixels, and at most "
            f"{LIMITS.mask_megapixels} million are computed; send a smaller picture or fewer boxes, or omit all_sizes"
        )


@contextmanager
def mask_work(pixels: int) -> Iterator[None]:
    """Encode masks of so many pixels in all, one request at a time if they are many.

    Raises:
        DynaMaskError: more than the limit, or the current request ended while it waited.
    """
    check_mask_pixels(pixels)
    if pixels <= LARGE_PIXELS:
        yield
        return
    with PICTURES():
        yield


def encode_pasted(probs: torch.Tensor, box: Sequence[float], image_size: tuple[int, int]) -> Rle:
    """Run lengths of an (S, S) probability mask, pasted into the box xyxy of a picture (H, W).

    Raises:
        DynaMaskError: the current request has ended.
    """
    top, bottom, left, right = paste_window(box, image_size)
    columns = np.zeros((image_size[0], right - left), dtype=bool)
    step = max(1, BAND // max(1, right - left))
    for start in range(top, bottom, step):
        check_request()
        stop = min(start + step, bottom)
        columns[start:stop] = (paste_mask_window(probs, box, (start, stop, left, right)) >= 0.5).numpy()
    return encode_columns(columns, left, image_size[1])
