"""Pictures as files and as `data:` URLs."""

from __future__ import annotations

import base64
import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.work import LARGE_PIXELS, PICTURES, check_request
from dynamask.data.pictures import FORMATS, PictureSource, read_picture
from dynamask.viz.overlay import encode_jpeg

UInt8Array = npt.NDArray[np.uint8]


def stored_size(source: PictureSource) -> tuple[int, int]:
    """(height, width) that the header of a picture file states, before it is turned upright; (0, 0) if unknown."""
    if isinstance(source, np.ndarray):
        return source.shape[:2]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which are refused when they are decoded
            stream = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(stream, formats=FORMATS) as picture:
                return picture.size[::-1]
    except Exception:  # decoders raise many kinds on foreign bytes; decoding tells what is wrong
        return 0, 0


def decoded(source: PictureSource) -> UInt8Array:
    """The picture as (H, W, 3) uint8 RGB; large ones are decoded for one request at a time.

    Raises:
        DynaMaskError: no picture that can be used, or the current request has ended.
    """
    check_request()
    height, width = stored_size(source)
    if height * width <= LARGE_PIXELS:
        return read_picture(source)
    with PICTURES():
        return read_picture(source)


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
