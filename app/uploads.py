"""Data that a visitor sends to the Classes tab: pictures, a COCO JSON, a zip of both; bounded, and gone afterwards."""

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
"""Entries of a zip that are looked at."""
PICTURE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Found:
    """What the files hold.

    Attributes:
        folder: where the pictures lie, by their own names.
        pictures: in the order of their names.
        coco: the checked annotations of these pictures (of all, where no picture came with them), None without any.
        left_out: pictures over the limit.
    """

    folder: Path
    pictures: list[Path]
    coco: dict[str, Any] | None
    left_out: int


@contextmanager
def opened(files: Sequence[str | Path]) -> Iterator[Found]:
    """Unpack what a visitor sent into a folder of its own, which is removed at the end.

    Raises:
        DynaMaskError: nothing usable, more than one annotation file, or more than the limits.
    """
    if not files:
        raise DynaMaskError("nothing was sent; choose pictures, a COCO JSON, or a zip of them")
    with tempfile.TemporaryDirectory(prefix="dynamask-") as name:
        folder = Path(name)
        (folder / "images").mkdir()
        room = MAX_BYTES
        try:
            for file in files:
                path = Path(file)
                room -= _unpack(path, folder, room) if path.suffix.lower() == ".zip" else _copy(path, folder, room)
            yield _sorted_out(folder)
        except DynaMaskError as error:  # a refusal must not tell where files are kept
            words = str(error).replace(f"{folder / 'images'}{os.sep}", "").replace(f"{folder}{os.sep}", "")
            raise DynaMaskError(words) from None


def _copy(path: Path, folder: Path, room: int) -> int:
    """Put one file into the folder if it may be needed; returns its bytes."""
    size = path.stat().st_size if path.is_file() else 0
    if size > room:
        raise DynaMaskError(f"the files hold more than {MAX_BYTES // 2**20} MB; send fewer or smaller ones")
    target = _target(path.name, folder)
    if target is not None:
        shutil.copyfile(path, target)
    return size


def _target(name: str, folder: Path) -> Path | None:
    """Where a file goes, by its bare name: pictures to images/, JSON beside it; None for anything else."""
    bare = PurePosixPath(name.replace("\\", "/")).name
    if bare.startswith((".", "_")) or not bare:
        return None
    if Path(bare).suffix.lower() == ".json":
        return folder / bare
    return folder / "images" / bare if Path(bare).suffix.lower() in PICTURE_ENDINGS else None


def _unpack(path: Path, folder: Path, room: int) -> int:
    """Unpack the pictures and the JSON of a zip by their bare names; returns their bytes as they really are."""
    used = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist()[:MAX_FILES]:
                target = None if entry.is_dir() else _target(entry.filename, folder)
                if target is None:
                    continue
                with archive.open(entry) as source, target.open("wb") as out:
                    while chunk := source.read(2**20):  # a header may lie about the size
                        used += len(chunk)
                        if used > room:
                            limit = MAX_BYTES // 2**20
                            raise DynaMaskError(f"the zip holds more than {limit} MB unpacked; send a smaller one")
                        out.write(chunk)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as error:
        raise DynaMaskError("the zip cannot be read; make it again without a password") from error
    return used


def _sorted_out(folder: Path) -> Found:
    """Read the annotations, if any, and keep at most as many pictures as are allowed."""
    pictures = sorted(path for path in (folder / "images").iterdir() if path.is_file())
    found = sorted(folder.glob("*.json"))
    if len(found) > 1:
        raise DynaMaskError("there is more than one JSON file; send the one with the annotations")
    if not found and not pictures:
        raise DynaMaskError("there is no picture and no COCO JSON in what was sent; choose other files")
    if not found:
        return Found(folder, pictures[:MAX_PICTURES], None, max(0, len(pictures) - MAX_PICTURES))
    coco, left_out = load_coco(found[0]), 0
    names = {path.name: path for path in pictures}
    if pictures:
        coco, left_out = _with_pictures(coco, set(names))
        pictures = [names[image["file_name"]] for image in coco["images"]]
    if len(coco["annotations"]) > MAX_INSTANCES:
        raise DynaMaskError(f"the annotations hold more than {MAX_INSTANCES} instances; send fewer pictures")
    return Found(folder, pictures, read_coco(coco).coco, left_out)


def _with_pictures(coco: dict[str, Any], names: set[str]) -> tuple[dict[str, Any], int]:
    """The annotations of the pictures that are there, by their bare names, and how many of these are left out."""
    images = []
    for image in read_listing(coco, raise_fatal).images.values():
        bare = PurePosixPath(image["file_name"].replace("\\", "/")).name
        if bare in names:
            images.append({**image, "file_name": bare})
    if not images:
        raise DynaMaskError("the annotations name none of the pictures that were sent; send those that belong to them")
    kept = images[:MAX_PICTURES]
    ids = {image["id"] for image in kept}
    return {**restricted(coco, ids), "images": kept}, len(images) - len(kept)


def table_of(found: Found, predictor: Predictor, weights: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Work through what was sent; yields (what is being done, None), at the end (a sentence, the table).

    Raises:
        DynaMaskError: the pictures cannot be read, or weights and annotations have no class in common.
    """
    if found.pictures:
        predictor.check_switch("the table of classes")
    needs, rows, boxes, data = None, [], None, "pictures of a visitor"
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
