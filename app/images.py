"""Pictures as files and as `data:` URLs."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from dynamask.viz.overlay import encode_jpeg

UInt8Array = npt.NDArray[np.uint8]


def png_bytes(array: npt.NDArray[np.generic]) -> bytes:
    """PNG of (H, W, 3) uint8 RGB or (H, W) uint8 or uint16 grey."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def png_url(array: npt.NDArray[np.generic]) -> str:
    """The picture as a PNG in a `data:` URL."""
    return _url("png", png_bytes(array))


def jpeg_url(picture: UInt8Array, quality: int = 88) -> str:
    """(H, W, 3) RGB as a JPEG in a `data:` URL."""
    return _url("jpeg", encode_jpeg(picture, quality))


def shrunk(image: UInt8Array, longest_side: int) -> UInt8Array:
    """The picture (H, W, 3) with a longest side of at most `longest_side` pixels; smaller pictures keep their size."""
    height, width = image.shape[:2]
    scale = longest_side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
