"""Every kind of picture that must work, and a sentence for every kind that must not."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynamask.data.pictures import MAX_PIXELS, PictureSizes, read_picture, read_sizes
from dynamask.structures import DynaMaskError

RGB = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)


def encode(picture: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and ends where its pixels should begin."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_keep_every_value(kind, options, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encode(Image.fromarray(RGB), kind, **options))
    for source in (path, str(path), path.read_bytes(), Image.open(path), path.open("rb")):
        picture = read_picture(source)
        assert picture.dtype == np.uint8 and np.array_equal(picture, RGB)


def test_jpeg_and_cmyk_jpeg_keep_their_colour():
    orange = Image.new("RGB", (16, 16), (230, 120, 20))
    for picture in (orange, orange.convert("CMYK")):
        decoded = read_picture(encode(picture, "JPEG", quality=95))
        assert np.abs(decoded.astype(int) - (230, 120, 20)).max() < 12


def test_grey_and_one_bit_become_rgb():
    grey = RGB[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(read_picture(encode(Image.fromarray(grey), "PNG")), expected)
    one_bit = Image.fromarray(grey > 127)
    assert np.array_equal(read_picture(encode(one_bit, "PNG"))[..., 1], np.where(grey > 127, 255, 0))


def test_palette_with_and_without_transparency():
    picture = Image.new("P", (4, 2), 1)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((0, 0), 0)
    opaque = read_picture(encode(picture, "PNG"))
    assert opaque[0, 0].tolist() == [10, 20, 30] and opaque[1, 3].tolist() == [200, 100, 50]
    transparent = read_picture(encode(picture, "PNG", transparency=0))
    assert transparent[0, 0].tolist() == [255, 255, 255] and transparent[1, 3].tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    picture = Image.new("RGBA", (3, 1), (40, 40, 40, 255))
    picture.putpixel((1, 0), (40, 40, 40, 0))
    picture.putpixel((2, 0), (40, 40, 40, 51))  # one fifth
    row = read_picture(encode(picture.convert(mode), "PNG"))[0]
    assert row.tolist() == [[40] * 3, [255] * 3, [212] * 3]


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 128 * 257, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert read_picture(encode(Image.fromarray(values), kind))[0, :, 0].tolist() == [0, 128, 255]
    assert read_picture(values)[0, :, 2].tolist() == [0, 128, 255]


def test_float_and_wide_integer_greys_are_scaled_by_their_range():
    assert read_picture(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)))[0, :, 0].tolist() == [0, 128, 255]
    assert read_picture(Image.fromarray(np.array([[0, 7, 255]], np.int32)))[0, :, 0].tolist() == [0, 7, 255]
    assert read_picture(Image.fromarray(np.array([[0, 65535]], np.int32)))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_turned_upright(orientation):
    turned = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }[orientation](RGB)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(RGB), "PNG", exif=exif)
    assert np.array_equal(read_picture(data), turned)
    assert np.array_equal(read_picture(data, upright=False), RGB)


def test_one_pixel_and_arrays():
    assert read_picture(encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).tolist() == [[[1, 2, 3]]]
    copy = read_picture(RGB)
    copy[:] = 0
    assert RGB.any(), "the caller's array must stay as it was"
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    assert np.array_equal(read_picture(rgba), RGB)
    tensor = torch.from_numpy(RGB).permute(2, 0, 1).contiguous()
    assert np.array_equal(read_picture(tensor), RGB) and read_picture(tensor).flags["C_CONTIGUOUS"]


def test_missing_folder_empty_and_foreign_files_are_refused_by_name(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.png").write_text("not a picture")
    expected = {
        "none.png": "does not exist",
        ".": "is a folder",
        "empty.png": "is empty",
        "notes.png": "cannot be read",
    }
    for name, sentence in expected.items():
        with pytest.raises(DynaMaskError, match=sentence) as caught:
            read_picture(tmp_path / name)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_refused(kind):
    data = encode(Image.fromarray(np.tile(RGB, (8, 8, 1))), kind)
    for share in (0.1, 0.5, 0.95):
        with pytest.raises(DynaMaskError, match="picture"):
            read_picture(data[: int(len(data) * share)])


@pytest.mark.parametrize("size", [(5001, 5000), (14_000, 14_000), (60_000, 60_000)])
def test_over_25_million_pixels_is_refused_from_the_header(size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DynaMaskError, match="25 million pixels"):
            read_picture(png_header(*size))


def test_the_pixel_limit_itself_passes():
    assert read_picture(np.broadcast_to(np.uint8(9), (5000, MAX_PIXELS // 5000, 3))).shape == (5000, 5000, 3)
    with pytest.raises(DynaMaskError, match="25 million"):
        read_picture(np.broadcast_to(np.uint8(9), (5000, 5001, 3)))


def test_arrays_that_are_no_pictures_are_refused():
    for array in (np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), np.uint8(3)):
        with pytest.raises(DynaMaskError):
            read_picture(np.asarray(array))
    for tensor in (torch.zeros(3, 4, 4), torch.zeros(4, 4, 3).byte(), torch.zeros(3, 0, 4).byte(), torch.tensor(3)):
        with pytest.raises(DynaMaskError):
            read_picture(tensor)
    with pytest.raises(DynaMaskError, match="not int"):
        read_picture(3)
    with pytest.raises(DynaMaskError, match="does not exist|cannot be opened"):
        read_picture(Path("a\0b"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 2048, 4095]], dtype=np.uint16), [0, 128, 255]),
        (np.array([[0, 512, 1023]], dtype=np.uint16), [0, 128, 255]),
        (np.array([[0, 32768, 65535]], dtype=np.uint16), [0, 128, 255]),
        (np.array([[0, 0.5, 1.02]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], dtype=np.float32), [0, 100, 255]),
        (np.array([[0, 2048, 4095]], dtype=np.float32), [0, 128, 255]),
        (np.array([[-500, 0, 500]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 5e6, 1e7]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, np.nan, 1]], dtype=np.float32), [0, 0, 255]),
    ],
)
def test_deep_tiff_files_are_scaled_by_the_range_of_their_values(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "deep.tif")
    assert read_picture(tmp_path / "deep.tif")[0, :, 0].tolist() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_sizes_come_from_the_header_and_cut_files_are_noticed(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    assert read_sizes(path) == PictureSizes((40, 60), (40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    if suffix in ("jpg", "png"):
        Image.open(path).save(path, exif=exif)
        assert read_sizes(path) == PictureSizes((60, 40), (40, 60))
    if suffix != "tif":
        path.write_bytes(path.read_bytes()[:-300])
        with pytest.raises(DynaMaskError, match="truncated or damaged|cannot be read"):
            read_sizes(path)
    path.write_bytes(b"no picture")
    with pytest.raises(DynaMaskError, match="cannot be read as a picture"):
        read_sizes(path)
