"""Reading pictures of any source and format as upright 8-bit RGB arrays."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from dynamask.structures import DynaMaskError

MAX_PIXELS = 25_000_000
"""Largest width × height of pictures that are accepted."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Pillow decoders that are used for files; the first also reads the MPO files of some phones."""

RANGES = (255, 1023, 4095, 16383, 65535)
"""Largest values of 8, 10, 12, 14 and 16 bits."""
TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
TAIL = 65_536
"""Bytes at the end of a file in which its format's end mark is searched."""

PictureSource = str | Path | bytes | BinaryIO | Image.Image | np.ndarray | Tensor


def read_picture(source: PictureSource, upright: bool = True) -> np.ndarray:
    """Read a picture as an (H, W, 3) uint8 RGB array with values 0-255, freshly allocated.

    Args:
        source: a path, the bytes of a file (JPEG, PNG, WebP, BMP or TIFF) or a binary file object, a PIL image of any
            mode, an array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA, uint8 or uint16 (scaled to 8 bits), or a
            (3, H, W) uint8 RGB tensor.
        upright: turn the picture as its EXIF orientation says; False keeps the stored rows and columns.

    Transparent pixels are blended with white. Only the first frame of a picture with several is read.

    Raises:
        DynaMaskError: the file is missing, a folder, empty, truncated or no picture, or has over 25 million pixels
            (taken from the header, before decoding).
    """
    if isinstance(source, Tensor):
        if source.ndim != 3 or len(source) != 3:
            raise DynaMaskError(f"a tensor of shape {tuple(source.shape)} is not a picture: give (3, H, W) uint8 RGB")
        source = source.detach().cpu().permute(1, 2, 0).numpy()
    if isinstance(source, np.ndarray):
        return _from_array(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about large headers and odd tags; the checks below decide
        if isinstance(source, Image.Image):
            return _decode(source, "the picture", upright)
        if hasattr(source, "read"):
            source = source.read()
        if isinstance(source, bytes | bytearray):
            return _open_and_decode(io.BytesIO(source), "the picture", upright)
        if isinstance(source, str | Path):
            with _open_file(Path(source)) as stream:
                return _open_and_decode(stream, f"picture {source}", upright)
    raise DynaMaskError(
        f"a picture must be a path, bytes, file object, PIL image, array or tensor, not {type(source).__name__}"
    )


def _open_file(path: Path) -> BinaryIO:
    """Open a picture file; DynaMaskError if there is none."""
    try:
        if path.is_dir():
            problem = "is a folder: give the path of one picture file"
        elif not path.exists():
            problem = "does not exist: check the path"
        elif not path.is_file():
            problem = "is not a regular file: give the path of one picture file"
        else:
            return path.open("rb")
    except OSError as error:
        problem = f"cannot be opened ({error.strerror}): check the path and its permissions"
    raise DynaMaskError(f"picture {path} {problem}")


@dataclass(frozen=True)
class PictureSizes:
    """Sizes of a picture file as (height, width) in pixels.

    Attributes:
        upright: turned as its EXIF orientation says.
        stored: of the stored rows and columns.
    """

    upright: tuple[int, int]
    stored: tuple[int, int]


def read_sizes(path: str | Path) -> PictureSizes:
    """Sizes of a picture file from its header; a file that looks cut off is decoded as well.

    Raises:
        DynaMaskError: as :func:`read_picture`, except for damage inside a file of full length.
    """
    name = f"picture {path}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open_file(Path(path)) as stream:
            whole = _has_end(stream)
            with _opened(stream, name) as picture:
                _check_size(picture, name)
                stored = (picture.height, picture.width)
                orientation = 1
                with contextlib.suppress(Exception):  # the pixels can be fine where EXIF is unreadable
                    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
                tiff = picture.format == "TIFF" and orientation != 1  # Pillow's decoder may turn it
                if whole and not tiff:
                    return PictureSizes(stored[::-1] if orientation in TURNED else stored, stored)
                if not tiff:
                    _load(picture, name)
                    return PictureSizes(stored[::-1] if orientation in TURNED else stored, stored)
    return PictureSizes(read_picture(path).shape[:2], read_picture(path, upright=False).shape[:2])


def _has_end(stream: BinaryIO) -> bool:
    """Whether a file ends as its format does, as far as this can be told from its first and last bytes."""
    start = stream.read(12)
    length = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, length - TAIL))
    end = stream.read()
    stream.seek(0)
    if start.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in end
    if start.startswith(b"\x89PNG"):
        return b"IEND" in end
    if start.startswith(b"RIFF"):
        return int.from_bytes(start[4:8], "little") + 8 <= length
    return not start.startswith(b"BM") or int.from_bytes(start[2:6], "little") <= length


def _open_and_decode(stream: BinaryIO, name: str, upright: bool) -> np.ndarray:
    """Decode an encoded picture to (H, W, 3) uint8 RGB; messages call it ``name``."""
    with _opened(stream, name) as picture:
        return _decode(picture, name, upright)


def _opened(stream: BinaryIO, name: str) -> Image.Image:
    """Open an encoded picture and read its header; messages call it ``name``."""
    empty = not stream.read(1)
    stream.seek(0)
    if empty:
        raise DynaMaskError(f"{name} is empty: give a JPEG, PNG, WebP, BMP or TIFF file")
    try:
        return Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError:
        raise DynaMaskError(_too_large(name)) from None
    except Exception:  # decoders raise many kinds on foreign bytes
        raise DynaMaskError(f"{name} cannot be read as a picture: give a JPEG, PNG, WebP, BMP or TIFF file") from None


def _too_large(name: str, size: tuple[int, int] | None = None) -> str:
    """Message about a picture over the pixel limit; size is (width, height)."""
    shape = f" ({size[0]} x {size[1]})" if size else ""
    return f"{name}{shape} has more than {MAX_PIXELS // 1_000_000} million pixels: make it smaller"


def _check_size(picture: Image.Image, name: str) -> None:
    """Refuse an opened PIL image without pixels or with too many."""
    width, height = picture.size
    if width * height == 0:
        raise DynaMaskError(f"{name} has no pixels: give a picture of at least 1 x 1")
    if width * height > MAX_PIXELS:
        raise DynaMaskError(_too_large(name, picture.size))


def _load(picture: Image.Image, name: str) -> None:
    """Decode the pixels of an opened PIL image."""
    try:
        picture.load()
    except Exception:  # decoders raise many kinds on damaged data
        raise DynaMaskError(f"{name} is truncated or damaged: save or download it again") from None


def _decode(picture: Image.Image, name: str, upright: bool) -> np.ndarray:
    """Decode an opened PIL image to (H, W, 3) uint8 RGB; the image itself is not changed."""
    _check_size(picture, name)
    tiff = getattr(picture, "format", None) == "TIFF"
    _load(picture, name)
    if upright:
        with contextlib.suppress(Exception):  # the pixels can be fine where EXIF is unreadable
            picture = ImageOps.exif_transpose(picture)
    try:
        return _to_rgb(picture, tiff)
    except (ValueError, OSError):
        raise DynaMaskError(
            f"{name} has the colour mode {picture.mode}, which is not supported: save it as RGB"
        ) from None


def _to_rgb(picture: Image.Image, tiff: bool = False) -> np.ndarray:
    """Convert a loaded PIL image of any mode to (H, W, 3) uint8 RGB; ``tiff`` says that it is from a TIFF file."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _from_array(_deep_grey(np.asarray(picture), tiff))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        return _over_white(np.asarray(picture.convert("RGBA")))
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _deep_grey(values: np.ndarray, tiff: bool) -> np.ndarray:
    """Bring (H, W) grey values deeper than 8 bits to uint8.

    16-bit integers have the range 0-65535, except in TIFF files, where cameras store 10, 12 or 14 bits in 16. That of
    these and of floats is taken as the smallest of :data:`RANGES` that contains the largest value, that of other wide
    integers as 0-255 or 0-65535; floats up to 2 have the range 0-1. Values that fit no range are scaled from their
    smallest to their largest.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and not tiff:
        return _eight_bits(values)
    floats = values.dtype.kind == "f"
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = values[finite].min(), values[finite].max()
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    if floats and low >= -1.0 and high <= 2.0 and not (low < 0 and high <= 0):
        low, high = 0.0, 1.0
    elif low >= 0 and high <= RANGES[-1]:
        tops = RANGES if tiff or floats else (RANGES[0], RANGES[-1])
        low, high = 0.0, float(next(top for top in tops if high <= top))
    return np.rint(np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0) * 255.0).astype(np.uint8)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale uint16 values 0-65535 to uint8 0-255, rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _over_white(rgba: np.ndarray) -> np.ndarray:
    """Blend (H, W, 4) uint8 RGBA with white: (H, W, 3) uint8."""
    alpha = rgba[..., 3:].astype(np.uint16)
    blended = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return blended.astype(np.uint8)


def _from_array(array: np.ndarray) -> np.ndarray:
    """Check an array and return a copy as (H, W, 3) uint8 RGB."""
    shape_ok = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not shape_ok or array.dtype not in (np.uint8, np.uint16):
        raise DynaMaskError(
            f"an array of shape {array.shape} and type {array.dtype} is not a picture: give (H, W, 3) uint8 RGB"
        )
    height, width = array.shape[:2]
    if height * width == 0:
        raise DynaMaskError("the picture has no pixels: give a picture of at least 1 x 1")
    if height * width > MAX_PIXELS:
        raise DynaMaskError(_too_large("the picture", (width, height)))
    if array.dtype == np.uint16:
        array = _eight_bits(array)
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 4:
        return _over_white(array)
    return np.array(np.broadcast_to(array, (height, width, 3)), order="C")
