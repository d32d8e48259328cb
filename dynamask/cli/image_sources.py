"""The pictures that ``--image`` names by files, folders, patterns and lists, and the names of their results."""

from __future__ import annotations

import glob
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from dynamask.files import system_reason
from dynamask.structures import DynaMaskError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes, in lower case, of the files that are taken from folders."""


@dataclass(frozen=True)
class PictureFile:
    """A picture on the disk.

    Attributes:
        path: of the file.
        name: of its results, without a suffix; it may have folders.
        image_id: of its results.
    """

    path: Path
    name: str
    image_id: int


def find_pictures(sources: Sequence[str], out: Path, image_ids: Path | None = None) -> list[PictureFile]:
    """The pictures that the values of ``--image`` name, each once.

    Args:
        sources: files, folders (all pictures below them in the order of their names), patterns as of :mod:`glob`, in
            which ``**`` stands for any folders, and ``@FILE``, a text file with one of these in each line.
        out: folder of the results, whose files are not taken from folders and patterns.
        image_ids: JSON file whose list ``images`` gives the ``id`` of each ``file_name``; without it the pictures are
            numbered from 1.

    Returns:
        The pictures. The results of one are called as the file, without its suffix; below folders and patterns they
        keep the folders. Where names would be equal, the folders that tell the files apart come before them, or the
        suffix is kept. Single files are not checked to exist.

    Raises:
        DynaMaskError: a folder, pattern or list names no picture, results would overwrite a picture or each other, or
            a picture has no image id.
    """
    found: dict[str, tuple[Path, PurePath]] = {}
    for source in sources:
        for path, relative in _expand(source, os.path.abspath(out)):
            found.setdefault(os.path.abspath(path), (path, relative))
    paths, names = [path for path, _ in found.values()], _result_names(list(found.values()))
    written = {os.path.abspath(out / (name + suffix)) for name in names for suffix in (".png", ".json")}
    for path in paths:
        if os.path.abspath(path) in written:
            raise DynaMaskError(f"results would overwrite {path}; give another --out")
    ids = range(1, len(paths) + 1) if image_ids is None else _listed_ids(image_ids, paths)
    return [PictureFile(*one) for one in zip(paths, names, ids)]


def _expand(source: str, out: str, listed: bool = False) -> Iterator[tuple[Path, PurePath]]:
    """The files that one value names, each with its path below the folder or the fixed part of the pattern."""
    if source.startswith("@") and not listed:
        for line in _lines(Path(source[1:])):
            yield from _expand(line, out, listed=True)
    elif os.path.isdir(source):
        files = [path for path in _below(source) if path.suffix.lower() in SUFFIXES and not _is_below(path, out)]
        if not files:
            raise DynaMaskError(f"the folder {source} holds no picture (outside --out); give one with pictures")
        yield from ((path, path.relative_to(source)) for path in files)
    elif not os.path.lexists(source) and glob.has_magic(source):
        files = [Path(name) for name in sorted(glob.glob(source, recursive=True)) if not os.path.isdir(name)]
        files = [path for path in files if not _is_below(path, out)]
        if not files:
            raise DynaMaskError(f"no file fits the pattern {source} (outside --out); check it")
        root = Path(*_fixed_parts(source))
        yield from ((path, path.relative_to(root)) for path in files)
    else:
        yield Path(source), PurePath(PurePath(source).name)


def _lines(path: Path) -> list[str]:
    """The lines of a list that are not empty, paths relative to the working directory, or else to the list."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise DynaMaskError(f"the list {path} is no text file; give a file with one picture in each line")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()]
    except (OSError, ValueError) as error:
        reason = system_reason(error) or str(error)
        raise DynaMaskError(f"the list {path} cannot be read ({reason}); check its path") from error
    lines = [line for line in lines if line]
    if not lines:
        raise DynaMaskError(f"the list {path} is empty; write one picture in each line")
    beside = [str(path.parent / line) for line in lines]
    return [
        there if not os.path.lexists(line) and os.path.lexists(there) else line for line, there in zip(lines, beside)
    ]


def _below(folder: str) -> Iterator[Path]:
    """All files below a folder in the order of their names, without hidden ones."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def _is_below(path: Path, folder: str) -> bool:
    """Whether a file is in an absolute folder, or in one below it."""
    return folder in map(str, Path(os.path.abspath(path)).parents)


def _fixed_parts(pattern: str) -> list[str]:
    """The folders of a pattern before the first part with a wildcard."""
    parts = PurePath(pattern).parts[:-1]
    return list(parts[: next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))])


def _result_names(found: Sequence[tuple[Path, PurePath]]) -> list[str]:
    """Different names of the results of files, given with their paths below a source."""
    names = [(relative.parent / relative.stem).as_posix() for _, relative in found]
    for same in _equal(names):
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(found[number][0])) for number in same])
        longer = [PurePath(os.path.relpath(found[number][0], folder)) for number in same]
        choices = (
            [found[number][1].as_posix() for number in same],
            [(path.parent / path.stem).as_posix() for path in longer],
            [path.as_posix() for path in longer],
        )
        distinct = next((choice for choice in choices if len(set(choice)) == len(same)), choices[-1])
        for number, name in zip(same, distinct):
            names[number] = name
    for first, second, *_ in _equal(names):
        raise DynaMaskError(
            f"{found[first][0]} and {found[second][0]} would have the same results, {names[first]}.json; rename one, "
            "or predict them one after the other with another --out"
        )
    return names


def _equal(names: Sequence[str]) -> list[list[int]]:
    """The positions of names that occur more than once."""
    places = defaultdict(list)
    for number, name in enumerate(names):
        places[name].append(number)
    return [same for same in places.values() if len(same) > 1]


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file; :class:`DynaMaskError` if it cannot be read, which calls it ``what``."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise DynaMaskError(f"{what} {path} is no regular file; give a JSON file")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DynaMaskError):
            raise
        reason = system_reason(error) or "it is not valid JSON"
        raise DynaMaskError(f"{what} {path} cannot be read ({reason}); give a JSON file") from error


def _listed_ids(source: Path, paths: Sequence[Path]) -> list[int]:
    """The ids of pictures in a JSON file: those of the longest end of their path that is a ``file_name`` there."""
    content = read_json(source, "image ids")
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise DynaMaskError(f"{source} lists no images; give COCO annotations, or a JSON object with the list images")
    ids: dict[str, Any] = {}
    ends = defaultdict(set)
    for image in images:
        name, number = (image.get("file_name"), image.get("id")) if isinstance(image, dict) else (None, None)
        if not isinstance(name, str) or isinstance(number, bool) or not isinstance(number, int):
            raise DynaMaskError(f"an image of {source} has no file_name or no whole number as id; correct it")
        ids[_plain(name)] = number
        ends[_plain(name).rpartition("/")[2]].add(number)
    found = [_id_of(_plain(os.path.abspath(path)).split("/"), ids, ends) for path in paths]
    missing = [path for path, number in zip(paths, found) if number is None]
    if missing:
        raise DynaMaskError(
            f"{source} has no image id for {len(missing)} of {len(paths)} pictures, the first is {missing[0]}; give "
            "the file that lists them, or leave them out"
        )
    return found


def _plain(name: str) -> str:
    """A path with "/" between folders and composed characters."""
    return os.path.normpath(unicodedata.normalize("NFC", name.replace("\\", "/"))).replace(os.sep, "/")


def _id_of(parts: list[str], ids: dict[str, int], ends: dict[str, set[int]]) -> int | None:
    """The id of a path given in parts; the last part alone suffices if it is listed once."""
    for start in range(len(parts)):
        if (end := "/".join(parts[start:])) in ids:
            return ids[end]
    only = ends.get(parts[-1], set())
    return next(iter(only)) if len(only) == 1 else None
