"""Files uploaded on the Classes tab (pictures, a COCO JSON, or a zip of both): limited in size, deleted afterwards."""

from __future__ import annotations

import json
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from app.arguments import shortened
from app.class_table import ideal, make_table, rows_in_true_boxes, rows_of_detections
from app.limits import LIMITS
from dynamask.data.coco_format import load_coco, read_coco, read_listing, restricted
from dynamask.data.findings import raise_fatal
from dynamask.data.pictures import MAX_PIXELS
from dynamask.data.sources import open_data
from dynamask.files import DAMAGED_ZIP
from dynamask.predict import Predictor
from dynamask.structures import DynaMaskError

MAX_PICTURES = 60
MAX_INSTANCES = 3000
MAX_BYTES = 200 * 2**20
"""Bytes of all files, unpacked."""
MAX_FILES = 2000
"""Entries of a zip that are read."""
PICTURE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class UploadedData:
    """The pictures and annotations of an upload.

    Attributes:
        folder: that holds the pictures in `images/`.
        pictures: sorted by name.
        coco: the checked annotations of these pictures, or all annotations if there is no picture; None without any.
        left_out: number of pictures over the limit.
    """

    folder: Path
    pictures: list[Path]
    coco: dict[str, Any] | None
    left_out: int


@contextmanager
def unpacked(files: Sequence[str | Path]) -> Iterator[UploadedData]:
    """Unpack uploaded files into a temporary folder.

    Raises:
        DynaMaskError: nothing usable, more than one annotation file, or more than the limits.
    """
    if not files:
        raise DynaMaskError("no file was uploaded; choose pictures, a COCO JSON, or a zip of them")
    with tempfile.TemporaryDirectory(prefix="dynamask-") as name:
        folder = Path(name)
        (folder / "images").mkdir()
        try:
            _store(files, folder)
            yield _read(folder)
        except DynaMaskError as error:  # error messages must not name the folder
            words = str(error).replace(f"{folder / 'images'}{os.sep}", "").replace(f"{folder}{os.sep}", "")
            raise DynaMaskError(words) from None


def _store(files: Sequence[str | Path], folder: Path) -> None:
    """Copy the pictures and JSON files, those inside zip files included, into the folder."""
    used = 0
    try:
        for name, open_file in _entries(files):
            target = _target(name, folder)
            if target is None:
                continue
            text, most = target.suffix.lower() == ".json", LIMITS.annotation_megabytes * 2**20
            with open_file() as source, target.open("wb") as out:
                while chunk := source.read(2**20):  # the size in the header of a zip may be wrong
                    used += len(chunk)
                    if used > MAX_BYTES:
                        raise DynaMaskError(f"the files hold more than {MAX_BYTES // 2**20} MB; upload fewer of them")
                    if text and out.tell() + len(chunk) > most:
                        raise DynaMaskError(f"a JSON file has more than {most // 2**20} MB; send fewer annotations")
                    out.write(chunk)
    except DynaMaskError:
        raise
    except DAMAGED_ZIP as error:
        raise DynaMaskError("a file cannot be read; if it is a zip, pack it again without a password") from error


def _entries(files: Sequence[str | Path]) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """The name of each file and of each file inside a zip, with a function that opens it."""
    for path in map(Path, files):
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                entries = [entry for entry in archive.infolist()[:MAX_FILES] if not entry.is_dir()]
                yield from ((entry.filename, partial(archive.open, entry)) for entry in entries)
        else:
            yield path.name, partial(path.open, "rb")


def _target(name: str, folder: Path) -> Path | None:
    """The path for a file, from its name without folders: pictures in images/, JSON beside it; None for others."""
    bare = PurePosixPath(name.replace("\\", "/")).name
    if bare.startswith((".", "_")) or not bare:
        return None
    if Path(bare).suffix.lower() == ".json":
        return folder / bare
    return folder / "images" / bare if Path(bare).suffix.lower() in PICTURE_ENDINGS else None


def _read(folder: Path) -> UploadedData:
    """Read the annotations, if any, and keep at most as many pictures as are allowed."""
    pictures = sorted(path for path in (folder / "images").iterdir() if path.is_file())
    found = sorted(folder.glob("*.json"))
    if len(found) > 1:
        raise DynaMaskError("there is more than one JSON file; send the one with the annotations")
    if not found and not pictures:
        raise DynaMaskError("there is no picture and no COCO JSON among the uploaded files; choose others")
    if not found:
        return UploadedData(folder, pictures[:MAX_PICTURES], None, max(0, len(pictures) - MAX_PICTURES))
    coco, left_out = load_coco(found[0]), 0
    _check_declared_sizes(coco)
    names = {path.name: path for path in pictures}
    if pictures:
        coco, left_out = _with_pictures(coco, set(names))
        pictures = [names[image["file_name"]] for image in coco["images"]]
    if len(coco["annotations"]) > MAX_INSTANCES:
        raise DynaMaskError(f"the annotations hold more than {MAX_INSTANCES} instances; send fewer pictures")
    return UploadedData(folder, pictures, read_coco(coco).coco, left_out)


def _check_declared_sizes(coco: dict[str, Any]) -> None:
    """Raise :class:`DynaMaskError` if a picture or a mask is declared larger than pictures may be."""
    masks = (each.get("segmentation") for each in coco["annotations"] if isinstance(each, dict))
    sizes = [mask.get("size") for mask in masks if isinstance(mask, dict)]
    sizes += [[each.get("height"), each.get("width")] for each in coco["images"] if isinstance(each, dict)]
    for size in sizes:
        whole = isinstance(size, list) and all(isinstance(side, (int, float)) for side in size)
        if whole and math.prod(size) > MAX_PIXELS:
            raise DynaMaskError(
                f"the annotations declare a picture of {' x '.join(map(shortened, size[::-1]))} pixels; "
                f"at most {MAX_PIXELS // 1_000_000} million are accepted"
            )


def _with_pictures(coco: dict[str, Any], names: set[str]) -> tuple[dict[str, Any], int]:
    """The annotations of the uploaded pictures, and how many pictures are left out."""
    images = []
    for image in read_listing(coco, raise_fatal).images.values():
        bare = PurePosixPath(image["file_name"].replace("\\", "/")).name
        if bare in names:
            images.append({**image, "file_name": bare})
    if not images:
        raise DynaMaskError("the annotations name none of the uploaded pictures; upload those that belong to them")
    kept = images[:MAX_PICTURES]
    ids = {image["id"] for image in kept}
    return {**restricted(coco, ids), "images": kept}, len(images) - len(kept)


def analyse(data: UploadedData, predictor: Predictor, weights: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Make the table of classes; yields (progress text, None), at the end (summary, table).

    Raises:
        DynaMaskError: the pictures cannot be read, or weights and annotations have no class in common.
    """
    needs, rows, boxes, macs, score, count = None, [], None, None, None, len(data.pictures)
    if data.pictures:
        predictor.check_switch("the table of classes")
        macs = predictor.costs.macs_per_instance
    if data.coco is not None:
        count = len(data.coco["images"])
        for done, needs_so_far in ideal(data.coco):
            needs = needs_so_far
            yield f"Ideal masks: picture {done} of {count}", None
    if data.pictures and data.coco is not None:
        boxes, annotations = "gt", data.folder / "kept.json"
        annotations.write_text(json.dumps(data.coco), encoding="utf-8")
        dataset = open_data(None, data.folder / "images", annotations, predictor.class_names)
        for done, rows_so_far in rows_in_true_boxes(predictor, dataset, range(len(dataset))):
            rows = rows_so_far
            yield f"Masks in true boxes: picture {done} of {len(dataset)}", None
    elif data.pictures:
        boxes, score = "detected", predictor.default_score
        for done, rows_so_far in rows_of_detections(predictor, data.pictures, count):
            rows = rows_so_far
            yield f"Detections: picture {done} of {count}", None
    table = make_table(rows, needs, weights, "uploaded pictures", count, boxes, macs, score)
    more = f"; {data.left_out} more were left out" if data.left_out else ""
    yield f"Done: {table['instances']} instances in {count} pictures{more}.", table
