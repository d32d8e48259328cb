"""Finding the pictures that annotations name, and comparing their headers with the entries.

Names are matched as annotation tools write them: with backslashes, percent encoding, another Unicode form, the folders
of another computer or a URL before the name. No file outside the picture folder is opened.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from dynamask.data.coco_checks import BOX_SLACK, Listing, image_size
from dynamask.data.findings import Finding
from dynamask.data.pictures import PictureSizes, read_sizes
from dynamask.data.segmentation import is_number
from dynamask.structures import DynaMaskError

THREADS = 8
"""Threads that read headers: most of the time is spent waiting for the disk."""


def picture_path(folder: Path, file_name: str) -> Path | None:
    """Path of a picture that annotations name, None if it would lie outside the folder."""
    name = os.path.normpath(file_name)
    return None if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir else folder / name


class PictureFolder:
    """A folder of pictures in which names of annotations are looked up."""

    def __init__(self, root: Path) -> None:
        """Take the folder; it is searched only when a name is not the path of a file in it."""
        self.root = root

    def find(self, name: str) -> tuple[Path | None, bool]:
        """The file that a name means, and whether the name was adapted; None if there is none or more than one."""
        path = picture_path(self.root, name)
        if path is not None and path.is_file():
            return path, False
        for parts in _spellings(name):
            for start in range(len(parts)):
                found = self._by_end["/".join(parts[start:])]
                exact = [file for file in found if _key(file.relative_to(self.root).as_posix()) == "/".join(parts)]
                if len(found) == 1 or len(exact) == 1:
                    return (exact or found)[0], True
                if found:
                    break
        return None, True

    @cached_property
    def _by_end(self) -> defaultdict[str, list[Path]]:
        """The files below the folder by each of the ends of their paths, such as "a/b.png" and "b.png"."""
        found = defaultdict(list)
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                parts = _key(path.relative_to(self.root).as_posix()).split("/")
                for start in range(len(parts)):
                    found["/".join(parts[start:])].append(path)
        return found


def _key(name: str) -> str:
    """A name without regard to Unicode form and case."""
    return unicodedata.normalize("NFC", name).casefold()


def _spellings(name: str) -> Iterable[list[str]]:
    """The parts of the paths that a name may mean, none that leads out of the folder."""
    local = name.split("?d=", 1)[1] if "?d=" in name else name  # the local files of Label Studio
    if re.match(r"https?://", local):
        local = urlsplit(local).path
    texts = dict.fromkeys([local, unquote(local)] if "%" in local else [local])
    for text in texts:
        plain = re.sub(r"^[A-Za-z]:/", "/", text.replace("\\", "/"))
        parts = [_key(part) for part in plain.split("/") if part not in ("", ".")]
        if os.pardir not in parts and parts and not (text.startswith("/") and len(parts) < 2):
            yield parts


@dataclass
class MatchedPictures:
    """Pictures of a folder matched with the images of a file.

    Attributes:
        listing: with the names and sizes as they are used.
        files: path by image id, of the pictures that can be used.
        findings: assumptions and errors, in the order of the images.
        paths: path, or file name, of the picture of each finding.
        folder: of the pictures.
    """

    listing: Listing
    files: dict[int, Path]
    folder: Path
    findings: list[Finding] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)

    def refuse(self, source: Any) -> None:
        """Raise the first error as :class:`DynaMaskError`, with the number of pictures that have one of its kind."""
        errors = [(f, path) for f, path in zip(self.findings, self.paths) if f.severity == "error"]
        if not errors:
            return
        first, path = errors[0]
        count, total = sum(f.kind == first.kind for f, _ in errors), len(self.listing.images)
        of_file = f" of annotation file {source}" if isinstance(source, str | Path) else ""
        if first.kind == "picture_missing":
            raise DynaMaskError(
                f"picture {path}{of_file} does not exist ({count} of {total} are missing): check the picture folder"
            )
        if first.kind == "picture_outside_folder":
            name = first.where.removeprefix("picture ")
            raise DynaMaskError(
                f"the picture {name!r}{of_file} lies outside the folder {self.folder}: use file names relative to it"
            )
        more = f" ({count} of {total} pictures)" if count > 1 else ""
        cure = "" if first.kind == "picture_unreadable" else f": {first.cure}"
        raise DynaMaskError(f"picture {path} {first.problem}{cure}{more}")


def match_pictures(
    annotations: list[Any], listing: Listing, folder: Path, progress: bool | None = None
) -> MatchedPictures:
    """Find the picture of every image and compare the sizes in its header with its entry.

    Args:
        annotations: of the file, in COCO's form but not checked.
        listing: images and categories of the file.
        folder: that the file names are relative to.
        progress: show a progress bar; None shows it on a terminal if reading takes more than two seconds.

    Raises:
        DynaMaskError: the folder does not exist.
    """
    if not folder.is_dir():
        raise DynaMaskError(f"picture folder {folder} does not exist or is not a folder: check the path")
    matched = MatchedPictures(listing, _find_files(listing, folder), folder)
    names = {image_id: image["file_name"] for image_id, image in listing.images.items()}
    for image_id, name in names.items():
        if image_id not in matched.files:
            _report_lost(matched, name)
        elif matched.files[image_id] != picture_path(folder, name):
            problem = f"is read from {matched.files[image_id].relative_to(folder).as_posix()}"
            _add(matched, "adapted_file_name", name, problem, matched.files[image_id])
    sizes = _read_headers(matched, names, progress)
    images = {**listing.images}
    for image_id, path in matched.files.items():
        images[image_id] = {**images[image_id], "file_name": path.relative_to(folder).as_posix()}
    extents = _Extents(annotations)
    wanted = {image_id: image_size(images[image_id]) for image_id in sizes}
    turned = [i for i, found in sizes.items() if wanted[i] == found.stored != found.upright]
    exchanged = [i for i, found in sizes.items() if wanted[i] == found.upright[::-1] != found.stored]
    exchanged = [i for i in exchanged if wanted[i] != sizes[i].upright]
    for group, kind in ((turned, "exif_ignored"), (exchanged, "picture_size")):
        exchange = bool(group) and extents.need_exchange({i: wanted[i] for i in group})
        for image_id in group:
            _report_turned(matched, names[image_id], matched.files[image_id], sizes[image_id], kind, exchange)
            if exchange:
                height, width = sizes[image_id].upright
                images[image_id] = {**images[image_id], "height": height, "width": width}
    for image_id in sizes.keys() - {*turned, *exchanged}:
        if wanted[image_id] != sizes[image_id].upright:
            problem = _size_text(sizes[image_id].upright, wanted[image_id])
            _add(matched, "picture_size", names[image_id], problem, matched.files[image_id])
    broken = {path for finding, path in zip(matched.findings, matched.paths) if finding.severity == "error"}
    matched.files = {image_id: path for image_id, path in matched.files.items() if path not in broken}
    matched.listing = replace(listing, images=images)
    return matched


def _find_files(listing: Listing, folder: Path) -> dict[int, Path]:
    """Path of the picture of each image, without those that are not found; a file serves adapted names once."""
    pictures = PictureFolder(folder)
    found = {image_id: pictures.find(image["file_name"]) for image_id, image in listing.images.items()}
    uses: defaultdict[Path | None, int] = defaultdict(int)
    for path, _ in found.values():
        uses[path] += 1
    return {i: path for i, (path, adapted) in found.items() if path is not None and not (adapted and uses[path] > 1)}


def _add(matched: MatchedPictures, kind: str, name: str, problem: str, path: Path) -> None:
    """Add a finding about a picture."""
    matched.findings.append(Finding(kind, f"picture {name}", problem))
    matched.paths.append(path)


def _report_lost(matched: MatchedPictures, name: str) -> None:
    """Report a picture that was not found."""
    path = picture_path(matched.folder, name)
    if path is None:
        _add(matched, "picture_outside_folder", name, f"lies outside the folder {matched.folder}", Path(name))
    else:
        _add(matched, "picture_missing", name, f"does not exist in {matched.folder}", path)


def _read_headers(matched: MatchedPictures, names: dict[int, str], progress: bool | None) -> dict[int, PictureSizes]:
    """Sizes of the pictures that were found; those that cannot be read are reported and left out."""

    def read(path: Path) -> PictureSizes | str:
        try:
            return read_sizes(path)
        except DynaMaskError as error:
            return str(error).removeprefix(f"picture {path}").strip()

    with ThreadPoolExecutor(THREADS) as pool:
        answers = pool.map(read, matched.files.values())
        bar = tqdm(
            answers,
            "reading picture headers",
            total=len(matched.files),
            unit="picture",
            disable=None if progress is None else not progress,
            delay=2 if progress is None else 0,
            dynamic_ncols=True,
            leave=False,
        )
        found = dict(zip(matched.files, bar))
    for image_id, answer in found.items():
        if isinstance(answer, str):
            _add(matched, "picture_unreadable", names[image_id], answer, matched.files[image_id])
    return {image_id: answer for image_id, answer in found.items() if not isinstance(answer, str)}


def _size_text(found: tuple[int, int], wanted: tuple[int, int]) -> str:
    """What is wrong with a picture of another (height, width) than its entry has, as a predicate."""
    return f"is {found[1]} x {found[0]} pixels and not {wanted[1]} x {wanted[0]} as its annotations say"


def _report_turned(
    matched: MatchedPictures, name: str, path: Path, sizes: PictureSizes, kind: str, exchange: bool
) -> None:
    """Report a picture whose entry has width and height exchanged, or the size before its EXIF rotation."""
    text = _size_text(sizes.upright, sizes.upright[::-1])
    if exchange:
        _add(matched, "size_exchanged", name, text, path)
    elif kind == "exif_ignored":
        _add(matched, kind, name, f"{text}; without its EXIF rotation it fits", path)
    else:
        _add(matched, kind, name, f"{text} (width and height are exchanged)", path)


class _Extents:
    """How far the annotated objects of each image reach."""

    def __init__(self, annotations: list[Any]) -> None:
        """Keep the annotations of a file, which need not be sound."""
        self.annotations = annotations

    def need_exchange(self, sizes: dict[int, tuple[int, int]]) -> bool:
        """Whether objects reach beyond these sizes (height, width) of images, and none beyond the exchanged ones."""
        needed = False
        for annotation in self.annotations:
            image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
            size = sizes.get(image_id) if isinstance(image_id, int) else None
            if size is None:
                continue
            reach = _reach(annotation)
            if _beyond(reach, size[::-1]):
                return False
            needed = needed or _beyond(reach, size)
        return needed


def _reach(annotation: dict[str, Any]) -> tuple[float, float]:
    """The largest (y, x) of the polygons of an annotation, or the size of its run-length mask, in pixels."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        sound = isinstance(size, list) and len(size) == 2 and all(is_number(value) for value in size)
        return (size[0], size[1]) if sound else (0, 0)
    points = [
        polygon
        for polygon in (segmentation if isinstance(segmentation, list) else ())
        if isinstance(polygon, list) and all(is_number(value) for value in polygon)
    ]
    across = max((value for polygon in points for value in polygon[0::2]), default=0.0)
    down = max((value for polygon in points for value in polygon[1::2]), default=0.0)
    return down, across


def _beyond(reach: tuple[float, float], size: tuple[int, int]) -> bool:
    """Whether (y, x) lies outside (height, width) by more than the slack of drawn boxes."""
    return reach[0] > size[0] + BOX_SLACK or reach[1] > size[1] + BOX_SLACK
