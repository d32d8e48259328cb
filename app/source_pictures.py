"""Pictures before they are analysed: bundled examples, generated scenes and uploads."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dynamask.data.shapes import make_scene
from dynamask.structures import DynaMaskError

EXAMPLES_DIR = Path(__file__).resolve().parent / "examples"
SCENES = ((7, 18, None), (7, 24, None), (7, 1, 0.15), (7, 17, 0.85))
"""(seed, index, difficulty) of the scenes offered beside the photographs; None means mixed."""


@dataclass(frozen=True)
class SourcePicture:
    """A picture and where it comes from.

    Attributes:
        kind: "example", "scene" or "own".
        key: file name of an example, or "seed:index:difficulty" of a scene; empty for an upload.
        title: shown on the page; for an upload it comes from outside and is never HTML.
        credit: author, licence and source, if known.
        source: what `read_picture` takes: the file's bytes, a path or an array.
        truth: (N, H, W) bool masks of a scene, else None.
    """

    kind: str
    key: str
    title: str
    credit: str
    source: Any = field(repr=False)
    truth: npt.NDArray[np.bool_] | None = field(default=None, repr=False)


def find_examples(folder: Path = EXAMPLES_DIR) -> list[SourcePicture]:
    """The photographs (*.jpg) of a folder, in the order of its ATTRIBUTION.csv; files it does not name come last.

    Columns: `file_name`; optional `title`, `author`, `license`, `source`.
    """
    table = folder / "ATTRIBUTION.csv"
    rows: dict[str, dict[str, str]] = {}
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            rows = {row["file_name"]: row for row in csv.DictReader(file) if row.get("file_name")}
    present = {path.name: path for path in sorted(folder.glob("*.jpg"))}
    examples = []
    for name in dict.fromkeys([*(name for name in rows if name in present), *present]):
        row = rows.get(name, {})
        credit = " · ".join(row[key] for key in ("author", "license", "source") if row.get(key))
        title = row.get("title") or Path(name).stem.replace("_", " ").replace("-", " ")
        examples.append(SourcePicture("example", name, title, credit, present[name]))
    return examples


def scene_picture(seed: int, index: int, difficulty: float | None) -> SourcePicture:
    """A scene of the shapes data set with its true masks; a difficulty of None is drawn for each object."""
    scene = make_scene(seed, index, detail=difficulty)
    word = "mixed" if difficulty is None else f"{difficulty:g}"
    title = f"Shapes scene {index} of seed {seed}, difficulty {word}"
    key = f"{seed}:{index}:{word}"
    return SourcePicture("scene", key, title, "made by dynamask.data.shapes", scene.image, scene.masks)


def read_upload(path: Any, folder: Path) -> bytes:
    """The bytes of an uploaded file.

    Bytes instead of the path are given on, so that no error message names where files are kept.

    Args:
        path: of the file on the server, as the client sends it.
        folder: where uploads are stored.

    Raises:
        DynaMaskError: the path is not in the folder, or not a file.
    """
    text = str(path).replace("\0", "").encode("utf-8", errors="replace").decode()  # a name may hold lone surrogates
    file = Path(text).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        raise DynaMaskError("this file was not uploaded here; upload the picture again")
    return file.read_bytes()
