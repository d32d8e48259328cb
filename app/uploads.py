"""Files uploaded on the Classes tab (pictures, a COCO JSON, or a zip of both): limited in size, deleted afterwards."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from app.class_table import detected, detected_rows, ideal, make_table, own_rows, predicted
from dynamask.data.coco_format import load_coco, read_coco, read_listing, restricted
from dynamask.data.findings import raise_fatal
from dynamask.data.sources import open_data
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
        room = MAX_BYTES
        try:
            for file in files:
                path = Path(file)
                room -= _unpack(path, folder, room) if path.suffix.lower() == ".zip" else _copy(path, folder, room)
            yield _read(folder)
        except DynaMaskError as error:  # error messages must not name the folder
            words = str(error).replace(f"{folder / 'images'}{os.sep}", "").replace(f"{folder}{os.sep}", "")
            raise DynaMaskError(words) from None


def _copy(path: Path, folder: Path, room: int) -> int:
    """Copy a picture or JSON into the folder; returns its size in bytes."""
    size = path.stat().st_size if path.is_file() else 0
    if size > room:
        raise DynaMaskError(f"the files hold more than {MAX_BYTES // 2**20} MB; send fewer or smaller ones")
    target = _target(path.name, folder)
    if target is not None:
        shutil.copyfile(path, target)
    return size


def _target(name: str, folder: Path) -> Path | None:
    """The path for a file, from its name without folders: pictures in images/, JSON beside it; None for others."""
    bare = PurePosixPath(name.replace("\\", "/")).name
    if bare.startswith((".", "_")) or not bare:
        return None
    if Path(bare).suffix.lower() == ".json":
        return folder / bare
    return folder / "images" / bare if Path(bare).suffix.lower() in PICTURE_ENDINGS else None


def _unpack(path: Path, folder: Path, room: int) -> int:
    """Unpack the pictures and the JSON of a zip; returns their unpacked size in bytes."""
    used = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist()[:MAX_FILES]:
                target = None if entry.is_dir() else _target(entry.filename, folder)
                if target is None:
                    continue
                with archive.open(entry) as source, target.open("wb") as out:
                    while chunk := source.read(2**20):  # the size in the header may be wrong
                        used += len(chunk)
                        if used > room:
                            limit = MAX_BYTES // 2**20
                            raise DynaMaskError(f"the zip holds more than {limit} MB unpacked; send a smaller one")
                        out.write(chunk)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as error:
        raise DynaMaskError("the zip cannot be read; pack it again without a password") from error
    return used


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
    names = {path.name: path for path in pictures}
    if pictures:
        coco, left_out = _with_pictures(coco, set(names))
        pictures = [names[image["file_name"]] for image in coco["images"]]
    if len(coco["annotations"]) > MAX_INSTANCES:
        raise DynaMaskError(f"the annotations hold more than {MAX_INSTANCES} instances; send fewer pictures")
    return UploadedData(folder, pictures, read_coco(coco).coco, left_out)


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


def analyse(found: UploadedData, predictor: Predictor, weights: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Make the table of classes; yields (progress text, None), at the end (summary, table).

    Raises:
        DynaMaskError: the pictures cannot be read, or weights and annotations have no class in common.
    """
    if found.pictures:
        predictor.check_switch("the table of classes")
    needs, rows, boxes, data = None, [], None, "uploaded pictures"
    if found.coco is not None:
        for done, quality in ideal(found.coco):
            needs = quality
            yield f"Ideal masks: picture {done} of {len(found.coco['images'])}", None
    if found.pictures and found.coco is not None:
        annotations = found.folder / "kept.json"
        annotations.write_text(json.dumps(found.coco), encoding="utf-8")
        dataset = open_data(None, found.folder / "images", annotations, predictor.class_names)
        for done, instances in predicted(predictor, dataset, range(len(dataset))):
            yield f"Masks in true boxes: picture {done} of {len(dataset)}", None
            rows = [] if done < len(dataset) else own_rows(instances, dataset)
        boxes = "gt"
    elif found.pictures:
        for done, pairs in detected(predictor, found.pictures):
            yield f"Detections: picture {done} of {len(found.pictures)}", None
            rows = [] if done < len(found.pictures) else detected_rows(pairs)
        boxes = "detected"
    macs = predictor.costs.macs_per_instance if found.pictures else None
    pictures = len(found.pictures) or len(found.coco["images"] if found.coco else [])
    table = make_table(rows, needs, weights, data, pictures, boxes, macs)
    more = f"; {found.left_out} more were left out" if found.left_out else ""
    yield f"Done: {table['instances']} instances in {pictures} pictures{more}.", table
