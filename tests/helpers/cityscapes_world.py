"""A small Cityscapes folder for tests: the published layout, labels drawn by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (60, 80)


def labels(*blocks: tuple[int, int, int, int, int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Road (7) with blocks (id, x, y, width, height) laid on it in turn."""
    values = np.full(size, 7, dtype=np.int32)
    for value, x, y, width, height in blocks:
        values[y : y + height, x : x + width] = value
    return values


def add_picture(root: Path, split: str, name: str, values: np.ndarray) -> tuple[Path, Path]:
    """Write a picture whose colours are its labels, and the labels; the city is the name's first word."""
    city = name.split("_")[0]
    picture = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    file = root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png"
    for path in (picture, file):
        path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.stack([values % 251, values // 251 % 251, values % 17], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(picture)
    Image.fromarray(values.astype(np.uint16)).save(file)
    return picture, file


def make_cityscapes(root: Path) -> Path:
    """Two training pictures (one without a thing) and two to validate on, one of them with every kind of region."""
    add_picture(root, "train", "bonn_000001_000019", labels((26000, 4, 4, 30, 20), (24001, 40, 8, 12, 30)))
    add_picture(root, "train", "bonn_000000_000019", labels((0, 0, 50, 80, 10)))
    add_picture(
        root,
        "val",
        "ulm_000000_000019",
        labels(
            (26, 0, 0, 20, 10),
            (26000, 4, 12, 30, 20),
            (26001, 50, 40, 9, 9),
            (24000, 40, 8, 12, 30),
            (29000, 60, 0, 10, 10),
            (4, 0, 50, 80, 10),
        ),
    )
    add_picture(root, "val", "aachen_000000_000019", labels((33000, 10, 10, 20, 20), (25000, 12, 4, 10, 10)))
    return root
