"""Masks as COCO run lengths (RLE): encoding, decoding, and run lengths from polygons.

A run-length mask is a dict of ``size``, [height, width] in pixels, and ``counts``: the lengths of alternating runs of
0 and 1, beginning with 0, column by column. Here ``counts`` is COCO's compressed text, a str that JSON can hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor

Rle = dict[str, Any]

_COMPRESSED = re.compile(r"(?:[P-o]{0,6}+[0-O])++")
"""Numbers of at most seven characters, 35 bits: more pixels than any picture has."""


def encode_rle(mask: Tensor | np.ndarray) -> Rle:
    """Run lengths of an (H, W) mask, bool or 0/1."""
    values = mask.cpu().numpy() if isinstance(mask, Tensor) else mask
    return _with_text(coco_mask.encode(np.asfortranarray(values, dtype=np.uint8)))


def encode_columns(columns: Tensor | np.ndarray, left: int, width: int) -> Rle:
    """Run lengths of an (H, width) mask that is 0 but for the columns (H, w) from ``left`` on, bool or 0/1."""
    height, count = columns.shape
    runs = [0] if 0 in columns.shape else run_lengths(encode_rle(columns)["counts"]).tolist()
    runs[0] += left * height
    rest = (width - left - count) * height
    if len(runs) % 2:  # the last run is of 0
        runs[-1] += rest
    elif rest:
        runs.append(rest)
    return compress(runs, (height, width))


def decode_rle(rle: Rle) -> np.ndarray:
    """The (H, W) bool mask of compressed run lengths; ``counts`` may be bytes."""
    return decode_masks([rle], rle["size"])[0].view(bool)


def decode_masks(rles: Sequence[Rle], size: Sequence[int]) -> np.ndarray:
    """Compressed run-length masks of ``size`` (height, width) as (N, H, W) uint8 0/1.

    Only the columns from an object's first to its last pixel are written.
    """
    height, width = size
    masks = np.zeros((len(rles), height, width), dtype=np.uint8)
    for mask, rle in zip(masks, rles, strict=True):
        left, columns = _columns(rle, height)
        mask[:, left : left + len(columns)] = columns.T
    return masks


def decode_window(rle: Rle) -> tuple[int, int, np.ndarray]:
    """Top, left and the (h, w) uint8 pixels of the box around a compressed run-length mask, (0, 0) for an empty one."""
    left, columns = _columns(rle, rle["size"][0])
    down = np.flatnonzero(columns.any(axis=0))
    if not len(down):
        return 0, 0, np.zeros((0, 0), dtype=np.uint8)
    return int(down[0]), left, columns[:, down[0] : down[-1] + 1].T


def _columns(rle: Rle, height: int) -> tuple[int, np.ndarray]:
    """The columns (K, H) uint8 of a mask from its first to its last pixel, and the number of the first of them."""
    ends = np.cumsum(run_lengths(rle["counts"]))
    if len(ends) < 2:
        return 0, np.zeros((0, height), dtype=np.uint8)
    left = int(ends[0]) // height
    last = int(ends[-1 if len(ends) % 2 == 0 else -2])  # one past the last 1
    right = (last + height - 1) // height
    inside = np.clip(ends, left * height, right * height)
    runs = np.diff(inside, prepend=left * height)
    values = np.arange(len(runs), dtype=np.uint8) & 1
    return left, np.repeat(values, runs).reshape(-1, height)


def run_lengths(counts: str | bytes) -> np.ndarray:
    """Decompress ``counts`` to (K,) int64 run lengths. The text must be well formed: see :func:`is_compressed`.

    Each run is a little-endian number in base 32 of the characters 48 + digit, with bit 32 set in all but the last and
    bit 16 of the last as the sign. From the fourth run on it is the difference to the run two before.
    """
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return codes
    ends = (codes < 32).nonzero()[0]
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts + 1
    digit = np.arange(len(codes)) - starts.repeat(lengths)
    runs = np.add.reduceat((codes & 31) << (5 * digit), starts)
    runs -= ((codes[ends] & 16) >> 4) << (5 * lengths)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def is_compressed(counts: str | bytes) -> bool:
    """Whether this is well-formed compressed text. The C decoder reads malformed text beyond its end."""
    text = counts.decode("latin-1") if isinstance(counts, bytes) else counts
    return _COMPRESSED.fullmatch(text) is not None


def compress(runs: Sequence[int], size: tuple[int, int]) -> Rle:
    """Run lengths that add up to the pixels of ``size`` (height, width), compressed."""
    height, width = size
    counts = [int(run) for run in runs]
    return _with_text(coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width))


def polygons_to_rle(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """Rasterise the union of polygons of ``size`` (height, width) by COCO's rule.

    Args:
        polygons: at least one; each [x0, y0, x1, y1, …] in pixels, of at least three points.
    """
    parts = coco_mask.frPyObjects([list(polygon) for polygon in polygons], *size)
    return _with_text(coco_mask.merge(parts) if len(parts) > 1 else parts[0])


def rle_area(rle: Rle) -> int:
    """Number of pixels in the mask."""
    return int(coco_mask.area(rle))


def rle_box(rle: Rle) -> list[float]:
    """The mask's box [x, y, width, height] in pixels; all zero for an empty mask."""
    return [float(value) for value in coco_mask.toBbox(rle)]


def _with_text(rle: dict[str, Any]) -> Rle:
    """COCO's run lengths with counts as str."""
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }
